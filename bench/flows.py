"""What is measured: workflows that do as little as possible."""

import asyncio
import os
import time
from pathlib import Path
from uuid import UUID

from romancy import WorkflowContext, activity, workflow
from romancy.model.command import End
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow
from tests.builders import SOME_TIME, ended_activities


@activity
async def add_one(number: int) -> int:
    return number + 1


@workflow
async def five_steps(number: int) -> int:
    for _ in range(5):
        number = await add_one(number)
    return number


@workflow
async def one_after_the_other(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await add_one(number)
    return number


@workflow
async def all_at_once(count: int) -> int:
    return sum(await asyncio.gather(*(add_one(number) for number in range(count))))


def replay_seconds(flow: Workflow[[int], int], count: int) -> float:
    """How long the replay of so many ended activities takes."""
    info = RunInfo(id=UUID(int=1), namespace="n", name="n", workflow=flow.name, labels={}, started_at=SOME_TIME)
    replay = Replay(
        flow.program({"count": count}, info), started_at=SOME_TIME, monotonic=time.monotonic, step_seconds_max=1000
    )
    history = ended_activities(add_one.name, count)
    began = time.perf_counter()
    replay.advance(history, replaying=True)
    took = time.perf_counter() - began
    assert replay.outcome is not None
    assert replay.outcome.end is End.SUCCEEDED
    return took


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
