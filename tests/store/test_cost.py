"""What a claim costs does not grow with what sleeps, nor with what is due for others."""

import json
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.model.event import CloudEvent, key_of
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


WAITING_FEW, WAITING_MANY = 1_000, 100_000


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_an_event_costs_the_same_however_many_wait_for_something_else(
    database: DatabaseSettings, store: PostgresStore, connect: Any
) -> None:
    """The pages that an event for one run reads among a thousand that wait, and among a hundred thousand; a look back as well."""
    filling = await connect()
    pages = []
    for count in (WAITING_FEW, WAITING_MANY):
        await filling.execute("truncate run, due, event, subscription, shape, inbox")
        await filling.execute(f"""
            insert into run (id, namespace, name, workflow, priority, input)
            select gen_random_uuid(), 'default', 'run-' || nth, 'flow', 0, '{{}}' from generate_series(1, {count}) as nth;
            insert into due (id, queue, workflow, priority, phase) select id, 'flow', 'flow', 0, 'Waiting' from run;
            insert into shape values ('com.shop.paid', '["order"]');
            insert into event (source, event_id, type, payload, attributes)
            select '/shop', nth::text, 'com.shop.paid', '{{}}', jsonb_build_object('ce-type', 'com.shop.paid', 'order', nth::text)
              from generate_series(1, {count}) as nth;
        """)
        keys = [(row["id"], row["name"]) for row in await filling.fetch("select id, name from run")]
        await filling.executemany(
            "insert into subscription (run_id, number, key) values ($1, 1, $2)",
            [(run_id, key_of("com.shop.paid", {"order": name})) for run_id, name in keys],
        )
        connection = await engine_connect(database)
        try:
            wanted = key_of("com.shop.paid", {"order": "run-77"})
            [run_id] = [run_id for run_id, name in keys if name == "run-77"]
            found = [
                await _pages(connection, SQL.read_interest(types=["com.shop.paid"])),
                await _pages(connection, SQL.find_waiting(keys=[wanted])),
                await _pages(
                    connection,
                    SQL.find_events(
                        run_ids=[run_id],
                        matches=['{"ce-type": "com.shop.paid", "order": "77"}'],
                        sinces=[None],
                        limit=100,
                    ),
                ),
            ]
        finally:
            await connection.close()
        pages.append(found)
    await filling.execute("truncate run, due, event, subscription, shape, inbox")

    few, many = pages
    for small, large in zip(few, many, strict=True):
        assert large <= 1.5 * small + 10, f"{small} pages among {WAITING_FEW}, {large} among {WAITING_MANY}"


async def test_an_event_for_many_runs_costs_as_many_statements_as_for_one(
    store: PostgresStore, connect: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    filling = await connect()
    await filling.execute(f"""
        insert into run (id, namespace, name, workflow, priority, input)
        select gen_random_uuid(), 'default', 'run-' || nth, 'flow', 0, '{{}}' from generate_series(1, {WAITING_FEW}) as nth;
        insert into due (id, queue, workflow, priority, phase) select id, 'flow', 'flow', 0, 'Waiting' from run;
        insert into shape values ('one', '[]'), ('many', '[]');
    """)
    run_ids = [row["id"] for row in await filling.fetch("select id from run")]
    await filling.executemany(
        "insert into subscription (run_id, number, key) values ($1, $2, $3)",
        [(run_ids[0], 1, key_of("one", {})), *((run_id, 2, key_of("many", {})) for run_id in run_ids)],
    )
    fetch, asked = PostgresStore._fetch, list[Any]()

    async def counted(self: PostgresStore, statement: Any) -> Any:
        asked.append(statement[0])
        return await fetch(self, statement)

    monkeypatch.setattr(PostgresStore, "_fetch", counted)
    counts = []
    for type in ("one", "many"):
        asked.clear()
        receipt = await store.send_event(CloudEvent(id=type, source="/test", type=type))
        counts.append((receipt.runs, len(asked)))
    due = await filling.fetchval("select count(*) from due where wake_at <= now()")

    assert [runs for runs, _ in counts] == [1, WAITING_FEW]
    assert counts[0][1] == counts[1][1] == 4
    assert due == WAITING_FEW
