"""The journal: group commit. What has gathered while the last flush was on its way goes out as one statement.

Nobody writes histories, parks or finishes beside it. A flush is a task of its own, so whoever waits for it may be cancelled
and the flush may not: of 300 flushes that were cancelled on the wire 295 had been committed.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, assert_never
from uuid import UUID

from romancy.base import log
from romancy.base.settings import DatabaseSettings
from romancy.errors import (
    HistoryConflictError,
    PayloadRefusedError,
    RomancyError,
    StoreUnavailableError,
    WorkerFencedError,
)
from romancy.model.history import Attempt, Entry
from romancy.store.interface import Begin, Block, Finish, Flushed, Keep, LetGo, Park, Release, RunWrite, WorkerId
from romancy.store.notify import Notifier
from romancy.store.pool import EngineConnection, Statement, application_name, is_refusal, sqlstate_of
from romancy.store.queries import SQL
from romancy.store.texts import labels_text, size_bytes

logger = log.get(__name__)

_NOTHING_WRITTEN: Final = frozenset({"40P01", "40001", "55P03", "57014"})
"""Deadlock, serialization, lock and statement time-out: the flush is whole again, and its connection as well."""
_MET: Final = "23505"
"""Two copies of a flush met at a unique key: sent once more, it finds what the other wrote."""
_ROW_BYTES: Final = 200
"""What a row costs beside its texts."""
_DELAY_FIRST_SECONDS: Final = 0.05
_DELAY_MAX_SECONDS: Final = 2.0


@dataclass(slots=True, eq=False)
class _Write:
    """All that one run has to write next: one row in the flush, however many asked."""

    run_id: UUID
    claim: int
    begin: Begin | None
    entries: list[Entry]
    attempts: list[Attempt]
    then: Keep | LetGo | None
    size_bytes: int
    futures: "list[asyncio.Future[Flushed]]" = field(default_factory=list)
    ends_losses: bool = False  # workers were lost, and these are the first entries since
    number: int = 0  # of a begin, counted by the journal: tells a repeated flush from a second start of the same id

    @classmethod
    def of(cls, write: RunWrite, size: int) -> "_Write":
        return cls(
            write.run_id,
            write.claim,
            write.begin,
            list(write.entries),
            list(write.attempts),
            write.then,
            size,
        )

    def add(self, write: RunWrite, size: int) -> None:
        """Take a later write of the same run into the same row."""
        assert write.claim == self.claim, "a run has one claim at a time"
        assert write.begin is None, "a run begins once"
        assert not isinstance(self.then, LetGo), "the run was let go: nothing more may be written by this claim"
        self.entries += write.entries
        self.attempts += write.attempts
        self.size_bytes += size
        if isinstance(write.then, Keep) and isinstance(self.then, Keep):
            self.then = replace(write.then, losses_noted=self.then.losses_noted or write.then.losses_noted)
        elif write.then is not None:
            self.then = write.then

    @property
    def act(self) -> str:
        """The word for what happens to the due row; empty if it is not touched, as in most flushes."""
        if self.then is not None:
            return type(self.then).__name__
        return "Progress" if self.ends_losses else ""


@dataclass(slots=True)
class _Lost:
    """A refused write: what its run wrote after it was worked out from what is not there."""

    claim: int
    position: int
    error: RomancyError


class PostgresJournal:
    """Group commit of one worker: as many flushes side by side as it has connections, and never two of one run."""

    def __init__(
        self, settings: DatabaseSettings, worker_id: WorkerId, notifier: Notifier, losses: dict[UUID, int]
    ) -> None:
        self.flushes = 0
        self._losses = losses  # claims of runs that have lost workers, filled by whoever claims
        self._settings, self._worker_id, self._notifier = settings, worker_id, notifier
        self._queue: dict[UUID, _Write] = {}
        self._later: dict[UUID, _Write] = {}  # of runs whose last write is on its way
        self._flying: set[UUID] = set()
        self._lost: dict[UUID, _Lost] = {}
        self._ended: RomancyError | None = None
        self._begins = 0
        self._is_closing = False
        self._wake = asyncio.Event()
        self._tasks = [
            asyncio.get_running_loop().create_task(self._run(slot), name=f"romancy journal {worker_id}/{slot}")
            for slot in range(settings.journal_connections)
        ]

    def submit(self, write: RunWrite) -> "asyncio.Future[Flushed]":
        """Queue a write. The future is done when the write is durable, or can't be; cancelling it stops nothing.

        WorkerFencedError (of all that is queued), PayloadRefusedError (of this run alone; what it wrote after that is
        refused as well), HistoryConflictError (I3, of this run alone), StoreUnavailableError.
        """
        future: asyncio.Future[Flushed] = asyncio.get_running_loop().create_future()
        if self._ended is not None or self._is_closing:
            _fail(future, self._ended or StoreUnavailableError("the journal of this worker is closed"))
            return future
        if (error := self._follows_a_lost_one(write)) is not None:
            _fail(future, error)
            return future
        try:
            size = self._measure(write)
        except PayloadRefusedError as refusal:
            self._lose(write.run_id, write.claim, write.entries, refusal)
            _fail(future, refusal)
            return future
        waiting = self._later if write.run_id in self._flying else self._queue
        if (queued := waiting.get(write.run_id)) is None:
            queued = waiting[write.run_id] = _Write.of(write, size)
            if write.begin is not None:
                self._begins += 1
                queued.number = self._begins
        else:
            queued.add(write, size)
        if write.entries and self._losses.get(write.run_id) == write.claim:
            queued.ends_losses = True
        queued.futures.append(future)
        self._wake.set()
        return future

    async def close(self) -> None:
        """Flush what is queued, and end."""
        self._is_closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    # --- one connection -----------------------------------------------------------------------------------------

    async def _run(self, slot: int) -> None:
        name = application_name(self._settings, self._worker_id)
        connection = EngineConnection(self._settings, name=name)
        try:
            while self._ended is None:
                if batch := self._take():
                    await self._flush(connection, slot, batch)
                elif self._is_closing:
                    break  # what waits for another connection's flush is written by that one
                else:
                    self._wake.clear()
                    await self._wake.wait()
        finally:
            await connection.close()

    def _take(self) -> list[_Write]:
        """The next flush: in the order of submission, within the bounds, one at least."""
        batch: list[_Write] = []
        size = 0
        for run_id, write in self._queue.items():
            size += write.size_bytes
            if batch and (size > self._settings.flush_bytes_max or len(batch) >= self._settings.flush_rows_max):
                break
            batch.append(write)
            self._flying.add(run_id)
        for write in batch:
            del self._queue[write.run_id]
        return batch

    async def _flush(self, connection: EngineConnection, slot: int, batch: list[_Write]) -> None:
        try:
            await self._write(connection, slot, batch)
        except (WorkerFencedError, StoreUnavailableError) as error:
            self._end(error, batch)
        except Exception as error:  # a defect of ours: whoever waits must hear of it
            logger.exception("journal_failed", worker_id=self._worker_id)
            self._end(StoreUnavailableError(f"the journal failed: {error!r}"), batch)
        for write in batch:
            self._flying.discard(write.run_id)
            if (later := self._later.pop(write.run_id, None)) is not None:
                self._queue[write.run_id] = later
        if self._queue:
            self._wake.set()

    async def _write(self, connection: EngineConnection, slot: int, batch: Sequence[_Write]) -> None:
        """Write all of it, but for the runs whose values the database refuses: those are told apart by halves."""
        try:
            answer = await self._send(connection, slot, batch)
        except PayloadRefusedError as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._write(connection, slot, batch[:middle])
                await self._write(connection, slot, batch[middle:])
                return
            [culprit] = batch
            logger.warning("run_refused", run_id=str(culprit.run_id), error=error.message)
            self._refuse(culprit, error)
            return
        self.flushes += 1
        for write in batch:
            outcome = answer.outcome(write)
            if isinstance(outcome, RomancyError):
                logger.error("run_conflicts", run_id=str(write.run_id), error=outcome.message)
                self._refuse(write, outcome)
            else:
                if write.ends_losses or (isinstance(write.then, LetGo) and not outcome.stays):
                    self._losses.pop(write.run_id, None)
                _answer(write, outcome)
                if not outcome.began and (later := self._later.pop(write.run_id, None)) is not None:
                    _answer(later, outcome)  # it followed a begin that did not happen
        self._notifier.queues_due(answer.woken)
        if answer.is_owed:
            self._notifier.status_owed()

    async def _send(self, connection: EngineConnection, slot: int, batch: Sequence[_Write]) -> "_Answer":
        """Send one statement until it is answered: the same one each time, which means the same each time."""
        clock = asyncio.get_running_loop()
        statement = _statement(self._worker_id, slot, batch)
        give_up_at: float | None = None
        delay = _DELAY_FIRST_SECONDS
        is_repeated = has_met = False
        while True:
            try:
                [row] = await connection.fetch(statement)
                if not row["is_alive"]:
                    raise WorkerFencedError(self._worker_id)
                answer = _Answer.of(row, is_repeated=is_repeated)
                if is_repeated and (unclear := answer.begins_found(batch)):
                    answer.begun_before = await self._flush_begun(connection, unclear)
                return answer
            except WorkerFencedError:
                raise
            except Exception as error:
                if is_refusal(error):
                    if sqlstate_of(error) == _MET and not has_met:
                        has_met = True
                        continue
                    raise PayloadRefusedError(f"{type(error).__name__}: {error}") from error
                if sqlstate_of(error) not in _NOTHING_WRITTEN:
                    is_repeated = True  # it may have been written
                now = clock.time()
                give_up_at = now + self._settings.give_up_seconds if give_up_at is None else give_up_at
                if now >= give_up_at:
                    raise StoreUnavailableError(f"{type(error).__name__}: {error}") from error
                logger.warning("flush_repeated", worker_id=self._worker_id, runs=len(batch), error=repr(error))
                await asyncio.sleep(min(delay, give_up_at - now))
                delay = min(delay * 2, _DELAY_MAX_SECONDS)

    async def _flush_begun(self, connection: EngineConnection, begins: Sequence[_Write]) -> set[UUID]:
        """Which of these runs were begun by an earlier copy of their flush."""
        statement = SQL.flush_begun(
            worker_id=self._worker_id,
            ids=[write.run_id for write in begins],
            numbers=[write.number for write in begins],
        )
        return {row["id"] for row in await connection.fetch(statement)}

    # --- what can't be written ----------------------------------------------------------------------------------

    def _measure(self, write: RunWrite) -> int:
        size = size_bytes(_texts_of(write)) + _ROW_BYTES * (1 + len(write.entries) + len(write.attempts))
        if size > self._settings.flush_bytes_max:
            raise PayloadRefusedError(
                f"what the run has to write at once has {size:,} bytes; the limit is {self._settings.flush_bytes_max:,} "
                "(ROMANCY_DATABASE__FLUSH_BYTES_MAX)"
            )
        return size

    def _follows_a_lost_one(self, write: RunWrite) -> RomancyError | None:
        lost = self._lost.get(write.run_id)
        if lost is None:
            return None
        if lost.claim == write.claim and write.entries and write.entries[0].position > lost.position:
            return lost.error  # it would leave a gap in the history
        del self._lost[write.run_id]
        return None

    def _refuse(self, write: _Write, error: RomancyError) -> None:
        """Give a run its error, and refuse what it has queued since: its code ran ahead of what is not there."""
        later = self._later.pop(write.run_id, None)
        refused = [write] if later is None else [write, later]
        self._lose(write.run_id, write.claim, [entry for each in refused for entry in each.entries], error)
        _fail_all(refused, error)

    def _lose(self, run_id: UUID, claim: int, entries: Sequence[Entry], error: RomancyError) -> None:
        if entries:
            self._lost[run_id] = _Lost(claim, entries[0].position, error)

    def _end(self, error: RomancyError, batch: Sequence[_Write]) -> None:
        """Nothing more can be written by this worker."""
        if self._ended is None:
            self._ended = error
            logger.error("journal_ended", worker_id=self._worker_id, error=repr(error))
        _fail_all([*batch, *self._queue.values(), *self._later.values()], error)
        self._queue.clear()
        self._later.clear()
        self._wake.set()


@dataclass(slots=True)
class _Answer:
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
    def of(cls, row: Any, *, is_repeated: bool) -> "_Answer":
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

    def begins_found(self, batch: Sequence[_Write]) -> list[_Write]:
        """Runs that this flush was to begin and found there."""
        return [write for write in batch if write.begin is not None and write.run_id not in self.began]

    def outcome(self, write: _Write) -> Flushed | HistoryConflictError:
        """What to say to those who wait for this row."""
        if write.begin is not None and write.run_id not in self.began:
            return Flushed(began=write.run_id in self.begun_before)
        if self.appended_of is not None and self.appended_of[write.run_id] != len(write.entries):
            return _conflict(write, "its history holds other entries at the positions that it wrote")
        if write.begin is None and write.act and not self._was_ours(write):
            return _conflict(write, f"claim {write.claim} does not hold it any more")
        return Flushed(stays=write.run_id in self.stays)

    def _was_ours(self, write: _Write) -> bool:
        if self.changed_of is None or write.run_id in self.changed_of:
            return True
        # Sent again, a let-go finds that its first copy has let the run go.
        return self.is_repeated and isinstance(write.then, LetGo)


def _conflict(write: _Write, why: str) -> HistoryConflictError:
    return HistoryConflictError(
        f"run {write.run_id}: {why}",
        hint="another writer has worked on this run at the same time: this is a defect, report it",
    )


def _answer(write: _Write, flushed: Flushed) -> None:
    for future in write.futures:
        if not future.done():  # whoever waited may have been cancelled
            future.set_result(flushed)


def _fail(future: "asyncio.Future[Flushed]", error: RomancyError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # it was logged here: nobody has to look at each future of a run that is dropped


def _fail_all(writes: Iterable[_Write], error: RomancyError) -> None:
    for write in writes:
        for future in write.futures:
            _fail(future, error)


# --- the statement -------------------------------------------------------------------------------------------------------

_B: Final = (
    *("ids", "namespaces", "names", "workflows", "inputs", "forms", "priorities", "timeouts", "labels", "started_ats"),
    *("pythons", "numbers", "acts", "phases", "reasons", "messages", "wake_ats", "outputs", "failures", "builds"),
)
_C: Final = (
    *("ids", "claims", "acts", "phases", "reasons", "messages", "seens", "wake_ats", "outputs", "failures"),
    *("builds", "noted", "entries"),
)
_E: Final = ("run_ids", "positions", "kinds", "ats", "numbers", "names", "digests", "payloads", "inboxes", "begun")
_A: Final = ("run_ids", "numbers", "attempts", "failures", "failed_ats", "next_ats", "begun")


def _statement(worker_id: WorkerId, slot: int, batch: Sequence[_Write]) -> Statement:
    entries = [
        (w.run_id, e.position, e.kind, e.at, e.number, e.name, e.digest, e.payload, e.inbox, w.begin is not None)
        for w in batch
        for e in w.entries
    ]
    if not any(write.act or write.begin or write.attempts for write in batch):
        columns = _columns("e", _E, entries)
        del columns["e_begun"]
        return SQL.flush_entries(worker_id=worker_id, slot=slot, **columns)
    attempts = [
        (w.run_id, a.number, a.attempt, a.failure, a.failed_at, a.next_at, w.begin is not None)
        for w in batch
        for a in w.attempts
    ]
    return SQL.flush(
        worker_id=worker_id,
        slot=slot,
        **_columns("b", _B, [_begun(write, write.begin) for write in batch if write.begin is not None]),
        **_columns("c", _C, [_changed(write) for write in batch if write.begin is None and write.act]),
        **_columns("e", _E, entries),
        **_columns("a", _A, attempts),
    )


def _columns(prefix: str, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> dict[str, list[Any]]:
    columns: Iterable[Iterable[Any]] = zip(*rows, strict=True) if rows else ([] for _ in names)
    return {f"{prefix}_{name}": list(column) for name, column in zip(names, columns, strict=True)}


def _begun(write: _Write, begin: Begin) -> tuple[Any, ...]:
    run = begin.run
    act, phase, reason, message, _seen, wake_at, output, failure, build_id, _noted = _act(write)
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


def _changed(write: _Write) -> tuple[Any, ...]:
    act, phase, reason, message, seen, wake_at, output, failure, build_id, is_noted = _act(write)
    entries = bool(write.entries)
    return (
        write.run_id, write.claim, act, phase, reason, message, seen, wake_at, output, failure, build_id, is_noted, entries,
    )  # fmt: skip


def _act(write: _Write) -> tuple[Any, ...]:
    """act, phase, reason, message, seen, wake_at, output, failure, build_id, is_noted."""
    match write.then:
        case Keep() as keep:
            return "Keep", keep.phase, keep.reason, keep.message, None, None, None, None, None, keep.losses_noted
        case Park() as park:
            return "Park", park.phase, park.reason, park.message, park.seen, park.wake_at, None, None, None, False
        case Release():
            return "Release", None, "", "", None, None, None, None, None, False
        case Block() as block:
            return "Block", None, block.reason, block.message, None, None, None, None, block.build_id, False
        case Finish() as end:
            return "Finish", end.phase, end.reason, end.message, None, None, end.output, end.failure, None, False
        case None:
            return write.act, None, "", "", None, None, None, None, None, False
        case _:
            assert_never(write.then)


def _texts_of(write: RunWrite) -> Iterator[str | None]:
    for entry in write.entries:
        assert entry.at.tzinfo is not None, "a naive time would be taken as local"
        yield from (entry.name, entry.digest, entry.payload)
    for attempt in write.attempts:
        assert attempt.failed_at.tzinfo is not None
        assert attempt.next_at.tzinfo is not None
        yield attempt.failure
    if write.begin is not None:
        run = write.begin.run
        assert run.id == write.run_id
        assert write.claim == 1, "who begins a run has its first claim"
        assert not run.is_resource, "a run of a resource is started by start_runs, and then claimed"
        assert write.begin.started_at.tzinfo is not None
        yield from (run.namespace, run.name, run.workflow, run.input, labels_text(run.labels), write.begin.python)
    match write.then:
        case Keep() | Block():
            yield from (write.then.reason, write.then.message)
        case Park():
            assert write.then.wake_at is None or write.then.wake_at.tzinfo is not None
            assert write.begin is None or write.then.seen == 0, "nobody can have written to a run that does not exist"
            yield from (write.then.reason, write.then.message)
        case Finish():
            assert write.then.phase.is_done
            yield from (write.then.reason, write.then.message, write.then.output, write.then.failure)
        case Release() | None:
            pass
        case _:
            assert_never(write.then)
