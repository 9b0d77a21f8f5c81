"""Workflows that a ConfigMap brings into the pods; what their activities did is in a table beside the engine's own."""

import asyncio
import os
from datetime import timedelta

import asyncpg

from romancy import RetryPolicy, activity, workflow

STUBBORN = RetryPolicy(max_attempts=0, initial_interval=timedelta(seconds=0.2), max_interval=timedelta(seconds=1))


async def effect(what: str) -> None:
    connection = await asyncpg.connect(os.environ["ROMANCY_DATABASE__URL"])
    try:
        await connection.execute("insert into public.effect values ($1, $2)", what, os.environ["ROMANCY_WORKER__NAME"])
    finally:
        await connection.close()


@activity
async def step(run: str, number: int, seconds: float) -> int:
    await asyncio.sleep(seconds)
    await effect(f"{run} {number}")
    return number


@workflow
async def steps(run: str, count: int, seconds: float) -> int:
    done = 0
    for number in range(count):
        done += 1 + 0 * await step(run, number, seconds)
    return done


class OutOfStockError(Exception):
    """The order can't be shipped."""


@activity(retry=STUBBORN)
async def reserve(run: str) -> str:
    await effect(f"{run} reserve")
    return run


@reserve.compensate(retry=STUBBORN)
async def release(run: str) -> None:
    await effect(f"{run} release")


@activity(retry=STUBBORN)
async def charge(run: str) -> str:
    await effect(f"{run} charge")
    return run


@charge.compensate(retry=STUBBORN)
async def refund(run: str) -> None:
    await effect(f"{run} refund")


@activity(retry=STUBBORN)
async def ship(run: str) -> str:
    await effect(f"{run} ship")
    return run


@workflow
async def saga(run: str, is_out_of_stock: bool) -> str:
    """Waits by timers between its steps, so that it is parked in the middle; takes back what it did if it can't ship."""
    await reserve(run)
    await asyncio.sleep(3)
    await charge(run)
    await asyncio.sleep(3)
    if is_out_of_stock:
        raise OutOfStockError(run)
    return await ship(run)
