"""What a claim costs does not grow with what sleeps, nor with what is due for others."""

import json
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.store.pool import connect as engine_connect
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL
from tests.builders import a_new_run
from tests.store.test_plans import as_text

ON_EVERY_POSTGRES = True

SLEEPING, UNKNOWN = 1_000_000, 100_000
PAGES_MAX = 200


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_claim_among_a_million_sleeping_runs(
    database: DatabaseSettings, store: PostgresStore, hands: Any, connect: Any
) -> None:
    worker = await hands()
    filling = await connect()  # without the time limits of the engine's
    connection = await engine_connect(database)
    try:
        await filling.execute(f"""
            insert into due (id, queue, workflow, priority, phase, wake_at)
            select gen_random_uuid(), 'flow/3.13', 'flow', 0, 'Waiting', now() + nth * interval '1 s' + interval '1 h'
              from generate_series(1, {SLEEPING}) as nth;
            insert into due (id, queue, workflow, priority, phase, wake_at)
            select gen_random_uuid(), 'unknown', 'unknown', 0, 'Pending', now() - nth * interval '1 ms'
              from generate_series(1, {UNKNOWN}) as nth;
        """)
        nothing, without = await _claim(connection, worker.id)
        await store.start_runs([a_new_run()])
        one, with_one = await _claim(connection, worker.id)
        await filling.execute("truncate due, run")
    finally:
        await connection.close()

    assert (nothing, one) == (0, 1)
    assert without < PAGES_MAX, f"{without} pages for nothing"
    assert with_one < PAGES_MAX, f"{with_one} pages for one run"


async def _claim(connection: Any, worker_id: int) -> tuple[int, int]:
    """Claim as the engine does: how many runs are held then, and how many pages it has read."""
    text, *arguments = SQL.claim_runs(worker_id=worker_id, slot=1, turn=0, limit=20)
    await connection.execute(f"prepare hot as {text}")
    literals = ", ".join([await connection.fetchval("select quote_nullable($1::text)", as_text(a)) for a in arguments])
    [row] = await connection.fetch(f"explain (analyze, buffers, format json) execute hot({literals})")
    plan = json.loads(row[0])[0]["Plan"]
    held = await connection.fetchval("select count(*) from due where worker_id is not null")
    await connection.execute("deallocate hot")
    return held, plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
