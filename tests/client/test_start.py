"""When a run begins: not before its delay, and the best priority first."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from romancy import App, Client, WorkflowContext, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import RunCancelledError, at
from romancy.model.message import message_of
from romancy.model.run import Phase, Reason

SETTINGS = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1)
HOUR = timedelta(hours=1)
order: list[str] = []


@workflow
async def notes(ctx: WorkflowContext, what: str) -> str:
    order.append(what)
    return what


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    order.clear()
    async with Client(database) as client:
        yield client


async def test_a_delayed_run_says_until_when_and_a_cancel_ends_it_at_once(client: Client) -> None:
    before = await client.store.now()
    handle = await client.start(notes.options(id="later", delay=HOUR), "x")
    after = await client.store.now()

    run = await handle.info()
    assert run.wake_at is not None
    assert before + HOUR <= run.wake_at <= after + HOUR
    assert (run.phase, run.reason) == (Phase.PENDING, Reason.DELAYED)
    assert message_of(run) == f"the run is delayed until {at(run.wake_at)}; then the first free worker takes it"
    assert [each.name for each in await client.list(phases=["Pending"])] == ["later"]

    assert await handle.cancel("not needed")  # and no worker is there that could end it
    with pytest.raises(RunCancelledError, match="not needed"):
        await handle.result(timeout=5)
    assert (await handle.info()).started_at is None


@pytest.mark.parametrize("by", ["App", "Client"])
async def test_a_delayed_run_begins_not_before_its_time(database: DatabaseSettings, client: Client, by: str) -> None:
    async with App(database, [notes], worker=SETTINGS) as app:
        starter = app if by == "App" else client
        delayed = await starter.start(notes.options(delay=timedelta(seconds=0.7)), "delayed")
        prompt = await starter.start(notes, "prompt")
        due_at = (await delayed.info()).wake_at
        await prompt.result()

        assert await delayed.result(timeout=10) == "delayed"
        run = await delayed.info()

    assert order == ["prompt", "delayed"]
    assert due_at is not None
    assert run.started_at is not None
    assert due_at <= run.started_at < due_at + timedelta(seconds=5)
    assert (run.phase, run.reason) == (Phase.SUCCEEDED, "")


async def test_starting_a_delayed_run_again_changes_nothing(client: Client) -> None:
    first = await (await client.start(notes.options(id="once", delay=HOUR), "x")).info()
    second = await (await client.start(notes.options(id="once", delay=2 * HOUR), "x")).info()

    assert second == first


async def test_the_best_priority_begins_first(database: DatabaseSettings, client: Client) -> None:
    """With one slot, so that they begin one after the other; among equals the first that was started."""
    for name, priority in (("low", -5), ("first", 0), ("second", 0), ("high", 7), ("highest", 1000)):
        await client.start(notes.options(id=name, priority=priority), name)
    assert {run.name: run.priority for run in await client.list(limit=9)}["high"] == 7

    async with App(database, [notes], worker=SETTINGS.model_copy(update={"slots": 1})) as app:
        for name in ("low", "first", "second", "high", "highest"):
            await app.handle(name).result(timeout=10)

    assert order == ["highest", "high", "first", "second", "low"]


@pytest.mark.parametrize("priority", [1001, -1001])
def test_a_priority_out_of_its_range(priority: int) -> None:
    with pytest.raises(ValueError, match=f"priority must be -1000 to 1000, not {priority}"):
        notes.options(priority=priority)


def test_a_negative_delay() -> None:
    with pytest.raises(ValueError, match="delay must not be negative"):
        notes.options(delay=timedelta(seconds=-1))
