"""Cases 9 to 14: how often and when an activity is tried, what is kept of it, and what a replay makes of that."""

import asyncio
from datetime import timedelta
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID

import pytest

from romancy import App, RetryPolicy, TerminalError, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import WorkerLostError
from romancy.model import failure
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from romancy.testing.simulation import Crash, SimulatedRun
from tests.cases.conftest import Running, in_phase, subscribed

pytestmark = pytest.mark.usefixtures("verified")

QUICK = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=10), jitter=0)

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


class BusyError(Exception):
    """May end by itself."""


# --- 9: what is kept ----------------------------------------------------------------------------------------------------


@activity(name="retry.dials", retry=QUICK)
async def dials(busy: int) -> str:
    attempt = activity.info().attempt
    calls.append(attempt)
    if attempt <= busy:
        raise BusyError(f"busy in attempt {attempt}")
    return f"answered in attempt {attempt}"


@workflow(name="retry.phones")
async def phones(busy: int) -> str:
    return await dials(busy)


@pytest.mark.parametrize("busy", [0, 2])
async def test_09_failed_attempts_are_kept_with_their_errors(running: Running, busy: int) -> None:
    """Given success at first attempt, then no retry metadata; on the 3rd, then metadata says 3 attempts and two errors."""
    async with running(phones) as app:
        handle = await app.start(phones, busy)
        assert await handle.result() == f"answered in attempt {busy + 1}"
        run = await handle.info()
        kept = (await app.store.read_attempts([run.id]))[run.id]
        history = await app.store.read_history(run.id)

    assert calls == [*range(1, busy + 2)]
    assert [(row.number, row.attempt) for row in kept] == [(1, attempt) for attempt in range(1, busy + 1)]
    assert [str(failure.decode(row.failure)) for row in kept] == [
        f"busy in attempt {nth}" for nth in range(1, busy + 1)
    ]
    assert [(row.next_at - row.failed_at).total_seconds() for row in kept] == [0.01, 0.02][:busy]
    assert [entry.kind for entry in history] == [Kind.ACTIVITY_COMPLETED]  # however often it was tried


@activity(
    name="retry.dials_in_time",
    retry=RetryPolicy(initial_interval=timedelta(hours=1), max_interval=timedelta(days=1), jitter=0),
)
async def dials_in_time() -> str:
    raise BusyError("busy")


@workflow(name="retry.phones_in_time")
async def phones_in_time() -> str:
    return await dials_in_time()


def test_09_meanwhile_the_run_says_which_attempt_comes_next_and_why(sim: Simulation) -> None:
    sim.fake(dials_in_time, _answers)
    sim.fail(dials_in_time, BusyError("busy"), times=2)
    run = sim.start(phones_in_time)
    for attempt, seconds in ((2, 1800), (3, 3600)):
        sim.advance(seconds)
        shown = run.info()
        assert (shown.phase, shown.reason) == (Phase.WAITING, Reason.RETRYING)
        assert shown.message.startswith(f"attempt {attempt} of activity 'retry.dials_in_time' at ")
        assert shown.message.endswith("BusyError: busy")

    assert run.result() == "answered"


async def _answers() -> str:
    return "answered"


def test_09_whatever_crashes(sim: Simulation) -> None:
    """A crash costs an attempt, so there is one more than failures and the crash."""
    sim.fake(patiently, _answers)
    sim.fail(patiently, BusyError("busy"), times=2)

    assert sim.crash_everywhere(phones_patiently) >= 6


@activity(name="retry.patiently", retry=RetryPolicy(max_attempts=4, jitter=0))
async def patiently() -> str:
    raise BusyError("busy")


@workflow(name="retry.phones_patiently")
async def phones_patiently() -> str:
    return await patiently()


# --- 10: the last attempt ---------------------------------------------------------------------------------------------


async def test_10_when_attempts_are_used_up_the_last_error_is_raised(running: Running) -> None:
    """Given policy max 3, when always failing, then exactly 3 calls and RetryExhausted whose cause is the last error.

    Here the last error itself, so that code catches it by its type; a note tells of the attempts.
    """
    async with running(phones) as app:
        handle = await app.start(phones, 99)
        with pytest.raises(BusyError) as raised:
            await handle.result()
        run = await handle.info()

    assert calls == [1, 2, 3]
    assert raised.value.args == ("busy in attempt 3",)
    assert raised.value.__notes__ == [USED_UP]
    assert (run.phase, run.message) == (Phase.FAILED, "BusyError: busy in attempt 3")


USED_UP = "activity 'retry.dials' failed in attempt 3"


@workflow(name="retry.gives_up")
async def gives_up() -> str:
    try:
        return await dials(99)
    except (BusyError, WorkerLostError) as error:
        return error.__notes__[0]


def test_10_no_crash_gives_it_a_fourth_call(sim: Simulation) -> None:
    """An attempt whose worker was lost counts: nobody knows whether it was made."""
    assert sim.crash_everywhere(gives_up) == 6
    for save in range(3):
        for is_applied in (False, True):
            with Simulation(crash=Crash(save, is_applied)) as disturbed:
                assert disturbed.run(gives_up) == USED_UP
                assert 2 <= len(disturbed.calls(dials)) <= 3


# --- 11: no attempt more ------------------------------------------------------------------------------------------------


class HopelessError(TerminalError):
    """By its type."""


class GoneError(LookupError):
    """A kind of what the policy names."""


@activity(name="retry.hopeless", retry=RetryPolicy(max_attempts=9))
async def hopeless(kind: str) -> None:
    calls.append(kind)
    raise {"terminal": TerminalError("final"), "subclass": HopelessError("final")}[kind]


@activity(name="retry.listed", retry=RetryPolicy(max_attempts=9, non_retryable=(LookupError,)))
async def listed(kind: str) -> None:
    calls.append(kind)
    raise {"listed": LookupError("final"), "kind of it": GoneError("final")}[kind]


@workflow(name="retry.tries_once")
async def tries_once() -> list[str]:
    found = []
    for call, kind in ((hopeless, "terminal"), (hopeless, "subclass"), (listed, "listed"), (listed, "kind of it")):
        try:
            await call(kind)
        except (TerminalError, LookupError) as error:
            found.append(type(error).__name__)
    return found


ONCE = ["terminal", "subclass", "listed", "kind of it"]
TYPES = ["TerminalError", "HopelessError", "LookupError", "GoneError"]


async def test_11_what_is_final_is_tried_once(running: Running) -> None:
    """Given TerminalError, then 1 call; given a non-retryable type, then 1 call."""
    async with running(tries_once) as app:
        handle = await app.start(tries_once)
        assert await handle.result() == TYPES
        run = await handle.info()
        assert (await app.store.read_attempts([run.id]))[run.id] == []

    assert calls == ONCE


def test_11_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(tries_once) == 8
    assert sim.run(tries_once) == TYPES


# --- 12: when ---------------------------------------------------------------------------------------------------------------


def test_12_delays_double_up_to_a_minute() -> None:
    """Given initial 1, coefficient 2, max 60, then delays are 1, 2, 4, ..., 60."""
    policy = RetryPolicy(
        max_attempts=0,
        initial_interval=timedelta(seconds=1),
        backoff_coefficient=2,
        max_interval=timedelta(seconds=60),
        jitter=0,
    )

    assert [policy.delay_seconds(n, lambda: 0.7) for n in range(1, 10)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_12_jitter_stays_within_its_share() -> None:
    """Given jitter f, within [1-f, 1+f]; never longer than the longest."""
    random = Random(12)
    policy = RetryPolicy(max_attempts=0, jitter=0.25)
    for failed, grown in enumerate((1, 2, 4, 8, 16, 32), start=1):
        shares = [(policy.delay_seconds(failed, random.random) or 0) / grown for _ in range(500)]
        assert 0.75 <= min(shares) < 0.8
        assert 1.2 < max(shares) <= 1.25
    longest = [policy.delay_seconds(7, random.random) or 0 for _ in range(500)]
    assert 45 <= min(longest) < max(longest) == 60


def test_12_a_run_waits_so_long(sim: Simulation) -> None:
    moments = []

    async def note_the_time() -> str:
        moments.append(sim.now())
        raise BusyError("busy")

    sim.fake(eight_times, note_the_time)
    with pytest.raises(BusyError):
        sim.run(phones_eight_times)

    waited = [(later - earlier).total_seconds() for earlier, later in pairwise(moments)]
    assert waited == pytest.approx([1, 2, 4, 8, 16, 32, 60], abs=0.01)


@activity(name="retry.eight_times", retry=RetryPolicy(max_attempts=8, jitter=0))
async def eight_times() -> str:
    return ""


@workflow(name="retry.phones_eight_times")
async def phones_eight_times() -> str:
    return await eight_times()


# --- 13: how long, and whose policy -------------------------------------------------------------------------------------------


@activity(
    name="retry.for_ever", retry=RetryPolicy(max_attempts=0, initial_interval=timedelta(milliseconds=50), jitter=0)
)
async def for_ever() -> None:
    calls.append("for ever")
    raise BusyError("busy")


@workflow(name="retry.in_time")
async def in_time(ctx: WorkflowContext, seconds: float) -> str:
    try:
        async with asyncio.timeout(seconds):
            await for_ever()
    except TimeoutError:
        await ctx.wait_event("retry.go")
    return "gave up"


async def test_13_when_the_time_for_it_is_over_there_are_no_more_attempts(running: Running) -> None:
    """Given max_duration passed, then no more attempts: it is `asyncio.timeout` around the call, durable like all timers."""
    async with running(in_time) as app:
        handle = await app.start(in_time, 0.6)
        run = await subscribed(app, handle)
        made = list(calls)
        await app.send_event("retry.go", to=run.id)
        assert await handle.result() == "gave up"
        history = await app.store.read_history(run.id)

    assert len(made) >= 2
    assert run.wake_at is None  # nothing is due any more
    assert calls == made
    assert not [entry for entry in history if entry.name == for_ever.name]


def test_13_a_day_later_nothing_was_tried(sim: Simulation) -> None:
    run = sim.start(in_time, 10.0)
    sim.advance(11)
    made = len(sim.calls(for_ever))
    sim.advance(86_400)

    assert 5 <= made == len(sim.calls(for_ever))
    assert run.info().reason == Reason.EVENT


def test_13_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(30)
        sim.send_event("retry.go")

    sim.play(outside)

    assert sim.crash_everywhere(in_time, 1.0) >= 8


@activity(name="retry.by_default")
async def by_default() -> None:
    raise BusyError("busy")


@activity(name="retry.by_its_own", retry=RetryPolicy(max_attempts=2))
async def by_its_own() -> None:
    raise BusyError("busy")


@workflow(name="retry.policies")
async def policies() -> None:
    for call in (by_default, by_its_own):
        try:
            await call()
        except BusyError:
            continue


async def test_13_the_policy_of_an_activity_beats_that_of_its_process(database: DatabaseSettings) -> None:
    """And that beats the default, which is five attempts."""
    worker = WorkerSettings(name="w", retry=QUICK)
    async with App(database, [policies], worker=worker) as app:
        handle = await app.start(policies)
        await handle.result(timeout=20)
        notes = {
            entry.name: failure.decode(entry.payload).__notes__[-1]
            for entry in await app.store.read_history(handle.id or UUID(int=0))
        }

    assert "in attempt 3" in notes["retry.by_default"]
    assert "in attempt 2" in notes["retry.by_its_own"]


def test_13_the_policy_of_an_activity_beats_the_default(sim: Simulation) -> None:
    """Given an activity with a policy and one without, then each has its own."""
    sim.run(policies)

    assert [len(sim.calls(by_default)), len(sim.calls(by_its_own))] == [RetryPolicy().max_attempts, 2] == [5, 2]


# --- 14: replay ---------------------------------------------------------------------------------------------------------------


@workflow(name="retry.goes_on")
async def goes_on(ctx: WorkflowContext) -> str:
    try:
        await dials(99)
    except (BusyError, WorkerLostError) as error:
        await ctx.wait_event("retry.go")
        return error.__notes__[0]
    return "answered"


async def test_14_a_recorded_failure_is_not_tried_again_on_replay(running: Running) -> None:
    """Given a recorded failure, when replayed, then the retry loop is skipped."""
    async with running(goes_on, name="first") as first:
        handle = await first.start(goes_on.options(id="run"))
        await subscribed(first, handle)
    assert calls == [1, 2, 3]
    async with running(goes_on, name="second") as second:
        await second.send_event("retry.go", to=handle.id)
        assert await second.handle("run").result(timeout=10) == USED_UP
        kept = await second.store.read_attempts([run.id for run in await second.list()])

    assert calls == [1, 2, 3]
    assert [[row.attempt for row in rows] for rows in kept.values()] == [[1, 2]]  # the third is in the history


async def test_14_what_was_in_backoff_goes_on_with_the_next_attempt(running: Running) -> None:
    """The other side of it: what is not recorded as failed is tried again, and no attempt is made twice."""
    async with running(calls_back, name="first") as first:
        handle = await first.start(calls_back.options(id="run"))
        run = await in_phase(handle, Phase.WAITING, Reason.RETRYING)
        assert run.message.startswith("attempt 2 of activity 'retry.dials_later'")
    async with running(calls_back, name="second") as second:
        assert await second.handle("run").result(timeout=10) == "answered in attempt 2"

    assert calls == [1, 2]


@activity(name="retry.dials_later", retry=RetryPolicy(initial_interval=timedelta(seconds=1), jitter=0))
async def dials_later() -> str:
    return await dials(1)  # here it is the function itself


@workflow(name="retry.calls_back")
async def calls_back() -> str:
    return await dials_later()


def test_14_whatever_crashes(sim: Simulation) -> None:
    """Once its failure is saved no process calls it again."""

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(10)
        made = len(sim.calls(dials))
        assert made <= 3
        sim.send_event("retry.go")
        assert run.result() == USED_UP
        assert len(sim.calls(dials)) == made

    sim.play(outside)

    assert sim.crash_everywhere(goes_on) >= 10
