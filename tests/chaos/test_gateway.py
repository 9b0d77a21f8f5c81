"""The gateway under load: killed in the middle of it, and with connections that only cost it something."""

import asyncio
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import Fleet, Process

pytestmark = pytest.mark.slow

RATE = int(os.environ.get("LOAD_PER_SECOND", "1000"))
SECONDS = int(os.environ.get("LOAD_SECONDS", "5"))  # 30 for the whole of it
KIND = {"Content-Type": "application/cloudevents+json"}
OPEN = {"ROMANCY_GATEWAY__EVENTS_OPEN": "true"}


def event(name: str) -> bytes:
    return json.dumps(
        {"specversion": "1.0", "id": name, "source": "/load", "type": "load.came", "data": {"name": name}}
    ).encode()


def port_of(process: Process) -> int:
    lines = [json.loads(line) for line in process.log.read_text().splitlines() if '"gateway_started"' in line]
    found: int = lines[-1]["port"]
    return found


@asynccontextmanager
async def session_with(process: Process, *, connections: int) -> AsyncIterator[ClientSession]:
    async with ClientSession(
        f"http://127.0.0.1:{port_of(process)}", connector=TCPConnector(limit=connections)
    ) as session:
        yield session


async def stored(settings: DatabaseSettings) -> Counter[str]:
    """The events in the database, by id."""
    connection = await asyncpg.connect(settings.url.get_secret_value(), server_settings={"search_path": "romancy"})
    try:
        return Counter([row["event_id"] for row in await connection.fetch("select event_id from event")])
    finally:
        await connection.close()


async def test_killed_under_load_what_was_accepted_is_there_once(fleet: Fleet, database: DatabaseSettings) -> None:
    """I5: a 202 follows the commit. What was not heard of is sent again to another gateway, and is the same event."""
    accepted: set[str] = set()
    unheard: set[str] = set()
    first = await fleet.start("first", **OPEN)

    async def send(session: ClientSession, sender: int) -> None:
        for nth in range(10_000):
            name = f"{sender}-{nth}"
            try:
                async with session.post("/events", data=event(name), headers=KIND) as response:
                    assert response.status == 202
                    accepted.add(name)
            except ClientError:
                unheard.add(name)
                return

    async with session_with(first, connections=20) as session:
        sending = [asyncio.create_task(send(session, sender)) for sender in range(20)]
        async with asyncio.timeout(30):
            while len(accepted) < 1000:  # noqa: ASYNC110 - those who send count
                await asyncio.sleep(0.01)
        first.kill()
        await asyncio.gather(*sending)

    found = await stored(database)
    assert accepted <= found.keys()
    assert set(found.values()) == {1}
    assert len(unheard) == 20

    second = await fleet.start("second", **OPEN)
    async with session_with(second, connections=20) as session:
        for name in sorted(unheard):
            async with session.post("/events", data=event(name), headers=KIND) as response:
                assert response.status == 202
                assert (await response.json())["duplicate"] == (name in found)
    again = await stored(database)
    assert again.keys() == accepted | unheard
    assert set(again.values()) == {1}


async def test_a_load_is_borne_beside_slow_and_silent_connections(fleet: Fleet, database: DatabaseSettings) -> None:
    """2,000 connections that ask nothing, and 100 whose bodies do not come; the others are answered in time, all with 202."""
    process = await fleet.start("first", **OPEN)
    port = port_of(process)
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2000)]
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(100)]
    for _, writer in slow:
        writer.write(
            b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/cloudevents+json\r\nContent-Length: 99\r\n\r\n{"
        )
    took: list[float] = []
    statuses: Counter[int] = Counter()

    async def send(session: ClientSession, nth: int) -> None:
        began = time.perf_counter()
        async with session.post("/events", data=event(str(nth)), headers=KIND) as response:
            await response.read()
        took.append(time.perf_counter() - began)
        statuses[response.status] += 1

    async with session_with(process, connections=200) as session:
        begin = time.perf_counter()
        sending: set[asyncio.Task[None]] = set()
        for nth in range(RATE * SECONDS):
            if (ahead := begin + nth / RATE - time.perf_counter()) > 0:
                await asyncio.sleep(ahead)
            task = asyncio.create_task(send(session, nth))
            sending.add(task)
            task.add_done_callback(sending.discard)
        await asyncio.gather(*sending)
        whole = time.perf_counter() - begin

    percentiles = statistics.quantiles(took, n=100)
    print(
        f"{RATE * SECONDS:,} events in {whole:.1f} s ({RATE * SECONDS / whole:.0f}/s), {len(idle)} idle and {len(slow)} slow "
        f"connections: median {percentiles[49] * 1000:.0f} ms, p99 {percentiles[98] * 1000:.0f} ms, max {max(took) * 1000:.0f} ms"
    )
    assert statuses == {202: RATE * SECONDS}
    assert (await stored(database)).total() == RATE * SECONDS
    for _, writer in [*idle, *slow]:
        writer.close()
