"""A PostgreSQL a session, and a database a test."""

from collections.abc import AsyncIterator, Iterator

import pytest

from romancy.base.settings import DatabaseSettings
from tests import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.Server]:
    """A running server, version 18."""
    with postgres.server(postgres.embedded_binaries()) as server:
        yield server


@pytest.fixture
async def database(postgres_server: postgres.Server) -> AsyncIterator[DatabaseSettings]:
    """Settings of an empty database whose schema is up to date."""
    settings = await postgres_server.migrated_database()
    yield settings
    await postgres_server.give_back(settings)
