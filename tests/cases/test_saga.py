"""Cases 22 to 28: what is done is taken back, once, last-in first-out; and what a cancel means."""

import asyncio
import json
from datetime import timedelta
from random import Random
from typing import Any

import asyncpg
import pytest

from romancy import NO_RETRY, Channel, ChannelMode, Client, Handle, RetryPolicy, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import CompensationFailedError, RunCancelledError
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from romancy.testing.simulation import Crash, SimulatedRun
from tests.cases.conftest import Running, in_phase, subscribed, until
from tests.chaos.fleet import Fleet
from tests.chaos.flows import saga

pytestmark = pytest.mark.usefixtures("verified")

WORK = Channel("sagas.work", int, mode=ChannelMode.COMPETING)
calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


class NoFundsError(Exception):
    """The third step's."""


class StuckError(Exception):
    """A compensation's."""


@activity(name="sagas.take")
async def take(what: str) -> str:
    calls.append(f"take {what}")
    return what


@take.compensate(name="sagas.give_back", retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=10)))
async def give_back(what: str) -> None:
    calls.append(f"give back {what}")
    if what.startswith("stuck"):
        raise StuckError(what)


@activity(name="sagas.pay", retry=RetryPolicy(non_retryable=(NoFundsError,)))
async def pay() -> None:
    calls.append("pay")
    raise NoFundsError("no funds")


@workflow(name="sagas.orders")
async def orders(things: list[str]) -> None:
    for thing in things:
        await take(thing)
    await pay()


# --- 22 -----------------------------------------------------------------------------------------------------------------


async def test_22_what_is_done_is_taken_back_in_reverse(running: Running) -> None:
    """Given A, B done and C failing, then compensations run B, A, each once, and status ends failed."""
    async with running(orders) as app:
        handle = await app.start(orders, ["a", "b"])
        with pytest.raises(NoFundsError, match="no funds"):
            await handle.result()
        run = await handle.info()

    assert calls == ["take a", "take b", "pay", "give back b", "give back a"]
    assert (run.phase, run.reason, run.message) == (
        Phase.FAILED,
        Reason.WORKFLOW_FAILED,
        "NoFundsError: no funds",
    )


def test_22_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(orders, ["a", "b"]) == 10


# --- 23 -----------------------------------------------------------------------------------------------------------------


async def test_23_one_that_can_not_be_taken_back_does_not_keep_the_others(running: Running) -> None:
    """Given one compensation raising, then the rest run and the failure is recorded."""
    async with running(orders) as app:
        handle = await app.start(orders, ["a", "stuck", "c"])
        with pytest.raises(CompensationFailedError) as raised:
            await handle.result()
        run = await handle.info()
        history = await app.store.read_history(run.id)

    assert calls[4:] == ["give back c", "give back stuck", "give back stuck", "give back a"]  # it was tried twice
    assert (run.phase, run.reason) == (Phase.FAILED, Reason.COMPENSATION_FAILED)
    assert "sagas.give_back" in run.message
    assert isinstance(raised.value.__cause__, NoFundsError)  # what it failed for is kept as well
    [failed] = [entry for entry in history if entry.kind is Kind.ACTIVITY_FAILED and entry.name == give_back.name]
    assert json.loads(failed.payload)["type"] == f"{__name__}.StuckError"


def test_23_whatever_crashes(sim: Simulation) -> None:
    """All but the one that is stuck are taken back, each once whose end was saved."""
    assert sim.crash_everywhere(orders, ["a", "stuck", "c"]) >= 14


# --- 24 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_24_after_a_crash_only_the_rest_is_taken_back(fleet: Fleet) -> None:
    """Given a crash after the first compensation, when recovered, then only the rest run and the workflow body does not."""
    doomed = await fleet.start("doomed")
    fleet.open("reserve-a", "reserve-b", "reserve-c", "release-c")
    handle = await fleet.client.start(saga)
    await fleet.did("begin release reserved b")  # so the first one is saved
    doomed.kill()
    before = fleet.log()
    await fleet.start("heir")
    fleet.open("release-b", "release-a")
    with pytest.raises(ValueError, match="payment declined"):
        await handle.result(timeout=20)

    assert before[-3:] == ["begin release reserved c", "end release reserved c", "begin release reserved b"]
    assert fleet.log()[len(before) :] == [
        *("begin release reserved b", "end release reserved b"),
        *("begin release reserved a", "end release reserved a"),
    ]


def test_24_whatever_crashes(sim: Simulation) -> None:
    """At each moment of compensating: no step of the body is called after the death, and nothing saved is taken back twice."""
    steps = 4

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.until(lambda: bool(sim.calls(give_back)))
        made = len(sim.calls(take)) + len(sim.calls(pay))
        sim.until_ended(run.id)
        assert len(sim.calls(take)) + len(sim.calls(pay)) == made

    sim.play(outside)

    assert sim.crash_everywhere(orders, ["a", "b", "c"]) == 2 * (steps + 3)


# --- 25 -----------------------------------------------------------------------------------------------------------------


@activity(name="sagas.never_ends", retry=NO_RETRY)
async def never_ends() -> None:
    calls.append("begins")
    await asyncio.Event().wait()


@workflow(name="sagas.waits_for")
async def waits_for(ctx: WorkflowContext, what: str) -> None:
    await take("a")
    await take("b")
    match what:
        case "activity":
            await never_ends()
        case "timer":
            await asyncio.sleep(3600)
        case "event":
            await ctx.wait_event("sagas.go", timeout=3600)
        case _:
            async with ctx.subscribe(WORK) as work:
                await work.receive(timeout=3600)
    await take("too much")


WAITS = {"timer": Reason.TIMER, "event": Reason.EVENT, "message": Reason.EVENT}
BACK = ["give back b", "give back a"]


@pytest.mark.parametrize("what", ["activity", *WAITS])
async def test_25_a_cancelled_run_takes_back_and_leaves_nothing_behind(
    running: Running, database: DatabaseSettings, what: str
) -> None:
    """Given a running/waiting-timer/waiting-message run, when cancelled, compensations run, it is cancelled, waits are gone."""
    async with running(waits_for) as app:
        handle = await app.start(waits_for, what)
        await _is_there(handle, what)
        if what == "message":

            async def wants() -> int:
                return await _count(database, "demand")

            await until(wants, "it wants a message")
        assert await handle.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await handle.result()
        run = await handle.info()
        await until(lambda: _are_empty(database, "due", "subscription", "demand", "outbox"), "nothing of it is left")

    assert [call for call in calls if call != "begins"] == ["take a", "take b", *BACK]
    assert (run.phase, run.reason, run.message) == (Phase.CANCELLED, Reason.CANCELLED, "enough")


async def _is_there(handle: Handle[Any], what: str) -> None:
    if what == "activity":
        await until(lambda: _true("begins" in calls), "its activity runs")
    else:
        await in_phase(handle, Phase.WAITING)


async def _true(value: bool) -> bool:
    return value


async def _count(database: DatabaseSettings, table: str) -> int:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        return int(await connection.fetchval(f"select count(*) from romancy.{table}"))
    finally:
        await connection.close()


async def _are_empty(database: DatabaseSettings, *tables: str) -> bool:
    return [await _count(database, table) for table in tables] == [0] * len(tables)


@pytest.mark.parametrize("what", WAITS)
def test_25_whatever_crashes(sim: Simulation, what: str) -> None:
    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(5)
        assert run.cancel("enough")

    sim.play(outside)

    assert sim.crash_everywhere(waits_for, what) >= 10


# --- 26 -----------------------------------------------------------------------------------------------------------------


@workflow(name="sagas.takes")
async def takes(things: list[str]) -> int:
    return len([await take(thing) for thing in things])


async def test_26_a_cancel_of_what_has_ended_is_refused(running: Running) -> None:
    """Given completed/failed, cancel is refused; given cancelled, cancel again changes nothing."""
    async with running(takes, orders, waits_for) as app:
        ended, failed = await app.start(takes, ["a"]), await app.start(orders, ["a"])
        cancelled = await app.start(waits_for, "timer")
        await in_phase(cancelled, Phase.WAITING)
        assert await cancelled.cancel("first")
        await asyncio.gather(*(each.result() for each in (ended, failed, cancelled)), return_exceptions=True)
        before = [await _shown(app.store, each) for each in (ended, failed, cancelled)]
        made = list(calls)

        assert [await each.cancel("late") for each in (ended, failed, cancelled)] == [False] * 3
        assert [await _shown(app.store, each) for each in (ended, failed, cancelled)] == before

    assert [run.phase for run, _, _ in before] == [Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED]
    assert before[-1][0].message == "first"
    assert calls == made


async def _shown(store: Any, handle: Handle[Any]) -> tuple[Any, Any, Any]:
    run = await handle.info()
    return run, await store.read_history(run.id), await store.read_inbox(run.id, 0)


def test_26_two_cancels_are_one_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(5)
        assert run.cancel("first")
        assert not run.cancel("second")
        sim.until_ended(run.id)
        assert not run.cancel("third")
        assert run.info().message == "first"

    sim.play(outside)

    assert sim.crash_everywhere(waits_for, "timer") >= 10


# --- 27 -----------------------------------------------------------------------------------------------------------------


@workflow(name="sagas.waits_for_both")
async def waits_for_both(ctx: WorkflowContext, seconds: float) -> str:
    await take("a")
    try:
        await ctx.wait_event("sagas.go", timeout=seconds)
    except TimeoutError:
        return "timer"
    return "event"


async def test_27_what_comes_after_a_cancel_changes_nothing(running: Running, database: DatabaseSettings) -> None:
    """(+) Given a cancelled run, when its timer or event arrives, then it stays cancelled."""
    async with running(waits_for_both, takes) as app:
        handle = await app.start(waits_for_both, 0.7)
        waiting = await subscribed(app, handle)
        assert waiting.wake_at is not None
        assert await handle.cancel()
        await in_phase(handle, Phase.CANCELLED)
        before = await _shown(app.store, handle)
        assert (await app.send_event("sagas.go", id="e1")).runs == 0
        assert (await app.send_event("sagas.go", id="e2", to=handle.id)).runs == 0
        await until(lambda: _is_past(database, waiting.wake_at), "the timer would be due")
        async with Client(database) as client:  # whoever claims this one asks for all that is due
            assert await (await client.start(takes, ["b"])).result(timeout=10) == 1
        assert await _shown(app.store, handle) == before

    assert calls == ["take a", "give back a", "take b"]


async def _is_past(database: DatabaseSettings, moment: Any) -> bool:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        return bool(await connection.fetchval("select now() > $1", moment))
    finally:
        await connection.close()


def test_27_whatever_crashes(sim: Simulation) -> None:
    """Event and deadline come while it takes back, and after its end."""

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(5)
        assert run.cancel("enough")
        sim.send_event("sagas.go", id="e1", to=run.id)
        sim.advance(3600)
        sim.send_event("sagas.go", id="e2", to=run.id)
        sim.advance(3600)
        assert run.info().phase == Phase.CANCELLED

    sim.play(outside)

    assert sim.crash_everywhere(waits_for_both, 60.0) >= 8


# --- 28 -----------------------------------------------------------------------------------------------------------------


async def test_28_a_cancel_from_elsewhere_stops_it_at_its_next_step(
    running: Running, database: DatabaseSettings
) -> None:
    """(+) Given cancel while another worker runs it, then it stops at the next step, compensations run exactly once."""
    async with running(waits_for, name="holder") as holder, running(waits_for, name="other") as other:
        handle = await holder.start(waits_for, "activity")
        await until(lambda: _true("begins" in calls), "its activity runs")
        run_id = (await handle.info()).id
        assert (holder.executes(run_id), other.executes(run_id)) == (True, False)
        cancels = await asyncio.gather(*(each.handle(run_id).cancel("enough") for each in (other, holder) * 5))
        run = await in_phase(other.handle(run_id), Phase.CANCELLED)
        sent = await other.store.read_inbox(run_id, 0)

    assert cancels.count(True) == len(sent) == 1
    assert calls == ["take a", "take b", "begins", *BACK]
    assert run.worker is None


@activity(name="sagas.takes_its_time")
async def takes_its_time(what: str) -> str:
    await asyncio.sleep(0.002)  # a cancel may come here; after it the thing is taken
    calls.append(f"take {what}")
    return what


@takes_its_time.compensate(name="sagas.gives_it_back")
async def gives_it_back(what: str) -> None:
    calls.append(f"give back {what}")


@workflow(name="sagas.takes_many")
async def takes_many(run: int) -> None:
    for number in range(200):
        await takes_its_time(f"{run}.{number}")


async def test_28_cancelled_anywhere_all_that_was_taken_is_given_back_once(running: Running) -> None:
    """Thirty runs on two workers, each cancelled from the other one at another moment."""
    random = Random(28)
    async with running(takes_many, name="one") as one, running(takes_many, name="two") as two:
        handles = [await (one, two)[nth % 2].start(takes_many, nth) for nth in range(30)]
        for nth in random.sample(range(30), 30):
            await asyncio.sleep(random.uniform(0, 0.02))  # another moment of each
            assert await (two, one)[nth % 2].handle(handles[nth].id or "").cancel()
        for nth, handle in enumerate(handles):
            await in_phase((two, one)[nth % 2].handle(handle.id or ""), Phase.CANCELLED)

    for nth in range(30):
        mine = [call for call in calls if call.split()[-1].startswith(f"{nth}.")]
        taken = [call.removeprefix("take ") for call in mine if call.startswith("take")]
        assert 0 <= len(taken) < 200
        assert mine == [f"take {what}" for what in taken] + [f"give back {what}" for what in reversed(taken)]


def _cancelled_in_the_third(sim: Simulation) -> int:
    """Cancel it in the middle of its third activity, and check what is given back; how many saves it took."""

    async def slowly(what: str) -> str:
        await asyncio.sleep(10)
        return what

    sim.fake(takes_its_time, slowly)
    run = sim.start(takes_many.options(id="run"), 1)
    sim.until(lambda: len(sim._database.history.get(run.id, ())) >= 2)
    sim.advance(5)
    assert run.cancel("enough")
    with pytest.raises(RunCancelledError):
        run.result()

    completed = [entry for entry in run.history if entry.kind is Kind.ACTIVITY_COMPLETED]
    taken = [json.loads(entry.payload) for entry in completed if entry.name == takes_its_time.name]
    given = [arguments["what"] for arguments in sim.calls(gives_it_back)]
    assert taken in (
        ["1.0", "1.1"],
        ["1.0", "1.1", "1.2"],
    )  # the third is run again if nobody knows whether it was done
    assert list(dict.fromkeys(given)) == taken[::-1]
    assert len(given) <= len(taken) + sim.deaths
    assert [entry.name for entry in completed].count(gives_it_back.name) == len(taken)
    return sim.saves


def test_28_whatever_crashes(sim: Simulation) -> None:
    saves = _cancelled_in_the_third(sim)
    assert saves >= 5
    for crash in [Crash(save, is_applied) for save in range(saves) for is_applied in (False, True)]:
        with Simulation(crash=crash) as disturbed:
            _cancelled_in_the_third(disturbed)
            assert disturbed.deaths == 1
