"""The store on every PostgreSQL that is here: modules that say `ON_EVERY_POSTGRES = True` run on each."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest

from romancy.base.settings import DatabaseSettings
from romancy.store.postgres import PostgresStore
from tests import postgres
from tests.store.hands import Hands


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "postgres_server" in metafunc.fixturenames:
        versions = ["18", "15"] if getattr(metafunc.module, "ON_EVERY_POSTGRES", False) else ["18"]
        metafunc.parametrize("postgres_server", versions, indirect=True, scope="session")


@pytest.fixture(scope="session")
def postgres_server(request: pytest.FixtureRequest) -> Iterator[postgres.Server]:
    """A running server of the version that is asked for."""
    if request.param == "15" and not postgres.DEBIAN.exists():
        pytest.skip(f"there is no PostgreSQL 15 at {postgres.DEBIAN}")
    binaries = postgres.DEBIAN if request.param == "15" else postgres.embedded_binaries()
    with postgres.server(binaries) as server:
        yield server


@pytest.fixture
async def store(database: DatabaseSettings) -> AsyncIterator[PostgresStore]:
    """An open store on a fresh database."""
    async with PostgresStore(database) as store:
        yield store


@pytest.fixture
async def connect(database: DatabaseSettings) -> AsyncIterator[Callable[..., Awaitable[Any]]]:
    """Opens connections of the test's own to the same schema, and closes them."""
    opened = []

    async def open_one(**settings: str) -> Any:
        server_settings = {"search_path": database.schema_name, "application_name": "test", **settings}
        connection = await asyncpg.connect(database.url.get_secret_value(), server_settings=server_settings)
        opened.append(connection)
        return connection

    yield open_one
    for connection in opened:
        connection.terminate()


@pytest.fixture
def rewind(connect: Callable[..., Awaitable[Any]]) -> Callable[[float], Awaitable[None]]:
    """Lets the database's time pass: stored times grow older."""

    async def rewind_by(seconds: float) -> None:
        connection = await connect()
        for table, column in (
            ("worker", "expires_at"),
            ("due", "wake_at"),
            ("mirror", "mirror_at"),
            ("run", "finished_at"),
            ("run", "resource_due_at"),
            ("burial_check", "checked_at"),
            ("purge_check", "checked_at"),
            ("emitter", "due_at"),
            ("emitter", "failing_since"),
            ("dead_letter", "died_at"),
        ):
            await connection.execute(f"update {table} set {column} = {column} - make_interval(secs => $1)", seconds)

    return rewind_by


@pytest.fixture
def hands(store: PostgresStore) -> Callable[..., Awaitable[Hands]]:
    """Registers a worker, and gives what it claims and writes with."""

    async def register(**changes: Any) -> Hands:
        return await Hands.of(store, **changes)

    return register
