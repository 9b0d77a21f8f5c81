"""What is measured: workflows that do as little as possible."""

import asyncio
import os
import time
from pathlib import Path

from romancy import WorkflowContext, activity, workflow


@activity
async def add_one(number: int) -> int:
    return number + 1


@workflow
async def five_steps(number: int) -> int:
    for _ in range(5):
        number = await add_one(number)
    return number


@workflow
async def no_op() -> None:
    pass


@activity
async def now() -> float:
    return time.time()


@workflow
async def wakes(ctx: WorkflowContext, seconds: float) -> float:
    """How late a timer fires, in seconds of the database's clock."""
    began = ctx.now()
    await asyncio.sleep(seconds)
    return (ctx.now() - began).total_seconds() - seconds


@activity
async def tick(number: int, seconds: float) -> int:
    with (Path(os.environ["BENCH_EFFECTS"]) / "ticks").open("a") as ticks:
        ticks.write(f"{number} {os.getpid()} {time.time()}\n")
    await asyncio.sleep(seconds)
    return number


@workflow
async def ticks(count: int, seconds: float) -> int:
    for number in range(count):
        await tick(number, seconds)
    return count
