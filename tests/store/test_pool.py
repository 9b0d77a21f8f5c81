"""Foreign errors become ours where they enter."""

import asyncio
from typing import Any

import asyncpg
import pytest

from romancy.base.settings import DatabaseSettings
from romancy.errors import PayloadRefusedError, StoreError, StoreUnavailableError
from romancy.store.pool import EngineBackend, EngineConnection, application_name, as_ours, unavailable_as_ours
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (asyncpg.ConnectionDoesNotExistError("gone"), StoreUnavailableError),
        (asyncpg.InterfaceError("connection is closed"), StoreUnavailableError),
        (asyncpg.TooManyConnectionsError("53300"), StoreUnavailableError),
        (ConnectionRefusedError("111"), StoreUnavailableError),
        (TimeoutError("late"), StoreUnavailableError),
        (asyncpg.DeadlockDetectedError("40P01"), StoreUnavailableError),
        (asyncpg.CharacterNotInRepertoireError("22021"), PayloadRefusedError),
        (asyncpg.UniqueViolationError("23505"), PayloadRefusedError),
        (asyncpg.UndefinedTableError("42P01"), StoreError),
    ],
)
def test_what_the_database_says_is_said_in_our_words(foreign: Exception, ours: type[StoreError]) -> None:
    with pytest.raises(ours) as caught, unavailable_as_ours():
        raise foreign

    assert type(caught.value) is ours
    assert caught.value.__cause__ is foreign
    assert type(foreign).__name__ in str(caught.value)


def test_a_text_that_never_left_is_a_refusal() -> None:
    from asyncpg.exceptions._base import DataError

    assert isinstance(as_ours(DataError("invalid input")), PayloadRefusedError)


def test_backends_carry_the_worker() -> None:
    """Ids count per schema, so those of another schema must not be ended with ours."""
    settings = DatabaseSettings()

    assert application_name(settings, 7) == "romancy 7"
    assert application_name(settings.model_copy(update={"schema_name": "other"}), 7) == "romancy 7 other"
    assert len(application_name(settings.model_copy(update={"schema_name": "x" * 63}), 2**62)) == 63


async def test_a_connection_has_the_settings_of_the_engine(database: DatabaseSettings, store: PostgresStore) -> None:
    """And both pools: one with our plans, one with PostgreSQL's."""
    names = ("search_path", "lock_timeout", "statement_timeout", "enable_seqscan", "plan_cache_mode")
    shown = ", ".join(f"current_setting('{name}') as {name}" for name in (*names, "transaction_isolation"))
    question = (f"select {shown}",)
    connection = EngineConnection(database, name="romancy 1")
    [engine] = await connection.fetch(question)
    await connection.close()

    assert tuple(engine) == ("romancy", "5s", "10s", "off", "force_generic_plan", "read committed")
    assert [tuple(row) for row in await store._fetch(question)] == [tuple(engine)]
    [listing] = await store._list(question)
    assert (listing["enable_seqscan"], listing["plan_cache_mode"]) == ("on", "force_custom_plan")


async def test_a_connection_is_opened_anew(database: DatabaseSettings, connect: Any) -> None:
    connection, killer = EngineConnection(database, name="romancy 1"), await connect()
    [first] = await connection.fetch(("select pg_backend_pid() as pid",))
    waiting = asyncio.create_task(connection.fetch(("select pg_sleep(60)",)))
    while not await killer.fetchval(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where query = 'select pg_sleep(60)'"
    ):
        pass
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await waiting

    [second] = await connection.fetch(("select pg_backend_pid() as pid",))
    await connection.close()

    assert first["pid"] != second["pid"]


async def test_an_error_of_a_statement_leaves_the_connection(database: DatabaseSettings) -> None:
    connection = EngineConnection(database, name="romancy 1")
    [first] = await connection.fetch(("select pg_backend_pid() as pid",))
    for bad in [("select 1 / 0",), ("select $1::int", 2**40), ("select $1::text", "\ud800")]:
        with pytest.raises(Exception, match=r"."):
            await connection.fetch(bad)
    [second] = await connection.fetch(("select pg_backend_pid() as pid",))
    await connection.close()

    assert first["pid"] == second["pid"]


async def test_plans_are_made_anew(
    database: DatabaseSettings, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that was made while a table was empty reads all of it for each row, once it is full."""
    monkeypatch.setattr(EngineBackend, "replan_seconds", (0.0,))
    sent: list[str] = []

    async def execute(self: EngineBackend, query: str) -> None:
        sent.append(query)
        await asyncpg.Connection.execute(self, query)

    monkeypatch.setattr(EngineBackend, "execute", execute, raising=False)
    connection = EngineConnection(database, name="romancy 1")
    for _ in range(3):
        await connection.fetch(SQL.now())
        await store.now()
    await connection.close()

    assert sent == ["discard plans"] * 4  # each time but the first, on both connections
