"""One run on a journal whose flushes come when the test says so: what may happen before, between and instead of them."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from romancy import NO_RETRY, RetryPolicy, WorkflowContext, activity, workflow
from romancy.errors import PayloadRefusedError, StoreUnavailableError, WorkerLostError
from romancy.model import failure
from romancy.model.history import Attempt, Kind, MessageKind
from romancy.model.run import Phase, Reason
from romancy.store.interface import Finish, Release
from romancy.worker import execution as executions
from romancy.worker.execution import Left
from romancy.worker.writing import BYTES_A_WRITE_MAX
from tests.worker.doubles import STARTED_AT, Engine, Row, later, running, settle, until

calls: list[str] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    calls.clear()
    gate.clear()


@activity(retry=NO_RETRY, name="execution.first")
async def first() -> int:
    calls.append("first")
    return 1


@activity(retry=NO_RETRY, name="execution.second")
async def second() -> int:
    calls.append("second")
    return 2


@workflow(name="execution.two")
async def two() -> int:
    return await first() + await second()


async def test_what_follows_a_refused_write_never_starts() -> None:
    """I4: the result that led to the second activity is not there, and never will be."""
    engine = Engine()
    execution = engine.claim(two)
    with running(execution) as task:
        await until(lambda: engine.journal.queue, "the first result is written")
        engine.journal.fail(PayloadRefusedError("by the test"))
        await settle()
        engine.journal.flush()
        left = await task

    assert left is Left.FINISHED
    assert calls == ["first"]
    assert isinstance(engine.row.then, Finish)
    assert engine.row.then.reason == Reason.PAYLOAD_REFUSED


async def test_a_run_whose_begin_is_refused_says_so_if_it_was_there() -> None:
    engine = Engine()
    execution, told = engine.begin(two)
    engine.row.begun = True
    with running(execution) as task:
        await until(lambda: engine.journal.queue, "its begin is written")
        engine.journal.fail(PayloadRefusedError("by the test"))
        await settle()
        engine.journal.flush()

        assert await task is Left.EXISTS
    assert told == [False]
    assert calls == []


@activity(retry=RetryPolicy(initial_interval=timedelta(0), max_interval=timedelta(0)), name="execution.fails")
async def fails() -> None:
    calls.append("fails")
    raise ValueError


@workflow(name="execution.gives_up")
async def gives_up() -> None:
    try:
        async with asyncio.timeout(1):
            await fails()
    except TimeoutError:
        await asyncio.sleep(60)


async def test_what_the_same_flush_gives_up_is_not_tried_again() -> None:
    """Its failed attempt and the timer that gives it up are durable at once: the first answer must not start what the next one
    cancels (I4)."""
    engine = Engine()
    execution = engine.claim(gives_up)
    with running(execution):
        await until(lambda: engine.journal.queue, "the failed attempt is written")
        engine.time = later(engine.time, 1)
        execution.look()
        await settle()
        assert len(engine.journal.queue) == 2

        engine.journal.flush()
        await settle()

    assert calls == ["fails"]


# --- activities with a compensation ---------------------------------------------------------------------------------------


@activity(retry=NO_RETRY, name="execution.book")
def book() -> str:
    calls.append("book begins")
    gate.wait(10)
    calls.append("book ends")
    return "booking"


@book.compensate(name="execution.unbook")
async def unbook(booking: str) -> None:
    calls.append(f"unbook {booking}")


@workflow(name="execution.books")
async def books() -> str:
    return await book()


async def test_a_cancelled_thread_is_waited_for_and_compensated() -> None:
    """A thread can't be stopped: its effect takes place, so the cancel must not say that it did not."""
    engine = Engine()
    engine.journal.is_automatic = True
    execution = engine.claim(books)
    with running(execution) as task:
        await until(lambda: calls, "it runs")
        engine.send(execution, MessageKind.CANCEL)
        await until(lambda: engine.row.history, "the cancel is delivered")
        await settle()
        assert calls == ["book begins"]
        gate.set()
        left = await task

    assert left is Left.FINISHED
    assert calls == ["book begins", "book ends", "unbook booking"]
    assert [entry.kind for entry in engine.row.history] == [
        Kind.CANCEL_REQUESTED, Kind.ACTIVITY_COMPLETED, Kind.ACTIVITY_COMPLETED,
    ]  # fmt: skip
    assert isinstance(engine.row.then, Finish)
    assert engine.row.then.phase is Phase.CANCELLED


async def test_a_thread_that_is_left_gives_its_slot_back_once() -> None:
    before = set(threading.enumerate())
    engine = Engine(threads_max=1)
    engine.journal.is_automatic = True
    execution = engine.claim(books)
    with running(execution) as task:
        await until(lambda: calls, "it runs")
        engine.send(execution, MessageKind.CANCEL)
        await settle()
        engine.is_draining = engine.is_out_of_time = True
        execution.look()
        assert await task is Left.RELEASED
    assert engine.activities._thread_slots.locked()
    threads = set(threading.enumerate()) - before
    assert threads
    assert all(thread.daemon for thread in threads), "the process would wait for it to end"
    gate.set()
    await until(lambda: not engine.activities._thread_slots.locked(), "the slot is free")
    await settle()

    assert engine.activities._thread_slots._value == 1
    engine.activities.close()
    await until(lambda: not any(thread.is_alive() for thread in threads), "no thread is left")


@activity(retry=RetryPolicy(max_attempts=1), name="execution.reserve")
async def reserve() -> str:
    calls.append("reserve begins")
    if len(calls) == 1:
        await asyncio.Event().wait()
    calls.append("reserve ends")
    return "it"


@reserve.compensate(name="execution.release")
async def release(reservation: str) -> None:
    calls.append(f"release {reservation}")


@workflow(name="execution.reserves")
async def reserves() -> str:
    return await reserve()


async def test_one_that_was_running_when_its_worker_was_stopped_is_run_again_to_learn() -> None:
    """Its effect may have taken place: a cancel that comes before another worker has it must not forget that."""
    engine = Engine()
    engine.journal.is_automatic = True
    execution = engine.claim(reserves)
    with running(execution) as task:
        await until(lambda: calls, "it runs")
        engine.is_draining = engine.is_out_of_time = True
        execution.look()
        assert await task is Left.RELEASED
    assert engine.row.then == Release()
    engine.is_draining = engine.is_out_of_time = False
    engine.send(None, MessageKind.CANCEL)
    with running(engine.claim(reserves)) as task:
        assert await task is Left.FINISHED

    assert calls == ["reserve begins", "reserve begins", "reserve ends", "release it"]


class WeatherError(Exception):
    pass


@activity(retry=RetryPolicy(max_attempts=9, initial_interval=timedelta(minutes=1), jitter=0), name="execution.charge")
async def charge() -> str:
    raise WeatherError


@charge.compensate(name="execution.refund")
async def refund(paid: str) -> None:
    raise NotImplementedError


@workflow(name="execution.charges")
async def charges() -> str:
    return await charge()


async def test_a_cancel_in_backoff_is_not_parked_away() -> None:
    """The cancel waits for its flush; whatever wakes the run meanwhile must not park it until the next attempt."""
    engine = Engine()
    execution = engine.claim(charges)
    with running(execution) as task:
        await until(lambda: engine.journal.queue, "the attempt is written")
        engine.send(execution, MessageKind.CANCEL)
        engine.journal.flush()
        await until(lambda: any(write.entries for write, _ in engine.journal.queue), "the cancel is written")
        execution.look()
        await settle()
        engine.journal.is_automatic = True
        engine.journal.flush()

        assert await task is Left.FINISHED


@pytest.mark.parametrize("cut", ["suspended", "drained"])
async def test_losses_count_once_however_often_the_run_is_put_away(cut: str) -> None:
    engine = Engine(Row(lost_count=1))
    engine.journal.is_automatic = True
    if cut == "suspended":
        engine.send(None, MessageKind.SUSPEND)
    else:
        engine.is_draining = True
    for _ in range(4):
        with running(engine.claim(charges)) as task:
            assert await task in {Left.PARKED, Left.RELEASED}

    assert engine.row.lost_noted == 1
    assert [attempt.attempt for attempt in engine.row.attempts] == [1]


async def test_an_attempt_is_durable_before_the_next_one() -> None:
    """Also if a write that began before it is answered after it."""
    runs: list[int] = []

    @activity(retry=RetryPolicy(max_attempts=3, initial_interval=timedelta(0), max_interval=timedelta(0)))
    async def stumbles() -> None:
        runs.append(activity.info().attempt)
        raise WeatherError

    @workflow
    async def stumbling() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stumbles())
            group.create_task(asyncio.sleep(60))

    engine = Engine()
    execution, _ = engine.begin(stumbling)
    with running(execution):
        await until(lambda: engine.journal.queue, "it begins")
        [begin] = engine.journal.queue
        engine.journal.queue.clear()
        engine.send(execution, MessageKind.SUSPEND)
        engine.send(execution, MessageKind.RESUME)
        execution._writing.losses_noted = True  # another write behind it
        execution.look()
        await until(lambda: engine.journal.queue, "the next is written")
        [other] = engine.journal.queue
        engine.journal.queue[:] = [begin]
        engine.journal.flush()
        await until(lambda: runs, "the first attempt")
        await settle()
        rest, engine.journal.queue = engine.journal.queue, [other]
        engine.journal.flush()
        await settle()

        assert runs == [1]
        engine.journal.queue = rest
        engine.journal.flush()
        await until(lambda: len(runs) == 2, "the second attempt")


# --- mail ---------------------------------------------------------------------------------------------------------------


@activity(retry=NO_RETRY, name="execution.endless")
async def endless() -> None:
    calls.append("endless")
    await asyncio.Event().wait()


@workflow(name="execution.waits")
async def waits() -> None:
    await endless()


async def test_mail_that_can_t_be_read_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read that failed says nothing about the runs of the worker: none of them is dropped."""
    monkeypatch.setattr(executions, "MAIL_AGAIN_SECONDS", 0.01)
    engine = Engine()
    engine.journal.is_automatic = True
    engine.inbox_failures = 3
    execution = engine.claim(waits)
    with running(execution) as task:
        await until(lambda: calls, "it runs")
        engine.send(execution, MessageKind.CANCEL)
        await task

    assert isinstance(engine.row.then, Finish)
    assert engine.row.then.phase is Phase.CANCELLED


async def test_a_parked_run_with_mail_that_can_t_be_read_does_not_spin() -> None:
    @workflow
    async def sleeps() -> None:
        await asyncio.sleep(3600)

    engine = Engine()
    engine.journal.is_automatic = True
    engine.inbox_failures = 1_000_000
    execution = engine.claim(sleeps)
    engine.send(execution, MessageKind.SUSPEND)
    with running(execution) as task:
        await settle(500)

        assert not task.done()
        assert engine.journal.flushes <= 2
        assert 1_000_000 - engine.inbox_failures <= 2


# --- writes -------------------------------------------------------------------------------------------------------------


async def test_large_results_that_end_together_are_written_apart() -> None:
    """Each of them may be stored; together they would not fit into a flush, and the run would be refused."""
    begun = asyncio.Event()

    @activity(retry=NO_RETRY)
    async def large() -> str:
        await begun.wait()
        return "x" * 900_000

    @workflow
    async def larges() -> int:
        return sum(map(len, await asyncio.gather(*(large() for _ in range(20)))))

    engine = Engine()
    sizes: list[int] = []
    engine.journal.is_automatic = True
    write_it = engine.journal.write

    def measured(write: Any, answered: Any) -> None:
        sizes.append(sum(len(entry.payload) for entry in write.entries))
        write_it(write, answered)

    engine.journal.write = measured  # type: ignore[method-assign]
    with running(engine.claim(larges)) as task:
        await settle()
        begun.set()
        assert await task is Left.FINISHED

    assert max(sizes) < BYTES_A_WRITE_MAX + 900_002
    assert isinstance(engine.row.then, Finish)
    assert engine.row.then.phase is Phase.SUCCEEDED


class Unshowable:
    def __repr__(self) -> str:
        raise ValueError("not shown")

    __str__ = __repr__


async def test_a_log_line_that_can_t_be_shown_keeps_nothing_from_being_carried_out() -> None:
    @workflow
    async def logs(ctx: WorkflowContext) -> None:
        try:
            await reserve()
        finally:
            ctx.logger.warning("cancelled", what=Unshowable())

    @workflow
    async def races(ctx: WorkflowContext) -> None:
        task = asyncio.create_task(reserve())
        await first()
        ctx.logger.warning("given up", what=Unshowable())
        task.cancel()
        await asyncio.wait([task])

    for flow in (logs, races):
        calls.clear()
        engine = Engine()
        engine.journal.is_automatic = True
        execution = engine.claim(flow)
        with running(execution) as task:
            await until(lambda: "reserve begins" in calls, "it runs")
            if flow is logs:
                engine.send(execution, MessageKind.CANCEL)
            assert await task is Left.FINISHED


async def test_the_clock_of_a_run_never_goes_back() -> None:
    """The journal of the doubles refuses an entry whose time is before that of the entry before it."""
    engine = Engine()
    engine.journal.is_automatic = True
    seen: list[float] = []

    @activity(retry=NO_RETRY)
    async def shift(seconds: int) -> None:
        engine.time = later(STARTED_AT, seconds)

    @workflow
    async def shifted(ctx: WorkflowContext) -> None:
        for seconds in (10, -3600, 5, 20):
            await shift(seconds)
            seen.append((ctx.now() - STARTED_AT).total_seconds())

    with running(engine.claim(shifted)) as task:
        assert await task is Left.FINISHED

    assert seen == [10, 10, 10, 20]


async def test_a_long_history_lets_others_in_while_it_is_replayed() -> None:
    @workflow
    async def long(count: int) -> int:
        return sum([await first() for _ in range(count)])

    engine = Engine()
    engine.journal.is_automatic = True
    with running(engine.claim(long, '{"count":1000}')) as task:
        await task
    history, engine.row.history = engine.row.history[:999], engine.row.history[:999]
    calls.clear()
    turns = 0
    with running(engine.claim(long, '{"count":1000}')) as task:
        while not task.done():
            turns += 1
            await asyncio.sleep(0)

    assert len(history) == 999
    assert calls == ["first"]
    assert turns > len(history) / executions.REPLAY_SLICE


async def test_what_a_slice_of_history_asked_for_and_a_later_one_answered_is_not_started_again() -> None:
    @workflow
    async def fans(count: int) -> int:
        return sum(await asyncio.gather(*(first() for _ in range(count))))

    engine = Engine()
    engine.journal.is_automatic = True
    with running(engine.claim(fans, '{"count":600}')) as task:
        await task
    del engine.row.history[450:]
    calls.clear()
    with running(engine.claim(fans, '{"count":600}')) as task:
        assert await task is Left.FINISHED

    assert len(calls) == 150


async def test_a_dropped_run_leaves_no_task_behind() -> None:
    before = asyncio.all_tasks()
    for turns in range(25):
        engine = Engine()
        engine.journal.is_automatic = turns % 2 == 0
        with running(engine.claim(two)) as task:
            await settle(turns)
            task.cancel()
            await asyncio.wait([task])
        await settle()

        assert asyncio.all_tasks() == before


async def test_a_store_that_is_gone_ends_the_execution_and_starts_nothing() -> None:
    engine = Engine()
    with running(engine.claim(two)) as task:
        await until(lambda: engine.journal.queue, "the first result is written")
        engine.journal.fail(StoreUnavailableError("by the test"))
        with pytest.raises(StoreUnavailableError):
            await task
    await settle()

    assert calls == ["first"]


def lost_attempt(number: int) -> Attempt:
    return Attempt(number, 1, failure.encode(WorkerLostError()), STARTED_AT, STARTED_AT)


async def test_a_loss_is_remembered_by_whoever_has_the_run_next() -> None:
    engine = Engine(Row(attempts=[lost_attempt(1)]))
    engine.journal.is_automatic = True
    engine.send(None, MessageKind.CANCEL)
    calls.append("reserve begins")  # by the worker that died
    with running(engine.claim(reserves)) as task:
        assert await task is Left.FINISHED

    assert calls == ["reserve begins", "reserve begins", "reserve ends", "release it"]
