"""What `make demo` kills: a run of slow activities that write down, in a file, what they really did."""

import asyncio
import os
from pathlib import Path

from romancy import activity, workflow


def write_down(line: str) -> None:
    """Append a line; with O_APPEND whole lines of several processes do not mix."""
    with Path(os.environ["DEMO_EFFECTS"]).open("a") as effects:
        effects.write(f"{line} {os.getpid()}\n")


@activity
async def slow_step(number: int, seconds: float) -> int:
    """Take some time, and leave a trace at both ends."""
    write_down(f"begin {number}")
    await asyncio.sleep(seconds)
    write_down(f"end {number}")
    return number * number


@workflow
async def slow_sum(steps: int, seconds: float) -> int:
    """The sum of the squares of 1 to `steps`, slowly."""
    total = 0
    for number in range(1, steps + 1):
        total += await slow_step(number, seconds)
    return total
