"""What may never be, asked after every statement of the database in memory, and of all of it now and then.

The names of the breaches are those of `romancy db verify` (store/verify.py says what each means); some here need more than one
moment to see: an entry that changed, a write of a buried worker, a run that was parked with mail that it had not seen.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any
from uuid import UUID

from romancy.model.history import ACTIVITY_ENDS
from romancy.model.run import TRANSITIONS, Phase
from romancy.testing import MemoryDatabase
from romancy.testing.memory.tables import DueRow, EntryRow, RunRow

_OPEN = {phase.value for phase in Phase if not phase.is_done}
_DONE = {phase.value for phase in Phase if phase.is_done}
_HELD = {"Running", "Compensating"}


class BreachError(AssertionError):
    """Something that may never be."""


def breaches(db: MemoryDatabase) -> Iterator[str]:
    """All that `romancy db verify` looks for."""
    for run_id in dict.fromkeys((*db.run, *db.due, *db.history, *db.attempt, *db.inbox, *db.mirror)):
        for name, found in _of_run(db, run_id):
            yield f"{name}: run {run_id}: {found}"
    registered = set(db.worker)
    for worker_id in sorted({worker_id for worker_id, _slot in db.fence} - registered):
        yield f"FenceOfNoWorker: worker {worker_id}"
    for worker_id in sorted(registered - {worker_id for worker_id, _slot in db.fence}):
        yield f"WorkerWithoutFence: worker {worker_id}"


def told(db: MemoryDatabase, run_id: UUID) -> dict[int, EntryRow]:
    """The history of a run; what came late for an iteration that is over is of the past."""
    run = db.run.get(run_id)
    return {at: row for at, row in db.history.get(run_id, {}).items() if run is None or at > run.history_from}


def standing(history: Mapping[int, EntryRow]) -> dict[int, EntryRow]:
    """Without what a retry has put aside."""
    asked = [json.loads(row.payload) for row in history.values() if row.kind == "Retried"]
    put_aside = {position for each in asked for position in range(each["from"], each["to"] + 1)}
    return {at: row for at, row in history.items() if at not in put_aside}


def _of_run(db: MemoryDatabase, run_id: UUID) -> Iterator[tuple[str, object]]:
    run, due = db.run.get(run_id), db.due.get(run_id)
    history, inbox = told(db, run_id), db.inbox.get((run and run.recurred_into) or run_id, {})
    if run is None:
        for name, there in (("DueOfNoRun", due), ("HistoryOfNoRun", history), ("InboxOfNoRun", inbox)):
            if there:
                yield name, there
        if db.attempt.get(run_id):
            yield "AttemptOfNoRun", db.attempt[run_id]
        if run_id in db.mirror:
            yield "MirrorOfNone", db.mirror[run_id]
        return
    yield from _of_ends(run, due)
    if due is not None:
        yield from _of_due(db, run, due, inbox)
    yield from _of_history(run, due, history)
    past = json.loads(run.numbers).get("activity", 0)
    yield from _of_attempts({key: row for key, row in db.attempt.get(run_id, {}).items() if key[0] > past})
    delivered = [row.inbox for row in standing(history).values() if row.inbox is not None]
    if len(set(delivered)) != len(delivered) or any(number not in inbox for number in delivered):
        yield "MailTwice", delivered
    if inbox and (sorted(inbox) != list(range(1, len(inbox) + 1)) or (due and due.inbox_version != len(inbox))):
        yield "InboxGap", f"{sorted(inbox)}, version {due and due.inbox_version}"
    mirror = db.mirror.get(run_id)
    if mirror is not None:
        if not run.is_resource or run.resource_gone_at is not None:
            yield "MirrorOfNone", mirror
        is_owed = mirror.mirror_at is not None
        if (
            mirror.mirrored > mirror.version
            or (mirror.mirrored < mirror.version) is not is_owed
            or mirror.is_final is (run.phase is None)
        ):
            yield "MirrorWrong", f"{mirror}, phase {run.phase}"
    elif due is not None and run.is_resource and run.resource_gone_at is None:
        yield "MirrorMissing", due.phase


def _of_ends(run: RunRow, due: DueRow | None) -> Iterator[tuple[str, object]]:
    if run.phase is None and due is None:
        yield "RunNowhere", run
    if run.phase is not None and due is not None:
        yield "RunOpenAndDone", (run.phase, due.phase)
    if (run.phase is not None and run.phase not in _DONE) or (due is not None and due.phase not in _OPEN):
        yield "PhaseUnknown", (run.phase, due and due.phase)
    if (
        (run.phase is None) is not (run.finished_at is None)
        or (run.output is not None) is not (run.phase == "Succeeded")
        or (run.failure is not None and run.phase in {None, "Succeeded"})
    ):
        yield "EndHalfWritten", run


def _of_due(db: MemoryDatabase, run: RunRow, due: DueRow, inbox: Mapping[int, Any]) -> Iterator[tuple[str, object]]:
    if (run.workflow, run.priority, run.is_resource) != (due.workflow, due.priority, due.is_resource):
        yield "DueUnlikeRun", due
    if due.worker_id is not None:
        if due.worker_id not in db.worker:
            yield "HeldByNobody", due
        if due.wake_at is not None or due.phase not in _HELD:
            yield "HeldAndDue", due
    elif due.wake_at is None and due.phase in {"Pending", "Running", "Compensating"}:
        yield "NeverDue", due
    if due.phase == "Blocked" and due.wake_at is not None:
        yield "BlockedButDue", due
    begun = due.started_at is not None  # since it began anew, if it did
    queue = due.workflow + (f"/{due.python}" if due.python else "")
    if due.queue != queue or begun is (due.python is None) or (begun and due.claim == 0):
        yield "QueueWrong", due
    if not 0 <= due.lost_noted <= due.lost_count:
        yield "LossesWrong", due
    if due.inbox_version and not inbox:
        yield "InboxLost", due
    if not begun and told(db, due.id):
        yield "HistoryBeforeBegin", due
    # Before its first claim the statement that ends it may still be on its way.
    is_away = due.worker_id is None and due.phase in {"Waiting", "Pending", "Suspended"} and due.started_at is not None
    if is_away and (due.wake_at is None or (due.wake_at - db.clock.now()).total_seconds() > 60):
        retried = max((number for number, row in inbox.items() if row.kind == "Retry"), default=0)
        cancelled = any(row.kind == "Cancel" for number, row in inbox.items() if number > retried)
        recurs = any(row.kind == "Recur" for row in db.outbox.get(due.id, {}).values())  # its next iteration hears it
        heard = any(row.kind == "CancelRequested" for row in db.history.get(due.id, {}).values())
        if cancelled and not heard and not recurs:
            yield "CancelUnheard", due


def _of_history(run: RunRow, due: DueRow | None, history: Mapping[int, EntryRow]) -> Iterator[tuple[str, object]]:
    if sorted(history) != list(range(run.history_from + 1, run.history_from + len(history) + 1)):
        yield "HistoryGap", sorted(history)
        return
    before = (due.started_at if due else None) or run.started_at
    ended: set[tuple[bool, int]] = set()
    stands = standing(history)
    for position in sorted(history):
        row = history[position]
        if before is not None and row.at < before:
            yield "ClockWentBack", (position, row.at, before)
        before = row.at
        if position not in stands:
            continue
        if row.kind in ACTIVITY_ENDS or row.kind == "TimerFired":
            key = (row.kind == "TimerFired", row.number)
            if key in ended:
                yield "AnsweredTwice", (position, row)
            ended.add(key)


def _of_attempts(attempts: Mapping[tuple[int, int], Any]) -> Iterator[tuple[str, object]]:
    by_number: dict[int, list[int]] = {}
    for number, attempt in sorted(attempts):
        by_number.setdefault(number, []).append(attempt)
    for number, found in by_number.items():
        if found != list(range(1, len(found) + 1)):
            yield "AttemptGap", (number, found)


@dataclasses.dataclass
class Snapshot:
    """What a statement of a buried worker must leave as it was."""

    run: dict[UUID, RunRow]
    due: dict[UUID, DueRow]
    history: dict[UUID, dict[int, EntryRow]]
    attempt: dict[UUID, dict[tuple[int, int], Any]]


class Checker:
    """Looks after each statement at what it changed."""

    def __init__(self, db: MemoryDatabase) -> None:
        self._db = db
        self.buried: set[int] = set()
        self._runs: dict[UUID, RunRow] = {}
        self._due: dict[UUID, DueRow] = {}
        self._history: dict[UUID, dict[int, EntryRow]] = {}
        self._attempts: dict[UUID, dict[tuple[int, int], Any]] = {}
        self._inbox: dict[UUID, int] = {}
        self._parked_with: dict[UUID, int] = {}  # the inbox version that the worker had seen
        self._statements = 0
        self._latest = db.clock.now()  # it may be set back: what was due is due

    def before(self, name: str, arguments: Mapping[str, Any]) -> Snapshot | None:
        """What has to be compared afterwards, if it comes from somebody who was buried."""
        if name not in {"flush", "flush_entries", "claim_runs", "claim_blocked"}:
            return None
        if arguments["worker_id"] not in self.buried:
            return None
        return self._snapshot()

    def after(self, name: str, arguments: Mapping[str, Any], snapshot: Snapshot | None) -> None:
        """Raises BreachError if what it did may never be."""
        db = self._db
        self._latest = max(self._latest, db.clock.now())
        if snapshot is not None and snapshot != self._snapshot():
            raise BreachError(f"I2: {name} of worker {arguments['worker_id']}, which was buried, has changed something")
        if name == "bury_worker":
            self.buried.update(range(1, db.workers_ever + 1))
            self.buried -= set(db.worker)
        if name == "recur":
            for run_id in arguments["run_ids"]:
                if not told(db, run_id):  # it is another run's now
                    self._history.pop(run_id, None)
        if name == "flush":
            for run_id, act, seen in zip_longest(arguments["c_ids"], arguments["c_acts"], arguments["c_seens"]):
                row = db.due.get(run_id)
                if act == "Park" and row is not None and row is not self._due.get(run_id) and row.worker_id is None:
                    self._parked_with[run_id] = seen
            for run_id, act in zip_longest(arguments["b_ids"], arguments["b_acts"]):
                if act == "Park":
                    self._parked_with.setdefault(run_id, 0)
        for run_id, due in list(db.due.items()):
            if due is not self._due.get(run_id):
                self._changed(run_id, self._due.get(run_id), due)
                self._due[run_id] = due
        for run_id in [run_id for run_id in self._due if run_id not in db.due]:
            del self._due[run_id]
            if db.run[run_id].phase is None:
                raise BreachError(f"RunNowhere: run {run_id} after {name}")
        for run_id, run in list(db.run.items()):
            if run is not self._runs.get(run_id):
                self._run_changed(name, self._runs.get(run_id), run)
                self._runs[run_id] = run
        if name in {"flush", "flush_entries"}:
            self._entries(arguments["e_run_ids"])
        self._statements += 1
        if self._statements % 64 == 0:
            self.look()

    def look(self) -> None:
        """At everything."""
        for breach in breaches(self._db):
            raise BreachError(breach)
        self._entries(list(self._db.history))
        for run_id in list(self._db.due):
            self._waits_for_nothing_unseen(self._db.due[run_id])

    def _snapshot(self) -> Snapshot:
        db = self._db
        return Snapshot(
            dict(db.run),
            dict(db.due),
            {run_id: dict(rows) for run_id, rows in db.history.items() if rows},
            {run_id: dict(rows) for run_id, rows in db.attempt.items() if rows},
        )

    def _entries(self, run_ids: Sequence[UUID]) -> None:
        for run_id in dict.fromkeys(run_ids):
            now, before = told(self._db, run_id), self._history.get(run_id, {})
            for position, row in before.items():
                if now.get(position) != row:
                    raise BreachError(f"I3: entry {position} of run {run_id} was {row}, and is {now.get(position)}")
            if len(now) != len(before):
                for name, found in _of_history(self._db.run[run_id], self._db.due.get(run_id), now):
                    raise BreachError(f"{name}: run {run_id}: {found}")
                self._history[run_id] = dict(now)

    def _changed(self, run_id: UUID, old: DueRow | None, new: DueRow) -> None:
        if old is not None:
            if new.claim not in {old.claim, old.claim + 1} or new.inbox_version < old.inbox_version:
                raise BreachError(f"a number went back or jumped: {old} -> {new}")
            is_claimed = new.worker_id is not None and (new.worker_id != old.worker_id or old.worker_id is None)
            if is_claimed and new.claim != old.claim + 1:
                raise BreachError(f"a new owner without a new claim: {old} -> {new}")
            if new.phase != old.phase and Phase(new.phase) not in TRANSITIONS[Phase(old.phase)]:
                raise BreachError(f"no phase follows so: {old} -> {new}")
            begins_anew = (new.phase, new.started_at, new.python, new.worker_id) == ("Pending", None, None, None)
            has_other_begin = (old.started_at is not None and new.started_at != old.started_at) or (
                old.python is not None and new.python != old.python
            )
            if has_other_begin and not (begins_anew and old.worker_id is None):
                raise BreachError(f"what begins a run is written once: {old} -> {new}")
        for name, found in _of_due(self._db, self._db.run[run_id], new, self._db.inbox.get(run_id, {})):
            raise BreachError(f"{name}: run {run_id}: {found}")
        self._waits_for_nothing_unseen(new)

    def _waits_for_nothing_unseen(self, row: DueRow) -> None:
        """I7: mail that came after a run was parked has made it due."""
        if row.worker_id is None and row.phase == "Waiting":
            seen = self._parked_with.get(row.id)
            is_due = row.wake_at is not None and row.wake_at <= self._latest
            if seen is not None and row.inbox_version != seen and not is_due:
                raise BreachError(f"I7: run {row.id} waits until {row.wake_at} with mail that it has not seen: {row}")

    def _run_changed(self, name: str, old: RunRow | None, new: RunRow) -> None:
        if old is not None and old.phase is not None:
            fields = ("phase", "reason", "output", "failure", "finished_at")
            is_retried = (old.phase, new.phase, name) == ("Failed", None, "retry_run")
            if not is_retried and any(getattr(old, field) != getattr(new, field) for field in fields):
                raise BreachError(f"an end changed: {old} -> {new}")
        for breach, found in _of_ends(new, self._db.due.get(new.id)):
            raise BreachError(f"{breach}: run {new.id}: {found}")
