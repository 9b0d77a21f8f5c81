"""A fleet of real processes a test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import Fleet


@pytest.fixture
async def fleet(database: DatabaseSettings, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(database, tmp_path) as fleet:
        yield fleet
