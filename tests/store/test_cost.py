"""What a claim costs does not grow with what sleeps, nor with what is due for others."""

import json
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.store.pool import connect as engine_connect
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL
from tests.builders import a_new_run
from tests.store.test_plans import LISTED, NOTHING, as_text

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
        await filling.execute("update due set reason = 'WorkflowNotRegistered' where queue = 'unknown'")
        scale, to_scale = await _scale(filling)
        await filling.execute("truncate due, run")
    finally:
        await connection.close()

    assert (nothing, one) == (0, 1)
    assert without < PAGES_MAX, f"{without} pages for nothing"
    assert with_one < PAGES_MAX, f"{with_one} pages for one run"
    # The unknown ones are looked through, as they are by `strand`; the sleeping ones are not.
    assert scale == {"runs": 1, "due": 0, "soon": 0, "held": 1}
    assert to_scale < UNKNOWN * 3, f"{to_scale} pages to scale"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_what_the_scaler_asks_among_a_million_sleeping_runs(
    database: DatabaseSettings, store: PostgresStore, connect: Any
) -> None:
    filling = await connect()
    await filling.execute(f"""
        insert into due (id, queue, workflow, priority, phase, wake_at)
        select gen_random_uuid(), 'flow-' || nth % 20, 'flow', nth % 3, 'Waiting', now() + nth * interval '1 s' + interval '1 h'
          from generate_series(1, {SLEEPING}) as nth;
    """)
    await filling.execute("""
        insert into due (id, queue, workflow, priority, phase, wake_at)
        select gen_random_uuid(), 'flow-1', 'flow', 0, 'Waiting', now() + interval '25 s' from generate_series(1, 20);
        insert into due (id, queue, workflow, priority, phase, worker_id)
        select gen_random_uuid(), 'flow-1', 'flow', 0, 'Running', 7 from generate_series(1, 30);
        insert into due (id, queue, workflow, priority, phase, blocked_builds)
        select gen_random_uuid(), 'flow-1', 'flow', 0, 'Blocked', '{b}' from generate_series(1, 40);
        insert into due (id, queue, workflow, priority, phase, wake_at)
        select gen_random_uuid(), 'flow-1', 'flow', 0, 'Pending', now() from generate_series(1, 50);
    """)
    scale, pages = await _scale(filling)
    await filling.execute("truncate due")

    assert scale == {"runs": 100, "due": 50, "soon": 20, "held": 30}
    assert pages < 5 * PAGES_MAX, f"{pages} pages"


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_page_of_a_hundred_thousand_runs_costs_what_one_of_a_thousand_does(
    database: DatabaseSettings, store: PostgresStore, connect: Any
) -> None:
    filling = await connect()
    connection = await engine_connect(database, is_listing=True)

    async def fill(since: int, until: int) -> dict[str, int]:
        """Older runs, so that the page is the same; and what each list reads then."""
        await filling.execute(f"""
            insert into run (id, namespace, name, workflow, priority, input, labels, created_at, phase, finished_at)
            select gen_random_uuid(), 'n' || nth % 10, 'run-' || nth, 'flow', 0, '{{"n":' || nth % 100 || '}}',
                   case when nth % 10 = 0 then jsonb_build_object('shard', (nth % 7)::text) else '{{}}' end,
                   now() - nth * interval '1 s', case when nth % 100 = 7 then 'Failed' else 'Succeeded' end,
                   now() - nth * interval '1 s' + interval '100 ms'
              from generate_series({since}, {until}) as nth
        """)
        await filling.execute("vacuum analyze run")
        lists = {name: statement for name, (statement, _) in LISTED.items() if name.startswith("list_")}
        lists["by input"] = SQL.list_any_runs(**NOTHING | {"input_part": '{"n": 5}'}, phases=None, limit=20)
        lists["by a part of the name"] = SQL.list_any_runs(**NOTHING | {"name_part": "run-1"}, phases=None, limit=20)
        return {name: await _pages(connection, statement) for name, statement in lists.items()}

    try:
        few = await fill(1, 1_000)
        many = await fill(1_001, 100_000)
        await filling.execute("truncate run")
    finally:
        await connection.close()

    assert many.keys() == few.keys()
    for name, pages in many.items():
        assert pages < 2 * few[name] + PAGES_MAX, f"{name}: {few[name]} pages among 1,000 runs, {pages} among 100,000"


async def _pages(connection: Any, statement: tuple[Any, ...]) -> int:
    """How many pages a list reads."""
    text, *arguments = statement
    await connection.execute(f"prepare hot as {text}")
    literals = ", ".join([await connection.fetchval("select quote_nullable($1::text)", as_text(a)) for a in arguments])
    [row] = await connection.fetch(f"explain (analyze, buffers, format json) execute hot({literals})")
    await connection.execute("deallocate hot")
    plan = json.loads(row[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def _scale(connection: Any) -> tuple[dict[str, int], int]:
    """The view's row, and how many pages it reads, whatever the statistics say."""
    [row] = await connection.fetch("explain (analyze, buffers, format json) select runs from romancy.scale")
    plan = json.loads(row[0])[0]["Plan"]
    found = await connection.fetchrow("select * from romancy.scale")
    return dict(found), plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]


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
