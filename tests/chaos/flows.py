"""Workflows that write down what they really do, and stop where a test wants to kill them."""

import asyncio
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

from romancy import NO_RETRY, RetryPolicy, WorkflowContext, activity, workflow

QUICK = RetryPolicy(max_attempts=10, initial_interval=timedelta(milliseconds=20))


def effects() -> Path:
    """The folder of this test: its file `log`, and the gates that it opens."""
    return Path(os.environ["TEST_EFFECTS"])


def write_down(line: str) -> None:
    """Append a line; with O_APPEND whole lines of several processes do not mix."""
    with (effects() / "log").open("a") as log:
        log.write(f"{line} pid={os.getpid()}\n")


async def pass_gate(name: str) -> None:
    """Wait until the test opens this gate; a gate that does not exist is shut."""
    while not (effects() / f"open-{name}").exists():  # noqa: ASYNC110 - a file is what crosses processes
        await asyncio.sleep(0.01)


@activity(retry=QUICK)
async def work(label: str) -> str:
    write_down(f"begin {label}")
    await pass_gate(label)
    write_down(f"end {label}")
    return label


@activity(retry=QUICK)
async def reserve(item: str) -> str:
    write_down(f"begin reserve {item}")
    await pass_gate(f"reserve-{item}")
    write_down(f"end reserve {item}")
    return f"reserved {item}"


@reserve.compensate(retry=QUICK)
async def release(reservation: str) -> None:
    write_down(f"begin release {reservation}")
    await pass_gate(f"release-{reservation.removeprefix('reserved ')}")
    write_down(f"end release {reservation}")


@activity(retry=NO_RETRY)
async def decline() -> None:
    write_down("decline")
    raise ValueError("payment declined")


@activity(retry=RetryPolicy(max_attempts=50, initial_interval=timedelta(milliseconds=20)))
async def kill_process() -> None:
    write_down("kill")
    os.kill(os.getpid(), signal.SIGKILL)


@workflow
async def three_steps() -> list[str]:
    return [await work("one"), await work("two"), await work("three")]


@workflow
async def step_timer_step(seconds: float) -> list[str]:
    first = await work("before")
    await asyncio.sleep(seconds)
    return [first, await work("after")]


@workflow
async def saga() -> None:
    for item in ("a", "b", "c"):
        await reserve(item)
    await decline()


@workflow
async def killer() -> None:
    await work("harmless")
    await kill_process()


@workflow
async def wait_and_report(ctx: WorkflowContext, label: str) -> str:
    async with asyncio.TaskGroup() as group:
        parts = [group.create_task(work(f"{label}-{number}")) for number in range(3)]
    return ",".join(part.result() for part in parts) + f" in {ctx.info.name}"


@activity(retry=QUICK)
async def block_the_loop() -> None:
    if "block" not in (effects() / "log").read_text():
        write_down("block")
        time.sleep(60)  # noqa: ASYNC251 - this is what must not be done


@workflow
async def blocks_once() -> str:
    await block_the_loop()
    return "went on"


STEPS = 4


@activity(retry=QUICK)
async def pace(number: int) -> int:
    await asyncio.sleep(0.02)
    write_down(f"pace {number}")
    return number


@workflow
async def paced(number: int) -> list[int]:
    """Activities and timers in turn, for some seconds."""
    done = []
    for step in range(STEPS):
        done.append(await pace(number * 10 + step))
        await asyncio.sleep(0.8)
    return done


@workflow
async def emits_five(ctx: WorkflowContext) -> None:
    """Each event in a flush of its own."""
    for nth in range(5):
        ctx.emit("com.example.counted", nth)
        await work("counted")
