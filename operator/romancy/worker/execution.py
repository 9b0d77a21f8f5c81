"""One claimed run in memory: from its replay to its end, or until it is parked, released, blocked or dropped."""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from random import Random
from typing import Any, Protocol, assert_never
from uuid import UUID

from romancy.base import log
from romancy.errors import (
    BlockingError,
    HistoryTooLongError,
    InputInvalidError,
    PayloadRefusedError,
    RomancyError,
    WorkerLostError,
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
from romancy.model.history import Attempt, Entry, InboxRow, Kind, MessageKind
from romancy.model.run import Phase, Reason, timeout_at
from romancy.replay.replay import Replay
from romancy.sdk.activity import Activity, ActivityInfo
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
from romancy.worker import waiting
from romancy.worker.activities import Activities, Ended, is_retryable

LOG = log.get(__name__)
ENTRIES_A_WRITE_MAX = 100
LOOK_AGAIN_SECONDS = 0.2


class Engine(Protocol):
    """What an execution needs of its worker."""

    journal: Journal
    activities: Activities
    build_id: str
    park_after_seconds: float
    history_entries_max: int
    step_seconds_max: float
    random: Random
    is_draining: bool
    is_out_of_time: bool  # the drain's grace is over: what runs is left

    def now(self) -> datetime:
        """The database's clock, as well as this process knows it."""
        ...

    def may_start_activities(self) -> bool:
        """False while the lease is not certain."""
        ...

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]: ...


class Left(Enum):
    """How an execution ended."""

    PARKED = "parked"
    FINISHED = "finished"
    BLOCKED = "blocked"
    RELEASED = "released"
    EXISTS = "exists"  # the run that it wanted to begin was there before


@dataclass(slots=True)
class _OpenActivity:
    """An activity that is asked for: waiting for its flush, in backoff, running, or held by a suspension."""

    command: RunActivity
    failed: int = 0  # attempts
    lost: bool = False  # an attempt of a dead worker may have done it: it must be run to learn
    not_before: datetime | None = None
    error: str = ""
    is_durable: bool = False
    is_cancel_asked: bool = False
    task: "asyncio.Task[Ended] | None" = None

    @property
    def definition(self) -> Activity[..., Any]:
        assert isinstance(self.command.definition, Activity)
        return self.command.definition


@dataclass(frozen=True, slots=True, order=True)
class _Ready:
    """Something that happened and is not delivered yet. Ordered as it happened; a timer first when equal."""

    at: datetime
    rank: int  # 0 timers, 1 everything else
    number: int
    kind: Kind = field(compare=False)
    payload: str = field(compare=False, default="")
    inbox: int | None = field(compare=False, default=None)


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
        self.claim_number = claim.number if claim else 1
        self.outcome: Outcome | None = None
        self.is_suspect = is_suspect
        self._engine, self._workflow, self._claimed = engine, workflow, claimed
        self._begin = begin
        self._on_begun = on_begun
        self.seen = max([claim.inbox_version if claim else 0, *(row.number for row in claimed.inbox)])
        self._losses = claim.lost_count - claim.lost_noted if claim else 0
        self._phase = claim.phase if claim else Phase.RUNNING
        self._replay: Replay | None = None
        self._activities: dict[int, _OpenActivity] = {}
        self._timers: dict[int, datetime] = {}
        self._mail: deque[InboxRow] = deque(claimed.inbox)
        self._delivered_mail = {entry.inbox for entry in claimed.history if entry.inbox is not None}
        self._attempts = {each.number: each for each in claimed.attempts}  # the last of each
        self._ended: list[_Ready] = []
        self._is_suspended = False
        self._has_news = False
        self._entries: list[Entry] = []
        self._failures: list[Attempt] = []
        self._then: Keep | None = None
        self._unflushed: list[Command] = []
        self._changed = asyncio.Event()
        self._error: BaseException | None = None
        self._in_flight = 0  # writes
        self.parked_until: datetime | None = None
        self._log = LOG.bind(run_id=str(self.run_id), run=claimed.name, workflow=claimed.workflow)
        self._timeout_at = timeout_at(claimed.started_at, claimed.timeout_seconds)

    # --- the life of an execution --------------------------------------------------------------------------------------

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
            await self._refused(error)
            return Left.FINISHED
        finally:
            if left is not Left.PARKED:
                self.drop()

    def resume(self, claim: Claim, inbox: Sequence[InboxRow]) -> None:
        """Take up a parked run that nobody has claimed since: its replay is still good."""
        assert claim.number == self.claim_number + 1
        self.claim_number = claim.number
        self._phase = claim.phase
        self._mail.extend(inbox)
        self.seen = max([claim.inbox_version, *(row.number for row in inbox)])
        for each in self._activities.values():
            each.is_durable = True

    def has_mail(self) -> None:
        """New rows are in the run's inbox."""
        self._has_news = True
        self._changed.set()

    def look(self) -> None:
        """Something about the worker changed: it drains, or its lease is certain again."""
        self._changed.set()

    def drop(self) -> None:
        """Put the run out of memory: its code is closed, its activities are cancelled and their results seen by nobody."""
        for each in self._activities.values():
            if each.task is not None:
                each.task.cancel()
        self._activities.clear()
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
            shown = failure.encode(error)
            return await self._finish(
                Outcome(End.FAILED, failure=shown, reason=Reason.INPUT_INVALID, message=error.message)
            )
        self._replay = Replay(
            self._workflow.program(arguments, info),
            started_at=claimed.started_at,
            monotonic=time.monotonic,
            step_seconds_max=self._engine.step_seconds_max,
        )
        try:
            commands = self._replay.advance(claimed.history, replaying=True)
        except BlockingError as error:
            return await self._block(error)
        self._log.debug("run_claimed", entries=len(claimed.history))
        self._take(commands)
        self._note_losses()
        for each in self._activities.values():
            each.is_durable = self._begin is None and not self._failures
        return None

    async def _advance(self) -> Left | None:
        """Deliver what lies ready, write it, and wait for more."""
        await self._read_mail()
        try:
            self._deliver_ready()
        except BlockingError as error:
            return await self._block(error)
        assert self._replay is not None
        if (outcome := self._replay.outcome) is not None:
            return await self._finish(outcome)
        if self._replay.position >= self._engine.history_entries_max:
            return await self._block(
                HistoryTooLongError(entries=self._replay.position, entries_max=self._engine.history_entries_max)
            )
        if self._is_idle():
            if self._engine.is_draining:
                await self._write(Release())
                return Left.RELEASED
            wait = self._waiting()
            if not self._is_near(wait.wake_at):
                return await self._park(wait)
        self._show_phase()
        self._submit()
        self._start_activities()
        await self._wait()
        return None

    async def _wait(self) -> None:
        """Until something is ready, or a timer or backoff is due."""
        self._raise_error()
        seconds = self._seconds_until_due()
        if self._ended or self._mail or self._has_news or seconds == 0:
            await asyncio.sleep(0)  # more lies ready; others are let in between
            return
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass
        self._changed.clear()
        self._raise_error()

    # --- delivery: in the order in which it happened --------------------------------------------------------------------

    async def _read_mail(self) -> None:
        if not self._has_news:
            return
        self._has_news = False
        rows = await self._engine.read_inbox(self.run_id, self.seen)
        self._mail.extend(rows)
        self.seen = max([self.seen, *(row.number for row in rows)])

    def _deliver_ready(self) -> None:
        assert self._replay is not None
        while self._replay.outcome is None and len(self._entries) < ENTRIES_A_WRITE_MAX:
            ready = self._next_ready()
            if ready is None:
                return
            command_name, digest = self._answered(ready)
            entry = Entry(
                position=self._replay.position + 1,
                kind=ready.kind,
                at=max(self._engine.now(), self._replay.now),
                number=ready.number if ready.inbox is None and ready.kind is not Kind.CANCEL_REQUESTED else 0,
                name=command_name,
                digest=digest,
                payload=ready.payload,
                inbox=ready.inbox,
            )
            self._entries.append(entry)  # also if the code then blocks: it happened
            self._tell(entry)
            self._take(self._replay.advance([entry]))

    def _tell(self, entry: Entry) -> None:
        match entry.kind:
            case Kind.ACTIVITY_COMPLETED:
                self._log.debug(
                    "activity_completed", activity=entry.name, number=entry.number, result=entry.payload[:80]
                )
            case Kind.ACTIVITY_FAILED:
                error = _one_line(entry.payload)
                self._log.warning("activity_failed", activity=entry.name, number=entry.number, error=error)
            case Kind.TIMER_FIRED:
                self._log.debug("timer_fired", number=entry.number)
            case Kind.CANCEL_REQUESTED:
                self._log.info("cancel_requested", cancel=entry.payload)
            case _:
                pass

    def _next_ready(self) -> _Ready | None:
        """What happened first of all that is not delivered. Takes it away."""
        while True:
            found: list[_Ready] = []
            now = self._engine.now()
            if not self._is_held():
                found.extend(
                    _Ready(due_at, 0, number, Kind.TIMER_FIRED)
                    for number, due_at in self._timers.items()
                    if due_at <= now
                )
                if (timed_out := self._timed_out(now)) is not None:
                    found.append(timed_out)
            found.extend(self._ended)
            if self._mail:
                row = self._mail[0]
                found.append(_Ready(row.at, 1, row.number, Kind.CANCEL_REQUESTED, row.payload, row.number))
            if not found:
                return None
            first = min(found)
            if first.inbox is not None:
                if self._open_mail(self._mail.popleft()):
                    return first
                continue
            if first.kind is Kind.TIMER_FIRED:
                del self._timers[first.number]
            elif first.kind is not Kind.CANCEL_REQUESTED:
                self._ended.remove(first)
            return first

    def _open_mail(self, row: InboxRow) -> bool:
        """Fold a message into what is wished; True if it is an entry of the history."""
        assert self._replay is not None
        match row.kind:
            case MessageKind.SUSPEND:
                self._is_suspended = True
                return False
            case MessageKind.RESUME:
                self._is_suspended = False
                return False
            case MessageKind.CANCEL:
                self._is_suspended = False  # it must be able to clean up
                return row.number not in self._delivered_mail and self._replay.cancel_reason is None
            case _:
                assert_never(row.kind)

    def _timed_out(self, now: datetime) -> _Ready | None:
        assert self._replay is not None
        if self._timeout_at is None or self._timeout_at > now or self._replay.cancel_reason is not None:
            return None
        message = f"the run did not end within its timeout of {self._claimed.timeout_seconds:g} s"
        payload = json.dumps({"reason": Reason.TIMED_OUT, "message": message})
        return _Ready(self._timeout_at, 0, 0, Kind.CANCEL_REQUESTED, payload)

    def _answered(self, ready: _Ready) -> tuple[str, str]:
        """Name and digest of the command that it answers."""
        if ready.kind is Kind.CANCEL_REQUESTED:
            return "", ""
        assert self._replay is not None
        if ready.kind is Kind.TIMER_FIRED:
            command: StartTimer | RunActivity | None = self._replay.open_timer(ready.number)
        else:
            command = self._activities.pop(ready.number).command
        assert command is not None
        return command.name, command.digest

    # --- commands ------------------------------------------------------------------------------------------------------

    def _take(self, commands: Sequence[Command]) -> None:
        """Remember what the code asks for; what acts waits for the flush of the entry that led to it."""
        assert self._replay is not None
        for command in commands:
            match command:
                case StartTimer():
                    self._timers[command.number] = command.due_at
                case CancelTimer():
                    self._timers.pop(command.number, None)
                case RunActivity():
                    last = self._attempts.get(command.number)
                    self._activities[command.number] = _OpenActivity(
                        command,
                        failed=last.attempt if last else 0,
                        not_before=last.next_at if last else None,
                        error=_one_line(last.failure) if last else "",
                        # Cancelled before a crash: whether its effect took place is known only by running it again.
                        lost=self._replay.is_cancel_asked(command.number),
                    )
                case CancelActivity():
                    self._unflushed.append(command)
                case WriteLog():
                    self._unflushed.append(command)
                case _:
                    assert_never(command)

    def _act(self, commands: Sequence[Command]) -> None:
        """Carry out what waited for a flush that is durable now."""
        for command in commands:
            match command:
                case CancelActivity():
                    self._cancel_activity(command)
                case WriteLog():
                    getattr(self._log, command.level)(command.event, **dict(command.fields))
                case _:
                    pass

    def _cancel_activity(self, command: CancelActivity) -> None:
        each = self._activities.get(command.number)
        if each is None or each.is_cancel_asked:
            return
        if not command.is_shielded:
            del self._activities[command.number]
            self._ended = [ready for ready in self._ended if ready.number != command.number]
            if each.task is not None:
                each.task.cancel()
            return
        if each.lost or any(ready.number == command.number for ready in self._ended):
            return  # it runs to its end, or has ended already
        each.is_cancel_asked = True
        if each.task is not None:
            each.task.cancel()
        else:
            self._end_activity(each, Kind.ACTIVITY_CANCELLED, "")

    def _start_activities(self) -> None:
        if self._engine.is_draining or not self._engine.may_start_activities():
            return
        now = self._engine.now()
        for each in list(self._activities.values()):
            if self._is_startable(each) and (each.not_before is None or each.not_before <= now):
                self._start_activity(each)

    def _start_activity(self, each: _OpenActivity) -> None:
        info = ActivityInfo(
            run_id=self.run_id,
            namespace=self._claimed.namespace,
            run=self._claimed.name,
            workflow=self._claimed.workflow,
            activity=each.command.name,
            number=each.command.number,
            attempt=each.failed + 1,
        )
        attempt = self._engine.activities.attempt(
            each.command,
            info,
            may_start=lambda: self._engine.may_start_activities() and not self._engine.is_draining,
            was_asked=lambda: each.is_cancel_asked or self._replay is None or self._replay.is_discarded,
        )
        each.task = asyncio.create_task(attempt, name=f"activity {each.command.name}")
        each.task.add_done_callback(lambda task: self._attempt_ended(each, task))

    def _attempt_ended(self, each: _OpenActivity, task: "asyncio.Task[Ended]") -> None:
        if self._activities.get(each.command.number) is not each:
            return  # abandoned, or dropped
        each.task = None
        self._changed.set()
        ended = Ended() if task.cancelled() else task.result()
        if ended.payload is not None:
            self._end_activity(each, Kind.ACTIVITY_COMPLETED, ended.payload)
        elif ended.error is not None:
            self._attempt_failed(each, ended.error)
        elif each.is_cancel_asked:
            self._end_activity(each, Kind.ACTIVITY_CANCELLED, "")
        # Else it was not started after all, because of a drain or an uncertain lease: it stays open.

    def _attempt_failed(self, each: _OpenActivity, error: Exception) -> None:
        each.failed += 1
        policy = each.definition.retry
        delay = policy.delay_seconds(each.failed, self._engine.random.random)
        name = each.command.name
        if each.is_cancel_asked or delay is None or not is_retryable(error, policy):
            note = f"activity {name!r} failed in attempt {each.failed}"
            self._end_activity(each, Kind.ACTIVITY_FAILED, failure.encode(error, note=note))
            return
        now = self._engine.now()
        text = failure.encode(error)
        each.not_before = now + timedelta(seconds=delay)
        each.error = _one_line(text)
        each.is_durable = False  # the next attempt waits until this one is counted for ever
        row = Attempt(each.command.number, each.failed, text, now, each.not_before)
        self._failures.append(row)
        self._attempts[row.number] = row
        self._log.warning(
            "activity_attempt_failed",
            activity=name,
            attempt=each.failed,
            error=each.error,
            retry_in_seconds=round(delay, 3),
        )

    def _end_activity(self, each: _OpenActivity, kind: Kind, payload: str) -> None:
        self._ended.append(_Ready(self._engine.now(), 1, each.command.number, kind, payload))
        self._changed.set()

    def _note_losses(self) -> None:
        """Each worker lost since counts as an attempt of the activities that are open: else a run that kills its
        process would never use up its retries."""
        if self._losses <= 0:
            return
        now = self._engine.now()
        for each in list(self._activities.values()):
            each.lost = True
            error = WorkerLostError()
            for _ in range(self._losses):
                each.failed += 1
                text = failure.encode(error)
                row = Attempt(each.command.number, each.failed, text, now, now)
                self._failures.append(row)
                self._attempts[row.number] = row
            if each.definition.retry.delay_seconds(each.failed, self._engine.random.random) is None and not (
                each.command.is_shielded
            ):
                note = f"activity {each.command.name!r} failed in attempt {each.failed}"
                self._end_activity(each, Kind.ACTIVITY_FAILED, failure.encode(error, note=note))
        self._then = Keep(self._phase, losses_noted=True)
        self._losses = 0

    # --- what it waits for -----------------------------------------------------------------------------------------------

    def _is_held(self) -> bool:
        """Suspended, and not compensating: nothing interrupts that."""
        return self._is_suspended and not any(each.command.is_compensation for each in self._activities.values())

    def _is_startable(self, each: _OpenActivity) -> bool:
        is_over = any(ready.number == each.command.number for ready in self._ended)
        return (
            each.task is None
            and each.is_durable
            and not is_over
            and (each.command.is_compensation or not self._is_held())
        )

    def _is_idle(self) -> bool:
        """Nothing runs and nothing is about to: only time or the outside brings more."""
        if self._ended or self._mail or self._has_news or self._unacknowledged():
            return False
        if not self._engine.is_out_of_time and any(each.task is not None for each in self._activities.values()):
            return False
        if self._engine.is_draining or self._is_held():
            return True
        now = self._engine.now()
        return all(each.not_before is not None and each.not_before > now for each in self._activities.values())

    def _unacknowledged(self) -> bool:
        """Commands that wait for a flush: what they start can't be left behind."""
        return bool(self._unflushed) and any(isinstance(command, CancelActivity) for command in self._unflushed)

    def _waiting(self) -> waiting.Waiting:
        if self._is_held():
            return waiting.SUSPENDED
        backoffs = {
            number: waiting.Backoff(each.command.name, each.failed + 1, each.not_before, each.error)
            for number, each in self._activities.items()
            if each.not_before is not None
        }
        assert self._replay is not None
        timeout = self._timeout_at if self._replay.cancel_reason is None else None
        return waiting.of(self._timers, backoffs, timeout)

    def _is_near(self, moment: datetime | None) -> bool:
        limit = timedelta(seconds=self._engine.park_after_seconds)
        return moment is not None and moment - self._engine.now() <= limit

    def _seconds_until_due(self) -> float | None:
        """Until time itself brings something; None if it never does."""
        now = self._engine.now()
        seconds = []
        if not self._is_held():
            moments = [*self._timers.values()]
            if self._timeout_at is not None and self._replay is not None and self._replay.cancel_reason is None:
                moments.append(self._timeout_at)
            seconds = [max(0.0, (moment - now).total_seconds()) for moment in moments]
        for each in self._activities.values():
            if self._is_startable(each):
                # One that is due was not started just now: the lease is not certain, which comes back soon or never.
                wait = (each.not_before - now).total_seconds() if each.not_before else 0.0
                seconds.append(max(LOOK_AGAIN_SECONDS, wait))
        return min(seconds, default=None)

    # --- writing ---------------------------------------------------------------------------------------------------------

    def _show_phase(self) -> None:
        """Compensating is shown as soon as it begins."""
        is_compensating = any(each.command.is_compensation for each in self._activities.values())
        phase = Phase.COMPENSATING if is_compensating else Phase.RUNNING
        if phase is not self._phase:
            reason = Reason.COMPENSATING if is_compensating else Reason.NONE
            noted = self._then.losses_noted if self._then else False
            self._then = Keep(phase, reason, losses_noted=noted)
            self._phase = phase

    def _submit(self, then: LetGo | None = None) -> "asyncio.Future[Flushed] | None":
        """Hand over what there is to write; what acts follows when it is durable."""
        if not (self._begin or self._entries or self._failures or self._then or then):
            self._act(self._unflushed)
            self._unflushed = []
            for each in self._activities.values():
                each.is_durable = each.is_durable or self._in_flight == 0
            return None
        write = RunWrite(
            self.run_id,
            self.claim_number,
            begin=self._begin,
            entries=tuple(self._entries),
            attempts=tuple(self._failures),
            then=then or self._then,
        )
        commands, self._unflushed = self._unflushed, []
        waiting_for_it = [each for each in self._activities.values() if not each.is_durable]
        self._begin, self._entries, self._failures, self._then = None, [], [], None
        self._in_flight += 1
        future = self._engine.journal.submit(write)

        def durable(done: "asyncio.Future[Flushed]") -> None:
            self._in_flight -= 1
            self._changed.set()
            if done.cancelled():
                return
            if (error := done.exception()) is not None:
                self._error = self._error or error
                self._begin = write.begin  # refused with all the rest of it
            elif not done.result().began:
                self._error = self._error or RunWasThereError()
                self._tell_begun(False)
            else:
                self._tell_begun(True)
                self.is_suspect = self.is_suspect and not write.entries
                for each in waiting_for_it:
                    each.is_durable = True
                self._act(commands)

        future.add_done_callback(durable)
        return future

    def _tell_begun(self, has_begun: bool) -> None:
        if self._on_begun is not None:
            self._on_begun(has_begun)
            self._on_begun = None

    async def _write(self, then: LetGo) -> Flushed:
        future = self._submit(then)
        assert future is not None
        return await asyncio.shield(future)

    async def _refused(self, error: PayloadRefusedError) -> None:
        """What the run has to store is refused: it fails alone, with what can be stored."""
        self._log.error("payload_refused", error=error.message)
        self.outcome = Outcome(
            End.FAILED, failure=failure.encode(error), reason=Reason.PAYLOAD_REFUSED, message=error.message
        )
        write = RunWrite(self.run_id, self.claim_number, begin=self._begin, then=_finish(self.outcome))
        await self._engine.journal.submit(write)
        self._tell_begun(True)

    async def _park(self, wait: waiting.Waiting) -> Left | None:
        is_compensating = any(each.command.is_compensation for each in self._activities.values())
        waits_as = Phase.COMPENSATING if is_compensating else Phase.WAITING
        phase = Phase.SUSPENDED if self._is_held() else waits_as
        park = Park(
            seen=self.seen,
            wake_at=wait.wake_at,
            phase=phase,
            reason=wait.reason,
            message=waiting.storable(wait.message),
        )
        flushed = await self._write(park)
        if flushed.stays:
            self._has_news = True
            return None
        self._raise_error()
        self._phase = phase
        self.parked_until = wait.wake_at
        self._log.debug("run_parked", phase=phase, reason=wait.reason, detail=wait.message)
        return Left.PARKED

    async def _finish(self, outcome: Outcome) -> Left:
        self.outcome = outcome
        try:
            await self._write(_finish(outcome))
            self._raise_error()
        except RunWasThereError:
            return Left.EXISTS
        self._log.info(
            "run_finished", outcome=outcome.end, reason=outcome.reason or None, detail=outcome.message or None
        )
        return Left.FINISHED

    async def _block(self, error: BlockingError) -> Left:
        self._log.error("run_blocked", reason=error.reason, error=error.message, hint=error.hint)
        message = f"{error.message}; {error.hint}" if error.hint else error.message
        await self._write(Block(error.reason, message, self._engine.build_id))
        self._raise_error()
        return Left.BLOCKED

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class RunWasThereError(RomancyError):
    """The run that was to begin exists."""

    reason = "RunExists"

    def __init__(self) -> None:
        super().__init__("the run exists already")


def _finish(outcome: Outcome) -> Finish:
    phase = {End.SUCCEEDED: Phase.SUCCEEDED, End.FAILED: Phase.FAILED, End.CANCELLED: Phase.CANCELLED}[outcome.end]
    return Finish(phase, outcome.reason, waiting.storable(outcome.message), outcome.payload, outcome.failure)


def _one_line(text: str) -> str:
    shown = failure.describe(text)
    line = f"{shown.type.rpartition('.')[2]}: {shown.message}".splitlines()[0]
    return line if len(line) <= 300 else line[:297] + "..."
