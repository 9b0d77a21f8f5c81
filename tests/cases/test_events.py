"""Cases 29 to 33: events and their waits."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from romancy import Client, CloudEvent, Event, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import DefinitionError, EventInvalidError, PayloadTooLargeError
from romancy.model.history import Kind, Message, MessageKind
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from romancy.testing.simulation import SimulatedRun
from tests.cases.conftest import Running, in_phase, subscribed, until

pytestmark = pytest.mark.usefixtures("verified")


class Paid(Event, type="com.shop.paid"):
    """A payment."""

    order: str
    ok: bool = True
    cents: int = 0


@activity
async def ask_for_payment(order: str) -> str:
    return order


@workflow
async def paid(ctx: WorkflowContext, order: str, timeout: float | None = None) -> str:
    try:
        found = await ctx.wait_event(Paid, where={"order": order}, timeout=timeout)
    except TimeoutError:
        return "not paid"
    return f"{found.order} {found.cents} {found.cloudevent.id}"


@workflow
async def votes(ctx: WorkflowContext, count: int) -> list[int]:
    return [(await ctx.wait_event("com.shop.vote")).data["n"] for _ in range(count)]


# --- 29 -------------------------------------------------------------------------------------------------------------


@workflow
async def tells_all(ctx: WorkflowContext, order: str) -> dict[str, Any]:
    event: CloudEvent = await ctx.wait_event("com.shop.paid", where={"order": order})
    await ask_for_payment(order)
    time = event.time and event.time.isoformat()
    return {"data": event.data, "id": event.id, "source": event.source, "time": time, "subject": event.subject} | dict(
        event.extensions
    )


async def test_29_an_event_resumes_its_run_on_any_worker_with_all_its_attributes(running: Running) -> None:
    """Given wait_event, when the event comes, then it resumes on any worker with data, id, source, time, subject, extensions."""
    at = datetime(2026, 5, 1, 12, tzinfo=UTC)
    async with running(tells_all, name="first") as first:
        handle = await first.start(tells_all.options(id="order-1"), "o1")
        await subscribed(first, handle)
    async with running(tells_all, name="second") as second:
        receipt = await second.send_event(
            "com.shop.paid",
            {"order": "o1", "cents": 5},
            id="e1",
            source="/shop",
            time=at,
            subject="o1",
            extensions={"tenant": "a"},
        )
        found = await second.handle("order-1").result()

    assert (receipt.runs, receipt.is_new) == (1, True)
    assert found == {
        "data": {"order": "o1", "cents": 5},
        "id": "e1",
        "source": "/shop",
        "time": at.isoformat(),
        "subject": "o1",
        "tenant": "a",
    }


def test_29_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(1)
        sim.send_event("com.shop.paid", {"order": "o1"}, id="e1")

    sim.play(outside)

    assert sim.crash_everywhere(tells_all, "o1") >= 6


# --- 30 -------------------------------------------------------------------------------------------------------------


async def test_30_without_an_event_a_timeout_is_raised_that_can_be_caught(running: Running) -> None:
    """Given wait with timeout and no event, then a timeout error is raised that the workflow can catch, also on replay."""
    async with running(paid) as app:
        handle = await app.start(paid, "o1", 0.2)
        assert await handle.result() == "not paid"


def test_30_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(paid, "o1", 60.0) >= 4


# --- 31 -------------------------------------------------------------------------------------------------------------


async def test_31_a_wait_and_the_release_of_its_run_are_one(running: Running, database: DatabaseSettings) -> None:
    """Given the atomic suspend, then wait and release happen together or not at all; who does not hold the run is refused.

    What a run waits for is in the outbox with the write that lets it go: there is no moment with one and without the other.
    """
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("set search_path to romancy")
    await connection.execute("""
        create table seen (waits boolean, is_free boolean);
        create function see() returns trigger language plpgsql as $$
        begin
            insert into romancy.seen
            select exists (select from romancy.outbox where run_id = new.id and kind = 'Subscribe')
                   or exists (select from romancy.subscription where run_id = new.id), new.worker_id is null
             where new.phase = 'Waiting';
            return null;
        end $$;
        create constraint trigger sees after insert or update on due deferrable initially deferred
            for each row execute function see();
    """)
    async with running(paid) as app:
        handle = await app.start(paid, "o1")
        await subscribed(app, handle)
        rows = await connection.fetch("select distinct waits, is_free from seen")
        await app.send_event(Paid(order="o1"), id="e1")
        assert await handle.result() == "o1 0 e1"
    await connection.execute("drop function see cascade; drop table seen")
    await connection.close()

    assert {(row["waits"], row["is_free"]) for row in rows} == {(True, True)}


# --- 32 -------------------------------------------------------------------------------------------------------------


async def test_32_a_targeted_event_is_for_that_run_alone(running: Running) -> None:
    """Given a targeted event, then only that run gets it; an unknown target is no error; without target, all waiters get it."""
    async with running(paid) as app:
        one, other = [await app.start(paid, "o1") for _ in range(2)]
        for handle in (one, other):
            await subscribed(app, handle)

        assert (await app.send_event(Paid(order="o1"), id="e0", to=uuid4())).runs == 0
        assert (await app.send_event(Paid(order="o1"), id="e1", to=one.id)).runs == 1
        assert await one.result() == "o1 0 e1"
        assert (await other.info()).phase is Phase.WAITING

        third = await app.start(paid, "o1")
        await subscribed(app, third)
        assert (await app.send_event(Paid(order="o1"), id="e2")).runs == 2
        assert [await other.result(), await third.result()] == ["o1 0 e2", "o1 0 e2"]


# --- 33 -------------------------------------------------------------------------------------------------------------


@workflow
async def asks_first(ctx: WorkflowContext, order: str) -> str:
    await ask_for_payment(order)
    await ctx.wait_event("go-on")
    return (await ctx.wait_event(Paid, where={"order": order})).cloudevent.id


@workflow
async def subscribes_first(ctx: WorkflowContext, order: str) -> list[str]:
    async with ctx.subscribe(Paid, where={"order": order}) as payments:
        await ask_for_payment(order)
        await ctx.wait_event("go-on")
        return [(await payments.receive(timeout=60)).cloudevent.id for _ in range(2)]


async def test_33_an_event_before_its_wait_is_not_lost(running: Running) -> None:
    """(+) Given an event published between check and wait, or before the wait starts after subscribe, then it is delivered."""
    async with running(asks_first, subscribes_first) as app:
        early = await app.start(asks_first, "o1")
        subscribed = await app.start(subscribes_first, "o1")
        for handle in (early, subscribed):
            await until(lambda handle=handle: _awaits(handle, "go-on"), "the payment was asked for")
        await app.send_event(Paid(order="o1"), id="e1")
        await app.send_event(Paid(order="o2"), id="other")
        await app.send_event(Paid(order="o1"), id="e2")
        assert (await early.info()).message == "waiting for event go-on"  # all came before its wait
        await app.send_event("go-on")

        assert await early.result() == "e1"
        assert await subscribed.result() == ["e1", "e2"]


async def _awaits(handle: Any, type: str) -> bool:
    return (await handle.info()).message == f"waiting for event {type}"


def test_33_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(0.1)
        sim.send_event(Paid(order="o1"), id="e1")
        sim.send_event(Paid(order="o1"), id="e2")
        sim.send_event("go-on", id="go")

    sim.play(outside)

    assert sim.crash_everywhere(asks_first, "o1") >= 6
    assert sim.crash_everywhere(subscribes_first, "o1") >= 8


def test_33_what_came_before_the_subscription_is_not_seen(sim: Simulation) -> None:
    run = sim.start(subscribes_late, "o1")
    sim.send_event(Paid(order="o1"), id="before")
    sim.advance(20)
    sim.send_event(Paid(order="o1"), id="after")

    assert run.result() == "after"


@workflow
async def subscribes_late(ctx: WorkflowContext, order: str) -> str:
    await asyncio.sleep(10)
    async with ctx.subscribe(Paid, where={"order": order}) as payments:
        return (await payments.receive()).cloudevent.id


# --- races, forced ------------------------------------------------------------------------------------------------------


async def test_an_event_between_look_and_subscription_is_found_by_one_of_both(
    running: Running, database: DatabaseSettings
) -> None:
    """The subscription is held back before its commit: the event sees nobody, and then the look back sees the event."""
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("set search_path to romancy")
    async with running(paid) as app, connection.transaction():
        await connection.execute("lock table shape in exclusive mode")  # who subscribes waits here, after its snapshot
        handle = await app.start(paid, "o1")
        await in_phase(handle, Phase.WAITING, Reason.EVENT)
        receipt = await asyncio.wait_for(app.send_event(Paid(order="o1"), id="e1"), 5)
        assert receipt.runs == 0
        await connection.execute("commit")

        assert await handle.result() == "o1 0 e1"
        await connection.execute("begin")  # what the context manager ends
    await connection.close()


async def test_two_deliveries_of_one_event_are_one(running: Running) -> None:
    async with running(votes) as app:
        handle = await app.start(votes, 2)
        await subscribed(app, handle)
        receipts = await asyncio.gather(
            *(app.send_event("com.shop.vote", {"n": 1}, id="v1", source="/poll") for _ in range(20))
        )
        await app.send_event("com.shop.vote", {"n": 2}, id="v1", source="/other poll")

        assert sorted(receipt.runs for receipt in receipts) == [0] * 19 + [1]
        assert [receipt.is_new for receipt in receipts].count(True) == 1
        assert await handle.result() == [1, 2]


@workflow
async def races(ctx: WorkflowContext) -> str:
    try:
        await ctx.wait_event("com.shop.go", timeout=3600)
    except TimeoutError:
        return "timer"
    return "event"


@pytest.mark.parametrize("first", ["event", "timer", "cancel"])
async def test_event_timer_and_cancel_at_once_are_taken_in_the_order_in_which_they_happened(
    running: Running, database: DatabaseSettings, first: str
) -> None:
    """All three lie there when a worker takes the run; two workers want it."""
    async with running(races) as app:
        handle = await app.start(races.options(id=f"race-{first}"))
        await subscribed(app, handle)
    async with Client(database) as client:
        run_id = (await client.handle(f"race-{first}").info()).id
        if first == "event":
            await client.send_event("com.shop.go", id="go")
        await client.store.send([Message(run_id, MessageKind.CANCEL, "test", "{}")])
        if first != "event":
            await client.send_event("com.shop.go", id="go")
    connection = await asyncpg.connect(database.url.get_secret_value())
    # The timer's deadline is an hour after the run's begin: before the other two, or a moment after them.
    minutes = 61 if first == "timer" else 59.98
    await connection.execute(f"update romancy.due set started_at = now() - interval '{minutes} minutes'")
    await connection.execute("update romancy.history set at = (select started_at from romancy.due)")
    await connection.close()
    async with running(races, name="one") as one, running(races, name="two"):
        again = one.handle(f"race-{first}")
        run = await in_phase(again, {"event": Phase.SUCCEEDED, "timer": Phase.SUCCEEDED}.get(first, Phase.CANCELLED))
        history = await one.store.read_history(run.id)

    kinds = [entry.kind for entry in history if entry.kind is not Kind.STARTED]
    assert kinds[0] is {"event": Kind.EVENT_RECEIVED, "timer": Kind.TIMER_FIRED, "cancel": Kind.CANCEL_REQUESTED}[first]
    assert run.output == {"event": '"event"', "timer": '"timer"'}.get(first)


@workflow
async def cancels_who_is_about_to_get_it(ctx: WorkflowContext) -> list[str]:
    """One event for a stream and for a wait: who has it first cancels the other in the same step."""
    async with ctx.subscribe("com.shop.vote") as votes:
        waiting = asyncio.create_task(ctx.wait_event("com.shop.vote"))
        found = [(await votes.receive()).id]
        waiting.cancel()
        [ended] = await asyncio.gather(waiting, return_exceptions=True)
        found.append(type(ended).__name__)
    return [*found, (await ctx.wait_event("com.shop.vote")).id]


def test_what_a_cancelled_wait_was_about_to_get_is_for_the_next(sim: Simulation) -> None:
    run = sim.start(cancels_who_is_about_to_get_it)
    sim.advance(1)
    sim.send_event("com.shop.vote", {"n": 1}, id="v1")

    assert run.result() == ["v1", "CancelledError", "v1"]


# --- what is counted ------------------------------------------------------------------------------------------------------


def test_a_loop_that_waits_for_one_event_after_the_other_is_subscribed_once(sim: Simulation) -> None:
    run = sim.start(votes, 3)
    for n in range(3):
        sim.advance(1)
        sim.send_event("com.shop.vote", {"n": n})

    assert run.result() == [0, 1, 2]
    assert [entry.kind for entry in run.history] == [Kind.STARTED] + [Kind.EVENT_RECEIVED] * 3


def test_more_events_than_one_look_brings_are_all_received(sim: Simulation) -> None:
    run = sim.start(votes.options(delay=timedelta(hours=1)), 250)
    for n in range(250):
        sim.send_event("com.shop.vote", {"n": n})

    assert run.result() == list(range(250))


def test_a_suspended_run_gets_its_event_when_it_is_resumed(sim: Simulation) -> None:
    run = sim.start(paid, "o1")
    sim.advance(1)
    run.suspend()
    sim.send_event(Paid(order="o1"), id="e1")
    sim.advance(3600)
    assert (run.info().phase, run.info().reason) == (Phase.SUSPENDED, Reason.SUSPENDED)
    assert [entry.kind for entry in run.history] == [Kind.STARTED]
    run.resume()

    assert run.result() == "o1 0 e1"


# --- bad input --------------------------------------------------------------------------------------------------------------


@workflow
async def asks(ctx: WorkflowContext, what: str) -> None:
    match what:
        case "field":
            await ctx.wait_event(Paid, where={"oder": "o1"})
        case "value":
            await ctx.wait_event(Paid, where={"order": ["o1"]})
        case "where":
            await ctx.wait_event(Paid, where=[("order", "o1")])  # type: ignore[arg-type]
        case "timeout 0":
            await ctx.wait_event(Paid, timeout=0)
        case "timeout -1":
            await ctx.wait_event(Paid, timeout=-1)
        case "type":
            await ctx.wait_event("no type!")
        case _:
            await ctx.wait_event(int)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("what", "error", "says"),
    [
        ("field", EventInvalidError, "did you mean 'order'"),
        ("value", EventInvalidError, "can't be matched"),
        ("where", EventInvalidError, "is a mapping"),
        ("timeout 0", EventInvalidError, "more than 0 s, not 0"),
        ("timeout -1", EventInvalidError, "more than 0 s, not -1"),
        ("type", DefinitionError, "is no type of an event"),
        ("class", DefinitionError, "is no event"),
    ],
)
def test_a_wrong_wait_says_what_is_wrong(sim: Simulation, what: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error) as raised:
        sim.run(asks, what)

    assert says in "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert getattr(raised.value, "hint", "")


async def test_a_wrong_event_says_what_is_wrong_and_nothing_is_stored(running: Running) -> None:
    async with running(paid) as app:
        for attributes, says in [
            ({"id": ""}, "needs 'id'"),
            ({"id": "x" * 300}, "needs 'id'"),
            ({"source": ""}, "needs 'source'"),
            ({"extensions": {"Tenant": "a"}}, "can't be an extension"),
            ({"extensions": {"source": "a"}}, "can't be an extension"),
            ({"time": datetime(2026, 1, 1, tzinfo=UTC).replace(tzinfo=None)}, "needs a time zone"),
        ]:
            with pytest.raises(EventInvalidError, match=says):
                await app.send_event("com.shop.paid", {"order": "o1"}, **attributes)  # type: ignore[arg-type]
        with pytest.raises(EventInvalidError, match="is no JSON"):
            await app.send_event("com.shop.paid", {"order": float("nan")})
        with pytest.raises(PayloadTooLargeError, match=r"has 1,[0-9]+,[0-9]+ bytes; the limit is 1,048,576"):
            await app.send_event("com.shop.paid", {"order": "x" * 1024 * 1024})

        handle = await app.start(paid, "o1")
        assert (await subscribed(app, handle)).message == "waiting for event com.shop.paid (order='o1')"
        await app.send_event("com.shop.paid", {"order": "o1", "ok": "perhaps"})
        with pytest.raises(EventInvalidError, match="does not fit Paid"):
            await handle.result()


async def test_anything_that_json_holds_can_be_sent(running: Running) -> None:
    """What PostgreSQL's jsonb refuses can't be matched, and is received all the same."""
    data = {"order": "o1", "nul": "\x00", "deep": {"a": [{"b": 1e300}]}, "long": "x" * 5000, "big": 10**400, "ä": "ö\n"}
    async with running(tells_all) as app:
        handle = await app.start(tells_all, "o1")
        await subscribed(app, handle)
        await app.send_event("com.shop.paid", data, id="e1")

        assert (await handle.result())["data"] == data


# --- events that start workflows ------------------------------------------------------------------------------------------


@workflow(starts_on=Paid, where={"ok": True})
async def on_paid(ctx: WorkflowContext, paid: Paid) -> str:
    await ask_for_payment(paid.order)
    return f"{paid.order} {ctx.info.labels['event-id']}"


async def test_an_event_starts_a_run_once(running: Running) -> None:
    async with running(on_paid) as app:
        receipts = [await app.send_event(Paid(order="o1"), id="e1") for _ in range(2)]
        refused = await app.send_event(Paid(order="o1", ok=False), id="e2")
        [run] = await app.list()
        assert await app.handle(run.id).result() == "o1 e1"

    assert [receipt.started for receipt in receipts] == [1, 0]
    assert refused.started == 0
    async with Client(app.store.settings) as client:  # while no worker lives
        assert (await client.send_event(Paid(order="o2"), id="e3")).started == 1


async def test_a_workflow_that_events_start_no_more_is_started_by_none(running: Running) -> None:
    async with running(on_paid):
        pass
    async with running(_without(on_paid)) as app:
        assert (await app.send_event(Paid(order="o1"), id="e1")).started == 0


def _without(of: Any) -> Any:
    async def on_paid(ctx: WorkflowContext, paid: Paid) -> str:
        return ""

    return workflow(name=of.name)(on_paid)


def test_a_run_that_an_event_starts_in_the_simulation(sim: Simulation) -> None:
    sim.offer(on_paid)
    sim.advance(1)

    assert sim.send_event(Paid(order="o1"), id="e1").started == 1
    sim.advance(1)
    assert sim.calls(ask_for_payment) == [{"order": "o1"}]


def test_a_wrong_start_is_found_at_import() -> None:
    with pytest.raises(DefinitionError, match="does not take its data"):

        @workflow(starts_on=Paid)
        async def takes_two(order: str, ok: bool) -> None:
            pass

    with pytest.raises(DefinitionError, match="`where` without `starts_on`"):

        @workflow(where={"ok": True})
        async def has_where(order: str) -> None:
            pass

    with pytest.raises(EventInvalidError, match="has no such field"):

        @workflow(starts_on=Paid, where={"okay": True})
        async def names_no_field(paid: Paid) -> None:
            pass
