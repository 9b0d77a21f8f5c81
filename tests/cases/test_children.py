"""Child runs: awaited, started, cancelled, left behind."""

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from romancy import ParentClose, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import NeverAwaitedError, OutsideWorkflowError, RunCancelledError, RunExistsError, RunTimedOutError
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from romancy.testing.simulation import SimulatedRun
from tests.cases.conftest import Running, in_phase, until

pytestmark = pytest.mark.usefixtures("verified")


class OutOfStockError(Exception):
    """Nothing left."""


@activity
async def pack(order: str) -> str:
    return f"packed {order}"


@activity
async def unpack(what: str) -> None:
    pass


@pack.compensate
async def put_back(what: str) -> None:
    pass


@workflow
async def deliver(order: str, has_stock: bool = True) -> str:
    done = await pack(order)
    if not has_stock:
        raise OutOfStockError(order)
    return done


@workflow
async def wait_long(order: str) -> str:
    await pack(order)
    await asyncio.sleep(10_000)
    return order


@workflow
async def orders(order: str) -> list[str]:
    found = [await deliver(order)]
    try:
        await deliver(order, has_stock=False)
    except OutOfStockError as error:
        found.append(f"caught {error.args[0]}")
    return found


async def test_a_workflow_is_awaited_in_a_workflow_and_its_failure_caught_by_type(running: Running) -> None:
    async with running(orders, deliver) as app:
        handle = await app.start(orders.options(id="parent"), "o1")
        assert await handle.result() == ["packed o1", "caught o1"]
        first, second = [await app.handle(f"parent.{number}").info() for number in (1, 2)]

    assert (first.workflow, first.phase) == ("deliver", Phase.SUCCEEDED)
    assert (second.phase, second.reason) == (Phase.FAILED, Reason.WORKFLOW_FAILED)


def test_an_awaited_child_whatever_crashes(sim: Simulation) -> None:
    sim.offer(deliver)

    assert sim.crash_everywhere(orders, "o1") >= 16


@workflow
async def in_time(order: str) -> str:
    try:
        async with asyncio.timeout(60):
            return await wait_long(order)
    except TimeoutError:
        return "too late"


def test_an_await_that_is_cancelled_cancels_the_child_and_hears_of_its_end(sim: Simulation) -> None:
    sim.offer(wait_long)
    run = sim.start(in_time.options(id="parent"), "o1")

    assert run.result() == "too late"
    assert sim.calls(put_back) == [{"what": "packed o1"}]  # before the parent went on
    assert sim.crash_everywhere(in_time, "o1") >= 10


@workflow
async def leaves(ctx: WorkflowContext, order: str) -> str:
    taken = ctx.start_child(wait_long, order)
    left = ctx.start_child(wait_long.options(id="left", parent_close=ParentClose.ABANDON), order)
    await asyncio.sleep(1)
    return f"{taken.name} {left.name} {taken.is_done}"


async def test_the_end_of_a_parent_cancels_its_open_children_that_are_not_abandoned(running: Running) -> None:
    async with running(leaves, wait_long) as app:
        handle = await app.start(leaves.options(id="parent"), "o1")
        assert await handle.result() == "parent.1 left False"
        cancelled = await in_phase(app.handle("parent.1"), Phase.CANCELLED)
        abandoned = await in_phase(app.handle("left"), Phase.WAITING)

    assert cancelled.reason == Reason.PARENT_ENDED
    assert abandoned.reason == Reason.TIMER


@workflow
async def holds(ctx: WorkflowContext, what: str) -> str:
    match what:
        case "cancel":
            child = ctx.start_child(wait_long, "o1")
            await asyncio.sleep(1)
            child.cancel()
            try:
                await child.result()
            except asyncio.CancelledError:
                return "cancelled"
        case "timeout":
            child = ctx.start_child(wait_long.options(timeout=_SHORT), "o1")
            try:
                await child.result()
            except RunTimedOutError:
                return "timed out"
        case "exists":
            child = ctx.start_child(deliver.options(id="taken"), "o1")
            try:
                await child.result()
            except RunExistsError as error:
                return f"exists: {error.message}"
        case "patience":
            child = ctx.start_child(deliver, "o1")
            try:
                async with asyncio.timeout(0):
                    await child.result()
            except TimeoutError:
                return await child.result()  # whoever gives up waiting leaves the child alone
        case "result twice":
            child = ctx.start_child(deliver, "o1")
            return " ".join(await asyncio.gather(child.result(), child.result()))
    return "?"


_SHORT = timedelta(seconds=5)


@pytest.mark.parametrize(
    ("what", "gives"),
    [
        ("cancel", "cancelled"),
        ("timeout", "timed out"),
        ("exists", "exists: run default/taken exists already with another parent"),
        ("patience", "packed o1"),
        ("result twice", "packed o1 packed o1"),
    ],
)
def test_a_child_is_held_by_its_handle(sim: Simulation, what: str, gives: str) -> None:
    sim.offer(wait_long)
    if what == "exists":
        sim.run(deliver.options(id="taken"), "mine")
    else:
        sim.offer(deliver)

    assert sim.run(holds, what) == gives
    if what != "exists":
        assert sim.crash_everywhere(holds, what) >= 6


async def test_a_child_that_somebody_else_cancels_is_an_error_of_its_own(running: Running) -> None:
    async with running(orders, deliver, in_time, wait_long) as app:
        handle = await app.start(in_time.options(id="parent"), "o1")
        await until(lambda: _exists(app, "parent.1"), "the child is there")
        await in_phase(app.handle("parent.1"), Phase.WAITING)
        await app.handle("parent.1").cancel("not needed")
        with pytest.raises(RunCancelledError, match=r"parent\.1 was cancelled: not needed"):
            await handle.result()


async def test_cancelling_a_parent_cancels_what_it_awaits_and_takes_that_back_first(running: Running) -> None:
    async with running(in_time, wait_long) as app:
        handle = await app.start(in_time.options(id="parent"), "o1")
        await until(lambda: _exists(app, "parent.1"), "the child is there")
        await in_phase(app.handle("parent.1"), Phase.WAITING)
        assert (await handle.info()).message.startswith(
            "waiting for child run 'parent.1' of workflow 'wait_long' until "
        )
        await handle.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await handle.result()
        child = await app.handle("parent.1").info()

    assert child.phase is Phase.CANCELLED


async def test_a_child_that_nobody_ever_took_is_told_of_as_well(running: Running) -> None:
    async with running(in_time) as app:  # nobody has wait_long
        handle = await app.start(in_time.options(id="parent"), "o1")
        await until(lambda: _exists(app, "parent.1"), "the child is there")
        await handle.cancel("enough")
        with pytest.raises(RunCancelledError, match="enough"):
            await handle.result(timeout=10)


async def _exists(app: Any, name: str) -> bool:
    return await app.store.find_run("default", name) is not None


# --- races, forced ------------------------------------------------------------------------------------------------------


async def test_a_child_that_ends_while_its_parent_is_being_claimed(
    running: Running, database: DatabaseSettings
) -> None:
    """The claim holds the parent's row; the message of the child's end waits for it, and wakes who has just claimed."""
    connection = await asyncpg.connect(database.url.get_secret_value())
    async with running(orders, name="parents") as parents:
        handle = await parents.start(orders.options(id="parent"), "o1")
        await in_phase(handle, Phase.WAITING, Reason.CHILD)
        await until(lambda: _exists(parents, "parent.1"), "the child is there")
        async with connection.transaction():  # as a claim on its way does
            await connection.execute("select from romancy.due where id = $1 for no key update", handle.id)
            async with running(deliver, name="children") as children:
                await in_phase(children.handle("parent.1"), Phase.SUCCEEDED)
                await until(lambda: _waits_for_a_lock(database), "the end of the child waits")
                await connection.execute("update romancy.due set wake_at = now() where id = $1", handle.id)
                await connection.execute("commit")
                assert await handle.result() == ["packed o1", "caught o1"]
                await connection.execute("begin")
    await connection.close()


async def _waits_for_a_lock(database: DatabaseSettings) -> bool:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        return bool(await connection.fetchval("select exists (select from pg_locks where not granted)"))
    finally:
        await connection.close()


# --- many -----------------------------------------------------------------------------------------------------------------


@workflow
async def doubled_by_a_child(number: int) -> int:
    return 2 * number


@workflow
async def doubled_by_children(count: int) -> int:
    return sum(await asyncio.gather(*(doubled_by_a_child(number) for number in range(count))))


async def test_a_thousand_children_at_once(running: Running) -> None:
    async with running(doubled_by_children, doubled_by_a_child) as app:
        handle = await app.start(doubled_by_children, 1000)
        assert await handle.result(timeout=50) == 999_000


# --- bad input --------------------------------------------------------------------------------------------------------------


@workflow
async def forgets(order: str) -> None:
    deliver(order)  # type: ignore[unused-coroutine]
    await asyncio.sleep(1)


async def test_a_child_is_awaited_and_called_in_a_workflow_alone(sim: Simulation) -> None:
    with pytest.raises(OutsideWorkflowError, match="was called outside of a workflow"):
        await deliver("o1")


def test_a_child_that_is_never_awaited_is_an_error(sim: Simulation) -> None:
    with pytest.raises(NeverAwaitedError, match="deliver was called but never awaited"):
        sim.run(forgets, "o1")


def test_what_the_outside_does_is_played_with_each_crash(sim: Simulation) -> None:
    """A cancel of the parent while its child runs, and the process dies somewhere."""
    sim.offer(wait_long)

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(5)
        run.cancel("enough")

    sim.play(outside)

    assert sim.crash_everywhere(in_time, "o1") >= 10
