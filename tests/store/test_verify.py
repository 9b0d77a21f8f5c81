"""`romancy db verify`: each breach is found where there is one, and none where all is well."""

import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.errors import SchemaVersionError
from romancy.model.history import Kind, MessageKind
from romancy.model.run import Phase
from romancy.store.interface import Finish, Park, RunWrite
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL
from romancy.store.verify import RULES, find_breaches
from tests.builders import a_message, a_new_run, an_attempt, an_entry
from tests.store.hands import Hands

ON_EVERY_POSTGRES = True

ROOT = Path(__file__).parents[2]

# How each breach comes about: nothing but a hand on the database makes one.
HANDS_ON = {
    "RunNowhere": "delete from due where id = $1",
    "RunOpenAndDone": "update run set phase = 'Failed', finished_at = now() where id = $1",
    "DueOfNoRun": "update due set id = gen_random_uuid() where id = $1",
    "DueUnlikeRun": "update due set priority = 7 where id = $1",
    "PhaseUnknown": "update due set phase = 'Dreaming' where id = $1",
    "EndHalfWritten": "update run set output = '1' where id = $1",
    "HeldByNobody": "update due set worker_id = 987654, wake_at = null where id = $1",
    "HeldAndDue": "update due set worker_id = (select min(id) from worker), phase = 'Waiting', wake_at = null where id = $1",
    "NeverDue": "update due set phase = 'Running', wake_at = null where id = $1",
    "BlockedButDue": "update due set phase = 'Blocked', wake_at = now() where id = $1",
    "QueueWrong": "update due set queue = 'flow/3.9' where id = $1",
    "LossesWrong": "update due set lost_noted = 1 where id = $1",
    "HistoryGap": "delete from history where run_id = $1 and position = 1",
    "HistoryOfNoRun": "update history set run_id = gen_random_uuid() where run_id = $1 and position = 1",
    "HistoryBeforeBegin": "update due set started_at = null where id = $1",
    "ClockWentBack": "update history set at = at - interval '1 hour' where run_id = $1 and position = 2",
    "AnsweredTwice": "update history set number = 1 where run_id = $1 and position = 2",
    "AttemptGap": "update attempt set attempt = 3 where run_id = $1",
    "AttemptOfNoRun": "update attempt set run_id = gen_random_uuid() where run_id = $1",
    "InboxGap": "update inbox set number = 2 where run_id = $1",
    "InboxLost": "delete from inbox where run_id = $1",
    "InboxOfNoRun": "update inbox set run_id = gen_random_uuid() where run_id = $1",
    "MailTwice": "update history set inbox = 1 where run_id = $1",
    "CancelUnheard": "update due set wake_at = null, phase = 'Waiting' where id = $1",
    "OutboxOfNoRun": """
        insert into outbox (run_id, number, kind, payload) select gen_random_uuid(), 1, 'Ended', '' where $1::uuid is not null
    """,
    "OutboxStuck": """
        insert into outbox (run_id, number, kind, payload, at) values ($1, 1, 'Ended', '', now() - interval '1 h')
    """,
    "EmitterMissing": "insert into emitted (run_id, namespace, at, payload) values ($1, 'n', now(), '{}')",
    "SubscribedAndDone": """
        insert into subscription select id, 1, gen_random_uuid() from run where phase is not null and $1::uuid is not null
    """,
    "ParentUntold": "update run set parent_id = $1, parent_number = 1, parent_close = 'Cancel' where phase is not null",
    "ChildLeft": """
        update run set parent_id = (select id from run where phase is not null), parent_number = 1, parent_close = 'Cancel'
         where phase is null and id <> $1
    """,
    "MessageStuck": """
        with e as (insert into event (source, event_id, type, payload, attributes, at)
                   values ('s', '1', 'romancy.channel/c', '', '{}', now() - interval '1 h') returning id),
             p as (insert into pending select 'c', id from e)
        insert into demand values ('c', now() - interval '1 h', $1, 1)
    """,
    "MessageLost": "insert into pending select 'c', 987654 where $1::uuid is not null",
    "ValueOfNoRun": "insert into value select gen_random_uuid(), 'n', 1, '1' where $1::uuid is not null",
    "MirrorOfNone": "update run set resource_gone_at = now() where id = $1",
    "MirrorMissing": "delete from mirror where run_id = $1",
    "MirrorWrong": "update mirror set mirror_at = null, mirrored = version - 1 where run_id = $1",
    "FenceOfNoWorker": "insert into fence (worker_id, slot) select 987654, 0 where $1::uuid is not null",
    "WorkerWithoutFence": "delete from fence where $1::uuid is not null",
    "BurialCheckLost": "delete from burial_check where $1::uuid is not null",
}


@pytest.fixture
async def run_id(store: PostgresStore, hands: Callable[..., Awaitable[Hands]]) -> Any:
    """A parked run of a resource with two entries, an attempt and a cancel that it has not read; a done one beside it."""
    worker = await hands()
    done = await worker.started()
    await worker.write(done, then=Finish(Phase.SUCCEEDED, output="1"))
    claim = await worker.started(is_resource=True)
    started_at = (await store.read_run(claim.run_id)).started_at  # type: ignore[union-attr]
    assert started_at is not None
    entries = tuple(an_entry(number, at=started_at) for number in (1, 2))
    write = RunWrite(claim.run_id, claim.number, entries=entries, attempts=(an_attempt(3),), then=Park(0, None))
    await worker.journal.submit(write)
    await store.send([a_message(claim.run_id, kind=MessageKind.CANCEL)])
    await store.start_runs([a_new_run()])
    return claim.run_id


async def test_where_all_is_well_nothing_is_found(run_id: Any, database: DatabaseSettings) -> None:
    assert await find_breaches(database) == []


async def test_a_retried_run_breaks_nothing(
    store: PostgresStore, hands: Callable[..., Awaitable[Hands]], database: DatabaseSettings
) -> None:
    """What stands no more may be answered, and come, a second time; a cancel from before is overtaken."""
    worker = await hands()
    claim = await worker.started(is_resource=True)
    await store.send([a_message(claim.run_id, kind=MessageKind.CANCEL)])
    now = await store.now()
    event, failed = (
        an_entry(1, kind=Kind.EVENT_RECEIVED, number=0, inbox=1, at=now),
        an_entry(2, kind=Kind.ACTIVITY_FAILED, at=now, number=1, payload='{"type":"builtins.OSError","message":"x"}'),
    )
    await worker.write(claim, event, failed, then=Finish(Phase.FAILED, "WorkflowFailed", "x", failure=failed.payload))
    await store.retry_run(claim.run_id)
    assert await find_breaches(database) == []
    [again] = await worker.claim()

    asked = an_entry(3, kind=Kind.RETRIED, number=0, inbox=2, at=now, payload='{"from":1,"to":2,"numbers":{}}')
    anew = (an_entry(4, kind=Kind.EVENT_RECEIVED, number=0, inbox=1, at=now), an_entry(5, number=1, at=now))
    await worker.write(again, asked, *anew, then=Park(3, None))

    assert await find_breaches(database) == []


@pytest.mark.parametrize("name", RULES)
async def test_each_breach_is_found(name: str, run_id: Any, database: DatabaseSettings, connect: Any) -> None:
    connection = await connect()
    await connection.execute(HANDS_ON[name], run_id)

    breaches = await find_breaches(database)

    assert name in {breach.name for breach in breaches}
    text = str(next(breach for breach in breaches if breach.name == name))
    assert "What to do: " in text
    assert name in {"BurialCheckLost", "MessageLost"} or "run " in text or "worker 987654" in text or "worker " in text


def test_the_statement_and_the_rules_name_the_same_breaches() -> None:
    assert set(re.findall(r"select '(\w+)'", SQL.find_breaches(limit=1)[0])) == set(RULES)
    invariants = set(re.findall(r"^\| (I\d) \|", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE))
    assert {rule.invariant for rule in RULES.values()} <= {*invariants, "schema"}


async def test_a_kind_that_is_everywhere_is_shown_in_part(
    store: PostgresStore, database: DatabaseSettings, connect: Any
) -> None:
    await store.start_runs([a_new_run() for _ in range(30)])
    await (await connect()).execute("delete from due")

    assert len(await find_breaches(database, limit=7)) == 7


async def test_a_schema_of_another_version_is_refused(database: DatabaseSettings, connect: Any) -> None:
    connection = await connect()
    await connection.execute("insert into migration (number, name) values (9999, 'of_tomorrow')")
    try:
        with pytest.raises(SchemaVersionError, match="9999"):
            await find_breaches(database)
    finally:
        await connection.execute("delete from migration where number = 9999")


def command(database: DatabaseSettings, *arguments: str) -> "subprocess.CompletedProcess[str]":
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ROMANCY_")}
    return subprocess.run(
        [sys.executable, "-m", "romancy", "db", *arguments],
        env={**kept, "PYTHONPATH": str(ROOT / "operator"), "DATABASE_URL": database.url.get_secret_value()},
        capture_output=True,
        text=True,
        check=False,
    )


async def test_the_command_prints_a_line_a_breach_and_exits_with_1(
    run_id: Any, database: DatabaseSettings, connect: Any, postgres_server: Any
) -> None:
    fine = command(database, "verify")
    assert (fine.returncode, fine.stdout) == (0, "all holds: 3 runs (2 open), 2 entries, 1 workers\n"), fine.stderr

    await (await connect()).execute(HANDS_ON["HistoryGap"], run_id)
    broken = command(database, "verify")

    assert broken.returncode == 1
    [line] = broken.stdout.splitlines()
    assert line.startswith(
        f"HistoryGap (I3: the positions of a history are 1, 2, 3, ...) run default/run-{run_id} {run_id}: "
    )
    assert "1 entries, positions 2 to 2. What to do: the run can't be replayed" in line
    assert "1 breaches in 3 runs" in broken.stderr


async def test_the_command_migrates(database: DatabaseSettings) -> None:
    done = command(database, "migrate")

    assert (done.returncode, done.stdout) == (0, "the schema is up to date\n"), done.stderr
