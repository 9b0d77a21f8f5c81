"""What many activities and many parked runs cost a worker, in counts."""

import asyncio
import gc
import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from romancy import App, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.model.run import Phase
from romancy.store.interface import RunFilter
from romancy.worker.execution import Execution
from tests.worker.doubles import until

FANNED = 5000
PARKED = int(os.environ.get("PARKED", "2000"))
KEPT_MAX = 50


@activity(name="cost.one_more")
async def one_more(number: int) -> int:
    return number + 1


@workflow(name="cost.fan_out")
async def fan_out(count: int) -> int:
    return sum(await asyncio.gather(*(one_more(number) for number in range(count))))


@workflow(name="cost.sleeps")
async def sleeps(number: int) -> int:
    number = await one_more(number)
    await asyncio.sleep(86400)
    return number


async def test_thousands_of_activities_of_one_run(database: DatabaseSettings) -> None:
    """Each is an entry; they share their flushes."""
    async with App(database, [fan_out], worker=WorkerSettings(name="w")) as app:
        handle = await app.start(fan_out, FANNED)

        assert await handle.result(timeout=30) == sum(range(1, FANNED + 1))

        assert handle.id is not None
        assert len(await app.store.read_history(handle.id)) == FANNED
        assert app.worker.journal.flushes <= FANNED / 50 + 2


async def park(app: App, numbers: Iterable[int]) -> None:
    """Start a run for each number, 50 at once, and wait until the worker holds none of them."""
    left = iter(numbers)

    async def start_some() -> None:
        for number in left:
            await app.start(sleeps, number)

    await asyncio.gather(*(start_some() for _ in range(50)))
    await until(lambda: app.worker.runs == 0, "all are parked")
    gc.collect()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


@pytest.mark.timeout(1200)
async def test_parked_runs_hold_no_memory(database: DatabaseSettings) -> None:
    """But for the few that are kept to save their replay."""
    settings = WorkerSettings(name="w", parked_max=KEPT_MAX, slots=500)
    async with App(database, [sleeps], worker=settings) as app:
        await park(app, range(1000))
        before = resident_bytes()
        await park(app, range(1000, PARKED))
        grown = resident_bytes() - before
        in_memory = sum(isinstance(each, Execution) for each in gc.get_objects())

        print(f"{PARKED:,} parked runs: {in_memory} in memory, {grown / 2**20:.1f} MiB more than with 1,000")
        assert in_memory <= KEPT_MAX
        assert grown < 20 * 2**20
        waiting = RunFilter(phases=frozenset({Phase.WAITING}))
        assert len(await app.store.list_runs(waiting, limit=PARKED + 1)) == PARKED
