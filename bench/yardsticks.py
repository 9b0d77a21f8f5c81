"""What PostgreSQL itself gives for the same rows, without any engine: the measure for ours."""

import asyncio
import time
from uuid import UUID, uuid4

import asyncpg

from romancy.store.pool import DEFAULT_SCHEMA

ENTRIES = 5
SCHEMA = DEFAULT_SCHEMA
# The rows that the engine writes for such a run, into its own tables and with all their columns: a run and its row in `due`
# at the start, an entry for each activity; at the end the run is updated and its row in `due` goes.
START = """with begun as (
    insert into run (id, namespace, name, workflow, priority, labels, input, begun_by, begun_number, form, python, started_at)
    select id, 'default', 'five-steps-' || id, 'five_steps', 0, '{}', '{"number":1}', 1, 1, 'ByName', '3.13', now()
      from unnest($1::uuid[]) as n(id)
)
insert into due (id, queue, workflow, priority, phase, worker_id, claim, started_at, python, form)
select id, 'five_steps/3.13', 'five_steps', 0, 'Running', 1, 1, now(), '3.13', 'ByName' from unnest($1::uuid[]) as n(id)"""
APPEND = """insert into history (run_id, position, kind, at, number, name, digest, payload)
select id, position, 'ActivityCompleted', now(), position, 'add_one', '9a0364b9e99bb480', '2'
  from unnest($1::uuid[], $2::int[]) as n(id, position)"""
FINISH = """with gone as (
    delete from due using unnest($1::uuid[]) as n(id) where due.id = n.id
)
update run set phase = 'Succeeded', reason = '', message = '', output = '6', finished_at = now()
  from unnest($1::uuid[]) as n(id) where run.id = n.id"""
PLANS = {"search_path": SCHEMA, "plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_hashjoin": "off",
         "enable_mergejoin": "off", "jit": "off"}  # fmt: skip
"""As the engine's own connections have them: the best known to us."""


async def autocommits(url: str, runs: int) -> float:
    """Runs a second, one at a time: a commit for the start and one for each entry, the last with the end."""
    connection = await asyncpg.connect(url, server_settings=PLANS)
    try:
        began = time.perf_counter()
        for _ in range(runs):
            run_id = uuid4()
            await connection.execute(START, [run_id])
            for position in range(1, ENTRIES):
                await connection.execute(APPEND, [run_id], [position])
            async with connection.transaction():
                await connection.execute(APPEND, [run_id], [ENTRIES])
                await connection.execute(FINISH, [run_id])
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
                    await self._connection.execute(START, starts)
                if entries:
                    ids, positions = [list(column) for column in zip(*entries, strict=True)]
                    await self._connection.execute(APPEND, ids, positions)
                if ends:
                    await self._connection.execute(FINISH, ends)
            for *_, future in batch:
                future.set_result(None)


async def group_commit(url: str, runs: int, *, at_once: int) -> float:
    """Runs a second with so many at once, on one connection."""
    connection = await asyncpg.connect(url, server_settings=PLANS)
    try:
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
