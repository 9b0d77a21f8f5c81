"""A fleet of real processes a test; afterwards the database holds what was promised."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import Fleet, all_holds


@pytest.fixture
async def fleet(database: DatabaseSettings, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(database, tmp_path) as fleet:
        yield fleet
    await all_holds(database)
