"""Workflows that a ConfigMap brings into the pods; what their activities did is in a table beside the engine's own."""

import asyncio
import os

import asyncpg

from romancy import activity, workflow


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
