"""Workflows of these tests."""

import asyncio
from typing import Any, Final

from pydantic import BaseModel

from romancy import NO_RETRY, Event, WorkflowContext, activity, workflow


class Payment(Event, type="shop.paid"):
    """Somebody has paid."""

    order: str


class Parcel(BaseModel):
    """What is sent."""

    to: str
    grams: int = 100


@activity(name="api_weigh")
async def api_weigh(parcel: Parcel) -> int:
    return parcel.grams


@workflow(name="api_send")
async def api_send(parcel: Parcel) -> str:
    """Send a parcel.

    By post.
    """
    return f"{await api_weigh(parcel)} g to {parcel.to}"


@workflow(name="api_wait")
async def api_wait(ctx: WorkflowContext, order: str) -> str:
    """Wait for a payment."""
    ctx.set_value("state", f"waits for {order}")
    return (await ctx.wait_event(Payment, where={"order": order})).order


@workflow(name="api_any")
async def api_any(ctx: WorkflowContext) -> dict[str, Any]:
    """Any event of a type, as it came."""
    event = await ctx.wait_event("shop.any")
    return {"data": event.data, "extensions": dict(event.extensions), "subject": event.subject}


class Ordered(Event, type="shop.ordered"):
    """An order has come."""

    order: str


@workflow(name="api_begin", starts_on=Ordered)
async def api_begin(ordered: Ordered) -> str:
    """Begin with an event."""
    return ordered.order


@workflow(name="api_sleep")
async def api_sleep(seconds: float) -> None:
    """Sleep."""
    await asyncio.sleep(seconds)


BANK: Final = {"is_away": True}


@activity(name="api_bank", retry=NO_RETRY)
async def api_bank(order: str) -> str:
    if BANK["is_away"]:
        raise OSError("the bank is away")
    return f"paid {order}"


@workflow(name="api_charge")
async def api_charge(order: str) -> str:
    """Charge an order."""
    return await api_bank(order)


@workflow(name="api_emit")
async def api_emit(ctx: WorkflowContext, nth: int) -> None:
    """Emit an event."""
    ctx.emit("shop.emitted", {"nth": nth})


WORKFLOWS: Final = [api_emit, api_send, api_wait, api_any, api_begin, api_sleep, api_charge]
