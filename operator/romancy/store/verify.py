"""The invariants as queries against a live database: what may never be, whatever crashed (`romancy db verify`)."""

from dataclasses import dataclass
from typing import Final
from uuid import UUID

from romancy.base.settings import DatabaseSettings
from romancy.store.migrate import migrate
from romancy.store.pool import close_quietly, connect, unavailable_as_ours
from romancy.store.queries import SQL

LIMIT: Final = 20
"""Breaches of one kind that are shown."""

_REPORT: Final = "no process writes that: report it as a defect, with the run's history"
_REMOVE: Final = "rows were deleted by hand, or restored in part"


@dataclass(frozen=True, slots=True)
class Rule:
    """What must hold, by which invariant of docs/architecture.md (or "schema"), and what to do where it does not."""

    invariant: str
    holds: str
    advice: str


RULES: Final[dict[str, Rule]] = {
    "RunNowhere": Rule(
        "I6",
        "a run is open (has a row in due) or done (has a phase)",
        "nobody will ever execute it: start it again under another name; " + _REPORT,
    ),
    "RunOpenAndDone": Rule("I6", "a run is open or done, never both", _REPORT),
    "DueOfNoRun": Rule("I6", "a row in due is of a run", f"{_REMOVE}; `delete from due` of that id"),
    "DueUnlikeRun": Rule("schema", "due repeats workflow, priority and is_resource of its run", _REPORT),
    "PhaseUnknown": Rule("schema", "phases are those of docs/reference/phases.md", _REPORT),
    "EndHalfWritten": Rule("schema", "an end is written in one: phase, time, and output or failure", _REPORT),
    "HeldByNobody": Rule(
        "I2",
        "who holds a run is registered",
        "free it: `update due set worker_id = null, wake_at = now()` of that id; " + _REPORT,
    ),
    "HeldAndDue": Rule("I2", "a held run is Running or Compensating and not due", _REPORT),
    "NeverDue": Rule(
        "I7",
        "a run that nobody holds is due at some time, or waits for mail, or is blocked",
        "make it due: `update due set wake_at = now()` of that id; " + _REPORT,
    ),
    "BlockedButDue": Rule("I7", "a blocked run is not due: another build is what it waits for", _REPORT),
    "QueueWrong": Rule("schema", "a run that has begun has a time, a Python minor, and both in its queue", _REPORT),
    "LossesWrong": Rule("schema", "no more losses are counted as attempts than there were", _REPORT),
    "HistoryGap": Rule(
        "I3",
        "the positions of a history are 1, 2, 3, ...",
        "the run can't be replayed: cancel it or restore its history from a backup; " + _REPORT,
    ),
    "HistoryOfNoRun": Rule("I3", "a history is that of a run", f"{_REMOVE}; `delete from history` of that run_id"),
    "HistoryBeforeBegin": Rule("I2", "only who has claimed a run writes its history", _REPORT),
    "ClockWentBack": Rule("I1", "the clock of a run never goes back", _REPORT),
    "AnsweredTwice": Rule("I3", "an activity or a timer ends once", _REPORT),
    "AttemptGap": Rule("I3", "the failed attempts of an activity are 1, 2, 3, ...", _REPORT),
    "AttemptOfNoRun": Rule("I3", "an attempt is that of a run", f"{_REMOVE}; `delete from attempt` of that run_id"),
    "InboxGap": Rule("I7", "the messages of a run are 1, 2, 3, ... up to its inbox version", _REPORT),
    "InboxLost": Rule("I7", "an inbox version counts messages that are there", _REPORT),
    "InboxOfNoRun": Rule("I7", "a message is to a run", f"{_REMOVE}; `delete from inbox` of that run_id"),
    "MailTwice": Rule("I7", "a message is there and is delivered once", _REPORT),
    "CancelUnheard": Rule(
        "I7",
        "a cancel wakes its run",
        "make it due: `update due set wake_at = now()` of that id; " + _REPORT,
    ),
    "OutboxOfNoRun": Rule("I8", "what is sent is sent by a run", f"{_REMOVE}; `delete from outbox` of that run_id"),
    "OutboxStuck": Rule(
        "I8",
        "what a run sends is carried out within seconds, if any worker lives",
        "look for `outbox_not_sent` and `outbox_refused` in the workers' log; " + _REPORT,
    ),
    "EmitterMissing": Rule(
        "I8",
        "a run with emitted events is known to relays",
        "nobody will deliver them: `insert into emitter (run_id, due_at) values (<run_id>, now())`; " + _REPORT,
    ),
    "SubscribedAndDone": Rule(
        "I8", "a run that is done waits for nothing", "`delete from subscription` of that run_id; " + _REPORT
    ),
    "ParentUntold": Rule(
        "I8",
        "a run hears how its children have ended",
        "have it told: `insert into outbox (run_id, number, kind, payload) values (<that id>, 0, 'Ended', '')`; "
        + _REPORT,
    ),
    "ChildLeft": Rule(
        "I8", "a run takes those of its children with it that it did not abandon", "cancel it; " + _REPORT
    ),
    "MessageStuck": Rule(
        "I8",
        "a pending message goes to who waits for one",
        "publish another message to that channel: it brings this one too; " + _REPORT,
    ),
    "MessageLost": Rule("I8", "a pending message is there", f"{_REMOVE}; `delete from pending` of that event_id"),
    "ValueOfNoRun": Rule("I8", "a value is that of a run", f"{_REMOVE}; `delete from value` of that run_id"),
    "MirrorOfNone": Rule("I6", "a status is owed to a resource that is there", "`delete from mirror` of that run_id"),
    "MirrorMissing": Rule(
        "I6",
        "the status of an open run's resource can be owed",
        "its status stands still: `insert into mirror (run_id, mirror_at)` with that id and now()",
    ),
    "MirrorWrong": Rule(
        "I6",
        "a status is owed while a version is not mirrored, and final when its run is done",
        "have it written: `update mirror set mirror_at = now(), version = version + 1, "
        "is_final = not exists (select from due where id = run_id)` of that run_id; " + _REPORT,
    ),
    "FenceOfNoWorker": Rule(
        "I2",
        "only a registered worker may write",
        "`delete from fence` of that worker_id, at once: its owner can still write; " + _REPORT,
    ),
    "WorkerWithoutFence": Rule("I2", "a registered worker may write", "restart that worker; " + _REPORT),
    "BurialCheckLost": Rule(
        "schema",
        "burial_check has its one row",
        f"{_REMOVE}; `insert into burial_check (checked_at) values (now())`",
    ),
}


@dataclass(frozen=True, slots=True)
class Breach:
    """Something that may never be. `run` is its namespace and name, if it is about one that there is."""

    name: str
    run_id: UUID | None
    run: str | None
    worker_id: int | None
    found: str

    @property
    def rule(self) -> Rule:
        return RULES[self.name]

    def __str__(self) -> str:
        whose = [f"run {self.run or '(none)'} {self.run_id}"] if self.run_id else []
        whose += [f"worker {self.worker_id}"] if self.worker_id is not None else []
        about = f"{', '.join(whose)}: " if whose else ""
        return f"{self.name} ({self.rule.invariant}: {self.rule.holds}) {about}{self.found}. What to do: {self.rule.advice}"


@dataclass(frozen=True, slots=True)
class Size:
    """How much there was to look at."""

    runs: int
    open: int
    entries: int
    workers: int


async def find_breaches(settings: DatabaseSettings, *, limit: int = LIMIT) -> list[Breach]:
    """Look through everything, while workers go on as they like; empty if all holds.

    Args:
        settings: reading is enough, of a schema of this version.
        limit: breaches of one kind that are returned.

    Raises:
        SchemaVersionError: the schema is older or newer than this code.
        StoreUnavailableError: there was no answer.
    """
    assert limit >= 1
    await migrate(settings, only_check=True)
    with unavailable_as_ours():
        # It reads whole tables, so it may take its time, and with the plans that PostgreSQL thinks best.
        connection = await connect(settings, is_listing=True, statement_timeout="0", default_transaction_read_only="on")
        try:
            rows = await connection.fetch(*SQL.find_breaches(limit=limit), timeout=None)
        finally:
            await close_quietly(connection)
    return [Breach(row["breach"], row["run_id"], row["run"], row["worker_id"], row["found"]) for row in rows]


async def size_up(settings: DatabaseSettings) -> Size:
    """How much `find_breaches` has to look at."""
    with unavailable_as_ours():
        connection = await connect(settings, is_listing=True, statement_timeout="0", default_transaction_read_only="on")
        try:
            row = await connection.fetchrow(*SQL.size_up(), timeout=None)
        finally:
            await close_quietly(connection)
    return Size(row["runs"], row["open"], row["entries"], row["workers"])
