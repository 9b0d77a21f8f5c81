"""One claimed run in memory: from its replay to its end, or until it is parked, released, blocked or dropped."""

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Protocol, assert_never
from uuid import UUID

from romancy.base import log, metrics
from romancy.errors import (
    BlockingError,
    HistoryTooLongError,
    InputInvalidError,
    PayloadRefusedError,
    StoreUnavailableError,
)
from romancy.model import failure
from romancy.model.command import (
    CancelActivity,
    CancelTimer,
    Command,
    End,
    Outcome,
    RunActivity,
    StartTimer,
    WriteLog,
)
from romancy.model.history import Entry, InboxRow, Kind
from romancy.model.run import Phase, Reason, timeout_at
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow
from romancy.store.interface import (
    Begin,
    Block,
    Claim,
    ClaimedRun,
    Finish,
    Flushed,
    Journal,
    Keep,
    LetGo,
    Park,
    Release,
    RunWrite,
)
from romancy.worker import attempts, waiting
from romancy.worker.attempts import Attempts, Open
from romancy.worker.bell import Bell
from romancy.worker.delivery import Delivery, Ready
from romancy.worker.writing import RunWasThereError, Writing

LOG = log.get(__name__)
REPLAY_SLICE = 200  # entries; then others are let in
MAIL_AGAIN_SECONDS = 1.0


class Engine(attempts.Host, Protocol):
    """What an execution needs of its worker."""

    journal: Journal
    build_id: str
    park_after_seconds: float
    history_entries_max: int
    step_seconds_max: float
    is_out_of_time: bool  # the drain's grace is over: what runs is left

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]: ...


class Left(Enum):
    """How an execution ended."""

    PARKED = "parked"
    FINISHED = "finished"
    BLOCKED = "blocked"
    RELEASED = "released"
    EXISTS = "exists"  # the run that it wanted to begin was there before


class Execution:
    """Drives one run.

    Args:
        engine: the worker.
        workflow: the code.
        claimed: what to replay from.
        claim: the hold; None for a run that this process begins itself.
        begin: the run to insert with the first flush.
        is_suspect: workers were lost while it ran; until it gets on, no other such run is taken beside it.
        on_begun: told once whether it was inserted; not told if the run is dropped before.
    """

    def __init__(
        self,
        engine: Engine,
        workflow: Workflow[..., Any],
        claimed: ClaimedRun,
        *,
        claim: Claim | None = None,
        begin: Begin | None = None,
        is_suspect: bool = False,
        on_begun: Callable[[bool], object] | None = None,
    ) -> None:
        assert (claim is None) != (begin is None)
        self.run_id = claimed.run_id
        self.outcome: Outcome | None = None
        self.is_suspect = is_suspect
        self.parked_until: datetime | None = None
        self._engine, self._workflow, self._claimed = engine, workflow, claimed
        self._on_begun = on_begun
        self._is_there = begin is None  # it is a row: what comes for its id before that is another run's
        self._losses = claim.lost_count - claim.lost_noted if claim else 0
        self._phase = claim.phase if claim else Phase.RUNNING
        self._replay: Replay | None = None
        self._has_news = False  # in its inbox
        self._mail_again: asyncio.TimerHandle | None = None  # it could not be read
        self._bell = Bell()  # something happened that `_advance` has to look at
        self._is_leaving = False  # it has been asked to let the run go
        self._log = LOG.bind(run_id=str(self.run_id), run=claimed.name, workflow=claimed.workflow)
        self._writing = Writing(
            lambda: engine.journal, self.run_id, claim.number if claim else 1, begin, self._act, self._bell.ring
        )
        self._delivery = Delivery(
            claimed.inbox,
            delivered=frozenset(entry.inbox for entry in claimed.history if entry.inbox is not None),
            seen=claim.inbox_version if claim else 0,
            timeout_at=timeout_at(claimed.started_at, claimed.timeout_seconds),
            timeout_text=f"the run did not end within its timeout of {claimed.timeout_seconds or 0:g} s",
        )
        self._attempts = Attempts(engine, claimed, self._delivery, self._bell.ring, self._log)

    # --- the life of an execution -----------------------------------------------------------------------------

    async def run(self) -> Left:
        """Go on until the run leaves this worker.

        Raises:
            WorkerFencedError, StoreUnavailableError: the worker has lost its runs; this one is dropped.
            HistoryConflictError: I3 is broken for this run; it is dropped.
        """
        left: Left | None = None
        try:
            while left is None:
                left = await self._advance() if self._replay is not None else await self._start()
            return left
        except RunWasThereError:
            return Left.EXISTS
        except PayloadRefusedError as error:
            return await self._refused(error)
        finally:
            if left is not Left.PARKED:
                self.drop()

    def resume(self, claim: Claim) -> None:
        """Take up a parked run that nobody has claimed since: its replay is still good."""
        assert claim.number == self.claim_number + 1
        self._writing.claim = claim.number
        self._is_leaving = False
        self._phase = claim.phase
        if claim.inbox_version > self._delivery.seen:
            self._has_news = True

    @property
    def claim_number(self) -> int:
        return self._writing.claim

    def has_mail(self) -> None:
        """New rows are in the run's inbox."""
        self._has_news = True
        self._bell.ring()

    def look(self) -> None:
        """Something about the worker changed: it drains, or is out of time."""
        self._bell.ring()

    def drop(self) -> None:
        """Put the run out of memory: its code is closed, its activities are cancelled, and nobody sees their results."""
        self._attempts.drop()
        if self._mail_again is not None:
            self._mail_again.cancel()
        if self._replay is not None:
            self._replay.discard()

    async def _start(self) -> Left | None:
        """Decode the input and replay the history."""
        claimed = self._claimed
        info = RunInfo(
            id=claimed.run_id,
            namespace=claimed.namespace,
            name=claimed.name,
            workflow=claimed.workflow,
            labels=claimed.labels,
            started_at=claimed.started_at,
        )
        try:
            arguments = self._workflow.decode_input(claimed.input, claimed.form)
        except InputInvalidError as error:
            text = failure.encode(error)
            return await self._finish(
                Outcome(End.FAILED, failure=text, reason=Reason.INPUT_INVALID, message=error.message)
            )
        self._replay = Replay(
            self._workflow.program(arguments, info),
            started_at=claimed.started_at,
            monotonic=time.monotonic,
            step_seconds_max=self._engine.step_seconds_max,
        )
        self._log.debug("run_claimed", entries=len(claimed.history))
        try:
            self._take(await self._replayed(self._replay, claimed.history))
        except BlockingError as error:
            return await self._block(error)
        if self._losses > 0:
            self._attempts.note_losses(self._losses)
            self._writing.losses_noted = True
            self._losses = 0
        return None

    async def _replayed(self, replay: Replay, history: Sequence[Entry]) -> list[Command]:
        """Deliver what is stored, in slices: a long history must not keep other runs waiting. What is still wanted."""
        issued = replay.advance(history[:REPLAY_SLICE], replaying=True)
        for begin in range(REPLAY_SLICE, len(history), REPLAY_SLICE):
            await asyncio.sleep(0)
            issued.extend(replay.advance(history[begin : begin + REPLAY_SLICE], replaying=True))
        return [command for command in issued if replay.is_wanted(command)]

    async def _advance(self) -> Left | None:
        """Deliver what lies ready, write it, and wait for more."""
        assert self._replay is not None
        self._bell.hush()
        if self._has_news and self._is_there:
            await self._read_mail()
        try:
            self._deliver_ready()
        except BlockingError as error:
            return await self._block(error)
        if (outcome := self._replay.outcome) is not None:
            return await self._finish(outcome)
        if self._replay.position >= self._engine.history_entries_max:
            return await self._block(
                HistoryTooLongError(entries=self._replay.position, entries_max=self._engine.history_entries_max)
            )
        if self._is_idle():
            if self._engine.is_draining:
                self._attempts.note_left_running()
                await self._write(Release())
                return Left.RELEASED
            wait = self._waiting()
            if not self._is_near(wait.wake_at):
                return await self._park(wait)
        self._show_phase()
        self._submit()
        self._attempts.start(is_held=self._is_held())
        await self._wait()
        return None

    async def _wait(self) -> None:
        """Until something is ready, or a timer or backoff is due."""
        seconds = self._seconds_until_due()
        if self._delivery.has_some or (self._has_news and self._is_there) or seconds == 0:
            await asyncio.sleep(0)  # more lies ready; others are let in between
            return
        await self._bell.wait(seconds)
        self._writing.raise_error()

    # --- delivery -----------------------------------------------------------------------------------------------

    async def _read_mail(self) -> None:
        self._has_news = False
        try:
            self._delivery.add_mail(await self._engine.read_inbox(self.run_id, self._delivery.seen))
        except StoreUnavailableError as error:  # a read that failed says nothing about what was written
            self._log.warning("mail_not_read", error=error.message, again_in_seconds=MAIL_AGAIN_SECONDS)
            self._mail_again = asyncio.get_running_loop().call_later(MAIL_AGAIN_SECONDS, self._read_again)

    def _read_again(self) -> None:
        self._mail_again = None
        self.has_mail()

    def _deliver_ready(self) -> None:
        """One entry at a time, each time running the code until it waits again."""
        replay = self._replay
        assert replay is not None
        while self._delivery.has_any and replay.outcome is None and not self._writing.is_full:
            now = self._engine.now()
            may_hold, is_cancelled = not self._attempts.is_compensating, replay.cancel_reason is not None
            ready = self._delivery.next(now, may_hold=may_hold, is_cancelled=is_cancelled)
            if ready is None:
                return
            entry = self._entry(replay, ready, now)
            self._writing.add(entry)  # also if the code then blocks: it happened
            self._tell(entry)
            self._take(replay.advance([entry]))

    def _entry(self, replay: Replay, ready: Ready, now: datetime) -> Entry:
        command: RunActivity | StartTimer | None = None
        if ready.kind is Kind.TIMER_FIRED:
            command = replay.open_timer(ready.answers)
        elif ready.kind is not Kind.CANCEL_REQUESTED:
            command = self._attempts.take(ready.answers)
        return Entry(
            position=replay.position + 1,
            kind=ready.kind,
            at=max(now, replay.now),
            number=ready.answers,
            name=command.name if command else "",
            digest=command.digest if command else "",
            payload=ready.payload,
            inbox=ready.inbox,
        )

    def _tell(self, entry: Entry) -> None:
        match entry.kind:
            case Kind.ACTIVITY_COMPLETED:
                self._log.debug(
                    "activity_completed", activity=entry.name, number=entry.number, result=entry.payload[:80]
                )
            case Kind.ACTIVITY_FAILED:
                error = attempts.one_line(entry.payload)
                self._log.warning("activity_failed", activity=entry.name, number=entry.number, error=error)
            case Kind.TIMER_FIRED:
                self._log.debug("timer_fired", number=entry.number)
            case Kind.CANCEL_REQUESTED:
                self._log.info("cancel_requested", cancel=entry.payload)
            case _:
                pass

    # --- commands ---------------------------------------------------------------------------------------------

    def _take(self, commands: Sequence[Command]) -> None:
        """Remember what the code asks for; what acts waits for the flush of the entry that led to it."""
        assert self._replay is not None
        for command in commands:
            match command:
                case StartTimer():
                    self._delivery.add_timer(command.number, command.due_at)
                case CancelTimer():
                    self._delivery.forget_timer(command.number)
                case RunActivity():
                    # Cancelled before a crash: whether its effect took place is known only by running it again.
                    self._attempts.add(command, is_lost=self._replay.is_cancel_asked(command.number))
                case CancelActivity() | WriteLog():
                    self._writing.commands.append(command)
                case _:
                    assert_never(command)

    def _act(self, commands: Sequence[Command]) -> None:
        """Carry out what waited for a flush that is durable now."""
        for command in commands:
            match command:
                case CancelActivity():
                    self._attempts.cancel(command)
                case WriteLog():
                    self._log_line(command)
                case _:
                    raise AssertionError(command)

    def _log_line(self, line: WriteLog) -> None:
        try:
            getattr(self._log, line.level)(line.event, **dict(line.fields))
        except (
            Exception
        ) as error:  # a value that can't be shown must not keep the commands after it from being carried out
            self._log.warning("log_line_failed", line=line.event, error=type(error).__name__)

    # --- what it waits for ----------------------------------------------------------------------------------------

    def _is_held(self) -> bool:
        """Suspended, and not compensating: nothing interrupts that."""
        return self._delivery.is_suspended and not self._attempts.is_compensating

    def _is_idle(self) -> bool:
        """Nothing runs and nothing is about to: only time or the outside brings more."""
        if self._delivery.has_some or self._has_news or self._writing.has_cancels:
            return False
        if self._attempts.is_running and not self._engine.is_out_of_time:
            return False
        if self._engine.is_draining:
            return True
        if self._mail_again is not None:
            return False  # it would only be told that there is mail
        if self._is_held():
            return True
        return self._attempts.are_all_in_backoff()

    def _waiting(self) -> waiting.Waiting:
        if self._is_held():
            return waiting.SUSPENDED
        return waiting.of(self._delivery.timers, self._attempts.backoffs(), self._open_timeout())

    def _open_timeout(self) -> datetime | None:
        """The run's own timeout, unless it is cancelled already."""
        assert self._replay is not None
        return self._delivery.timeout_at if self._replay.cancel_reason is None else None

    def _is_near(self, moment: datetime | None) -> bool:
        limit = timedelta(seconds=self._engine.park_after_seconds)
        return moment is not None and moment - self._engine.now() <= limit

    def _seconds_until_due(self) -> float | None:
        """Until time itself brings something; None if it never does."""
        is_held = self._is_held()
        moments = () if is_held else (self._delivery.next_timer_at, self._open_timeout())
        seconds = [max(0.0, (moment - self._engine.now()).total_seconds()) for moment in moments if moment is not None]
        if (start := self._attempts.seconds_until_start(is_held=is_held)) is not None:
            seconds.append(start)
        return min(seconds, default=None)

    # --- writing ------------------------------------------------------------------------------------------------

    def _show_phase(self) -> None:
        """Compensating is shown as soon as it begins."""
        phase = Phase.COMPENSATING if self._attempts.is_compensating else Phase.RUNNING
        if phase is not self._phase:
            reason = Reason.COMPENSATING if phase is Phase.COMPENSATING else Reason.NONE
            self._writing.keep = Keep(phase, reason)
            self._phase = phase

    def _submit(self, then: LetGo | None = None) -> "asyncio.Future[Flushed] | None":
        """Hand over what there is to write; what acts follows when it is durable."""
        self._writing.raise_error()
        failed, self._attempts.failed = self._attempts.failed, []
        waiting_for_it: list[Open] = []

        def durable(write: RunWrite) -> None:
            self._tell_begun(True)
            self.is_suspect = self.is_suspect and not write.entries
            self._attempts.durable(waiting_for_it)

        def settled() -> None:
            # Straight from here, without a turn of `_advance`: this is most of what a run does. But not what the code has
            # given up meanwhile, or what the outside may stop.
            if not (self._is_leaving or self._has_news or self._writing.has_cancels):
                self._attempts.start(is_held=self._is_held())
            if any(each.is_waiting for each in waiting_for_it):
                self._bell.ring()

        future = self._writing.submit(failed, then, durable, settled)
        if future is not None or self._writing.is_all_written:
            waiting_for_it.extend(self._attempts.hand_over())
        if future is None:
            self._attempts.durable(waiting_for_it)  # nothing has to be written before they start
        return future

    async def _write(self, then: LetGo) -> Flushed:
        self._is_leaving = True
        future = self._submit(then)
        assert future is not None
        flushed = await asyncio.shield(future)
        self._writing.raise_error()
        self._is_leaving = not flushed.stays
        return flushed

    async def _park(self, wait: waiting.Waiting) -> Left | None:
        waits_as = Phase.COMPENSATING if self._attempts.is_compensating else Phase.WAITING
        phase = Phase.SUSPENDED if self._is_held() else waits_as
        message = waiting.storable(wait.message)
        park = Park(self._delivery.seen, wait.wake_at, phase=phase, reason=wait.reason, message=message)
        if (await self._write(park)).stays:
            self._has_news = True
            return None
        self._phase, self.parked_until = phase, wait.wake_at
        self._log.debug("run_parked", phase=phase, reason=wait.reason, detail=wait.message)
        return Left.PARKED

    async def _finish(self, outcome: Outcome) -> Left:
        self.outcome = outcome
        await self._write(_finish(outcome))
        name, seconds = self._claimed.workflow, (self._engine.now() - self._claimed.started_at).total_seconds()
        metrics.RUNS_FINISHED.labels(name, outcome.end).inc()
        metrics.RUN_SECONDS.labels(name, outcome.end).observe(seconds)
        detail = {key: value for key, value in (("reason", outcome.reason), ("detail", outcome.message)) if value}
        self._log.info("run_finished", outcome=outcome.end, **detail)
        return Left.FINISHED

    async def _block(self, error: BlockingError) -> Left:
        self._log.error("run_blocked", reason=error.reason, error=error.message, hint=error.hint)
        message = waiting.storable(f"{error.message}; {error.hint}" if error.hint else error.message)
        await self._write(Block(error.reason, message, self._engine.build_id))
        metrics.RUNS_BLOCKED.labels(self._claimed.workflow, error.reason).inc()
        return Left.BLOCKED

    async def _refused(self, error: PayloadRefusedError) -> Left:
        """What the run has to store is refused: it fails alone, with what can be stored."""
        self._log.error("payload_refused", error=error.message)
        self._attempts.drop()  # before anything is awaited: what led to them is not there
        text = failure.encode(error)
        self.outcome = Outcome(End.FAILED, failure=text, reason=Reason.PAYLOAD_REFUSED, message=error.message)
        if not (await self._writing.write_alone(_finish(self.outcome))).began:
            return Left.EXISTS
        self._tell_begun(True)
        return Left.FINISHED

    def _tell_begun(self, has_begun: bool) -> None:
        if has_begun and not self._is_there:
            self._is_there = True
            if self._has_news:
                self._bell.ring()
        if self._on_begun is not None:
            self._on_begun(has_begun)
            self._on_begun = None


def _finish(outcome: Outcome) -> Finish:
    phase = {End.SUCCEEDED: Phase.SUCCEEDED, End.FAILED: Phase.FAILED, End.CANCELLED: Phase.CANCELLED}[outcome.end]
    return Finish(phase, outcome.reason, waiting.storable(outcome.message), outcome.payload, outcome.failure)
