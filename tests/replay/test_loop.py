"""The deterministic loop: what works on it, what it refuses, and what it keeps apart."""

import asyncio
import contextvars
import decimal
import gc
import re
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest

from romancy import WorkflowContext, activity, workflow
from romancy.errors import NeverAwaitedError, NotDeterministicError, OutsideWorkflowError, StepTooLongError
from romancy.model import failure
from romancy.model.command import CancelActivity, End, RunActivity, StartTimer, WriteLog
from romancy.model.history import Entry, Kind
from romancy.replay.replay import Replay
from romancy.sdk.workflow import Workflow
from tests.replay.programs import STARTED_AT, new_replay, step


def answer(replay: Replay, command: RunActivity | StartTimer, payload: str = "1", *, seconds: float = 1) -> Entry:
    kind = Kind.TIMER_FIRED if isinstance(command, StartTimer) else Kind.ACTIVITY_COMPLETED
    at = replay.now + timedelta(seconds=seconds)
    return Entry(replay.position + 1, kind, at, command.number, command.name, command.digest, payload)


def run_to_end(flow: Workflow[..., object], *, payload: str = "1") -> Replay:
    """Answer every command in order."""
    replay = new_replay(flow)
    replay.advance()
    while replay.outcome is None:
        command = min(replay.open_commands(), key=lambda each: (isinstance(each, StartTimer), each.number))
        replay.advance([answer(replay, command, payload, seconds=3600 if isinstance(command, StartTimer) else 1)])
    return replay


def error_of(flow: Workflow[..., object]) -> Exception:
    outcome = run_to_end(flow).outcome
    assert outcome is not None
    assert outcome.failure is not None
    return failure.decode(outcome.failure)


async def _to_thread() -> None:
    await asyncio.to_thread(print)


async def _connect() -> None:
    await asyncio.open_connection("127.0.0.1", 1)


async def _subprocess() -> None:
    await asyncio.create_subprocess_exec("true")


async def _threadsafe() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def _signal() -> None:
    asyncio.get_running_loop().add_signal_handler(2, print)


async def _look_up() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def _stop() -> None:
    asyncio.get_running_loop().stop()


@pytest.mark.parametrize(
    ("use", "named"),
    [
        (_to_thread, r"asyncio\.to_thread\(\)"),
        (_connect, "opening a connection"),
        (_subprocess, "starting a subprocess"),
        (_threadsafe, "call_soon_threadsafe"),
        (_signal, "add_signal_handler"),
        (_look_up, "getaddrinfo"),
        (_stop, "running a loop"),
    ],
)
def test_what_reaches_the_outside_is_refused_by_name(use: Callable[[], object], named: str) -> None:
    @workflow(name="refused")
    async def flow() -> None:
        await use()  # type: ignore[misc]

    error = error_of(flow)

    assert isinstance(error, NotDeterministicError)
    assert re.search(named, str(error))
    assert error.hint


def test_awaiting_something_foreign_is_refused() -> None:
    loop = asyncio.new_event_loop()
    foreign = loop.create_future()

    @workflow(name="foreign")
    async def flow() -> None:
        await foreign

    error = error_of(flow)
    loop.close()

    assert isinstance(error, NotDeterministicError)
    assert "awaiting Future" in str(error)


def test_a_call_that_is_dropped_fails_the_run() -> None:
    @workflow(name="dropped")
    async def flow() -> None:
        step("never awaited")
        await step("awaited")

    assert isinstance(error_of(flow), NeverAwaitedError)


def test_a_call_that_is_dropped_among_very_many_is_found() -> None:
    """A part of them is looked at in each step, and all of them at the end."""

    @workflow(name="dropped among many")
    async def flow() -> None:
        kept = [step(f"{number}") for number in range(1000)]
        del kept[500]
        for each in kept[:10]:
            await each

    replay = run_to_end(flow)
    replay.discard()  # closes those that were kept

    assert replay.outcome is not None
    assert replay.outcome.failure is not None
    assert isinstance(failure.decode(replay.outcome.failure), NeverAwaitedError)


def test_a_call_may_be_awaited_later() -> None:
    @workflow(name="later")
    async def flow() -> int:
        first = step("held")
        second = await step("awaited at once")
        return await first + second

    outcome = run_to_end(flow).outcome

    assert outcome is not None
    assert (outcome.end, outcome.payload) == (End.SUCCEEDED, "2")


def test_a_loop_without_an_await_of_anything_durable_has_an_end() -> None:
    @workflow(name="spins")
    async def flow() -> None:
        while True:  # noqa: ASYNC110 - on purpose
            await asyncio.sleep(0)

    with pytest.raises(StepTooLongError, match="100,000 turns"):
        new_replay(flow).advance()


def test_a_step_has_a_longest_time() -> None:
    @workflow(name="thinks")
    async def flow() -> None:
        while True:  # noqa: ASYNC110 - on purpose
            await asyncio.sleep(0)

    ticks = iter(range(10_000))
    replay = new_replay(flow)
    replay.loop._monotonic = lambda: float(next(ticks))

    with pytest.raises(StepTooLongError, match="the limit is 10 s"):
        replay.advance()


def test_system_exit_fails_the_run_and_goes_no_further() -> None:
    @workflow(name="exits")
    async def flow() -> None:
        raise SystemExit(1)

    replay = run_to_end(flow)

    assert replay.outcome is not None
    assert replay.outcome.end is End.FAILED
    assert replay.outcome.message == "SystemExit: 1"


outer: contextvars.ContextVar[str] = contextvars.ContextVar("outer", default="nothing")


def test_nothing_of_the_worker_leaks_into_a_run_nor_back() -> None:
    seen = []

    @workflow(name="leaks")
    async def flow() -> None:
        seen.append((outer.get(), decimal.getcontext().prec))
        outer.set("of the run")
        decimal.getcontext().prec = 3
        await step("a")
        seen.append((outer.get(), decimal.getcontext().prec))

    outer.set("of the worker")
    with decimal.localcontext(prec=7):
        run_to_end(flow)
        assert decimal.getcontext().prec == 7

    assert seen == [("nothing", 28), ("of the run", 3)]
    assert outer.get() == "of the worker"


async def test_a_run_is_stepped_from_inside_a_task_of_another_loop() -> None:
    """The running loop and the current task are put back."""
    seen = []

    @workflow(name="inside")
    async def flow() -> None:
        seen.append(asyncio.current_task().get_name())  # type: ignore[union-attr]
        await step("a")

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    run_to_end(flow)

    assert seen == ["workflow"]
    assert asyncio.get_running_loop() is loop
    assert asyncio.current_task() is task


def test_sets_of_tasks_iterate_in_order_of_creation() -> None:
    @workflow(name="sets")
    async def flow() -> list[str]:
        tasks = {asyncio.create_task(step(str(number))) for number in range(50)}
        await asyncio.wait(tasks)
        return [task.get_name() for task in tasks]

    outcome = run_to_end(flow).outcome

    assert outcome is not None
    assert outcome.payload is not None
    assert outcome.payload == str([f"task-{number}" for number in range(2, 52)]).replace("'", '"').replace(" ", "")


def test_a_durable_sleep_is_a_timer_and_a_cancelled_one_leaves_nothing() -> None:
    @workflow(name="timers")
    async def flow(ctx: WorkflowContext) -> str:
        try:
            async with asyncio.timeout(10):
                await step("in time")
        finally:
            await asyncio.sleep(86_400)
        return f"{ctx.now():%d %H:%M}"

    replay = new_replay(flow)
    first = replay.advance()
    second = replay.advance([answer(replay, first[1])])  # type: ignore[arg-type]

    assert [type(command) for command in first] == [StartTimer, RunActivity]
    [command] = [each for each in second if isinstance(each, StartTimer)]
    assert command.due_at == STARTED_AT + timedelta(seconds=86_401)


def test_an_abandoned_activity_is_cancelled_and_its_late_answer_seen_by_nobody() -> None:
    @workflow(name="abandons")
    async def flow() -> str:
        try:
            async with asyncio.timeout(5):
                await step("slow")
        except TimeoutError:
            return f"gave up, then {await step('other')}"
        return "in time"

    replay = new_replay(flow)
    timer, slow = replay.advance()
    assert isinstance(timer, StartTimer)
    assert isinstance(slow, RunActivity)
    commands = replay.advance([answer(replay, timer, "", seconds=5)])
    assert CancelActivity(slow.number, is_shielded=False) in commands
    late = answer(replay, slow, "99")
    replay.advance([late])
    [other] = replay.open_commands()
    replay.advance([answer(replay, other, "7")])

    assert replay.outcome is not None
    assert replay.outcome.payload == '"gave up, then 7"'


def test_log_lines_are_silent_while_replaying() -> None:
    @workflow(name="logs")
    async def flow(ctx: WorkflowContext) -> None:
        ctx.logger.info("first", is_replaying=ctx.is_replaying)
        await step("a")
        ctx.logger.info("second")
        await step("b")
        ctx.logger.warning("third")

    live = new_replay(flow)
    lines, history = [], []
    commands = live.advance()
    while live.outcome is None:
        lines += [command.event for command in commands if isinstance(command, WriteLog)]
        entry = answer(live, live.open_commands()[0])
        history.append(entry)
        commands = live.advance([entry])
    lines += [command.event for command in commands if isinstance(command, WriteLog)]
    again = new_replay(flow)
    replayed = again.advance(history[:1], replaying=True)
    went_on = again.advance(history[1:])

    assert lines == ["first", "second", "third"]
    assert [command for command in replayed if isinstance(command, WriteLog)] == []
    assert [command.event for command in went_on if isinstance(command, WriteLog)] == ["third"]


def test_an_async_generator_that_was_left_is_closed_at_the_end_of_the_run() -> None:
    order = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            order.append(f"closing {await step('tidy')}")

    @workflow(name="generators")
    async def flow() -> None:
        async for _ in numbers():
            break
        gc.collect()
        await step("after")
        order.append("end of function")

    run_to_end(flow)

    assert order == ["end of function", "closing 1"]


def test_outside_of_a_workflow_a_workflow_names_start_and_an_activity_just_runs() -> None:
    @activity
    async def twice(number: int) -> int:
        return 2 * number

    @activity
    def thrice(number: int) -> int:
        return 3 * number

    @workflow(name="not_here")
    async def flow() -> None:
        pass

    async def outside() -> tuple[int, int]:
        return await twice(2), await thrice(2)

    assert asyncio.run(outside()) == (4, 6)
    with pytest.raises(OutsideWorkflowError) as caught:
        flow()
    assert "app.start(flow" in caught.value.hint
    with pytest.raises(OutsideWorkflowError):
        activity.info()
