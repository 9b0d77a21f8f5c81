"""One flush: what several runs have to write as one statement, and what the database's answer means for each of them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, assert_never
from uuid import UUID

from romancy.errors import HistoryConflictError, RomancyError
from romancy.model.history import Attempt, Entry
from romancy.model.outbox import Outgoing
from romancy.store.interface import Begin, Block, Finish, Flushed, Keep, LetGo, Park, Release, RunWrite, WorkerId
from romancy.store.pool import Statement
from romancy.store.queries import SQL
from romancy.store.texts import labels_text, size_bytes

Answered = Callable[[Flushed | RomancyError], object]

_ROW_BYTES: Final = 200
"""What a row costs beside its texts."""


@dataclass(slots=True, eq=False)
class Write:
    """All that one run has to write next: one row in the flush, however many asked."""

    run_id: UUID
    claim: int
    begin: Begin | None
    entries: list[Entry]
    attempts: list[Attempt]
    outbox: list[Outgoing]
    then: Keep | LetGo | None
    size_bytes: int
    answered: list[Answered] = field(default_factory=list)  # who is told, in the order in which they wrote
    ends_losses: bool = False  # workers were lost, and these are the first entries since
    losses_noted: bool = False  # the losses of the claim have been counted as attempts
    number: int = 0  # of a begin, counted by the journal: tells a repeated flush from a second start of the same id

    @classmethod
    def of(cls, write: RunWrite, size: int) -> "Write":
        return cls(
            write.run_id,
            write.claim,
            write.begin,
            list(write.entries),
            list(write.attempts),
            list(write.outbox),
            write.then,
            size,
            losses_noted=write.losses_noted,
        )

    def add(self, write: RunWrite, size: int) -> None:
        """Take a later write of the same run into the same row."""
        assert write.claim == self.claim, "a run has one claim at a time"
        assert write.begin is None, "a run begins once"
        assert not isinstance(self.then, LetGo), "the run was let go: nothing more may be written by this claim"
        self.entries += write.entries
        self.attempts += write.attempts
        self.outbox += write.outbox
        self.size_bytes += size
        self.losses_noted |= write.losses_noted
        if write.then is not None:
            self.then = write.then

    @property
    def act(self) -> str:
        """The word for what happens to the due row; empty if it is not touched, as in most flushes."""
        if self.then is not None:
            return type(self.then).__name__
        return "Progress" if self.ends_losses or self.losses_noted else ""


@dataclass(slots=True)
class Answer:
    """What the database says of one flush."""

    began: set[UUID]
    appended_of: "Counter[UUID] | None"  # entries that are there as sent, by run; None: all are
    changed_of: set[UUID] | None  # runs whose claim was ours; None: all were
    stays: set[UUID]
    woken: list[str]
    is_owed: bool
    is_repeated: bool
    begun_before: set[UUID] = field(default_factory=set)

    @classmethod
    def of(cls, row: Any, *, is_repeated: bool) -> "Answer":
        appended_of = None if row["appended_of"] is None else Counter(row["appended_of"])
        if "began" not in row:  # a flush of entries alone
            return cls(set(), appended_of, None, set(), [], is_owed=False, is_repeated=is_repeated)
        changed_of = None if row["changed_of"] is None else set(row["changed_of"])
        return cls(
            set(row["began"]),
            appended_of,
            changed_of,
            set(row["stays"]),
            list(row["woken"]),
            is_owed=row["is_owed"],
            is_repeated=is_repeated,
        )

    def begins_found(self, batch: Sequence[Write]) -> list[Write]:
        """Runs that this flush was to begin and found there."""
        return [write for write in batch if write.begin is not None and write.run_id not in self.began]

    def outcome(self, write: Write) -> Flushed | HistoryConflictError:
        """What to say to those who wait for this row."""
        if write.begin is not None and write.run_id not in self.began:
            return Flushed(began=write.run_id in self.begun_before)
        if self.appended_of is not None and self.appended_of[write.run_id] != len(write.entries):
            return _conflict(write, "its history holds other entries at the positions that it wrote")
        if write.begin is None and write.act and not self._was_ours(write):
            return _conflict(write, f"claim {write.claim} does not hold it any more")
        return Flushed(stays=write.run_id in self.stays)

    def _was_ours(self, write: Write) -> bool:
        if self.changed_of is None or write.run_id in self.changed_of:
            return True
        # Sent again, a let-go finds that its first copy has let the run go.
        return self.is_repeated and isinstance(write.then, LetGo)


def _conflict(write: Write, why: str) -> HistoryConflictError:
    return HistoryConflictError(
        f"run {write.run_id}: {why}",
        hint="another writer has worked on this run at the same time: this is a defect, report it",
    )


def measured(write: RunWrite) -> int:
    """The bytes that a write adds to a flush.

    Raises:
        PayloadRefusedError: one of its texts can't be stored.
    """
    rows = 1 + len(write.entries) + len(write.attempts) + len(write.outbox)
    return size_bytes(_texts_of(write)) + _ROW_BYTES * rows


_B: Final = (
    *("ids", "namespaces", "names", "workflows", "inputs", "forms", "priorities", "timeouts", "labels", "started_ats"),
    *("pythons", "numbers", "acts", "phases", "reasons", "messages", "wake_ats", "outputs", "failures", "builds"),
)
_C: Final = (
    *("ids", "claims", "acts", "phases", "reasons", "messages", "seens", "wake_ats", "outputs", "failures"),
    *("builds", "noted", "entries"),
)
_E: Final = ("run_ids", "positions", "kinds", "ats", "numbers", "names", "digests", "payloads", "inboxes", "begun")
_O: Final = ("run_ids", "numbers", "kinds", "payloads", "begun")
_A: Final = ("run_ids", "numbers", "attempts", "failures", "failed_ats", "next_ats", "begun")


def flush(worker_id: WorkerId, slot: int, batch: Sequence[Write]) -> Statement:
    """The statement that writes all of it; each run stands in it once."""
    entries = [
        (w.run_id, e.position, e.kind, e.at, e.number, e.name, e.digest, e.payload, e.inbox, w.begin is not None)
        for w in batch
        for e in w.entries
    ]
    if not any(write.act or write.begin or write.attempts or write.outbox for write in batch):
        columns = _columns("e", _E, entries)
        del columns["e_begun"]
        return SQL.flush_entries(worker_id=worker_id, slot=slot, **columns)
    attempts = [
        (w.run_id, a.number, a.attempt, a.failure, a.failed_at, a.next_at, w.begin is not None)
        for w in batch
        for a in w.attempts
    ]
    outbox = [(w.run_id, o.number, o.kind, o.payload, w.begin is not None) for w in batch for o in w.outbox]
    return SQL.flush(
        worker_id=worker_id,
        slot=slot,
        **_columns("b", _B, [_begun(write, write.begin) for write in batch if write.begin is not None]),
        **_columns("c", _C, [_changed(write) for write in batch if write.begin is None and write.act]),
        **_columns("e", _E, entries),
        **_columns("a", _A, attempts),
        **_columns("o", _O, outbox),
    )


def _columns(prefix: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    if not rows:
        return {f"{prefix}_{name}": [] for name in names}
    # A column without a value is sent empty: unnest fills it up with nulls, and asyncpg looks at each element for long.
    columns = zip(*rows, strict=True)
    return {
        f"{prefix}_{name}": [] if column.count(None) == len(rows) else list(column)
        for name, column in zip(names, columns, strict=True)
    }


def _begun(write: Write, begin: Begin) -> tuple[Any, ...]:
    run = begin.run
    act, phase, reason, message, _seen, wake_at, output, failure, build_id = _act(write)
    return (
        write.run_id,
        run.namespace,
        run.name,
        run.workflow,
        run.input,
        run.form,
        run.priority,
        run.timeout_seconds,
        labels_text(run.labels),
        begin.started_at,
        begin.python,
        write.number,
        act,
        phase,
        reason,
        message,
        wake_at,
        output,
        failure,
        build_id,
    )


def _changed(write: Write) -> tuple[Any, ...]:
    entries = bool(write.entries)
    return (write.run_id, write.claim, *_act(write), write.losses_noted, entries)


def _act(write: Write) -> tuple[Any, ...]:
    """act, phase, reason, message, seen, wake_at, output, failure, build_id."""
    match write.then:
        case Keep() as keep:
            return "Keep", keep.phase, keep.reason, keep.message, None, None, None, None, None
        case Park() as park:
            return "Park", park.phase, park.reason, park.message, park.seen, park.wake_at, None, None, None
        case Release():
            return "Release", None, "", "", None, None, None, None, None
        case Block() as block:
            return "Block", None, block.reason, block.message, None, None, None, None, block.build_id
        case Finish() as end:
            return "Finish", end.phase, end.reason, end.message, None, None, end.output, end.failure, None
        case None:
            return write.act, None, "", "", None, None, None, None, None
        case _:
            assert_never(write.then)


def _texts_of(write: RunWrite) -> list[str | None]:
    texts: list[str | None] = []
    for entry in write.entries:
        assert entry.at.tzinfo is not None, "a naive time would be taken as local"
        texts += (entry.name, entry.digest, entry.payload)
    for attempt in write.attempts:
        assert attempt.failed_at.tzinfo is not None
        assert attempt.next_at.tzinfo is not None
        texts.append(attempt.failure)
    texts += [outgoing.payload for outgoing in write.outbox]
    if write.begin is not None:
        run = write.begin.run
        assert run.id == write.run_id
        assert write.claim == 1, "who begins a run has its first claim"
        assert not run.is_resource, "a run of a resource is started by start_runs, and then claimed"
        assert write.begin.started_at.tzinfo is not None
        texts += (run.namespace, run.name, run.workflow, run.input, labels_text(run.labels), write.begin.python)
    match write.then:
        case Keep() | Block():
            texts += (write.then.reason, write.then.message)
        case Park():
            assert write.then.wake_at is None or write.then.wake_at.tzinfo is not None
            assert write.begin is None or write.then.seen == 0, "nobody can have written to a run that does not exist"
            texts += (write.then.reason, write.then.message)
        case Finish():
            assert write.then.phase.is_done
            texts += (write.then.reason, write.then.message, write.then.output, write.then.failure)
        case Release() | None:
            pass
        case _:
            assert_never(write.then)
    return texts
