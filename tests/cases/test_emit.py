"""Cases 53 to 55, outwards: what runs emit reaches the sink, at least once and in order, whatever dies."""

from collections import Counter
from typing import Any

import pytest
from structlog.testing import capture_logs

from romancy import App, Client, CloudEvent, Event, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings, OutboxSettings
from romancy.errors import DefinitionError, EventInvalidError, FilterError, PayloadTooLargeError
from romancy.testing import Simulation
from tests.cases.conftest import QUICK, Running, until
from tests.outbox.sink import StubSink

pytestmark = pytest.mark.usefixtures("verified")


class Shipped(Event, type="com.shop.shipped"):
    """A parcel is on its way."""

    order: str
    parcels: int = 1


@activity
async def load(order: str) -> int:
    return len(order)


@workflow
async def ships(ctx: WorkflowContext, orders: list[str]) -> list[str]:
    """Emits before, between and after its activities."""
    ids = [ctx.emit("com.shop.begun", {"orders": len(orders)}).id]
    for order in orders:
        shipped = Shipped(order=order, parcels=await load(order))
        ids += [ctx.emit(shipped, subject=order).id]
    ids.append(ctx.emit("com.shop.done", source="/shop", id=f"done-{len(orders)}", extensions={"team": "a"}).id)
    return ids


@workflow
async def emits_each_round(ctx: WorkflowContext, round_: int) -> int:
    ctx.emit("com.shop.round", round_)
    await load("x")
    if round_ < 3:
        ctx.recur(round_ + 1)
    return round_


@workflow
async def emits_wrongly(ctx: WorkflowContext, how: str) -> str:
    wrong: dict[str, Any] = {
        "type": lambda: ctx.emit("no type"),
        "class": lambda: ctx.emit(object()),  # type: ignore[call-overload]
        "data": lambda: ctx.emit(Shipped(order="a"), {"b": 1}),  # type: ignore[call-overload]
        "source": lambda: ctx.emit("t", source=""),
        "extension": lambda: ctx.emit("t", extensions={"Not-This": 1}),
        "large": lambda: ctx.emit("t", "x" * 2_000_000),
        "naked": lambda: ctx.emit("t", float),
    }
    try:
        wrong[how]()
    except (EventInvalidError, DefinitionError) as error:
        return error.reason
    return "nothing was wrong"


def emitted(stub: StubSink) -> list[tuple[str, str, Any]]:
    return [(request.event.type, request.event.id, request.event.data) for request in stub.requests]


async def test_what_a_run_emits_reaches_the_sink_in_order(database: DatabaseSettings) -> None:
    async with StubSink() as stub, App(database, [ships], worker=QUICK, outbox=stub.settings()) as app:
        handle = await app.start(ships.options(id="o 1"), ["a", "bb"])
        ids = await handle.result(timeout=10)
        await until(lambda: has(stub, 4), "four events have come")

    assert handle.id is not None
    assert emitted(stub) == [
        ("com.shop.begun", ids[0], {"orders": 2}),
        ("com.shop.shipped", ids[1], {"order": "a", "parcels": 1}),
        ("com.shop.shipped", ids[2], {"order": "bb", "parcels": 2}),
        ("com.shop.done", "done-2", None),
    ]
    assert ids[0] == f"{handle.id}-1"
    first, second, _, last = [request.event for request in stub.requests]
    assert first.source == "/romancy/default/ships/o%201"
    assert first.time is not None
    assert (second.subject, last.source, last.extensions) == ("a", "/shop", {"team": "a"})


async def has(stub: StubSink, count: int) -> bool:
    return len(stub.requests) >= count


async def test_without_a_sink_events_are_kept_and_it_is_said(database: DatabaseSettings, running: Running) -> None:
    with capture_logs() as lines:
        async with running(ships) as app:
            await emit_and_keep(app)
    assert [line["event"] for line in lines].count("emitted_without_sink") == 1
    async with StubSink() as stub, App(database, [ships], worker=QUICK, outbox=stub.settings()):
        await until(lambda: has(stub, 6), "a process with a sink delivers them")


async def emit_and_keep(app: App) -> None:
    await (await app.start(ships, ["a"])).result(timeout=10)
    await (await app.start(ships, ["b"])).result(timeout=10)

    async def are_kept() -> bool:
        return (await app.store.backlog()).emitted == 6

    await until(are_kept, "six events are kept")


async def test_iterations_go_on_with_their_numbers(database: DatabaseSettings) -> None:
    async with StubSink() as stub, App(database, [emits_each_round], worker=QUICK, outbox=stub.settings()) as app:
        await (await app.start(emits_each_round, 1)).result(timeout=10)
        await until(lambda: has(stub, 3), "three events have come")

    assert [request.event.data for request in stub.requests] == [1, 2, 3]
    assert len(set(stub.ids)) == 3


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("type", DefinitionError.reason),
        ("class", DefinitionError.reason),
        ("data", EventInvalidError.reason),
        ("source", EventInvalidError.reason),
        ("extension", EventInvalidError.reason),
    ],
)
def test_a_wrong_event_is_an_error_where_it_is_emitted(how: str, reason: str) -> None:
    with Simulation() as sim:
        assert sim.run(emits_wrongly, how) == reason
        assert sim.emitted() == []


def test_too_much_data_fails_as_any_payload_does() -> None:
    with Simulation() as sim, pytest.raises(PayloadTooLargeError):
        sim.run(emits_wrongly, "large")


def test_events_are_emitted_once_wherever_its_process_dies() -> None:
    """`crash_everywhere` compares what was emitted, too."""
    with Simulation() as sim:
        assert sim.crash_everywhere(ships, ["a", "bb"]) > 10
        sim.crash_everywhere(emits_each_round, 1)


def test_the_simulation_tells_what_was_emitted() -> None:
    with Simulation() as sim:
        sim.run(ships, ["a"])

        assert [each.type for each in sim.emitted()] == ["com.shop.begun", "com.shop.shipped", "com.shop.done"]
        assert sim.emitted(Shipped) == [Shipped(order="a")]
        assert [each.data for each in sim.emitted("com.shop.begun")] == [{"orders": 1}]
        assert isinstance(sim.emitted()[0], CloudEvent)


async def test_dead_letters_are_asked_for_and_sent_again(database: DatabaseSettings) -> None:
    async with (
        StubSink(lambda event: 400 if event.type == "com.shop.shipped" else 202) as stub,
        App(database, [ships], worker=QUICK, outbox=stub.settings()) as app,
    ):
        await (await app.start(ships, ["a", "b"])).result(timeout=10)

        async def are_dead() -> bool:
            return len(await app.dead_letters()) == 2

        await until(are_dead, "two are dead")
        newest, oldest = await app.dead_letters()
        assert [each.event.subject for each in (newest, oldest)] == ["b", "a"]
        assert [each.id for each in await app.dead_letters(limit=1, before=newest.id)] == [oldest.id]
        assert await app.dead_letters(namespace="elsewhere") == []
        assert len(await app.dead_letters(namespace="*")) == 2
        with pytest.raises(FilterError):
            await app.dead_letters(limit=0)

        stub.answer = lambda _: 202
        async with Client(database) as client:
            assert await client.resend_dead_letter(oldest.id)
            assert not await client.resend_dead_letter(oldest.id)
            assert await client.delete_dead_letter(newest.id)
            assert not await client.delete_dead_letter(newest.id)
        await until(lambda: has(stub, 5), "it was sent again")
    assert stub.requests[-1].event.subject == "a"


async def test_an_app_takes_the_sink_of_a_binding(database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with StubSink() as stub:
        monkeypatch.setenv("K_SINK", stub.url)
        async with App(database, [ships], worker=QUICK) as app:
            await (await app.start(ships, [])).result(timeout=10)
            await until(lambda: has(stub, 2), "two events have come")


async def test_an_idle_relay_asks_nothing(database: DatabaseSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slow poll knows when an event is due: there is no statement of its own while there is none."""
    async with (
        StubSink() as stub,
        App(database, [ships], worker=QUICK, outbox=OutboxSettings(sink_url=stub.url)) as app,
    ):
        await (await app.start(ships, [])).result(timeout=10)
        await until(lambda: has(stub, 2), "two events have come")
        relay: Any = app.worker._relay

        async def is_idle() -> bool:
            return not (relay._is_wanted or relay._results or relay._fresh)

        await until(is_idle, "what was due is settled")
        calls: Counter[str] = Counter()

        def count(owner: Any, name: str) -> None:
            call = getattr(owner, name)

            async def counted(*arguments: Any) -> Any:
                found = await call(*arguments)
                calls[name] += 1
                return found

            monkeypatch.setattr(owner, name, counted)

        async def are_two_polls() -> bool:
            return calls["_poll"] >= 2

        count(relay, "_claim")
        count(app.worker, "_poll")
        await until(are_two_polls, "two slow polls")
        assert calls["_claim"] == 0

        await (await app.start(ships, [])).result(timeout=10)
        await until(lambda: has(stub, 4), "two more events have come")
        assert calls["_claim"] >= 1
