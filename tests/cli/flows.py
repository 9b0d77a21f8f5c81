"""Workflows that the tests of the command line run."""

import asyncio
from typing import Any, Final

from romancy import NO_RETRY, WorkflowContext, activity, workflow

BANK: Final = {"is_away": False}


@activity(name="cli_bank", retry=NO_RETRY)
async def cli_bank(order: str) -> str:
    if BANK["is_away"]:
        raise OSError("the bank is away")
    return f"paid {order}"


@workflow(name="cli_charge")
async def cli_charge(order: str) -> str:
    """Charge an order."""
    return await cli_bank(order)


@workflow(name="cli_wait")
async def cli_wait(ctx: WorkflowContext, order: str) -> Any:
    """Wait for a payment."""
    event = await ctx.wait_event("cli.paid", where={"order": order})
    return event.data


@workflow(name="cli_sleep")
async def cli_sleep(seconds: float) -> None:
    """Sleep."""
    await asyncio.sleep(seconds)


WORKFLOWS: Final = [cli_charge, cli_wait, cli_sleep]
