"""PostgreSQL crashes, and is away, while 200 runs run: all end, none twice; health says so meanwhile, and the log stays short."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from romancy import Handle
from romancy.errors import StoreUnavailableError
from tests import postgres
from tests.chaos import flows
from tests.chaos.fleet import Fleet, Process, all_holds

pytestmark = [pytest.mark.slow, pytest.mark.timeout(200)]

RUNS = 200
AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS", "12"))  # 60 for the whole minute
LINES_A_SECOND = 4
"""Of one process while the database is away: the lease, the claims, the journal and the wake-ups each say so, with backoff."""


@pytest.fixture(scope="module")
def mortal_server() -> Iterator[postgres.Server]:
    """A server of this module's own, to be killed."""
    with postgres.server(postgres.embedded_binaries()) as server:
        yield server


@pytest.fixture
async def mortal_fleet(mortal_server: postgres.Server, tmp_path: Path) -> AsyncIterator[Fleet]:
    database = await mortal_server.migrated_database()
    async with Fleet(database, tmp_path, lease_seconds=3) as fleet:
        # b gives its flushes up while the database is away: it drops its runs, lets itself be buried and registers anew.
        await asyncio.gather(fleet.start("a"), fleet.start("b", ROMANCY_DATABASE__GIVE_UP_SECONDS="6"))
        yield fleet
    await all_holds(database)


async def start_all(fleet: Fleet) -> list[Handle[Any]]:
    started = time.monotonic()
    handles = [await fleet.client.start(flows.paced.options(id=f"run-{number}"), number) for number in range(RUNS)]
    assert time.monotonic() - started < 20
    return handles


async def all_end(fleet: Fleet, handles: list[Handle[Any]]) -> None:
    """Each with its result, and nothing recorded twice."""
    for number, handle in enumerate(handles):
        assert await patiently(handle) == [number * 10 + step for step in range(flows.STEPS)]
    histories = [await fleet.client.store.read_history(handle.id) for handle in handles if handle.id]
    assert {len(history) for history in histories} == {2 * flows.STEPS}


async def patiently(handle: Handle[Any]) -> Any:
    """A client is told at once that the database is away; it asks again."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await handle.result()
            except StoreUnavailableError:
                await asyncio.sleep(0.2)


async def readiness(process: Process) -> tuple[int, str]:
    found = re.search(r'"port": (\d+), "event": "gateway_started"', process.log.read_text()) or re.search(
        r'"event": "gateway_started".*?"port": (\d+)', process.log.read_text()
    )
    assert found is not None, process.log.read_text()
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://127.0.0.1:{found[1]}/healthz/ready") as answer,
    ):
        return answer.status, await answer.text()


async def is_ready(process: Process) -> bool:
    return (await readiness(process))[0] == 200


async def test_killed_and_restarted_three_times(mortal_fleet: Fleet, mortal_server: postgres.Server) -> None:
    handles = await start_all(mortal_fleet)
    for number in (signal.SIGKILL, signal.SIGQUIT, signal.SIGINT):
        done = len(mortal_fleet.log())
        await mortal_fleet.until(lambda done=done: len(mortal_fleet.log()) > done + 50, "runs go on")
        await asyncio.to_thread(mortal_server.stop, number)
        await asyncio.to_thread(mortal_server.start)

    await all_end(mortal_fleet, handles)
    assert [line for line, times in Counter(mortal_fleet.log()).items() if times > 1] == []
    for process in mortal_fleet.processes.values():
        assert process.popen.poll() is None


async def test_away_for_long(mortal_fleet: Fleet, mortal_server: postgres.Server) -> None:
    handles = await start_all(mortal_fleet)
    processes = list(mortal_fleet.processes.values())
    for process in processes:
        await mortal_fleet.until(lambda process=process: is_ready(process), "it is ready")
    await mortal_fleet.until(lambda: len(mortal_fleet.log()) > 20, "runs go on")
    await asyncio.to_thread(mortal_server.stop, signal.SIGQUIT)
    before = [len(process.log.read_text().splitlines()) for process in processes]
    away_at = time.monotonic()
    while time.monotonic() < away_at + AWAY_SECONDS:
        await asyncio.sleep(1)
        for process in processes:
            status, text = await readiness(process)
            assert status == 503, text
            assert "not ready" in text
    said = [len(process.log.read_text().splitlines()) - lines for process, lines in zip(processes, before, strict=True)]

    await asyncio.to_thread(mortal_server.start)
    await all_end(mortal_fleet, handles)

    assert "runs_lost" in mortal_fleet.processes["b"].log.read_text()
    assert max(said) <= LINES_A_SECOND * AWAY_SECONDS + 20, [process.log.read_text()[-3000:] for process in processes]
    for process in processes:
        await mortal_fleet.until(lambda process=process: is_ready(process), "it is ready again")
        assert process.popen.poll() is None
