# pyright: reportUnnecessaryTypeIgnoreComment=error
"""What editors and type checkers see of the public API. Checked by mypy and pyright, never run.

An ignore comment that is not needed is an error in both: so each wrong call below is refused by both.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from romancy import (
    Activity,
    App,
    Channel,
    ChannelMode,
    ChildHandle,
    Client,
    CloudEvent,
    Event,
    Handle,
    Message,
    RetryPolicy,
    Workflow,
    WorkflowContext,
    activity,
    workflow,
)
from romancy.client import Page
from romancy.model.run import Run
from romancy.testing import SimulatedRun, Simulation, export, replay


@dataclass
class Order:
    id: str


@dataclass
class Reservation:
    order: str


@activity(retry=RetryPolicy(max_attempts=3), timeout=30)
async def reserve(order: Order) -> Reservation:
    return Reservation(order.id)


@reserve.compensate
async def release(reservation: Reservation) -> None: ...


@reserve.compensate(retry=RetryPolicy(max_attempts=9))
def release_later(reservation: Reservation) -> int:
    return 1


@reserve.compensate  # type: ignore[arg-type]
async def takes_something_else(order: Order) -> None: ...


@activity
def notify(order: Order, *, loud: bool = False) -> int:
    return 1


@activity(name="other")
def named(order: Order) -> str:
    return order.id


@workflow
async def ship(order: Order) -> str:
    return order.id


@workflow
async def process(ctx: WorkflowContext, order: Order, note: str = "") -> list[int]:
    call: Coroutine[Any, Any, Reservation] = reserve(order)
    assert_type(await call, Reservation)
    assert_type(await reserve(order), Reservation)
    assert_type(await notify(order), int)
    assert_type(await notify(order, loud=True), int)
    assert_type(await named(order), str)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(notify(order))
    assert_type(task.result(), int)
    ctx.compensate(release, Reservation("1"))
    await reserve("order")  # type: ignore[arg-type]
    await reserve()  # type: ignore[call-arg]
    await notify(order, loud="yes")  # type: ignore[arg-type]
    return [await notify(order)]


@workflow(name="named")
async def with_name(ctx: WorkflowContext) -> None: ...


plain: Activity[[Order], Reservation] = reserve
assert_type(release, Activity[[Reservation], None])
assert_type(release_later, Activity[[Reservation], int])
another: Workflow[[Order], str] = ship
assert_type(with_name, Workflow[[], None])


async def start(app: App, client: Client) -> None:
    handle = await app.start(process, Order("1"), note="n")
    assert_type(handle, Handle[list[int]])
    assert_type(await handle.result(), list[int])
    assert_type(await client.start(ship, Order("1")), Handle[str])
    options = ship.options(id="order-1", labels={"a": "b"}, priority=3, delay=timedelta(hours=1))
    assert_type(await (await client.start(options, Order("1"))).result(), str)
    await app.start(process, "order")  # type: ignore[arg-type]
    await app.start(process)  # type: ignore[call-arg]
    await client.start(with_name, 1)  # type: ignore[call-arg]


async def find(client: Client) -> None:
    page = await client.list(phases=["Failed"], labels={"a": "b"}, input={"order": {"id": 7}}, limit=10)
    assert_type(page, Page)
    assert_type(page[0], Run)
    async for run in client.list(input_at={"order.id": 7}, created_after=datetime.now(UTC), after=page.next):
        assert_type(run, Run)
    assert_type(await client.purge(older_than=timedelta(days=30), dry_run=True), int)
    client.list(created_after="yesterday")  # type: ignore[arg-type]
    client.list(labels={"a": 1})  # type: ignore[dict-item]
    await client.purge(older_than=30)  # type: ignore[arg-type]


def in_a_test(sim: Simulation) -> None:
    run = sim.start(process, Order("1"), note="x")
    assert_type(run, SimulatedRun[list[int]])
    assert_type(run.result(), list[int])
    assert_type(sim.run(ship, Order("1")), str)
    assert_type(sim.crash_everywhere(ship, Order("1")), int)
    sim.start(ship, "1")  # type: ignore[arg-type]
    sim.run(ship)  # type: ignore[call-arg]
    sim.fake(reserve, lambda order: Reservation(order.id))
    sim.fake(notify, notify_quietly)
    sim.fake(reserve, named)  # type: ignore[arg-type]
    sim.fail(reserve, ValueError("no"), times=2)
    sim.fail(ship, ValueError("no"))  # type: ignore[arg-type]
    replay(ship, export(run.info(), run.history))
    replay(reserve, "{}")  # type: ignore[arg-type]


def notify_quietly(order: Order, *, loud: bool = False) -> int:
    return 2


# --- events, children, channels --------------------------------------------------------------------------------------------


class Paid(Event, type="com.shop.paid"):
    order: str


JOBS = Channel("typed jobs", int, mode=ChannelMode.COMPETING)
ANY = Channel("typed anything")


@workflow(starts_on=Paid, where={"order": "o1"})
async def on_paid(ctx: WorkflowContext, paid: Paid) -> str:
    return paid.order


@workflow
async def talks(ctx: WorkflowContext, order: Order) -> str:
    assert_type(await ctx.wait_event(Paid, where={"order": order.id}, timeout=3), Paid)
    assert_type(await ctx.wait_event("com.shop.paid", timeout=timedelta(days=1)), CloudEvent)
    async with ctx.subscribe(Paid) as payments:
        assert_type(await payments.receive(), Paid)
        async for payment in payments:
            assert_type(payment, Paid)
    async with ctx.subscribe("com.shop.paid") as events:
        assert_type(await events.receive(timeout=1), CloudEvent)
    async with ctx.subscribe(JOBS) as jobs:
        assert_type(await jobs.receive(), Message[int])
        assert_type((await jobs.receive()).data, int)
    await ctx.publish(JOBS, 1, metadata={"a": 1})
    await ctx.publish(ANY, {"anything": True})
    await ctx.publish(JOBS, "no number")  # type: ignore[misc]
    await ctx.send_to("run", JOBS, "no number")  # type: ignore[misc]
    assert_type(await ship(order), str)
    assert_type(ctx.start_child(ship, order), ChildHandle[str])
    assert_type(await ctx.start_child(ship, order).result(), str)
    ctx.start_child(ship, 7)  # type: ignore[arg-type]
    assert_type(ctx.patched("gate"), bool)
    ctx.set_value("progress", {"done": 1})
    await ctx.wait_event(int)  # type: ignore[type-var]
    assert_type(ctx.emit(Paid(order="o1"), subject="o1"), CloudEvent)
    assert_type(ctx.emit("com.shop.paid", {"order": "o1"}, extensions={"team": "a"}), CloudEvent)
    ctx.emit(7)  # type: ignore[call-overload]
    ctx.emit(Paid(order="o1"), {"order": "o1"})  # type: ignore[call-overload]
    ctx.recur(order)


async def sends(client: Client) -> None:
    await client.send_event(Paid(order="o1"), id="e1")
    await client.send_event("com.shop.paid", {"order": "o1"})
    await client.send_event(7)  # type: ignore[arg-type]
    await client.publish(JOBS, 1)
    await client.publish(JOBS, "no number")  # type: ignore[misc]
    assert_type(await client.send_to("run", JOBS, 1), bool)
