"""A PostgreSQL a session, a database a test; the wheel in a clean venv."""

from collections.abc import AsyncIterator, Iterator

import pytest

from romancy.base.settings import DatabaseSettings
from tests import postgres
from tests.controlplane.fixtures import another_namespace, cluster, namespace
from tests.packaging.installed import Installed

__all__ = ["another_namespace", "cluster", "namespace"]


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


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel as a user has it."""
    return Installed.make(tmp_path_factory.mktemp("installed"))
