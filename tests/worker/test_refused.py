"""A payload that the database refuses fails its run alone."""

import asyncio

import asyncpg
import pytest

from romancy import App, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import PayloadRefusedError
from romancy.model.run import Phase, Reason


@activity
async def say(word: str) -> str:
    return word


@workflow
async def says_twice(word: str) -> str:
    await say("harmless")
    return await say(word)


@workflow
async def returns_at_once(word: str) -> str:
    return word


@pytest.fixture
async def picky(database: DatabaseSettings) -> DatabaseSettings:
    """A database that refuses one word, in histories and in outputs."""
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        await connection.execute(f"""
            set search_path = {database.schema_name};
            alter table history add constraint no_poison check (payload <> '"poison"');
            alter table run add constraint no_poison check (output is null or output <> '"poison"');
        """)
    finally:
        await connection.close()
    return database


@pytest.fixture(autouse=True)
async def _as_it_was(database: DatabaseSettings) -> object:
    yield
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        await connection.execute(f"""
            set search_path = {database.schema_name};
            alter table history drop constraint if exists no_poison;
            alter table run drop constraint if exists no_poison;
        """)
    finally:
        await connection.close()


async def test_a_refused_result_fails_its_run_alone(picky: DatabaseSettings) -> None:
    """All are flushed together."""
    words = ["a", "b", "poison", "c", "d"]
    async with App(picky, [says_twice], worker=WorkerSettings(name="w", poll_seconds=1)) as app:
        handles = [await app.start(says_twice.options(id=f"run-{word}"), word) for word in words]
        found = await asyncio.gather(*(handle.result(timeout=10) for handle in handles), return_exceptions=True)
        run = await handles[2].info()
        history = await app.store.read_history(run.id)

    assert [word for word in found if isinstance(word, str)] == ["a", "b", "c", "d"]
    assert isinstance(found[2], PayloadRefusedError)
    assert (run.phase, run.reason) == (Phase.FAILED, Reason.PAYLOAD_REFUSED)
    assert "no_poison" in run.message
    assert [entry.payload for entry in history] == ['"harmless"']


async def test_a_refused_output_of_a_run_that_begins_and_ends_in_one_flush(picky: DatabaseSettings) -> None:
    async with App(picky, [returns_at_once], worker=WorkerSettings(name="w", poll_seconds=1)) as app:
        handle = await app.start(returns_at_once.options(id="poisoned"), "poison")
        fine = await app.start(returns_at_once, "fine")

        assert await fine.result(timeout=10) == "fine"
        with pytest.raises(PayloadRefusedError):
            await handle.result(timeout=10)
        assert (await handle.info()).reason == Reason.PAYLOAD_REFUSED
