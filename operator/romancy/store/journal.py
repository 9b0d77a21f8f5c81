"""The journal: group commit. What has gathered while the last flush was on its way goes out as one statement.

Nobody writes histories, parks or finishes beside it. A flush is a task of its own, so whoever waits for it may be cancelled
and the flush may not: of 300 flushes that were cancelled on the wire 295 had been committed.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from romancy.base import log, metrics
from romancy.base.settings import DatabaseSettings
from romancy.errors import PayloadRefusedError, RomancyError, StoreUnavailableError, WorkerFencedError
from romancy.model.history import Entry
from romancy.store.flush import Answer, Answered, Write, flush, measured
from romancy.store.interface import Flushed, LetGo, RunWrite, WorkerId
from romancy.store.notify import Notifier
from romancy.store.pool import FOREIGN_ERRORS, EngineConnection, application_name, is_refusal, sqlstate_of
from romancy.store.queries import SQL

logger = log.get(__name__)

_NOTHING_WRITTEN: Final = frozenset({"40P01", "40001", "55P03", "57014"})
"""Deadlock, serialization, lock and statement time-out: the flush is whole again, and its connection as well."""
_MET: Final = "23505"
"""Two copies of a flush met at a unique key: sent once more, it finds what the other wrote."""
HALVED_MIN: Final = 16  # runs in a flush; a smaller one is not worth two
_DELAY_FIRST_SECONDS: Final = 0.05
_DELAY_MAX_SECONDS: Final = 2.0


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
        # By the number of the run's id: a UUID hashes in Python, and these are asked several times a write.
        self._queue: dict[int, Write] = {}
        self._later: dict[int, Write] = {}  # of runs whose last write is on its way
        self._flying: set[int] = set()
        self._lost: dict[UUID, _Lost] = {}
        self._ended: RomancyError | None = None
        self._begins = 0
        self._is_closing = False
        self._wake = asyncio.Event()
        self._tasks = [
            asyncio.get_running_loop().create_task(self._run(slot), name=f"romancy journal {worker_id}/{slot}")
            for slot in range(settings.journal_connections)
        ]

    def write(self, write: RunWrite, answered: Answered) -> None:
        """Queue a write; `answered` is called once, later: see `interface.Journal`."""
        if self._ended is not None or self._is_closing:
            self._answer_later(answered, self._ended or StoreUnavailableError("the journal of this worker is closed"))
            return
        if self._lost and (error := self._follows_a_lost_one(write)) is not None:
            self._answer_later(answered, error)
            return
        try:
            size = self._measure(write)
        except PayloadRefusedError as refusal:
            self._lose(write.run_id, write.claim, write.entries, refusal)
            self._answer_later(answered, refusal)
            return
        key = write.run_id.int
        waiting = self._later if key in self._flying else self._queue
        if (queued := waiting.get(key)) is None:
            queued = waiting[key] = Write.of(write, size)
            if write.begin is not None:
                self._begins += 1
                queued.number = self._begins
        else:
            queued.add(write, size)
        if self._losses and write.entries and self._losses.get(write.run_id) == write.claim:
            queued.ends_losses = True
        queued.answered.append(answered)
        self._wake.set()

    def submit(self, write: RunWrite) -> "asyncio.Future[Flushed]":
        """Queue a write for whoever awaits the answer; cancelling the future stops nothing."""
        future: asyncio.Future[Flushed] = asyncio.get_running_loop().create_future()

        def answered(answer: Flushed | RomancyError) -> None:
            if future.done():
                return  # whoever waited was cancelled
            if isinstance(answer, RomancyError):
                future.set_exception(answer)
                future.exception()  # it was logged here: nobody has to look at it
            else:
                future.set_result(answer)

        self.write(write, answered)
        return future

    @staticmethod
    def _answer_later(answered: Answered, error: RomancyError) -> None:
        """Not from within `write`: whoever writes is in the middle of something."""
        asyncio.get_running_loop().call_soon(answered, error)

    async def close(self) -> None:
        """Flush what is queued, and end."""
        self._is_closing = True
        self._wake.set()
        await asyncio.gather(*self._tasks)

    # --- one connection -----------------------------------------------------------------------------------------

    def _connect(self) -> EngineConnection:
        return EngineConnection(self._settings, name=application_name(self._settings, self._worker_id))

    async def _run(self, slot: int) -> None:
        connection = self._connect()
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

    def _take(self) -> list[Write]:
        """The next flush: in the order of submission, within the bounds, one at least."""
        batch: list[Write] = []
        size = 0
        for key, write in self._queue.items():
            size += write.size_bytes
            if batch and (size > self._settings.flush_bytes_max or len(batch) >= self._settings.flush_rows_max):
                break
            batch.append(write)
            self._flying.add(key)
        if len(batch) == len(self._queue):
            self._queue.clear()
        else:
            for write in batch:
                del self._queue[write.run_id.int]
        return batch

    async def _flush(self, connection: EngineConnection, slot: int, batch: list[Write]) -> None:
        try:
            await self._write(connection, slot, batch)
        except (WorkerFencedError, StoreUnavailableError) as error:
            self._end(error, batch)
        except Exception as error:  # a defect of ours: whoever waits must hear of it
            logger.exception("journal_failed", worker_id=self._worker_id)
            self._end(StoreUnavailableError(f"the journal failed: {error!r}"), batch)
        if self._queue:
            self._wake.set()

    async def _write(self, connection: EngineConnection, slot: int, batch: Sequence[Write]) -> None:
        """Write all of it, but for the runs whose values the database refuses: those are told apart by halves."""
        sent_at = asyncio.get_running_loop().time()
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
        metrics.FLUSH_RUNS.observe(len(batch))
        metrics.FLUSH_SECONDS.observe(asyncio.get_running_loop().time() - sent_at)
        # The second half when the next flush is on its way with what the first has to write: so this process and the database
        # work at the same time.
        half = len(batch) // 2 if len(batch) >= HALVED_MIN else len(batch)
        self._tell(batch[:half], answer)
        if half < len(batch):
            asyncio.get_running_loop().call_soon(self._tell_rest, batch[half:], answer)
        self._notifier.queues_due(answer.woken)
        if answer.is_owed:
            self._notifier.status_owed()

    def _tell_rest(self, batch: Sequence[Write], answer: Answer) -> None:
        try:
            self._tell(batch, answer)
        except Exception as error:  # as in `_flush`: whoever waits must hear of a defect of ours
            logger.exception("journal_failed", worker_id=self._worker_id)
            self._end(StoreUnavailableError(f"the journal failed: {error!r}"), batch)

    def _tell(self, batch: Sequence[Write], answer: Answer) -> None:
        """Tell whoever wrote these what became of it: what they write then is in the next flush."""
        for write in batch:
            outcome = answer.outcome(write)
            if isinstance(outcome, RomancyError):
                logger.error("run_conflicts", run_id=str(write.run_id), error=outcome.message)
                self._refuse(write, outcome)
            else:
                if self._losses and (write.ends_losses or (isinstance(write.then, LetGo) and not outcome.stays)):
                    self._losses.pop(write.run_id, None)
                later = self._landed(write)
                if later is not None and outcome.began:
                    self._queue[write.run_id.int], later = later, None
                _answer(write, outcome)
                if later is not None:
                    _answer(later, outcome)  # it followed a begin that did not happen

    async def _send(self, connection: EngineConnection, slot: int, batch: Sequence[Write]) -> "Answer":
        """Send one statement until it is answered: the same one each time, which means the same each time."""
        clock = asyncio.get_running_loop()
        statement = flush(self._worker_id, slot, batch)
        give_up_at: float | None = None
        delay = _DELAY_FIRST_SECONDS
        is_repeated = has_met = False
        while True:
            try:
                [row] = await connection.fetch(statement)
                if not row["is_alive"]:
                    raise WorkerFencedError(self._worker_id)
                answer = Answer.of(row, is_repeated=is_repeated)
                if is_repeated and (unclear := answer.begins_found(batch)):
                    answer.begun_before = await self._flush_begun(connection, unclear)
                return answer
            except FOREIGN_ERRORS as error:
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

    async def _flush_begun(self, connection: EngineConnection, begins: Sequence[Write]) -> set[UUID]:
        """Which of these runs were begun by an earlier copy of their flush."""
        statement = SQL.flush_begun(
            worker_id=self._worker_id,
            ids=[write.run_id for write in begins],
            numbers=[write.number for write in begins],
        )
        return {row["id"] for row in await connection.fetch(statement)}

    # --- what can't be written ----------------------------------------------------------------------------------

    def _measure(self, write: RunWrite) -> int:
        size = measured(write)
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
        is_its_claim = lost.claim == write.claim
        if is_its_claim and write.entries and write.entries[0].position > lost.position:
            return lost.error  # it would leave a gap in the history
        if not is_its_claim or write.entries or isinstance(write.then, LetGo):
            del self._lost[write.run_id]  # what was lost has been replaced, or is nobody's any more
        return None

    def _landed(self, write: Write) -> Write | None:
        """A write of the run is not on its way any more; what the run has queued since."""
        key = write.run_id.int
        self._flying.discard(key)
        return self._later.pop(key, None) if self._later else None

    def _refuse(self, write: Write, error: RomancyError) -> None:
        """Give a run its error, and refuse what it has queued since: its code ran ahead of what is not there."""
        later = self._landed(write)
        refused = [write] if later is None else [write, later]
        self._lose(write.run_id, write.claim, [entry for each in refused for entry in each.entries], error)
        for each in refused:
            _answer(each, error)

    def _lose(self, run_id: UUID, claim: int, entries: Sequence[Entry], error: RomancyError) -> None:
        if entries:
            self._lost[run_id] = _Lost(claim, entries[0].position, error)

    def _end(self, error: RomancyError, batch: Sequence[Write]) -> None:
        """Nothing more can be written by this worker."""
        if self._ended is None:
            self._ended = error
            logger.error("journal_ended", worker_id=self._worker_id, error=repr(error))
        refused = [*batch, *self._queue.values(), *self._later.values()]
        self._queue.clear()
        self._later.clear()
        self._flying.clear()
        self._wake.set()
        for write in refused:
            _answer(write, error)


def _answer(write: Write, answer: Flushed | RomancyError) -> None:
    told, write.answered = write.answered, []  # once, though the flush may fail after some of it was answered
    for answered in told:
        try:
            answered(answer)
        except (Exception, asyncio.CancelledError):  # a defect of ours in one run: the others must hear of their flush
            logger.exception("answer_failed", run_id=str(write.run_id))
