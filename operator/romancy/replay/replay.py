"""A replay: one run's code driven by its history, one entry at a time, live as after a crash."""

import json
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, assert_never

from romancy.errors import NeverAwaitedError, NonDeterminismError, RunDiscarded
from romancy.model import retried
from romancy.model.command import (
    Ask,
    CancelActivity,
    CancelTimer,
    Command,
    Outcome,
    Patch,
    Post,
    RunActivity,
    StartChild,
    StartTimer,
    WriteLog,
)
from romancy.model.history import Entry, Kind
from romancy.model.outbox import OutboxKind, Outgoing
from romancy.replay import calls
from romancy.replay.loop import RunFuture, RunTask, new_loop
from romancy.replay.mailbox import Mailbox
from romancy.replay.matching import ACTIVITY, ASK, CHILD, TIMER, Key, Numbered, check, key_of

# What refused to be closed when its run was discarded: never collected, since it would run its `finally` in another run.
_STUBBORN: Final[list[object]] = []
_FAILURES: Final = frozenset({Kind.ACTIVITY_FAILED, Kind.CHILD_FAILED, Kind.CHILD_CANCELLED})
OUTBOX: Final = "outbox"
ITERATION: Final = "iteration"
POSITION: Final = "position"


class EndFuture(RunFuture):
    """The await of something that an entry says the end of. Cancelled, it may ask for that, and hears first how it ended."""

    _replay: "Replay"
    _message: object = None
    is_cancel_asked = False

    def end(self, entry: Entry, decode: Callable[[Entry], object]) -> None:
        """Resolve it by the entry that says how it ended."""
        if self.is_cancel_asked or entry.kind is Kind.ACTIVITY_CANCELLED:
            RunFuture.cancel(self, self._message)
            return
        value = decode(entry)
        if entry.kind in _FAILURES and isinstance(value, BaseException):
            self.set_exception(value)
        else:
            self.set_result(value)

    def _ask_cancel(self, ask: Callable[[], None], msg: object) -> bool:
        if not self.is_cancel_asked:
            self.is_cancel_asked, self._message = True, msg
            ask()
        return True


class ActivityFuture(EndFuture):
    """The await of an activity. A shielded one is not cancelled but asks."""

    _command: RunActivity

    @classmethod
    def of(cls, replay: "Replay", command: RunActivity) -> "ActivityFuture":
        future = cls(loop=replay.loop)
        future._replay, future._command = replay, command
        return future

    def cancel(self, msg: object = None) -> bool:
        if self.done():
            return False
        if self._command.is_shielded:
            return self._ask_cancel(lambda: self._replay.ask_cancel(self._command), msg)
        if super().cancel(msg):
            self._replay.abandon(self._command)
            return True
        return False


class ChildFuture(EndFuture):
    """The await of a child: cancelled, it asks the child to end."""

    _command: StartChild

    @classmethod
    def of(cls, replay: "Replay", command: StartChild) -> "ChildFuture":
        future = cls(loop=replay.loop)
        future._replay, future._command = replay, command
        return future

    def cancel(self, msg: object = None) -> bool:
        return not self.done() and self._ask_cancel(lambda: self._replay.cancel_child(self._command), msg)


class AskFuture(RunFuture):
    """The await of an answer; whoever gives it up may have something to send for that."""

    on_cancel: Callable[[], None] | None = None

    def cancel(self, msg: object = None) -> bool:
        if super().cancel(msg):
            if self.on_cancel is not None:
                self.on_cancel()
            return True
        return False


class _Open:
    """A command that is asked for and not answered."""

    __slots__ = ("command", "decode", "future", "on_completed", "sent")

    def __init__(
        self,
        command: Numbered,
        future: ActivityFuture | ChildFuture | AskFuture | None = None,
        decode: Callable[[Entry], object] | None = None,
        on_completed: Callable[[Entry], None] | None = None,
        sent: Outgoing | None = None,
    ) -> None:
        self.command, self.future, self.decode, self.on_completed = command, future, decode, on_completed
        self.sent = sent  # what asks for it


class Replay:
    """One run in memory.

    Args:
        program: makes the coroutine that runs the workflow to its end and returns the outcome; called once.
        started_at: the run's clock before its first entry, by the database's clock.
        monotonic: only to bound the time of a step; it decides nothing else.
        step_seconds_max: the longest step.
        numbers: what an iteration counts on from, so that its commands are not taken for those of the one before.
        patches: the gates at which this history took the new path.

    Attributes:
        outcome: how the run ended; None while it is open.
        position: of the last entry delivered; they go on from one iteration to the next.
        is_replaying: while entries come from storage.
        cancel_reason: payload of the first cancel that was delivered.
        failure: what the core itself found wrong with the code; the function was cancelled for it.
        is_closing: the workflow function has ended, or compensations run: no cancel interrupts any more.
    """

    def __init__(
        self,
        program: Callable[["Replay"], Coroutine[Any, Any, Outcome]],
        *,
        started_at: datetime,
        monotonic: Callable[[], float],
        step_seconds_max: float = 10.0,
        numbers: Mapping[str, int] | None = None,
        patches: Iterable[str] = (),
    ) -> None:
        self.loop = new_loop(self, monotonic=monotonic, step_seconds_max=step_seconds_max)
        self.started_at = started_at
        self.now = started_at
        self.position = (numbers or {}).get(POSITION, 0)
        self.outcome: Outcome | None = None
        self.cancel_reason: str | None = None
        self.failure: Exception | None = None
        self.is_closing = False
        self.is_replaying = False
        self._program = program
        self._root: RunTask | None = None
        self.began_at = dict(numbers or {})
        self._numbers: dict[str, int] = {ACTIVITY: 0, TIMER: 0, CHILD: 0, OUTBOX: 0} | self.began_at
        self._groups: set[str] = set()  # that the run has joined
        self._gates: dict[str, bool] = dict.fromkeys(patches, True)
        self._open: dict[Key, _Open] = {}
        self._abandoned: dict[Key, Numbered] = {}  # cancelled by the code: late answers are seen by nobody
        self._issued: list[Command] = []
        self._calls: calls.Calls = calls.Calls()
        self._is_posted = False  # what the code sends in this leg was written with the entry that led to it
        self.mailbox = Mailbox(self.loop, self.post)

    # --- driven by the worker ---------------------------------------------------------------------------------------

    @property
    def is_discarded(self) -> bool:
        return self.loop.is_discarded

    @property
    def root(self) -> RunTask:
        """The task of the workflow function."""
        assert self._root is not None
        return self._root

    def advance(self, entries: Sequence[Entry] = (), *, replaying: bool = False) -> list[Command]:
        """Deliver entries one by one, each time running the code until it waits again.

        The first call runs the code from its beginning, also with no entries.

        Args:
            entries: in the order of their positions, directly after those delivered before.
            replaying: they come from storage: log lines were written before.

        Returns:
            What the code asked for during this call and still wants, in the order in which it asked.

        Raises:
            NonDeterminismError: the code does not fit the history.
            StepTooLongError: a step has no end.
        """
        assert not self.is_discarded
        self.is_replaying = replaying and bool(entries)
        self._is_posted = self.is_replaying
        with self.loop.entered():
            if self._root is None:
                self._begin()
                if entries and self.has_posted and entries[0].kind is not Kind.STARTED:
                    raise NonDeterminismError(
                        position=entries[0].position,
                        history=f"{entries[0]}, and nothing that was sent before it",
                        code="something to be sent (a subscription, a child, a message) before it awaits that",
                    )
            for index, entry in enumerate(entries):
                # What stands no more since the run was retried is not among them.
                assert entry.position > self.position, f"entry {entry.position} after {self.position}"
                self.position = entry.position
                self.now = max(self.now, entry.at)
                self.loop.set_time((self.now - self.started_at).total_seconds())
                self._deliver(entry)
                self._run()
                # The step that follows the last stored entry is the first whose log lines nobody has written yet, if the
                # flush that held it came through; so it is silent as well: lines are at most once.
                self.is_replaying = replaying and index + 1 < len(entries)
        issued, self._issued = self._issued, []
        return [command for command in issued if self.is_wanted(command)]

    def open_commands(self) -> list[Numbered]:
        """All that is asked for and not answered, in the order in which it was asked."""
        return list(self._each_open())

    def _each_open(self) -> Iterator[Numbered]:
        return (each.command for each in self._open.values())

    @property
    def has_posted(self) -> bool:
        """The code has sent something: it may have something open elsewhere."""
        return self._numbers[OUTBOX] > self.began_at.get(OUTBOX, 0)

    @property
    def numbers(self) -> dict[str, int]:
        """What the next iteration counts on from."""
        return {**self._numbers, POSITION: self.position, ITERATION: self.began_at.get(ITERATION, 1) + 1}

    def open_timer(self, number: int) -> StartTimer | None:
        """The timer of that number, if the code still waits for it."""
        each = self._open.get((TIMER, number))
        return each.command if each is not None and isinstance(each.command, StartTimer) else None

    def is_cancel_asked(self, number: int) -> bool:
        """True if the code has cancelled this shielded activity, and waits to hear how it ended."""
        each = self._open.get((ACTIVITY, number))
        return each is not None and isinstance(each.future, ActivityFuture) and each.future.is_cancel_asked

    def open_ask(self, number: int) -> Ask | None:
        """What is asked under that number and not answered."""
        each = self._open.get((ASK, number)) or self._abandoned.get((ASK, number))
        command = each.command if isinstance(each, _Open) else each
        return command if isinstance(command, Ask) else None

    def open_asks(self) -> list[Ask]:
        """All that is asked and not answered."""
        return [each.command for each in self._open.values() if isinstance(each.command, Ask)]

    def open_child(self, number: int) -> StartChild | None:
        """The child of that number, if it is not known how it ended."""
        each = self._open.get((CHILD, number))
        return each.command if each is not None and isinstance(each.command, StartChild) else None

    def open_children(self) -> list[StartChild]:
        """Those of which it is not known how they ended."""
        return [each.command for each in self._open.values() if isinstance(each.command, StartChild)]

    def discard(self) -> None:
        """Put the run out of memory: its code is closed here and now, and can do nothing any more."""
        if not self.is_discarded:
            _STUBBORN.extend(self.loop.discard())
            self._calls.close()
            self._open.clear()
            self.mailbox.discard()

    # --- asked by the code ------------------------------------------------------------------------------------------

    def issue_activity(
        self,
        name: str,
        arguments: str,
        digest: str,
        *,
        definition: object,
        decode: Callable[[Entry], object],
        is_shielded: bool = False,
        is_compensation: bool = False,
        on_completed: Callable[[Entry], None] | None = None,
    ) -> ActivityFuture:
        """Ask for an activity.

        Args:
            decode: the value of a completed entry, or the exception of a failed one; raises BlockingError if the
                code's types don't fit it any more.
            is_shielded: it has a compensation.
            on_completed: called when its completion is delivered, whatever the code awaits by then.
        """
        self.check_open()
        command = RunActivity(
            self._next(ACTIVITY), name, arguments, digest, is_shielded, is_compensation, definition=definition
        )
        future = ActivityFuture.of(self, command)
        self._open[ACTIVITY, command.number] = _Open(command, future, decode, on_completed)
        self._issue(command)
        return future

    def next_child(self) -> int:
        """The number of the child that is started next."""
        self.check_open()
        return self._numbers[CHILD] + 1

    def start_child(self, command: StartChild, payload: str, *, decode: Callable[[Entry], object]) -> ChildFuture:
        """Ask for another run.

        Args:
            command: with the number of `next_child`.
            payload: what is sent.
            decode: what it returned, or the exception that says how else it ended.
        """
        number = self._next(CHILD)
        assert command.number == number
        future = ChildFuture.of(self, command)
        self._open[CHILD, number] = _Open(command, future, decode)
        self.post(OutboxKind.START_CHILD, payload)
        return future

    def cancel_child(self, command: StartChild) -> None:
        """Ask a child to end; how it ended is heard as ever."""
        self.post(OutboxKind.CANCEL_CHILD, json.dumps({"id": str(command.run_id)}))

    def ask(self, kind: OutboxKind, name: str, payload: str, digest: str) -> AskFuture:
        """Send something, and await the JSON text of its answer.

        A message that answers a Take nobody waits for any more is given back.
        """
        self.check_open()
        command = Ask(self.next_post(), name, digest)
        future = AskFuture(loop=self.loop)
        self._open[ASK, command.number] = _Open(command, future, sent=Outgoing(command.number, kind, payload))
        assert self.post(kind, payload) == command.number
        future.on_cancel = partial(self._give_up, command, kind)
        return future

    def _give_up(self, command: Ask, kind: OutboxKind) -> None:
        if not self.is_discarded and self._open.pop((ASK, command.number), None) is not None:
            self._abandoned[ASK, command.number] = command
            if kind is OutboxKind.TAKE:
                self.post(OutboxKind.UNTAKE, json.dumps({"number": command.number}))

    def start_timer(self, when: float) -> int:
        """Host of the loop: a timer of asyncio is a command."""
        self.check_open()
        try:
            due_at = self.started_at + timedelta(seconds=when)
        except (OverflowError, ValueError):
            raise ValueError(f"a timer of {when:g} s lies beyond the year 9999") from None
        number = self._next(TIMER)
        # The digest is the delay, not the moment: the moment moves with the answers before it.
        command = StartTimer(number, due_at, f"{when - self.loop.time():.6f}")
        self._open[TIMER, number] = _Open(command)
        self._issue(command)
        return number

    def cancel_timer(self, number: int) -> None:
        """Host of the loop: a cancelled timer leaves no entry."""
        if (each := self._open.pop((TIMER, number), None)) is not None:
            self._abandoned[TIMER, number] = each.command
            self._issue(CancelTimer(number))

    def abandon(self, command: RunActivity) -> None:
        """The code has cancelled an activity without compensation."""
        if self._open.pop((ACTIVITY, command.number), None) is not None:
            self._abandoned[ACTIVITY, command.number] = command
            self._issue(CancelActivity(command.number, is_shielded=False))

    def ask_cancel(self, command: RunActivity) -> None:
        """The code has cancelled an activity with compensation: the worker is asked, and answers by an entry."""
        self._issue(CancelActivity(command.number, is_shielded=True))

    def post(self, kind: OutboxKind, payload: str) -> int:
        """Put something into the outbox; its number. While replaying it was put there before."""
        self.check_open()
        if kind is OutboxKind.JOIN:
            self._groups.add(json.loads(payload)["group"])
        elif kind is OutboxKind.LEAVE:
            group = json.loads(payload)["group"]
            self._groups = set() if group is None else self._groups - {group}
        return self._post(kind, payload)

    def skip(self, position: int) -> None:
        """What comes next stands after this position: what is between stands no more."""
        self.position = max(self.position, position)

    def _post(self, kind: OutboxKind, payload: str) -> int:
        number = self._next(OUTBOX)
        if not self._is_posted:
            self._issue(Post(Outgoing(number, kind, payload)))
        return number

    def next_post(self) -> int:
        """The number of what is put into the outbox next."""
        self.check_open()
        return self._numbers[OUTBOX] + 1

    def patched(self, id: str) -> bool:
        """Whether to take the new path at a gate: yes, unless this run has passed it by the old one."""
        self.check_open()
        if id not in self._gates:
            # What ran before this code came is the past, whether it left an entry or not.
            self._gates[id] = not self._is_posted
            if self._gates[id]:
                self._issue(Patch(id))
        return self._gates[id]

    def write_log(self, level: str, event: str, fields: Iterable[tuple[str, object]] = ()) -> None:
        """A line of the workflow's own: silent while replaying."""
        self.check_open()
        if not self.is_replaying:
            self._issued.append(WriteLog(level, event, tuple(fields)))

    def report(self, message: str, error: BaseException | None) -> None:
        """Host of the loop: something went wrong where nobody awaits, as with an exception that is never retrieved."""
        if not self.is_replaying:
            self._issued.append(WriteLog("error", message, (("error", repr(error)),)))

    def track_call(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> calls.Call:
        """Remember a call until it is awaited."""
        return self._calls.track(name, coroutine)

    def check_calls(self) -> None:
        """At the end of the workflow function: a call that was dropped in its last step is an error as well.

        Raises:
            NeverAwaitedError: there is one.
        """
        if (dropped := self._calls.dropped()) is not None:
            raise NeverAwaitedError(dropped)

    def check_open(self) -> None:
        """Raises RunDiscarded once the run is out of memory."""
        if self.is_discarded:
            raise RunDiscarded

    # --- transitions ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._root = self.loop.create_task(self._program(self), name="workflow", context=self.loop.context)
        self._run()

    def _run(self) -> None:
        self.loop.run_ready()
        if not self.root.done() and self.failure is None:
            self._refuse_dropped()
        if not self.root.done():
            self.mailbox.settle()
        elif self.outcome is None:
            self.outcome = self.root.result()

    def _refuse_dropped(self) -> None:
        if not self._calls.waiting or (dropped := self._calls.dropped(looks_max=calls.LOOKS_A_STEP_MAX)) is None:
            return
        self.failure = NeverAwaitedError(dropped)
        if not self.is_closing:
            self.root.cancel()
            self.loop.run_ready()

    def _deliver(self, entry: Entry) -> None:
        match entry.kind:
            case Kind.STARTED | Kind.PATCHED:
                pass
            case Kind.RETRIED:
                self._go_on(entry)
            case Kind.CANCEL_REQUESTED:
                self._cancel(entry)
            case Kind.EVENT_RECEIVED:
                self.mailbox.deliver(entry)
            case Kind.TIMER_FIRED:
                if self._answered(entry) is not None:
                    self.loop.fire(entry.number)
            case Kind.ACTIVITY_COMPLETED | Kind.ACTIVITY_FAILED | Kind.ACTIVITY_CANCELLED:
                self._end_activity(entry)
            case Kind.CHILD_COMPLETED | Kind.CHILD_FAILED | Kind.CHILD_CANCELLED:
                self._end_child(entry)
            case Kind.ANSWERED:
                self._answer(entry)
            case _:
                assert_never(entry.kind)

    def _go_on(self, entry: Entry) -> None:
        """The run had ended, and is open again: what its end has closed elsewhere is opened anew."""
        self._numbers.update(retried.asked_of(entry))
        if self.root.done():
            return
        self.mailbox.subscribe_anew()
        for group in sorted(self._groups):
            self._post(OutboxKind.JOIN, json.dumps({"group": group}))
        for each in self._open.values():
            if each.sent is not None and not self._is_posted:
                self._issue(Post(each.sent))

    def _end_activity(self, entry: Entry) -> None:
        if (each := self._answered(entry)) is None:
            return
        assert each.future is not None
        assert each.decode is not None
        if entry.kind is Kind.ACTIVITY_COMPLETED and each.on_completed is not None:
            each.on_completed(entry)
        assert not isinstance(each.future, AskFuture)
        self.loop.context.run(each.future.end, entry, each.decode)

    def _answer(self, entry: Entry) -> None:
        if (each := self._answered(entry)) is not None:
            assert each.future is not None
            self.loop.context.run(each.future.set_result, entry.payload)
        elif "taken" in (told := json.loads(entry.payload)):
            self.post(OutboxKind.GIVE_BACK, json.dumps({"event": told["taken"]}))

    def _end_child(self, entry: Entry) -> None:
        if (each := self._answered(entry)) is None:
            return
        assert each.future is not None
        assert each.decode is not None
        assert not isinstance(each.future, AskFuture)
        self.loop.context.run(each.future.end, entry, each.decode)

    def _cancel(self, entry: Entry) -> None:
        if self.cancel_reason is not None:
            return  # cancelled once: a second cancel would interrupt the clean-up that the first one asked for
        self.cancel_reason = entry.payload
        if not self.is_closing and not self.root.done():
            self.root.cancel()

    def _answered(self, entry: Entry) -> _Open | None:
        """Move one command from open to answered; None if the code has given it up."""
        key = key_of(entry)
        if (command := self._abandoned.pop(key, None)) is not None:
            check(entry, command, ())
            return None
        each = self._open.get(key)
        if (warning := check(entry, each.command if each else None, self._each_open())) is not None:
            self._issued.append(WriteLog("warning", "arguments_differ_from_history", (("detail", warning),)))
        return self._open.pop(key)

    def _issue(self, command: Command) -> None:
        self.loop.turns = 0
        self._issued.append(command)

    def _next(self, kind: str) -> int:
        self._numbers[kind] += 1
        return self._numbers[kind]

    def is_wanted(self, command: Command) -> bool:
        """False for what the code has given up, or has been answered, since it asked."""
        match command:
            case RunActivity():
                return (ACTIVITY, command.number) in self._open
            case StartTimer():
                return (TIMER, command.number) in self._open
            case CancelActivity(is_shielded=True):
                return (ACTIVITY, command.number) in self._open
            case CancelActivity() | CancelTimer() | WriteLog() | Post() | Patch():
                return True
            case _:
                assert_never(command)
