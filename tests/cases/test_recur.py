"""Cases 44 and 45: a run that begins anew; what a run shows; gates of changed code."""

import asyncio
import gc
import json
from typing import Any

import asyncpg
import pytest

from romancy import Event, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import PayloadError, PayloadTooLargeError, RecurInvalidError, RunCancelledError, ValueInvalidError
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason, iteration_id_of
from romancy.testing import Simulation
from romancy.testing.histories import export, replay
from romancy.testing.simulation import SimulatedRun
from tests.cases.conftest import Running, in_phase

pytestmark = pytest.mark.usefixtures("verified")


class Order(Event, type="com.shop.order"):
    """An order."""

    cents: int


@activity
async def count_up(number: int) -> str:
    return activity.info().idempotency_key


@count_up.compensate
async def count_down(key: str) -> None:
    pass


@workflow
async def counts(ctx: WorkflowContext, number: int, last: int = 3) -> str:
    key = await count_up(number)
    ctx.set_value("number", number)
    ctx.set_value("key", key)
    if number < last:
        ctx.recur(number + 1, last)
    return f"{number} {ctx.uuid4()}"


async def test_44_recur_is_the_same_run_with_a_new_input_and_an_empty_history(running: Running) -> None:
    """Given recur(n+1), then the next iteration has the new input, empty history, a link to the old; compensations are gone."""
    async with running(counts) as app:
        handle = await app.start(counts.options(id="counter", labels={"a": "b"}), 1)
        assert (await handle.result()).startswith("3 ")
        run = await handle.info()
        history = await app.store.read_history(run.id)
        former = [await app.store.read_run(iteration_id_of(run.id, claim)) for claim in (1, 2)]
        kept = [await app.store.read_history(each.id) for each in former if each]
        listed = await app.list()
        again = await app.start(counts.options(id="counter", labels={"a": "b"}), 1)
        assert (again.id, (await again.result())[:2]) == (run.id, "3 ")  # the same start is the same run

    assert (run.input, run.phase) == ('{"number":3,"last":3}', Phase.SUCCEEDED)
    assert [entry.kind for entry in history] == [Kind.ACTIVITY_COMPLETED]
    assert [each and (each.input, each.reason, each.recurred_into, each.name, each.labels) for each in former] == [
        ('{"number":1}', Reason.RECURRED, run.id, "counter", {"a": "b"}),
        ('{"number":2,"last":3}', Reason.RECURRED, run.id, "counter", {"a": "b"}),
    ]
    assert [len(each) for each in kept] == [1, 1]
    keys = {entry.payload for each in [*kept, history] for entry in each}
    assert len(keys) == 3  # no iteration's activity is taken for another's
    assert [each.id for each in listed] == [run.id]


def test_44_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(counts, 1) >= 12


def test_each_iteration_can_be_replayed(sim: Simulation) -> None:
    run = sim.start(counts, 1)
    run.result()
    store = sim._client.store
    for run_id in [run.id, *(iteration_id_of(run.id, claim) for claim in (1, 2))]:
        shown = sim.ask(store.read_run(run_id))
        assert shown is not None
        replay(counts, export(shown, sim.ask(store.read_history(run_id))))


@workflow
async def recurs_at_once(ctx: WorkflowContext, number: int, last: int) -> int:
    if number < last:
        ctx.recur(number + 1, last)
    return number


def test_45_ten_thousand_recurs_in_a_row_grow_nothing(sim: Simulation) -> None:
    """(+) Given 10,000 recurs in a row, then no stack or memory growth.

    What the store keeps of former iterations is not counted: in production it is on disk, until it is purged.
    """
    run = sim.start(recurs_at_once, 0, 10_000)
    sizes = []
    for nth in (2_000, 9_000):
        sim.until(lambda nth=nth: json.loads(sim._database.run[run.id].input)["number"] >= nth)
        for archived in [each.id for each in sim._database.run.values() if each.recurred_into]:
            del sim._database.run[archived]
        gc.collect()
        sizes.append(len(gc.get_objects()))

    assert run.result() == 10_000
    assert sizes[1] - sizes[0] < 100, sizes
    assert run.id not in sim._database.inbox
    assert run.id not in sim._database.outbox


@workflow
async def adds(ctx: WorkflowContext, cents: int, rest: int) -> int:
    """An entity: one event an iteration."""
    order = await ctx.wait_event(Order)
    if rest > 1:
        ctx.recur(cents + order.cents, rest - 1)
    return cents + order.cents


async def test_no_event_is_lost_between_two_iterations(running: Running) -> None:
    async with running(adds) as app:
        handle = await app.start(adds, 0, 50)
        await asyncio.gather(*(app.send_event(Order(cents=1), id=f"o{nth}") for nth in range(50)))

        assert await handle.result(timeout=20) == 50


def test_no_event_is_lost_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        for nth in range(4):
            sim.send_event(Order(cents=10**nth), id=f"o{nth}")
            sim.advance(nth % 2)

    sim.play(outside)

    assert sim.crash_everywhere(adds, 0, 4) >= 16


def test_a_cancel_that_comes_as_a_run_recurs_is_heard_by_the_next_iteration(sim: Simulation) -> None:
    run = sim.start(waits_and_recurs, 0)
    sim.advance(10)
    run.cancel("enough")

    with pytest.raises(RunCancelledError, match="enough"):
        run.result()


@workflow
async def waits_and_recurs(ctx: WorkflowContext, number: int) -> None:
    await asyncio.sleep(10)
    ctx.recur(number + 1)


async def test_a_child_of_one_iteration_is_not_taken_for_one_of_the_next(running: Running) -> None:
    async with running(has_children, sleeps_as_a_child) as app:
        handle = await app.start(has_children.options(id="parent"), 1)

        assert await handle.result(timeout=20) == "parent.3"
        first = await in_phase(app.handle("parent.1"), Phase.CANCELLED)
    assert first.reason == Reason.PARENT_ENDED


@workflow
async def sleeps_as_a_child(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


@workflow
async def has_children(ctx: WorkflowContext, iteration: int) -> str:
    child = ctx.start_child(sleeps_as_a_child, 3600.0 if iteration < 3 else 0.1)
    await asyncio.sleep(0.1)
    if iteration < 3:
        ctx.recur(iteration + 1)
    await child.result()
    return child.name


@workflow
async def recurs_wrongly(ctx: WorkflowContext, number: int) -> str:
    match number:
        case 1:
            ctx.recur("text")
        case 2:
            ctx.recur(1, 2)
        case _:
            await asyncio.create_task(_recur(ctx))
    return "?"


async def _recur(ctx: WorkflowContext) -> None:
    ctx.recur(1)


@pytest.mark.parametrize(
    ("number", "error", "says"),
    [(1, PayloadError, "argument"), (2, RecurInvalidError, "does not take"), (3, RecurInvalidError, "in a task")],
)
def test_a_wrong_recur_says_what_is_wrong(sim: Simulation, number: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sim.run(recurs_wrongly, number)


# --- values -----------------------------------------------------------------------------------------------------------------


@workflow
async def shows(ctx: WorkflowContext, what: Any) -> None:
    ctx.set_value("progress", {"done": 1})
    await count_up(1)
    ctx.set_value("progress", {"done": 2})
    ctx.set_value(what, 1)
    await asyncio.sleep(3600)


async def test_what_a_run_shows_can_be_read_from_outside(running: Running) -> None:
    async with running(shows) as app:
        handle = await app.start(shows, "link")
        await in_phase(handle, Phase.WAITING)
        assert await handle.values() == {"progress": {"done": 2}, "link": 1}
        await handle.cancel()


async def test_an_older_value_that_comes_late_changes_nothing(running: Running, database: DatabaseSettings) -> None:
    async with running(counts) as app:
        handle = await app.start(counts, 1)
        await handle.result()
        connection = await asyncpg.connect(database.url.get_secret_value())
        await connection.execute(
            "insert into romancy.outbox (run_id, number, kind, payload) select id, 1, 'SetValue', $1 from romancy.run",
            '{"name":"number","value":"1"}',
        )
        await connection.close()
        await app.store.carry_out(await app.store.read_left(limit=9))

        assert (await handle.values())["number"] == 3


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", 7])
def test_a_wrong_name_says_what_is_wrong(sim: Simulation, name: Any) -> None:
    with pytest.raises(ValueInvalidError, match="1 to 100 printable characters"):
        sim.run(shows, name)


@workflow
async def shows_much(ctx: WorkflowContext) -> None:
    ctx.set_value("much", "x" * 100_000)


def test_a_value_has_a_limit(sim: Simulation) -> None:
    with pytest.raises(PayloadTooLargeError, match="value has 100,002 bytes; the limit is 65,536"):
        sim.run(shows_much)


# --- gates ------------------------------------------------------------------------------------------------------------------


@workflow
async def gated(ctx: WorkflowContext) -> list[bool]:
    first = ctx.patched("before")
    await count_up(1)
    second = ctx.patched("between")
    await count_up(2)
    return [first, second, ctx.patched("before"), ctx.patched("between")]


def test_a_new_run_takes_the_new_path_whatever_crashes(sim: Simulation) -> None:
    assert sim.run(gated) == [True] * 4
    assert sim.crash_everywhere(gated) >= 6


async def test_a_run_that_has_passed_by_the_old_path_stays_on_it(running: Running) -> None:
    async with running(old_code) as old:
        handle = await old.start(old_code.options(id="run"))
        await in_phase(handle, Phase.WAITING, Reason.TIMER)
    async with running(new_code, name="new") as new:
        await new.send_event("go", to=handle.id)
        again = new.handle("run")
        assert await again.result(timeout=10) == "old, then new"
        assert await (await new.start(new_code.options(id="other"))).result(timeout=10) == "new, then new"


@workflow(name="changing")
async def old_code(ctx: WorkflowContext) -> str:
    await count_up(1)
    await asyncio.sleep(1)
    return "old"


async def _new_code(ctx: WorkflowContext) -> str:
    first = "new" if ctx.patched("first") else "old"
    await count_up(1)
    await asyncio.sleep(1)
    second = "new" if ctx.patched("second") else "old"
    return f"{first}, then {second}"


def _another() -> Any:
    async def changing(ctx: WorkflowContext) -> str:
        return await _new_code(ctx)

    return workflow(name="changing")(changing)


new_code = _another()
