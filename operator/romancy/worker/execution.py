"""One claimed run in memory: from its replay to its end, or until it is parked, released, blocked or dropped."""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from typing import Any, Protocol, assert_never
from uuid import UUID

from romancy.base import log, metrics
from romancy.errors import (
    BlockingError,
    HistoryIncompleteError,
    HistoryTooLongError,
    InputInvalidError,
    PayloadRefusedError,
    RomancyError,
    StoreUnavailableError,
)
from romancy.model import failure, lifecycle, retried
from romancy.model.command import (
    Ask,
    CancelActivity,
    CancelTimer,
    Command,
    End,
    Outcome,
    Patch,
    Post,
    RunActivity,
    StartChild,
    StartTimer,
    WriteLog,
)
from romancy.model.history import CHILD_ENDS, Entry, InboxRow, Kind, MessageKind
from romancy.model.lifecycle import OF_END, Change
from romancy.model.outbox import OutboxKind, OutboxRow, Outgoing, ended_number
from romancy.model.run import Phase, Reason, iteration_id_of, timeout_at
from romancy.replay.matching import ACTIVITY, CHILD, TIMER
from romancy.replay.replay import ITERATION, OUTBOX, POSITION, Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.middleware import Leg, Middleware
from romancy.sdk.workflow import Workflow
from romancy.store.interface import (
    ActivityTransaction,
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
)
from romancy.worker import attempts, waiting
from romancy.worker.around import OpenLeg
from romancy.worker.attempts import Attempts
from romancy.worker.delivery import Delivery, Ready
from romancy.worker.writing import Sent, Writing, has_cancels

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
    tells_lifecycle: bool  # runs emit events about themselves
    middleware: Sequence[Middleware]
    is_out_of_time: bool  # the drain's grace is over: what runs is left

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]: ...
    def send_out(self, rows: Sequence[OutboxRow]) -> None:
        """Carry out what lies in the outbox."""
        ...


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
        on_begun: told once whether it was inserted; False as well if the run is dropped before.
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
        self._on_left: Callable[[Left | BaseException], object] | None = None
        self._is_there = begin is None  # it is a row: what comes for its id before that is another run's
        self._losses = claim.lost_count - claim.lost_noted if claim else 0
        self._phase = claim.phase if claim else Phase.RUNNING
        self._was_suspended = (
            claim is not None and claim.was_suspended
        )  # and nobody has been told that it is not any more
        self._replay: Replay | None = None
        self._has_news = False  # in its inbox
        self._mail_again: asyncio.TimerHandle | None = None  # it could not be read
        self._is_out = True  # it is not in hand: not started, parked, or out of memory
        self._is_leaving = False  # it has been asked to let the run go
        self._is_busy = False  # in the middle of a turn
        self._is_recurring = False  # the iteration is over
        self._is_wanted = False  # something happened that a turn has to look at
        self._next_turn: asyncio.Handle | None = None
        self._alarm: asyncio.TimerHandle | None = None  # a turn at the moment at which time itself brings something
        self._work: asyncio.Task[None] | None = None  # what has to be awaited before the next turn
        self._gone: list[asyncio.Future[None]] = []
        self._leg: OpenLeg | None = None  # what stands around the run while it is in hand
        self._alone: Sent | None = None  # the only write that counts any more: what was to be stored is refused
        self._log = LOG.bind(run_id=str(self.run_id), run=claimed.name, workflow=claimed.workflow)
        self._writing = Writing(self.run_id, claim.number if claim else 1, begin)
        self._retry = _retry_of(claimed)  # it had failed, and nobody has written yet that it goes on
        self._history = retried.standing(claimed.history, self._retry.payload if self._retry else None)
        self._delivery = Delivery(
            claimed.inbox,
            delivered=frozenset(entry.inbox for entry in self._history if entry.inbox is not None),
            seen=claim.inbox_version if claim else 0,
            timeout_at=timeout_at(self._counted_from(), claimed.timeout_seconds),
            timeout_seconds=claimed.timeout_seconds or 0,
            children_from=claimed.numbers.get(CHILD, 0),
            asks_from=claimed.numbers.get(OUTBOX, 0),
        )
        self._attempts = Attempts(engine, claimed, self._delivery, self.look, self._log, self._checkpoint)
        # While an activity commits, nothing is delivered: its entry has the next position, and must be the next one.
        self._committing = asyncio.Lock()
        self._settled: asyncio.Future[None] | None = None
        self._blocked: BlockingError | None = None  # by what was delivered with a commit

    # --- the life of an execution -----------------------------------------------------------------------------

    def start(self, on_left: Callable[[Left | BaseException], object]) -> None:
        """Go on until the run leaves this worker; `drop` ends it before.

        Args:
            on_left: told once how. WorkerFencedError, StoreUnavailableError: the worker has lost its runs, and this one is
                dropped. HistoryConflictError: I3 is broken for this run; it is dropped. Not told of a `drop`.
        """
        assert self._is_out
        self._on_left, self._is_out, self._is_leaving = on_left, False, False
        if self._engine.middleware:
            replayed = len(self._claimed.history) if self._replay is None else 0
            self._leg = OpenLeg(self._engine.middleware, Leg(self._info(), self.claim_number, replayed))
            self._attempts.begin_in(self._leg.context)
        if self._replay is not None:
            self._turn()
            return
        try:
            self._begin()
        except (Exception, asyncio.CancelledError) as error:
            self._leave(error)

    def resume(self, claim: Claim) -> None:
        """Take up a parked run that nobody has claimed since, before `start`: its replay is still good."""
        assert claim.number == self.claim_number + 1
        self._writing.claim = claim.number
        self._phase = claim.phase
        self._was_suspended = claim.was_suspended
        if claim.inbox_version > self._delivery.seen:
            self._has_news = True

    @property
    def claim_number(self) -> int:
        return self._writing.claim

    def has_mail(self) -> None:
        """New rows are in the run's inbox."""
        self._has_news = True
        self.look()

    def look(self) -> None:
        """Something changed: about the run, its activities, or its worker. A turn will look at it."""
        self._is_wanted = True
        if not self._is_busy and self._next_turn is None:
            self._next_turn = asyncio.get_running_loop().call_soon(self._called)

    def gone(self) -> "asyncio.Future[None]":
        """Done when the run has left this worker."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone.append(future)
        return future

    def drop(self) -> None:
        """Put the run out of memory: its code is closed, its activities are cancelled, and nobody sees their results."""
        self._is_out = True
        self._end_leg(None)
        self._attempts.drop()
        for waiting_for in (self._mail_again, self._alarm, self._next_turn, self._work):
            if waiting_for is not None:
                waiting_for.cancel()
        if self._replay is not None:
            self._replay.discard()
        self._tell_gone()

    def _leave(self, how: Left | BaseException) -> None:
        """The run has left this worker, or has to be dropped for an error."""
        if self._is_out:
            return
        self._is_out = True
        self._end_leg(how)
        if how is Left.PARKED:
            self._tell_gone()
        else:
            self.drop()
        assert self._on_left is not None
        self._on_left(how)

    def _end_leg(self, how: Left | BaseException | None) -> None:
        """Tell the middleware once how the run left; None: it was dropped."""
        if self._leg is None:
            return
        leg, self._leg = self._leg, None
        if how is Left.FINISHED and self.outcome is not None:
            leg.end(self.outcome.end, self.outcome.message if self.outcome.end is End.FAILED else "")
        elif isinstance(how, Left) and how is not Left.EXISTS:
            leg.end(how.value.capitalize())
        else:
            leg.end("Dropped", repr(how) if isinstance(how, BaseException) else "")

    def _tell_gone(self) -> None:
        self._tell_begun(False)
        for future in self._gone:
            if not future.done():
                future.set_result(None)
        self._gone.clear()

    def _begin(self) -> None:
        """Decode the input and replay the history: in slices, since a long one must not keep other runs waiting."""
        claimed, info = self._claimed, self._info()
        try:
            arguments = self._workflow.decode_input(claimed.input, claimed.form)
        except InputInvalidError as error:
            text = failure.encode(error)
            self._finish(Outcome(End.FAILED, failure=text, reason=Reason.INPUT_INVALID, message=error.message))
            return
        self._replay = Replay(
            self._workflow.program(arguments, info),
            started_at=claimed.started_at,
            monotonic=time.monotonic,
            step_seconds_max=self._engine.step_seconds_max,
            numbers=claimed.numbers,
            patches=[entry.name for entry in self._history if entry.kind is Kind.PATCHED],
        )
        self._log.debug("run_claimed", entries=len(claimed.history))
        self._engine.send_out(claimed.outbox)
        if (gap := _gap_in(claimed)) is not None:
            self._block(gap)
            return
        if len(self._history) > REPLAY_SLICE:
            self._await(self._replay_slices(self._replay))
            return
        try:
            issued = self._replay.advance(self._history, replaying=True)
        except BlockingError as error:
            self._block(error)
            return
        self._replayed(issued)
        self._turn()

    def _info(self) -> RunInfo:
        claimed = self._claimed
        return RunInfo(
            id=claimed.run_id,
            namespace=claimed.namespace,
            name=claimed.name,
            workflow=claimed.workflow,
            labels=claimed.labels,
            started_at=claimed.started_at,
        )

    async def _replay_slices(self, replay: Replay) -> None:
        history, issued = self._history, list[Command]()
        try:
            for begin in range(0, len(history), REPLAY_SLICE):
                issued.extend(replay.advance(history[begin : begin + REPLAY_SLICE], replaying=True))
                await asyncio.sleep(0)
        except BlockingError as error:
            self._block(error)
            return
        self._replayed([command for command in issued if replay.is_wanted(command)])

    def _replayed(self, issued: Sequence[Command]) -> None:
        """What is still wanted is taken up."""
        if self._claimed.history:
            assert self._replay is not None
            self._replay.skip(self._claimed.history[-1].position)
        # What was sent first is told first: an entry of a gate alone would not say that something was sent before.
        if not self._claimed.history and not self._claimed.numbers:
            self._tell_change(Change.STARTED)
        is_first = not self._history and any(isinstance(command, Post) for command in issued)
        if is_first:
            self._note(Kind.STARTED)
        self._take(issued)
        if self._retry is not None:
            self._go_on(self._retry)
        for entry in retried.fallen(self._claimed.history, self._retry.payload if self._retry else None):
            if entry.kind is Kind.ACTIVITY_COMPLETED:
                self._attempts.restore(entry)
        if self._losses > 0:
            self._attempts.note_losses(self._losses)
            self._writing.losses_noted = True
            self._losses = 0

    def _note(self, kind: Kind, name: str = "") -> None:
        """An entry that brings nothing, and tells a replay what it can't see otherwise.

        Started: the first leg has sent something, and must not send it again. Patched: the new path was taken.
        """
        replay = self._replay
        assert replay is not None
        entry = Entry(replay.position + 1, kind, max(self._engine.now(), replay.now), name=name)
        self._writing.add(entry)
        assert not replay.advance([entry]), "an entry that brings nothing asks for nothing"

    def _go_on(self, asked: InboxRow) -> None:
        """The run had failed: an entry says from where it goes on."""
        replay, now = self._replay, self._engine.now()
        assert replay is not None
        numbers = {kind: replay.numbers[kind] for kind in (ACTIVITY, TIMER, CHILD, OUTBOX)}
        entry = Entry(
            position=replay.position + 1,
            kind=Kind.RETRIED,
            at=max(now, replay.now, *(entry.at for entry in self._claimed.history)),
            payload=retried.payload_of(asked.payload, numbers, self._claimed.history),
            inbox=asked.number,
        )
        self._writing.add(entry)
        self._log.info("run_retried", from_position=json.loads(asked.payload)["from"])
        self._take(replay.advance([entry]))

    def _await(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what has to be awaited; then comes the next turn."""

        def done(task: "asyncio.Task[None]") -> None:
            self._work = None
            if not task.cancelled() and isinstance(error := task.exception(), Exception):
                self._leave(error)
            else:
                self._turn()

        self._work = asyncio.get_running_loop().create_task(work, name=f"run {self.run_id}")
        self._work.add_done_callback(done)

    # --- turns -------------------------------------------------------------------------------------------------

    def _called(self) -> None:
        self._next_turn = None
        self._turn()

    def _turn(self) -> None:
        """Deliver what lies ready, write it, start what may start; then wait to be called: by the journal's answer, the end
        of an activity, a moment, mail. No task waits for them: a run takes a handful of turns a step.
        """
        if self._is_busy or self._is_out or self._is_leaving or self._work is not None:
            return  # whoever is at it takes the next turn
        self._is_busy, self._is_wanted = True, False
        try:
            self._advance()
        except (Exception, asyncio.CancelledError) as error:
            self._leave(error)
        finally:
            self._is_busy = False
        if self._is_wanted:
            self.look()  # more lies ready; others are let in between

    def _advance(self) -> None:
        replay = self._replay
        assert replay is not None
        if self._committing.locked():
            self._submit()
            self._attempts.start(is_held=self._is_held())
            self._tell_settled()
            return
        if self._blocked is not None:
            self._block(self._blocked)
            return
        if self._has_news and self._is_there:
            self._await(self._read_mail())
            return
        try:
            self._deliver_ready(replay)
        except BlockingError as error:
            self._block(error)
            return
        if self._was_suspended and not self._delivery.is_suspended:
            self._was_suspended = False
            if replay.cancel_reason is None:  # nobody has resumed what is cancelled
                self._tell_change(Change.RESUMED)
        if (outcome := replay.outcome) is not None:
            if outcome.end is End.RECURRED:
                self._recur(replay, outcome)
            else:
                self._finish(outcome)
            return
        if (entries := replay.position - replay.began_at.get(POSITION, 0)) >= self._engine.history_entries_max:
            self._block(HistoryTooLongError(entries=entries, entries_max=self._engine.history_entries_max))
            return
        if self._is_idle():
            if self._engine.is_draining:
                self._attempts.note_left_running()
                self._let_go(Release())
                return
            wait = self._waiting()
            if not self._is_near(wait.wake_at):
                self._park(wait)
                return
        self._show_phase()
        self._submit()
        self._attempts.start(is_held=self._is_held())
        self._set_alarm()

    def _set_alarm(self) -> None:
        """Take a turn when a timer or backoff is due, or at once if more lies ready."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self._delivery.has_some(holds=self._is_held()):
            self._is_wanted = True
        elif (seconds := self._seconds_until_due()) is not None:
            self._alarm = asyncio.get_running_loop().call_later(seconds, self._turn)

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

    def _deliver_ready(self, replay: Replay) -> None:
        """One entry at a time, each time running the code until it waits again."""
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

    async def _checkpoint(
        self, number: int, transaction: ActivityTransaction, payload: str, at: datetime, outbox: Sequence[Outgoing]
    ) -> bool:
        """Commit the transaction of an activity with its entry, and with what the code asks for after that.

        Its position is given out when all earlier entries are durable, and later ones wait for the commit: else a history could
        have a gap where the journal lost what came before. The code runs ahead of the commit, as it does with each flush.
        """
        replay = self._replay
        assert replay is not None
        async with self._committing:
            try:
                await self._settle()
                is_held = await transaction.hold(self.run_id, self.claim_number)
            except BaseException:
                await asyncio.shield(transaction.rollback())
                raise
            if not is_held or self._is_out or self._is_leaving:
                await asyncio.shield(transaction.rollback())
                return False
            sent = self._run_ahead(replay, Ready(at, 1, number, Kind.ACTIVITY_COMPLETED, payload), outbox)
            # The commit is not cancelled with whoever waits: it may have been done.
            committing = asyncio.ensure_future(
                transaction.commit(self.run_id, self.claim_number, sent.write.entries, sent.write.outbox)
            )
            try:
                await asyncio.shield(committing)
            except StoreUnavailableError as error:
                self._leave(error)  # it may have been done: only a burial makes sure that it will not be yet
                return False
        if self._is_out:
            return False
        try:
            self._written(sent, Flushed())
        except (Exception, asyncio.CancelledError) as error:
            self._leave(error)
        self.look()
        return True

    def _run_ahead(self, replay: Replay, ready: Ready, outbox: Sequence[Outgoing]) -> Sent:
        """Deliver the end of an activity that is about to be committed; all that has to be written with it."""
        self._is_busy = True
        try:
            entry = self._entry(replay, ready, self._engine.now())
            self._writing.add(entry)
            self._tell(entry)
            for outgoing in outbox:
                self._writing.post(outgoing)
            try:
                self._take(replay.advance([entry]))
            except BlockingError as error:
                self._blocked = error  # it happened all the same
        finally:
            self._is_busy = False
        write = self._writing.take_entries()
        commands, self._writing.commands = self._writing.commands, []
        return Sent(write, commands, self._attempts.hand_over(), has_cancels(commands))

    async def _settle(self) -> None:
        """Until all that has been delivered is durable."""
        if not self._is_settled:
            self._settled = asyncio.get_running_loop().create_future()
            self.look()
            await self._settled

    @property
    def _is_settled(self) -> bool:
        return self._writing.is_all_written and self._writing.is_empty and self._is_there

    def _tell_settled(self) -> None:
        if self._is_settled and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _entry(self, replay: Replay, ready: Ready, now: datetime) -> Entry:
        command: RunActivity | StartTimer | StartChild | Ask | None = None
        if ready.kind is Kind.TIMER_FIRED:
            command = replay.open_timer(ready.answers)
        elif ready.kind is Kind.ANSWERED:
            command = replay.open_ask(ready.answers)
        elif ready.kind in CHILD_ENDS:
            command = replay.open_child(ready.answers)
        elif ready.answers:
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
            case Kind.CHILD_COMPLETED | Kind.CHILD_FAILED | Kind.CHILD_CANCELLED:
                self._log.debug("child_ended", child=entry.name, number=entry.number, how=entry.kind)
            case Kind.EVENT_RECEIVED:
                self._log.debug("event_received", number=entry.inbox)
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
                case Post():
                    self._writing.post(command.outgoing)
                case Patch():
                    self._note(Kind.PATCHED, command.id)
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
        if self._delivery.has_some(holds=self._is_held()) or self._has_news or self._writing.has_cancels:
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
        assert self._replay is not None
        return waiting.of(
            self._delivery.timers,
            self._attempts.backoffs(),
            self._open_timeout(),
            self._replay.mailbox.awaited(),
            [f"{child.run_name!r} of workflow {child.name!r}" for child in self._replay.open_children()],
            [asked.name.partition(" ")[2] for asked in self._replay.open_asks()],
        )

    def _counted_from(self) -> datetime:
        """When the run's own timeout began: a retry gives it anew."""
        if self._retry is not None:
            return self._engine.now()
        retries = [entry.at for entry in self._history if entry.kind is Kind.RETRIED]
        return retries[-1] if retries else self._claimed.started_at

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
        soonest = self._attempts.seconds_until_start(is_held=is_held)
        if not is_held:
            for moment in (self._delivery.next_timer_at, self._open_timeout()):
                if moment is not None:
                    left = max(0.0, (moment - self._engine.now()).total_seconds())
                    soonest = left if soonest is None else min(soonest, left)
        return soonest

    # --- writing ------------------------------------------------------------------------------------------------

    def _show_phase(self) -> None:
        """Compensating is shown as soon as it begins."""
        phase = Phase.COMPENSATING if self._attempts.is_compensating else Phase.RUNNING
        if phase is not self._phase:
            reason = Reason.COMPENSATING if phase is Phase.COMPENSATING else Reason.NONE
            self._writing.keep = Keep(phase, reason)
            self._phase = phase

    def _submit(self, then: LetGo | None = None) -> None:
        """Hand over what there is to write; what acts follows when it is durable."""
        writing, attempts = self._writing, self._attempts
        failed, attempts.failed = attempts.failed, []
        commands, writing.commands = writing.commands, []
        if (write := writing.take(failed, then)) is None:
            self._act(commands)
            self._is_wanted |= has_cancels(commands)  # the run may be idle now
            if writing.is_all_written:
                attempts.durable(attempts.hand_over())  # nothing has to be written before they start
            return
        sent = Sent(write, commands, attempts.hand_over(), has_cancels(commands))
        self._send(sent)

    def _send(self, sent: Sent) -> None:
        self._writing.sent(sent)
        self._engine.journal.write(sent.write, partial(self._answered, sent))

    def _answered(self, sent: Sent, answer: Flushed | RomancyError) -> None:
        """The journal's answer to a write; called once for each, in their order."""
        self._writing.answered(sent)
        if self._is_out or (self._alone is not None and sent is not self._alone):
            return
        try:
            if isinstance(answer, RomancyError):
                self._writing.begin = sent.write.begin  # refused with all the rest of it
                self._not_written(answer)
            elif not answer.began:
                self._leave(Left.EXISTS)
            else:
                self._written(sent, answer)
        except (Exception, asyncio.CancelledError) as error:
            self._leave(error)

    def _written(self, sent: Sent, answer: Flushed) -> None:
        self._tell_begun(True)
        self.is_suspect = self.is_suspect and not sent.write.entries
        self._attempts.durable(sent.activities)
        self._act(sent.commands)
        if sent.write.outbox:
            self._engine.send_out(
                [OutboxRow(self.run_id, each.number, each.kind, each.payload) for each in sent.write.outbox]
            )
        if isinstance(sent.write.then, LetGo):
            self._is_leaving = False
            if answer.stays:
                self._has_news = True
                self._turn()
            else:
                self._left(sent.write.then)
            return
        self._is_wanted |= sent.has_cancels  # the run may be idle now
        if self._committing.locked():
            self.look()
            return
        if self._has_news or self._writing.has_cancels:
            # To be looked at before anything starts: what the outside may stop, and what the code has given up. That may be
            # durable already, by the next answer of the same flush.
            self.look()
            return
        # Straight from here: this is most of what a run does.
        self._is_busy = True  # what ends at once is delivered below
        try:
            if not self._is_leaving:
                self._attempts.start(is_held=self._is_held())
        finally:
            self._is_busy = False
        if self._is_wanted or any(each.is_waiting for each in sent.activities):
            self._turn()

    def _not_written(self, error: RomancyError) -> None:
        if not isinstance(error, PayloadRefusedError) or self._alone is not None:
            self._leave(error)
            return
        # What the run has to store is refused: it fails alone, with what can be stored.
        self._log.error("payload_refused", error=error.message)
        self._attempts.drop()  # what led to them is not there
        text = failure.encode(error)
        self.outcome = Outcome(End.FAILED, failure=text, reason=Reason.PAYLOAD_REFUSED, message=error.message)
        self._alone = Sent(
            self._writing.alone(_finish(self.outcome), self._closing(self.outcome)), [], [], has_cancels=False
        )
        self._is_leaving = True
        self._send(self._alone)

    def _let_go(self, then: LetGo) -> None:
        self._is_leaving = True
        self._submit(then)

    def _left(self, then: LetGo) -> None:
        """The run is not this worker's any more."""
        match then:
            case Park() if self._is_recurring:
                self._log.debug("run_recurred", detail=then.message)
                self._leave(Left.RELEASED)
            case Park():
                self._phase, self.parked_until = then.phase, then.wake_at
                self._log.debug("run_parked", phase=then.phase, reason=then.reason, detail=then.message)
                self._leave(Left.PARKED)
            case Finish():
                self._tell_finished()
                self._leave(Left.FINISHED)
            case Block():
                metrics.RUNS_BLOCKED.labels(self._claimed.workflow, then.reason).inc()
                self._leave(Left.BLOCKED)
            case Release():
                self._leave(Left.RELEASED)
            case _:
                assert_never(then)

    def _park(self, wait: waiting.Waiting) -> None:
        waits_as = Phase.COMPENSATING if self._attempts.is_compensating else Phase.WAITING
        phase = Phase.SUSPENDED if self._is_held() else waits_as
        message = waiting.storable(wait.message)
        if phase is Phase.SUSPENDED and not self._was_suspended:
            self._tell_change(Change.SUSPENDED)
        self._let_go(Park(self._delivery.seen, wait.wake_at, phase=phase, reason=wait.reason, message=message))

    def _finish(self, outcome: Outcome) -> None:
        self.outcome = outcome
        for outgoing in self._closing(outcome):
            self._writing.post(outgoing)
        self._let_go(_finish(outcome))

    def _recur(self, replay: Replay, outcome: Outcome) -> None:
        """Put the run away, and have the next iteration begin when that is durable.

        Its claim stands in what is sent: if somebody claims the run before, he comes to the same end, and sends it anew.
        """
        self._is_recurring = True
        asked = {
            "claim": self.claim_number,
            "archive": str(iteration_id_of(self.run_id, self.claim_number)),
            "input": outcome.payload,
            "numbers": replay.numbers,
            "seen": self._delivery.seen,
            "kept": sorted({*replay.mailbox.kept(), *self._delivery.left()}),
        }
        self._writing.post(Outgoing(-self.claim_number, OutboxKind.RECUR, json.dumps(asked)))
        message = f"iteration {replay.numbers[ITERATION]} begins"
        self._let_go(Park(self._delivery.seen, None, reason=Reason.RECURRED, message=message))

    def _closing(self, outcome: Outcome) -> list[Outgoing]:
        """What a run's end sends: it is told of, and what it has open elsewhere is closed."""
        told = [self._told(OF_END[outcome.end], outcome)] if self._engine.tells_lifecycle else []
        if not self._claimed.is_child and (self._replay is None or not self._replay.has_posted):
            return told
        return [*told, Outgoing(ended_number(self.claim_number), OutboxKind.ENDED)]

    def _tell_change(self, change: Change) -> None:
        """Emit an event about the run itself, if that is wanted, in the write of the change."""
        if self._engine.tells_lifecycle:
            self._writing.post(self._told(change))

    def _told(self, change: Change, outcome: Outcome | None = None) -> Outgoing:
        claimed = self._claimed
        return lifecycle.told(
            change,
            run_id=self.run_id,
            namespace=claimed.namespace,
            name=claimed.name,
            workflow=claimed.workflow,
            claim=self.claim_number,
            at=claimed.started_at if change is Change.STARTED else self._engine.now(),
            outcome=outcome,
        )

    def _tell_finished(self) -> None:
        outcome = self.outcome
        assert outcome is not None
        name, seconds = self._claimed.workflow, (self._engine.now() - self._claimed.started_at).total_seconds()
        metrics.child(metrics.RUNS_FINISHED, name, outcome.end).inc()
        metrics.child(metrics.RUN_SECONDS, name, outcome.end).observe(seconds)
        detail = {key: value for key, value in (("reason", outcome.reason), ("detail", outcome.message)) if value}
        self._log.info("run_finished", outcome=outcome.end, **detail)

    def _block(self, error: BlockingError) -> None:
        self._log.error("run_blocked", reason=error.reason, error=error.message, hint=error.hint)
        self._let_go(Block(error.reason, waiting.storable(error.message), self._engine.build_id))

    def _tell_begun(self, has_begun: bool) -> None:
        if has_begun and not self._is_there:
            self._is_there = True
            self._is_wanted |= self._has_news
        if self._on_begun is not None:
            self._on_begun(has_begun)
            self._on_begun = None


def _retry_of(claimed: ClaimedRun) -> InboxRow | None:
    """The message that the run is to be retried, if that is no entry of its history yet."""
    newest = max(
        (row for row in claimed.inbox if row.kind is MessageKind.RETRY), key=lambda row: row.number, default=None
    )
    is_written = newest is not None and any(
        entry.kind is Kind.RETRIED and entry.inbox == newest.number for entry in claimed.history
    )
    return None if is_written else newest


def _gap_in(claimed: ClaimedRun) -> HistoryIncompleteError | None:
    """What is wrong with a history that has lost entries."""
    before = claimed.numbers.get(POSITION, 0)
    for entry in claimed.history:
        if entry.position != before + 1:
            return HistoryIncompleteError(after=before, found=entry.position)
        before = entry.position
    return None


def _finish(outcome: Outcome) -> Finish:
    phase = {End.SUCCEEDED: Phase.SUCCEEDED, End.FAILED: Phase.FAILED, End.CANCELLED: Phase.CANCELLED}[outcome.end]
    return Finish(phase, outcome.reason, waiting.storable(outcome.message), outcome.payload, outcome.failure)
