"""The code that began the run."""

import asyncio

from romancy import activity, workflow


@activity
async def first(number: int) -> int:
    return number


@activity
async def second(number: int) -> int:
    return number * 10


@workflow
async def changing() -> int:
    one = await first(1)
    await asyncio.sleep(3)
    return one + await second(2)
