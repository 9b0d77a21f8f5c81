"""Runs that are deleted while everything goes on: what starts again, what is locked, who looks, and what it costs."""

import asyncio
import json
from random import Random
from typing import Any
from uuid import UUID

import pytest

from romancy.base.settings import DatabaseSettings, RetentionSettings
from romancy.model.channel import ChannelMode, message_of
from romancy.model.event import CloudEvent
from romancy.model.run import Phase
from romancy.store.interface import Finish, Purgeable, Purged
from romancy.store.pool import connect as engine_connect
from romancy.store.postgres import PostgresStore
from romancy.store.purge import RUNS_MAX, purge, purge_ended
from romancy.store.queries import SQL
from romancy.store.verify import find_breaches
from tests.builders import a_message, a_new_run, an_entry
from tests.store.test_plans import as_text

ON_EVERY_POSTGRES = True

OLD = Purgeable(Phase.SUCCEEDED, older_than_seconds=1800)
PAGES_MAX = 4000  # a hundred runs, each looked for in ten tables and with its indexes
KEPT = 100_000


async def ended(hands: Any, phase: Phase = Phase.SUCCEEDED, **changes: Any) -> UUID:
    """A run that was executed by this worker."""
    claim = await hands.started(**changes)
    await hands.store.send([a_message(claim.run_id)])
    output = "1" if phase is Phase.SUCCEEDED else None
    now = await hands.store.now()
    await hands.write(claim, an_entry(1, at=now), an_entry(2, at=now), then=Finish(phase, "", output=output))
    run_id: UUID = claim.run_id
    return run_id


async def test_who_starts_the_same_id_waits_for_its_purge_and_starts_another_run(
    store: PostgresStore, hands: Any, rewind: Any, connect: Any, database: DatabaseSettings
) -> None:
    worker = await hands()
    run_id = await ended(worker)
    await rewind(3600)
    purging = await connect()
    transaction = purging.transaction()
    await transaction.start()
    text, *arguments = SQL.purge_runs(
        phase="Succeeded", older_than_seconds=1800.0, namespace=None, workflow=None, since=None, runs_max=9, rows_max=9
    )
    assert (await purging.fetchrow(text, *arguments))["runs"] == 1

    starting = asyncio.create_task(store.start_runs([a_new_run(id=run_id, input='{"second":1}')]))
    watching = await connect()
    while not await watching.fetchval("select count(*) from pg_locks where not granted"):  # noqa: ASYNC110 - PostgreSQL's to say
        await asyncio.sleep(0.005)
    assert not starting.done()
    await transaction.commit()
    [started] = await starting

    assert started.existing is None
    [claim] = await worker.claim()
    [read] = await store.read_claimed([claim])
    assert (read.input, read.history, read.inbox) == ('{"second":1}', (), ())
    assert await find_breaches(database) == []


async def test_a_run_that_somebody_has_locked_is_left_for_the_next_look(
    store: PostgresStore, hands: Any, rewind: Any, connect: Any
) -> None:
    worker = await hands()
    locked, free = await ended(worker), await ended(worker)
    await rewind(3600)
    holding = await connect()
    transaction = holding.transaction()
    await transaction.start()
    await holding.execute("select from run where id = $1 for no key update", locked)

    first = await store.purge_runs(OLD)
    await transaction.rollback()

    assert first.runs == 1
    assert await store.read_run(free) is None
    assert (await store.purge_runs(OLD)).runs == 1


async def test_several_who_purge_beside_those_who_start_leave_nothing_half(
    store: PostgresStore, hands: Any, connect: Any, database: DatabaseSettings
) -> None:
    """Each of few ids is started, executed, aged and deleted again and again, by all at once."""
    random = Random(7)
    ids = [UUID(int=nth + 1) for nth in range(12)]
    workers = [await hands() for _ in range(2)]
    aging = await connect()
    until = asyncio.get_running_loop().time() + 3
    purged = started = 0

    def is_on() -> bool:
        return asyncio.get_running_loop().time() < until

    async def start() -> None:
        nonlocal started
        while is_on():
            some = random.sample(ids, 3)
            answers = await store.start_runs([a_new_run(id=each, name=str(each)) for each in some])
            started += sum(answer.existing is None for answer in answers)
            await asyncio.sleep(random.random() * 0.01)

    async def execute(worker: Any) -> None:
        while is_on():
            for claim in await worker.claim():
                [read] = await store.read_claimed([claim])
                assert read.history == ()  # of the run that had the id before
                now = await store.now()
                end = Finish(Phase.SUCCEEDED, output="1")
                await worker.write(claim, an_entry(1, at=now), an_entry(2, at=now), then=end)
            await asyncio.sleep(0.002)

    async def age() -> None:
        while is_on():
            await aging.execute("update run set finished_at = finished_at - interval '1 hour'")
            await asyncio.sleep(0.005)

    async def delete() -> None:
        nonlocal purged
        while is_on():
            purged += (await store.purge_runs(OLD)).runs
            await asyncio.sleep(0.003)

    await asyncio.gather(start(), start(), *map(execute, workers), age(), delete(), delete(), delete())

    assert purged > 50
    assert started >= purged
    assert await find_breaches(database) == []


async def test_batches_go_on_until_nothing_is_left(store: PostgresStore, hands: Any, rewind: Any) -> None:
    worker = await hands()
    for _ in range(RUNS_MAX + 1):
        await ended(worker)
    await rewind(3600)
    kept = await ended(worker)

    assert await purge(store, OLD, until=0) == 0  # time is up
    assert await purge(store, OLD) == RUNS_MAX + 1
    assert await purge(store, OLD) == 0
    assert await store.read_run(kept) is not None


async def test_each_outcome_is_kept_as_long_as_is_set(
    store: PostgresStore, hands: Any, rewind: Any, database: DatabaseSettings
) -> None:
    """Given runs older than the retention, they are deleted and only they; where none is set they are kept."""
    worker = await hands()
    runs = {phase: await ended(worker, phase) for phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED)}
    await rewind(3000)
    young = await ended(worker)
    await rewind(900)

    assert await purge_ended(store, RetentionSettings()) == 0
    await rewind(60)  # until the next look
    assert await purge_ended(store, RetentionSettings(succeeded_seconds=3600, failed_seconds=7200)) == 1

    assert await store.read_run(runs[Phase.SUCCEEDED]) is None
    for run_id in (runs[Phase.FAILED], runs[Phase.CANCELLED], young):
        assert await store.read_run(run_id) is not None
    assert await find_breaches(database) == []


async def test_of_all_who_look_at_once_one_purges(
    store: PostgresStore, hands: Any, rewind: Any, database: DatabaseSettings
) -> None:
    worker = await hands()
    await ended(worker)
    await rewind(3600)
    kept = RetentionSettings(succeeded_seconds=1800)

    async def look() -> int:
        async with PostgresStore(database) as another:
            return await purge_ended(another, kept)

    assert sorted(await asyncio.gather(*[look() for _ in range(4)])) == [0, 0, 0, 1]
    await ended(worker)
    await rewind(3600)  # the next look is due then, too
    assert sorted(await asyncio.gather(*[look() for _ in range(4)])) == [0, 0, 0, 1]


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_batch_among_a_hundred_thousand_runs_that_are_kept(
    database: DatabaseSettings, store: PostgresStore, connect: Any
) -> None:
    filling = await connect()
    connection = await engine_connect(database)
    try:
        for count, age in ((KEPT, "1 minute"), (RUNS_MAX, "2 hours")):
            await filling.execute(f"""
                insert into run (id, namespace, name, workflow, priority, input, phase, created_at, finished_at)
                select gen_random_uuid(), 'default', 'run-' || nth, 'flow', 0, '{{}}', 'Succeeded', now() - interval '{age}',
                       now() - interval '{age}'
                  from generate_series(1, {count}) as nth
            """)
        await filling.execute("""
            insert into history (run_id, position, kind, at, number, name, digest, payload)
            select run.id, nth, 'ActivityCompleted', now(), nth, 'a', '', '1' from run, generate_series(1, 5) as nth
        """)
        text, *arguments = SQL.purge_runs(
            phase="Succeeded",
            older_than_seconds=3600.0,
            namespace=None,
            workflow=None,
            since=None,
            runs_max=RUNS_MAX,
            rows_max=10_000,
        )
        await connection.execute(f"prepare hot as {text}")
        literals = ", ".join(
            [await connection.fetchval("select quote_nullable($1::text)", as_text(each)) for each in arguments]
        )
        [row] = await connection.fetch(f"explain (analyze, buffers, format json) execute hot({literals})")
        left = await filling.fetchval("select count(*) from run")
        entries = await filling.fetchval("select count(*) from history")
        await filling.execute("truncate run, history")
    finally:
        await connection.close()

    plan = json.loads(row[0])[0]["Plan"]
    pages = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
    assert (left, entries) == (KEPT, 5 * KEPT)
    assert pages < PAGES_MAX, f"{pages} pages for {RUNS_MAX} runs"


async def test_nothing_to_purge_is_nothing(store: PostgresStore) -> None:
    assert await store.purge_runs(OLD) == Purged(0, None)


async def test_42_events_older_than_the_retention_are_deleted_and_only_they(
    store: PostgresStore, hands: Any, rewind: Any, connect: Any, database: DatabaseSettings
) -> None:
    """Given messages older than the retention, cleanup deletes them only; and none that is still to be received."""
    worker = await hands()
    claim = await worker.started()
    await store.send_event(CloudEvent(id="received later", source="/s", type="t"), to=claim.run_id)
    await store.send_event(CloudEvent(id="old", source="/s", type="t"))
    message = message_of("jobs", "1", {}, source="/s", id="pending")
    await store.publish("jobs", ChannelMode.COMPETING, message)
    connection = await connect()
    await connection.execute("update event set at = at - interval '2 days'")
    await store.send_event(CloudEvent(id="young", source="/s", type="t"))

    assert await purge_ended(store, RetentionSettings()) == 0

    left = await connection.fetch("select event_id from event order by event_id")
    assert [row["event_id"] for row in left] == ["pending", "received later", "young"]
    [mail] = await store.read_inbox(claim.run_id, 0)
    assert json.loads(mail.payload)["id"] == "received later"
    await worker.write(claim, then=Finish(Phase.FAILED))
    await rewind(60)
    assert await purge_ended(store, RetentionSettings()) == 0
    assert await connection.fetchval("select count(*) from event") == 2
    assert await find_breaches(database) == []
