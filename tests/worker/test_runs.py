"""Whole runs in one process on a real PostgreSQL: attempts, timers, cancellation, suspension, what bad input gets."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from pydantic import BaseModel

from romancy import NO_RETRY, App, Client, Handle, RetryPolicy, TerminalError, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import (
    ActivityError,
    ActivityTimeoutError,
    InputInvalidError,
    PayloadNotFaithfulError,
    RunCancelledError,
    RunExistsError,
    RunTimedOutError,
)
from romancy.model.history import Kind
from romancy.model.message import message_of
from romancy.model.run import NewRun, Phase, Reason, Run
from romancy.sdk.workflow import Workflow

QUICK = RetryPolicy(max_attempts=4, initial_interval=timedelta(milliseconds=10), jitter=0)
SETTINGS = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1, park_after_seconds=0.2)


@asynccontextmanager
async def running(
    database: DatabaseSettings, *workflows: Workflow[..., Any], settings: WorkerSettings = SETTINGS
) -> AsyncIterator[App]:
    async with App(database, workflows, worker=settings) as app:
        yield app


async def until(holds: Callable[[], Awaitable[object]], what: str, *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.01)


async def in_phase(handle: Handle[Any], phase: Phase) -> Run:
    async def is_there() -> bool:
        return (await handle.info()).phase is phase

    await until(is_there, f"the run is {phase}")
    return await handle.info()


# --- flushes -------------------------------------------------------------------------------------------------------------


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow
async def doubles(count: int) -> int:
    total = 0
    for number in range(count):
        total += await double(number)
    return total


@pytest.mark.parametrize("count", [0, 1, 5, 20])
async def test_n_activities_in_a_row_cost_n_plus_1_flushes(database: DatabaseSettings, count: int) -> None:
    async with running(database, doubles) as app:
        before = app.worker.journal.flushes
        handle = await app.start(doubles, count)
        assert await handle.result() == sum(2 * number for number in range(count))
        flushes = app.worker.journal.flushes - before

    assert flushes == count + 1


# --- attempts -------------------------------------------------------------------------------------------------------------

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


class DeclinedError(Exception):
    """Has an `__init__` of its own, so it can only be rebuilt without it."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"declined with {code}")
        self.code, self.detail = code, detail


@activity(retry=QUICK)
async def fails(times: int) -> str:
    info = activity.info()
    calls.append((info.attempt, info.idempotency_key))
    if len(calls) <= times:
        raise DeclinedError(len(calls), detail="no funds")
    return f"in attempt {info.attempt}"


@workflow
async def tries(times: int) -> str:
    try:
        return await fails(times)
    except DeclinedError as error:
        return f"caught {error.code} {error.detail}"


async def test_an_activity_is_tried_again_until_it_succeeds(database: DatabaseSettings) -> None:
    async with running(database, tries) as app:
        handle = await app.start(tries, 2)

        assert await handle.result() == "in attempt 3"
    assert [attempt for attempt, _ in calls] == [1, 2, 3]
    assert len({key for _, key in calls}) == 1


async def test_the_last_error_is_caught_by_its_type_when_retries_are_used_up(database: DatabaseSettings) -> None:
    async with running(database, tries) as app:
        handle = await app.start(tries, 99)

        assert await handle.result() == "caught 4 no funds"
    assert len(calls) == QUICK.max_attempts


class HopelessError(TerminalError):
    """Final by its type."""


@activity(retry=QUICK)
async def hopeless() -> None:
    calls.append("hopeless")
    raise HopelessError("give it up")


@activity(retry=RetryPolicy(max_attempts=9, non_retryable=(KeyError,)))
async def listed() -> None:
    calls.append("listed")
    raise KeyError("final here")


@workflow
async def final_errors() -> list[str]:
    found = []
    for call in (hopeless, listed):
        try:
            await call()
        except (HopelessError, KeyError) as error:
            found.append(type(error).__name__)
    return found


async def test_errors_that_are_final_are_not_retried(database: DatabaseSettings) -> None:
    async with running(database, final_errors) as app:
        assert await (await app.start(final_errors)).result() == ["HopelessError", "KeyError"]
    assert calls == ["hopeless", "listed"]


@activity(retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=10)), timeout=0.1)
async def too_slow() -> None:
    calls.append("slow")
    await asyncio.sleep(30)


@activity(retry=NO_RETRY, timeout=0.1)
def too_slow_in_a_thread() -> None:
    calls.append("thread")
    time.sleep(0.5)


@activity(retry=NO_RETRY)
async def exits() -> None:
    raise SystemExit(3)


@activity(retry=NO_RETRY)
def stops() -> None:
    raise StopIteration("a thread's future can't hold it")


@activity
def in_a_thread(number: int) -> str:
    return f"{number} {threading.current_thread() is not threading.main_thread()} {activity.info().attempt}"


@workflow
async def odd_ends() -> list[str]:
    found = [await in_a_thread(7)]
    for call in (too_slow, too_slow_in_a_thread, exits, stops):
        try:
            await call()
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
    return found


async def test_timeouts_threads_and_exits_of_activities(database: DatabaseSettings) -> None:
    async with running(database, odd_ends) as app:
        found = await (await app.start(odd_ends)).result()

    assert found[0] == "7 True 1"
    assert found[1].startswith(f"{ActivityTimeoutError.__name__}: activity 'too_slow' did not end within")
    assert found[2].startswith(f"{ActivityTimeoutError.__name__}: activity 'too_slow_in_a_thread'")
    assert found[3] == f"{ActivityError.__name__}: SystemExit: 3"
    assert found[4].startswith("RuntimeError") or "StopIteration" in found[4]
    assert calls == ["slow", "slow", "thread"]


@activity(retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=30), max_interval=timedelta(seconds=60)))
async def fails_for_long() -> None:
    raise ValueError("the service is down")


@workflow
async def long_backoff() -> None:
    await fails_for_long()


async def test_a_long_backoff_is_parked_and_says_what_comes_next(database: DatabaseSettings) -> None:
    async with running(database, long_backoff) as app:
        run = await in_phase(await app.start(long_backoff), Phase.WAITING)

    assert run.reason == Reason.RETRYING
    assert run.message.startswith("attempt 2 of activity 'fails_for_long' at ")
    assert run.message.endswith("ValueError: the service is down")


# --- timers, cancellation, timeouts ------------------------------------------------------------------------------------------


@workflow
async def sleeps(ctx: WorkflowContext, seconds: float) -> float:
    began = ctx.now()
    await asyncio.sleep(seconds)
    return (ctx.now() - began).total_seconds()


async def test_timers_fire_within_100_ms_parked_or_not(database: DatabaseSettings) -> None:
    async with running(database, sleeps) as app:
        handles = [await app.start(sleeps, seconds) for seconds in (0.1, 0.5, 0.8)]
        slept = [await handle.result() for handle in handles]

    assert [0 <= found - asked < 0.1 for asked, found in zip((0.1, 0.5, 0.8), slept, strict=True)] == [True] * 3, slept


@activity
async def take_room(what: str) -> str:
    calls.append(f"take_room {what}")
    return what


@take_room.compensate
async def leave_room(what: str) -> None:
    calls.append(f"leave_room {what}")


@activity
async def clean_up() -> None:
    calls.append("clean up")


@workflow
async def cancellable() -> None:
    await take_room("a")
    await take_room("b")
    try:
        await asyncio.sleep(3600)
    finally:
        await clean_up()


async def test_cancel_wakes_cleans_up_and_compensates(database: DatabaseSettings) -> None:
    async with running(database, cancellable) as app:
        handle = await app.start(cancellable)
        await in_phase(handle, Phase.WAITING)
        assert await handle.cancel("changed my mind")
        assert not await handle.cancel("again")

        with pytest.raises(RunCancelledError, match="changed my mind"):
            await handle.result()
        run = await handle.info()

    assert calls == ["take_room a", "take_room b", "clean up", "leave_room b", "leave_room a"]
    assert (run.phase, run.reason) == (Phase.CANCELLED, Reason.CANCELLED)


async def test_a_run_that_uses_up_its_timeout_fails_as_timed_out(database: DatabaseSettings) -> None:
    async with running(database, cancellable) as app:
        handle = await app.start(cancellable.options(timeout=timedelta(seconds=0.5)))
        with pytest.raises(RunTimedOutError, match=r"within its timeout of 0\.5 s"):
            await handle.result()
        run = await handle.info()

    assert (run.phase, run.reason) == (Phase.FAILED, Reason.TIMED_OUT)
    assert calls[-3:] == ["clean up", "leave_room b", "leave_room a"]


@workflow
async def raises_after_booking() -> None:
    await take_room("x")
    raise ValueError("no stock")


async def test_a_workflow_that_raises_fails_with_type_message_and_trace(database: DatabaseSettings) -> None:
    async with running(database, raises_after_booking) as app:
        handle = await app.start(raises_after_booking)
        with pytest.raises(ValueError, match="no stock"):
            await handle.result()
        run = await handle.info()

    assert run.failure is not None
    failure = json.loads(run.failure)
    assert (failure["type"], failure["message"]) == ("builtins.ValueError", "no stock")
    assert 'raise ValueError("no stock")' in failure["trace"]
    assert "operator/romancy" not in failure["trace"]
    assert (run.reason, run.message) == (Reason.WORKFLOW_FAILED, "ValueError: no stock")
    assert calls == ["take_room x", "leave_room x"]


# --- suspend ------------------------------------------------------------------------------------------------------------------


@activity
async def gated(name: str) -> str:
    calls.append(f"begin {name}")
    while f"open {name}" not in calls:  # noqa: ASYNC110 - the test opens it
        await asyncio.sleep(0.005)
    calls.append(f"end {name}")
    return name


@workflow
async def two_gates() -> list[str]:
    return [await gated("one"), await gated("two")]


async def test_suspended_activities_end_and_no_new_one_starts(database: DatabaseSettings) -> None:
    async with running(database, two_gates) as app:
        handle = await app.start(two_gates)
        await until(lambda: _true("begin one" in calls), "one begins")
        await handle.suspend()
        calls.append("open one")
        run = await in_phase(handle, Phase.SUSPENDED)
        history = await app.store.read_history(run.id)
        assert calls == ["begin one", "open one", "end one"]
        assert [entry.kind for entry in history] == [Kind.ACTIVITY_COMPLETED]
        assert message_of(run).startswith("suspended by its owner")
        calls.append("open two")
        await handle.resume()

        assert await handle.result() == ["one", "two"]


async def test_a_suspended_run_can_be_cancelled(database: DatabaseSettings) -> None:
    async with running(database, cancellable) as app:
        handle = await app.start(cancellable)
        await in_phase(handle, Phase.WAITING)
        await handle.suspend()
        await in_phase(handle, Phase.SUSPENDED)
        await handle.cancel()

        with pytest.raises(RunCancelledError):
            await handle.result()
    assert calls[-1] == "leave_room a"


async def _true(value: object) -> object:
    return value


# --- identity, and what bad input gets --------------------------------------------------------------------------------------


class Order(BaseModel):
    sku: str
    amount: int


@activity
async def sku_of(order: Order) -> str:
    calls.append("activity ran")
    return order.sku


@workflow
async def takes_order(order: Order) -> str:
    return await sku_of(order)


async def test_starting_twice_is_one_run_also_after_its_end(database: DatabaseSettings) -> None:
    async with running(database, takes_order) as app:
        start = takes_order.options(id="order-1")
        first = await app.start(start, Order(sku="a", amount=1))
        assert await first.result() == "a"
        second = await app.start(start, Order(sku="a", amount=1))

        assert second.id == first.id
        assert await second.result() == "a"
        with pytest.raises(RunExistsError, match="another input"):
            await app.start(start, Order(sku="b", amount=1))
        with pytest.raises(RunExistsError, match="another workflow"):
            await app.start(doubles.options(id="order-1"), 1)
        assert await app.handle("order-1").result() == "a"
        assert [run.name for run in await app.list(workflow="takes_order")] == ["order-1"]
    assert calls == ["activity ran"]


async def test_input_that_does_not_fit_fails_with_its_path_and_runs_no_code(database: DatabaseSettings) -> None:
    async with running(database, takes_order) as app:
        new = NewRun(uuid4(), "default", "bad", "takes_order", '{"sku": 1, "amount": "x"}')
        await app.store.start_runs([new])
        handle = app.handle(new.id)
        with pytest.raises(InputInvalidError, match=r"order\.sku: Input should be a valid string"):
            await handle.result()
        run = await handle.info()

    assert (run.phase, run.reason) == (Phase.FAILED, Reason.INPUT_INVALID)
    assert "order.amount" in run.message
    assert calls == []


@dataclass
class Money:
    amount: float


class Shown(BaseModel):
    amount: Any


@activity(retry=QUICK)
async def unfaithful() -> Shown:
    calls.append("unfaithful")
    return Shown(amount=Money(1.5))


@workflow
async def stores_what_changes() -> None:
    await unfaithful()


async def test_a_result_that_would_come_back_as_something_else_is_refused_at_once(database: DatabaseSettings) -> None:
    async with running(database, stores_what_changes) as app:
        with pytest.raises(PayloadNotFaithfulError, match=r"result of activity 'unfaithful'\.amount is .*Money"):
            await (await app.start(stores_what_changes)).result()
    assert calls == ["unfaithful"]


async def test_a_message_that_the_database_can_t_hold_is_made_storable(database: DatabaseSettings) -> None:
    @workflow(name="odd_message")
    async def odd_message() -> None:
        raise ValueError("a\x00b \ud800")

    async with running(database, odd_message) as app:
        with pytest.raises(ValueError, match="a\x00b"):
            await (await app.start(odd_message)).result()


async def test_a_run_of_an_unknown_workflow_waits_for_a_worker_that_has_it(database: DatabaseSettings) -> None:
    async with running(database, doubles) as app:
        new = NewRun(uuid4(), "default", "early", "takes_order", '{"sku": "late", "amount": 1}')
        await app.store.start_runs([new])
        await app.store.mark_stranded()
        run = await app.handle(new.id).info()
        assert (run.phase, run.reason) == (Phase.PENDING, Reason.WORKFLOW_NOT_REGISTERED)

        async with running(database, takes_order):
            assert await app.handle(new.id).result(timeout=10) == "late"


# --- changed code: Blocked, and heals ---------------------------------------------------------------------------------------


def _versions() -> dict[str, Workflow[[], str]]:
    @workflow(name="changing")
    async def old() -> str:
        await double(1)
        await asyncio.sleep(0.6)
        return f"old {await double(2)}"

    @workflow(name="changing")
    async def new() -> str:
        await take_room("surprise")
        await asyncio.sleep(0.6)
        return "new"

    return {"old": old, "new": new}


async def test_changed_code_blocks_a_run_and_fitting_code_heals_it(database: DatabaseSettings) -> None:
    versions = _versions()
    async with running(database, versions["old"], settings=SETTINGS.model_copy(update={"build_id": "1"})) as app:
        handle = await app.start(versions["old"])
        await in_phase(handle, Phase.WAITING)
        run_id = handle.id
    async with running(database, versions["new"], settings=SETTINGS.model_copy(update={"build_id": "2"})) as app:
        run = await in_phase(app.handle(run_id), Phase.BLOCKED)
        assert run.reason == Reason.NON_DETERMINISM
        assert (
            "at position 1 history says ActivityCompleted double#1, but the code asked for activity take_room#1"
            in run.message
        )
        assert calls == []
    async with running(database, versions["old"], settings=SETTINGS.model_copy(update={"build_id": "1b"})) as app:
        assert await app.handle(run_id).result(timeout=10) == "old 4"


# --- delivery order when nobody was there ---------------------------------------------------------------------------------------


@workflow
async def waits_for_first(ctx: WorkflowContext) -> str:
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        await clean_up()
        raise
    return "the timer was first" if ctx.now() > ctx.info.started_at else "the clock stood still"


async def three_hours_later(database: DatabaseSettings, *, mail_after_start: timedelta) -> None:
    """Stored times grow older, and the one message came at this time after the start of its run."""
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        await connection.execute(f"""
            set search_path = {database.schema_name};
            update due set started_at = started_at - interval '3 hours', wake_at = wake_at - interval '3 hours';
            update inbox set at = due.started_at + interval '{mail_after_start.total_seconds()} seconds'
              from due where due.id = inbox.run_id;
        """)
    finally:
        await connection.close()


@pytest.mark.parametrize("cancel_at", [-1800, 0, 1800])
async def test_what_happened_first_wins_though_the_worker_was_dead_in_between(
    database: DatabaseSettings, cancel_at: int
) -> None:
    """A cancel half an hour before the deadline, just at it, and after it; all is found hours later."""
    async with running(database, waits_for_first) as app:
        handle = await app.start(waits_for_first)
        await in_phase(handle, Phase.WAITING)
        run_id = handle.id
    async with Client(database) as client:
        await client.handle(run_id).cancel()
    await three_hours_later(database, mail_after_start=timedelta(seconds=3600 + cancel_at))
    async with running(database, waits_for_first) as app:
        handle = app.handle(run_id)
        if cancel_at < 0:
            with pytest.raises(RunCancelledError):
                await handle.result(timeout=10)
        else:
            assert await handle.result(timeout=10) == "the timer was first"
        history = await app.store.read_history((await handle.info()).id)

    first = Kind.CANCEL_REQUESTED if cancel_at < 0 else Kind.TIMER_FIRED
    assert history[0].kind is first


@workflow
async def spins() -> None:
    while True:  # noqa: ASYNC110 - this is what must not be done
        await asyncio.sleep(0)


async def test_a_step_without_end_is_blocked_and_others_go_on(database: DatabaseSettings) -> None:
    async with running(database, spins, doubles) as app:
        run = await in_phase(await app.start(spins), Phase.BLOCKED)
        assert await (await app.start(doubles, 2)).result() == 2

    assert run.reason == Reason.STEP_TOO_LONG
    assert "100,000 turns of its loop" in run.message
