"""The plans of hot statements: through an index, whatever the statistics say, with the settings of the engine's connections."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase
from romancy.store.interface import Finish, RunWrite
from romancy.store.pool import connect as engine_connect
from romancy.store.queries import SQL
from tests.builders import SOME_TIME, an_entry
from tests.store.test_races import flush_of

ON_EVERY_POSTGRES = True

FLUSH = (RunWrite(uuid4(), 1, entries=(an_entry(1),), then=Finish(Phase.FAILED)),)
HOT = {
    "claim_runs": (SQL.claim_runs(worker_id=1, slot=1, turn=0, limit=20), {"due_claim", "fence_pkey", "worker_pkey"}),
    "claim_blocked": (SQL.claim_blocked(worker_id=1, slot=1, limit=20), {"due_blocked", "fence_pkey"}),
    "next_due_at": (SQL.next_due_at(worker_id=1), {"due_claim", "worker_pkey"}),
    "read_histories": (SQL.read_histories(run_ids=[uuid4()]), {"history_pkey"}),
    "read_inboxes": (SQL.read_inboxes(run_ids=[uuid4()], afters=[0]), {"inbox_pkey"}),
    "read_attempts": (SQL.read_attempts(run_ids=[uuid4()]), {"attempt_pkey"}),
    "read_begun": (SQL.read_begun(run_ids=[uuid4()]), {"due_pkey", "run_pkey"}),
    "poll": (
        SQL.poll(worker_id=1, run_ids=[], claims=[]),
        {"due_held", "due_claim", "due_blocked", "emitter_due", "emitter_failing"},
    ),
    "free_runs": (
        SQL.free_runs(worker_id=1, losses_max=5, build_id="b", message="%s", due_channel="d", mirror_channel="m"),
        {"due_held", "due_pkey", "mirror_pkey"},
    ),
    "send": (
        SQL.send(
            run_ids=[uuid4()],
            kinds=["Cancel"],
            sources=["s"],
            payloads=[""],
            event_ids=[None],
            ids_max=200,
            due_channel="d",
            inbox_channel="i",
        ),
        {"due_pkey", "inbox_run_id_source_key"},
    ),
    "store_events": (
        SQL.store_events(
            sources=["s"], event_ids=["1"], types=["t"], targets=[None], payloads=["{}"], attributes=["{}"]
        ),
        {"event_source_event_id_key"},
    ),
    "hold_run": (SQL.hold_run(worker_id=1, slot=0, run_id=uuid4(), claim=1), {"fence_pkey", "due_pkey"}),
    "checkpoint": (
        SQL.checkpoint(
            worker_id=1,
            slot=0,
            run_id=uuid4(),
            claim=1,
            e_positions=[1],
            e_kinds=["ActivityCompleted"],
            e_ats=[datetime.now(UTC)],
            e_numbers=[1],
            e_names=["a"],
            e_digests=[""],
            e_payloads=["1"],
            o_numbers=[1],
            o_kinds=["Announce"],
            o_payloads=["{}"],
        ),
        {"fence_pkey", "due_pkey"},
    ),
    "read_interest": (SQL.read_interest(types=["t"]), {"shape_pkey", "starter_type"}),
    "find_waiting": (SQL.find_waiting(keys=[uuid4()]), {"subscription_key"}),
    "find_events": (
        SQL.find_events(run_ids=[uuid4()], matches=["{}"], sinces=[None], limit=9),
        {"event_attributes", "run_pkey", "inbox_run_id_source_key"},
    ),
    "find_events_of_type": (
        SQL.find_events_of_type(run_ids=[uuid4()], types=["t"], sinces=[None], limit=9),
        {"event_type", "run_pkey", "inbox_run_id_source_key"},
    ),
    "subscribe": (
        SQL.subscribe(run_ids=[uuid4()], numbers=[1], keys=[uuid4()], types=["t"], shapes=["[]"]),
        {"outbox_pkey"},
    ),
    "unsubscribe": (SQL.unsubscribe(run_ids=[uuid4()], numbers=[1]), {"subscription_pkey"}),
    "unsubscribe_all": (SQL.unsubscribe_all(run_ids=[uuid4()]), {"subscription_pkey"}),
    "read_outboxes": (SQL.read_outboxes(run_ids=[uuid4()]), {"outbox_pkey"}),
    "fix_modes": (SQL.fix_modes(names=["c"], modes=["Direct"]), {"channel_pkey"}),
    "demand": (SQL.demand(channels=["c"], run_ids=[uuid4()], numbers=[1]), {"outbox_pkey"}),
    "undemand": (SQL.undemand(run_ids=[uuid4()], numbers=[1]), {"demand_pkey"}),
    "hand_out": (
        SQL.hand_out(channel="c", limit=9, due_channel="d", inbox_channel="i"),
        {"pending_pkey", "demand_oldest", "due_pkey"},
    ),
    "return_untaken": (
        SQL.return_untaken(run_ids=[uuid4()], numbers=[1]),
        {"history_pkey", "demand_pkey", "event_pkey"},
    ),
    "retry_run": (
        SQL.retry_run(run_id=uuid4(), finished_at=datetime.now(UTC), payload="{}", due_channel="d", mirror_channel="m"),
        {"run_pkey", "inbox_pkey", "inbox_run_id_source_key", "outbox_pkey", "run_parent", "attempt_pkey"},
    ),
    "leave_groups": (SQL.leave_groups(groups=[None], run_ids=[uuid4()]), {"member_run"}),
    "read_members": (SQL.read_members(group="g"), {"member_pkey", "due_pkey"}),
    "recur": (
        SQL.recur(
            run_ids=[uuid4()],
            numbers=[-1],
            claims=[1],
            archives=[uuid4()],
            inputs=["{}"],
            counts=["{}"],
            positions=[0],
            sents=[0],
            seens=[0],
            kepts=[""],
            due_channel="d",
        ),
        {"outbox_pkey", "due_pkey", "run_pkey", "history_pkey", "attempt_pkey", "subscription_pkey"},
    ),
    "read_open_children": (SQL.read_open_children(run_ids=[uuid4()], numbers=[1]), {"run_parent", "due_pkey"}),
    "read_ended": (SQL.read_ended(run_ids=[uuid4()]), {"run_pkey"}),
    "read_set_values": (SQL.read_set_values(run_id=uuid4()), {"value_pkey"}),
    "emit": (SQL.emit(run_ids=[uuid4()], kinds=["Emit"]), {"outbox_pkey", "run_pkey"}),
    "claim_emitters": (
        SQL.claim_emitters(room=20, failing_max=10, lease_seconds=9.0),
        {"emitter_due", "emitter_failing", "emitter_pkey"},
    ),
    "read_emitted": (SQL.read_emitted(run_ids=[uuid4()], limit=20), {"emitted_pkey"}),
    "settle_emitters": (
        SQL.settle_emitters(
            run_ids=[uuid4()],
            claims=[1],
            versions=[1],
            delivered_tos=[1],
            deads=[2],
            failures=["x"],
            attempts=[1],
            delays=[1.0],
            has_mores=[True],
        ),
        {"emitter_pkey", "emitted_pkey"},
    ),
    "resend_dead_letter": (SQL.resend_dead_letter(letter_id=1, namespace=None), {"dead_letter_pkey"}),
    "delete_dead_letter": (SQL.delete_dead_letter(letter_id=1, namespace=None), {"dead_letter_pkey"}),
    "purge_dead_letters": (SQL.purge_dead_letters(older_than_seconds=9.0, limit=9), {"dead_letter_pkey"}),
    "delete_sent": (SQL.delete_sent(run_ids=[uuid4()], numbers=[1]), {"outbox_pkey"}),
    "take_unmirrored": (SQL.take_unmirrored(hold_seconds=1.0, limit=10), {"mirror_owed", "run_pkey", "due_pkey"}),
    "mark_mirrored": (SQL.mark_mirrored(run_ids=[uuid4()], versions=[1]), {"mirror_pkey"}),
    "stranded_queues": (SQL.stranded_queues(), {"due_claim", "due_stranded"}),
    "strand": (
        SQL.strand(priority=0, queue="q", message="m", since=SOME_TIME, limit=9, mirror_channel="m"),
        {"due_claim", "due_pkey"},
    ),
    "unstrand": (SQL.unstrand(queues=[], limit=9, mirror_channel="m"), {"due_stranded", "due_pkey"}),
    "resources_gone": (SQL.resources_gone(ids=[uuid4()]), {"run_pkey", "due_pkey", "mirror_pkey"}),
    "set_wishes": (
        SQL.set_wishes(ids=[uuid4()], suspends=[True], cancels=[True], deletion_policies=["Cancel"], ttls=[None]),
        {"run_pkey", "due_pkey"},
    ),
    "purge_runs": (
        SQL.purge_runs(
            phase="Failed", older_than_seconds=9.0, namespace=None, workflow=None, since=None, runs_max=9, rows_max=9
        ),
        {"run_finished", "run_recurred", "run_pkey", "history_pkey", "inbox_pkey", "attempt_pkey"},
    ),
    "purge_former": (
        SQL.purge_former(phase="Failed", older_than_seconds=9.0, namespace=None, workflow=None, runs_max=9, rows_max=9),
        {"run_finished", "run_recurred", "run_pkey", "history_pkey"},
    ),
    "expired_resources": (SQL.expired_resources(limit=10), {"run_resource_due"}),
    "read_runs": (SQL.read_runs(ids=[uuid4()]), {"run_pkey", "due_pkey"}),
    "renew_lease": (SQL.renew_lease(worker_id=1, ttl_seconds=1.0), {"worker_pkey"}),
}
SCANNED = {"worker", "burial_check", "outbox"}  # some ten rows, one, and what is on its way


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


NOTHING = dict.fromkeys(
    (
        *("namespace", "workflow", "labels", "name_part", "id_first", "id_last", "created_from", "created_before"),
        *("input_part", "after_at", "after_id"),
    )
)
AN_HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
EVER = {"finished_from": None, "finished_before": None}
LISTED = {
    "find_run": (SQL.find_run(namespace="n1", name="run 77"), {"run_name"}),
    "list_any_runs": (SQL.list_any_runs(**NOTHING, phases=None, limit=20), {"run_listed"}),
    "list_any_runs of a namespace": (
        SQL.list_any_runs(**NOTHING | {"namespace": "n1"}, phases=None, limit=20),
        {"run_listed_by_namespace"},
    ),
    "list_any_runs with a label": (
        SQL.list_any_runs(**NOTHING | {"labels": '{"nth": "77"}'}, phases=None, limit=20),
        {"run_labels"},
    ),
    "list_any_runs with an id": (
        SQL.list_any_runs(
            **NOTHING | {"id_first": UUID(int=7 << 108), "id_last": UUID(int=8 << 108)}, phases=None, limit=20
        ),
        {"run_pkey"},
    ),
    "list_any_runs of a minute": (
        SQL.list_any_runs(
            **NOTHING | {"created_from": AN_HOUR_AGO, "created_before": AN_HOUR_AGO + timedelta(minutes=1)},
            phases=None,
            limit=20,
        ),
        {"run_listed"},
    ),
    "list_done_runs that ended in a minute": (
        SQL.list_done_runs(
            **NOTHING,
            phases=["Succeeded"],
            finished_from=AN_HOUR_AGO,
            finished_before=AN_HOUR_AGO + timedelta(minutes=1),
            limit=20,
        ),
        {"run_finished"},
    ),
    "list_done_runs": (SQL.list_done_runs(**NOTHING, **EVER, phases=["Failed"], limit=20), {"run_done"}),
    "list_open_runs": (SQL.list_open_runs(**NOTHING, phases=["Blocked"], limit=20), {"run_pkey"}),
    "resources": (SQL.resources(namespaces=["n1"]), {"run_resource"}),
    "list_dead_letters": (
        SQL.list_dead_letters(namespace="n1", before=None, limit=20),
        {"dead_letter_listed"},
    ),
}


async def plan_of(connection: Any, statement: tuple[Any, ...]) -> list[dict[str, Any]]:
    """The generic plan, as the engine gets it: prepared, and explained without being run."""
    text, *arguments = statement
    await connection.execute(f"prepare hot as {text}")
    literals = ", ".join(
        [await connection.fetchval("select quote_nullable($1::text)", as_text(each)) for each in arguments]
    )
    [row] = await connection.fetch(
        f"explain (format json) execute hot({literals})" if arguments else "explain (format json) execute hot"
    )
    await connection.execute("deallocate hot")
    return list(nodes(json.loads(row[0])[0]["Plan"]))


def as_text(value: Any) -> str | None:
    """A parameter as PostgreSQL writes it."""
    if value is None:
        return None
    if isinstance(value, list):
        quoted = [str(each).replace("\\", "\\\\").replace('"', '\\"') for each in value]
        return (
            "{"
            + ",".join("null" if each is None else f'"{text}"' for each, text in zip(value, quoted, strict=True))
            + "}"
        )
    return str(value)


# The database may have served other tests, and may have been looked at when it was empty again: then all ways cost the
# same. An engine's is new, or has rows.
AS_NEW = """
    delete from pg_statistic where starelid in (select oid from pg_class where relnamespace = current_schema()::regnamespace);
    update pg_class set reltuples = -1, relpages = 0
     where relnamespace = current_schema()::regnamespace and relkind in ('r', 'i')
"""


@pytest.mark.parametrize("name", [*HOT, "flush"])
async def test_a_hot_statement_goes_through_its_index(name: str, database: DatabaseSettings, hands: Any) -> None:
    worker = await hands()
    statement, indexes = (
        HOT[name] if name in HOT else (flush_of(worker, *FLUSH), {"fence_pkey", "due_pkey", "run_pkey"})
    )
    connection = await engine_connect(database)
    try:
        await connection.execute(AS_NEW)
        found = await plan_of(connection, statement)
    finally:
        await connection.close()

    scanned = {node["Relation Name"] for node in found if node["Node Type"] == "Seq Scan"}
    assert scanned <= SCANNED
    assert indexes <= {node.get("Index Name") for node in found}
    assert not any(node["Node Type"] in {"Hash Join", "Merge Join"} for node in found)
    if name in {"flush", "send"}:  # not by all runs of the worker, for each row: tried, and fifty times slower
        conditions = {node["Index Cond"] for node in found if node.get("Index Name", "").startswith("due_")}
        assert conditions
        assert all(condition.startswith("(id = ") for condition in conditions)


async def test_lists_go_through_their_indexes(database: DatabaseSettings) -> None:
    """Among 20,000 runs, most of them done, with the plans that PostgreSQL makes of the values."""
    connection = await engine_connect(database, is_listing=True)
    await connection.execute("""
        insert into run (id, namespace, name, workflow, priority, input, created_at, finished_at, phase, labels, is_resource)
        select gen_random_uuid(), 'n' || nth % 100, 'run ' || nth, 'flow', 0, '{}', now() - nth * interval '1 s',
               case when nth % 100 <> 0 then now() - nth * interval '1 s' end,
               case when nth % 100 = 0 then null when nth % 1000 = 7 then 'Failed' else 'Succeeded' end,
               case when nth % 10 = 0 then jsonb_build_object('nth', nth::text) else '{}' end, nth % 50 = 1
          from generate_series(1, 20000) as nth;
        insert into dead_letter (run_id, namespace, at, attempts, failure, payload)
        select gen_random_uuid(), 'n' || nth % 100, now(), 1, '', '{}' from generate_series(1, 20000) as nth;
        insert into due (id, queue, workflow, priority, phase)
        select id, 'flow', 'flow', 0, case when name like '%000' then 'Blocked' else 'Waiting' end from run where phase is null;
        analyze
    """)
    try:
        found = {name: await plan_of(connection, statement) for name, (statement, _) in LISTED.items()}
        await connection.execute("truncate run, due, dead_letter; analyze")
    finally:
        await connection.close()

    for name, (_, indexes) in LISTED.items():
        scanned = {node["Relation Name"] for node in found[name] if node["Node Type"] == "Seq Scan"}
        assert scanned <= {"worker", "due", "mirror"}, name  # `run` is the one that grows
        assert indexes <= {node.get("Index Name") for node in found[name]}, name
