"""Cases 3 to 8: what is done is not done again, failures are kept, and a replay gives the code what it had."""

import json
from typing import Any

import asyncpg
import pytest

from romancy import NO_RETRY, Handle, RetryPolicy, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import NonDeterminismError
from romancy.model.codec import difference
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason
from romancy.sdk.activity import Activity
from romancy.sdk.workflow import Workflow
from romancy.testing import Simulation
from romancy.testing.histories import export, replay
from romancy.testing.simulation import SimulatedRun
from tests.cases.conftest import Running, in_phase, subscribed
from tests.chaos.fleet import Fleet
from tests.chaos.flows import three_steps
from tests.model.values import FAITHFUL

pytestmark = pytest.mark.usefixtures("verified")

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@activity(name="execution.step")
async def step(number: int) -> int:
    calls.append(number)
    return number


# --- 3: a crash -------------------------------------------------------------------------------------------------------


@workflow(name="execution.steps")
async def steps(ctx: WorkflowContext, count: int) -> list[int]:
    return [await step(number) for number in range(count)]


@pytest.mark.slow
async def test_03_what_is_done_is_not_run_again_after_a_crash(fleet: Fleet) -> None:
    """Given 2 activities done and a crash, when resumed, then the 2 are not run again and the 3rd is."""
    doomed = await fleet.start("doomed")
    fleet.open("one", "two")
    handle = await fleet.client.start(three_steps)
    await fleet.did("begin three")
    doomed.kill()
    fleet.open("three")
    await fleet.start("heir")

    assert await handle.result(timeout=20) == ["one", "two", "three"]
    assert [line for line in fleet.log() if line.startswith("begin")] == [
        *("begin one", "begin two", "begin three"),
        "begin three",  # the only one whose end nobody had saved
    ]


def test_03_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(steps, 3) == 6  # before and after each result is saved, the last one with the end


# --- 4: a failure -----------------------------------------------------------------------------------------------------


class BrokenError(Exception):
    """Nobody catches it."""


@activity(name="execution.breaks", retry=NO_RETRY)
async def breaks(what: str) -> None:
    calls.append(what)
    raise BrokenError(f"{what} is broken")


@workflow(name="execution.fails")
async def fails(what: str) -> None:
    await step(1)
    await breaks(what)
    await step(2)


async def test_04_a_failure_is_stored_with_type_message_and_trace(running: Running, database: DatabaseSettings) -> None:
    """Given a failing activity without retry, then it is failed, type, message and trace are stored, the claim released."""
    async with running(fails) as app:
        handle = await app.start(fails, "the press")
        with pytest.raises(BrokenError, match="the press is broken"):
            await handle.result()
        run = await handle.info()
        history = await app.store.read_history(run.id)
        held = app.worker.runs

    assert (run.phase, run.reason, run.worker, held) == (Phase.FAILED, Reason.WORKFLOW_FAILED, None, 0)
    assert run.failure is not None
    failure = json.loads(run.failure)
    assert (failure["type"], failure["message"]) == (f"{__name__}.BrokenError", "the press is broken")
    assert "await breaks(what)" in failure["trace"]
    assert (history[-1].kind, history[-1].name) == (Kind.ACTIVITY_FAILED, "execution.breaks")
    assert 'raise BrokenError(f\\"{what} is broken\\")' in history[-1].payload
    assert calls == [1, "the press"]
    assert await _open_runs(database) == 0


async def _open_runs(database: DatabaseSettings) -> int:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        return int(await connection.fetchval("select count(*) from romancy.due"))
    finally:
        await connection.close()


def test_04_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(fails, "the press") == 4


# --- 5: an end --------------------------------------------------------------------------------------------------------


async def test_05_what_has_ended_is_not_resumed(running: Running) -> None:
    """Given a completed run, when resumed, then nothing runs; given a failed one, resume is refused.

    A start of the same id is the run that there is; a resume of what has ended says that it did nothing.
    """
    ended, failed = steps.options(id="ended"), fails.options(id="failed")
    async with running(steps, fails, name="first") as first:
        assert await (await first.start(ended, 2)).result() == [0, 1]
        with pytest.raises(BrokenError):
            await (await first.start(failed, "it")).result()
        before = [await _shown(first.store, first.handle(name)) for name in ("ended", "failed")]
    calls.clear()
    async with running(steps, fails, name="second") as second:
        assert [await second.handle(name).resume() for name in ("ended", "failed")] == [False, False]
        assert await (await second.start(ended, 2)).result() == [0, 1]
        with pytest.raises(BrokenError):
            await (await second.start(failed, "it")).result()
        assert [await second.store.read_inbox(run.id, 0) for run, _ in before] == [[], []]
        assert [await _shown(second.store, second.handle(name)) for name in ("ended", "failed")] == before

    assert calls == []


async def _shown(store: Any, handle: Handle[Any]) -> tuple[Any, Any]:
    run = await handle.info()
    return run, await store.read_history(run.id)


def test_05_whatever_crashes(sim: Simulation) -> None:
    """The resume comes when it has ended; hours later nothing has run."""

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.until_ended(run.id)
        made, history = sim.calls(step), run.history
        assert not run.resume()
        sim.advance(3 * 3600)
        assert (sim.calls(step), run.history) == (made, history)

    sim.play(outside)

    assert sim.crash_everywhere(steps, 2) == 4
    assert sim.crash_everywhere(fails, "it") == 4


# --- 6: types -----------------------------------------------------------------------------------------------------------


def _giver(nth: int, annotation: Any, value: Any) -> Activity[[], Any]:
    async def give() -> Any:
        return value

    give.__annotations__["return"] = annotation
    return activity(name=f"execution.give_{nth}", retry=NO_RETRY)(give)


GIVERS = {name: _giver(nth, *typed) for nth, (name, typed) in enumerate(FAITHFUL.items())}
seen: list[dict[str, Any]] = []
"""What the code had in hand, live and on each replay."""


@workflow(name="execution.collects")
async def collects(ctx: WorkflowContext) -> int:
    found = {name: await give() for name, give in GIVERS.items()}
    seen.append(found)
    await ctx.wait_event("execution.go")
    return len(found)


def _are_all_as_given(found: dict[str, Any]) -> None:
    for name, (_, value) in FAITHFUL.items():
        back = found[name]
        assert type(back) is type(value) or (name == "int for float" and type(back) is float), name
        assert difference(value, back, "") is None, name


async def test_06_a_replay_gives_each_result_with_its_type_and_content(running: Running) -> None:
    """Given a Pydantic/enum/struct/int/list result, when replayed, then the value has the same type and content."""
    seen.clear()
    async with running(collects, name="first") as first:
        handle = await first.start(collects.options(id="all"))
        await subscribed(first, handle)
    async with running(collects, name="second") as second:
        await second.send_event("execution.go", to=handle.id)
        assert await second.handle("all").result(timeout=10) == len(FAITHFUL)

    assert len(seen) == 2  # live, and on replay
    for found in seen:
        _are_all_as_given(found)
    assert list(map(repr, seen[0].values())) == list(map(repr, seen[1].values()))


def test_06_whatever_crashes(sim: Simulation) -> None:
    seen.clear()

    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(1)
        sim.send_event("execution.go")

    sim.play(outside)

    assert sim.crash_everywhere(collects) >= 2 * len(FAITHFUL)
    for found in seen:
        _are_all_as_given(found)


# --- 7: errors by type ------------------------------------------------------------------------------------------------------


class OutOfPaperError(Exception):
    """Has an `__init__` of its own."""

    def __init__(self, tray: int, *, size: str) -> None:
        super().__init__(f"tray {tray}")
        self.tray, self.size = tray, size


@activity(name="execution.prints", retry=RetryPolicy(non_retryable=(OutOfPaperError, KeyError)))
async def prints(tray: int) -> None:
    calls.append(f"print {tray}")
    if tray < 3:
        raise OutOfPaperError(tray, size="A4")
    raise KeyError("jam")


@workflow(name="execution.branches")
async def branches(ctx: WorkflowContext) -> list[str]:
    taken = []
    for tray in (1, 2, 3):
        try:
            await prints(tray)
        except OutOfPaperError as error:
            taken.append(f"out of {error.size} in {error.tray}")
            await step(error.tray)
        except LookupError as error:  # a base of what was raised
            taken.append(f"{type(error).__name__} {error.args[0]}")
    await ctx.wait_event("execution.go")
    return taken


BRANCHES = ["out of A4 in 1", "out of A4 in 2", "KeyError jam"]


async def test_07_an_error_is_caught_by_the_same_branch_on_replay(running: Running) -> None:
    """(+) Given an activity error caught by type, when replayed, then the same except branch is taken."""
    async with running(branches, name="first") as first:
        handle = await first.start(branches.options(id="run"))
        await subscribed(first, handle)
    made = list(calls)
    async with running(branches, name="second") as second:
        await second.send_event("execution.go", to=handle.id)
        assert await second.handle("run").result(timeout=10) == BRANCHES

    assert made == ["print 1", 1, "print 2", 2, "print 3"]
    assert calls == made  # nothing was called to find the branch


def test_07_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(1)
        sim.send_event("execution.go")

    sim.play(outside)

    assert sim.crash_everywhere(branches) >= 14


# --- 8: changed code ----------------------------------------------------------------------------------------------------------


def _version(*numbers: int, also: bool = False) -> Workflow[[], str]:
    @workflow(name="execution.changing")
    async def changing(ctx: WorkflowContext) -> str:
        if also:
            await prints(3)
        for number in numbers:
            await step(number)
        await ctx.wait_event("execution.go")
        return "ended"

    return changing


async def test_08_changed_code_is_told_and_runs_nothing_again(running: Running) -> None:
    """(+) Given code changed so that ids differ from history, when replayed, then a determinism error, not a silent re-run."""
    old = _version(1, 2)
    async with running(old, name="old") as app:
        handle = await app.start(old.options(id="run"))
        await subscribed(app, handle)
        history = await app.store.read_history((await handle.info()).id)
    calls.clear()
    async with running(_version(1, 2, also=True), name="new") as app:
        await app.send_event("execution.go", to=handle.id)
        run = await in_phase(app.handle("run"), Phase.BLOCKED)
        assert calls == []
        assert await app.store.read_history(run.id) == history  # nothing was written to it

    assert run.reason == Reason.NON_DETERMINISM
    assert "history says ActivityCompleted execution.step#1, but the code asked for activity execution.prints#1" in (
        run.message
    )


@pytest.mark.parametrize(
    ("numbers", "error", "says"),
    [
        ((1,), NonDeterminismError, r"ActivityCompleted execution\.step#2, but the code asked for nothing"),
        ((1, 3), AssertionError, r"execution\.step#2 is asked for with other arguments"),
    ],
    ids=["a call is gone", "other arguments"],
)
def test_08_a_stored_history_refuses_changed_code(
    sim: Simulation, numbers: tuple[int, ...], error: type[Exception], says: str
) -> None:
    old = _version(1, 2)
    run = sim.start(old)
    sim.advance(1)
    kept = export(run.info(), run.history)

    replay(old, kept)
    with pytest.raises(error, match=says):
        replay(_version(*numbers), kept)
