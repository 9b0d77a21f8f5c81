"""The code after a change that does not fit runs that have begun."""

import asyncio

from romancy import activity, workflow


@activity
async def second(number: int) -> int:
    return number * 10


@workflow
async def changing() -> int:
    two = await second(2)
    await asyncio.sleep(3)
    return two
