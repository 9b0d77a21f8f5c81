"""What PostgreSQL itself gives for the same rows, without any engine: the measure for ours."""

import asyncio
import time
from uuid import UUID, uuid4

import asyncpg

ENTRIES = 5
SCHEMA = """
create schema if not exists yardstick;
create table if not exists yardstick.run (
    id uuid primary key, workflow text not null, input text not null, output text, created_at timestamptz not null default now(),
    finished_at timestamptz
);
create table if not exists yardstick.history (
    run_id uuid not null, position integer not null, kind text not null, payload text not null,
    at timestamptz not null default now(),
    primary key (run_id, position)
);
"""
START = "insert into yardstick.run (id, workflow, input) select * from unnest($1::uuid[], $2::text[], $3::text[])"
APPEND = """insert into yardstick.history (run_id, position, kind, payload)
select * from unnest($1::uuid[], $2::int[], $3::text[], $4::text[])"""
FINISH = """update yardstick.run set output = n.output, finished_at = now()
  from unnest($1::uuid[], $2::text[]) as n(id, output) where run.id = n.id"""


async def autocommits(url: str, runs: int) -> float:
    """Runs a second, one at a time: a commit for the start and one for each entry, the last with the end."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(SCHEMA)
        began = time.perf_counter()
        for _ in range(runs):
            run_id = uuid4()
            await connection.execute(START, [run_id], ["w"], ['{"number":1}'])
            for position in range(1, ENTRIES):
                await connection.execute(APPEND, [run_id], [position], ["ActivityCompleted"], ["2"])
            async with connection.transaction():
                await connection.execute(APPEND, [run_id], [ENTRIES], ["ActivityCompleted"], ["2"])
                await connection.execute(FINISH, [run_id], ["6"])
        return runs / (time.perf_counter() - began)
    finally:
        await connection.close()


class _GroupCommit:
    """Whatever gathered while the last transaction was on its way goes out in one."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._waiting: list[tuple[str, UUID, int, asyncio.Future[None]]] = []
        self._filled = asyncio.Event()

    def submit(self, what: str, run_id: UUID, position: int = 0) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, run_id, position, future))
        self._filled.set()
        return future

    async def run(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch, self._waiting = self._waiting, []
            if not batch:
                continue
            starts = [run_id for what, run_id, _, _ in batch if what == "start"]
            entries = [(run_id, position) for what, run_id, position, _ in batch if what != "start"]
            ends = [run_id for what, run_id, _, _ in batch if what == "end"]
            async with self._connection.transaction():
                if starts:
                    await self._connection.execute(START, starts, ["w"] * len(starts), ['{"number":1}'] * len(starts))
                if entries:
                    ids, positions = [list(column) for column in zip(*entries, strict=True)]
                    kinds, payloads = ["ActivityCompleted"] * len(ids), ["2"] * len(ids)
                    await self._connection.execute(APPEND, ids, positions, kinds, payloads)
                if ends:
                    await self._connection.execute(FINISH, ends, ["6"] * len(ends))
            for *_, future in batch:
                future.set_result(None)


async def group_commit(url: str, runs: int, *, at_once: int) -> float:
    """Runs a second with so many at once, on one connection."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(SCHEMA)
        group = _GroupCommit(connection)
        writer = asyncio.create_task(group.run())
        left = iter(range(runs))

        async def one_after_the_other() -> None:
            for _ in left:
                run_id = uuid4()
                await group.submit("start", run_id)
                for position in range(1, ENTRIES):
                    await group.submit("entry", run_id, position)
                await group.submit("end", run_id, ENTRIES)

        began = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
        seconds = time.perf_counter() - began
        writer.cancel()
        return runs / seconds
    finally:
        await connection.close()
