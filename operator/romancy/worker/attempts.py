"""The activities that a run has open: when they start, what a failed attempt means, how they are cancelled."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Protocol

import structlog

from romancy.base import metrics
from romancy.errors import WorkerLostError
from romancy.model import failure
from romancy.model.command import CancelActivity, RunActivity
from romancy.model.history import Attempt, Entry, Kind
from romancy.model.outbox import Outgoing
from romancy.model.retry import RetryPolicy
from romancy.sdk.activity import Activity, ActivityInfo
from romancy.store.interface import ActivityTransaction, ClaimedRun
from romancy.worker.activities import Activities, Ended, is_retryable
from romancy.worker.delivery import Delivery
from romancy.worker.waiting import Backoff

LOOK_AGAIN_SECONDS = 0.2
_LOST = f"{WorkerLostError.__module__}.{WorkerLostError.__qualname__}"


class Host(Protocol):
    """What is needed of the worker."""

    activities: Activities
    random: Random
    retry: RetryPolicy  # of activities that have none of their own
    is_draining: bool

    def now(self) -> datetime:
        """The database's clock, as well as this process knows it."""
        ...

    def may_start_activities(self) -> bool:
        """False while the lease is not certain."""
        ...

    async def begin_transaction(self) -> ActivityTransaction:
        """For an activity that writes with its checkpoint."""
        ...


@dataclass(slots=True, eq=False)
class Open:
    """An activity that is asked for: waiting for its flush, in backoff, running, or held by a suspension."""

    command: RunActivity
    failed: int = 0  # attempts
    not_before: datetime | None = None
    error: str = ""
    is_lost: bool = False  # an attempt of a dead worker may have done it: it must be run to learn
    is_handed_over: bool = False  # what it waits for is on its way to the database
    is_durable: bool = False
    is_cancel_asked: bool = False
    has_ended: bool = False  # which is not delivered yet
    task: "asyncio.Task[Ended] | None" = None

    @property
    def is_waiting(self) -> bool:
        """It could not be started."""
        return self.task is None and not self.has_ended

    @property
    def definition(self) -> Activity[..., Any]:
        assert isinstance(self.command.definition, Activity)
        return self.command.definition


class Checkpoint(Protocol):
    """Commits the transaction of an activity with its entry, and delivers that; False: the run is not ours any more."""

    async def __call__(
        self, number: int, transaction: ActivityTransaction, payload: str, at: datetime, outbox: Sequence[Outgoing], /
    ) -> bool: ...


class _Transacts:
    """Transactions for one activity."""

    def __init__(self, host: Host, commit: Callable[..., Awaitable[bool]]) -> None:
        self._host, self._commit = host, commit

    async def begin(self) -> ActivityTransaction:
        return await self._host.begin_transaction()

    async def commit(
        self, transaction: ActivityTransaction, payload: str, at: datetime, outbox: Sequence[Outgoing]
    ) -> bool:
        return await self._commit(transaction, payload, at, outbox)


class Attempts:
    """The open activities of one run.

    Args:
        delivery: where their ends go.
        changed: called when something ended.
        run_log: lines about this run.
        checkpoint: commits a transactional activity with its entry, and delivers that.
    """

    def __init__(
        self,
        host: Host,
        run: ClaimedRun,
        delivery: Delivery,
        changed: Callable[[], None],
        run_log: "structlog.typing.FilteringBoundLogger",
        checkpoint: "Checkpoint",
    ) -> None:
        self._checkpoint = checkpoint
        self._host, self._run, self._delivery, self._changed, self._log = host, run, delivery, changed, run_log
        self._last = {row.number: row for row in run.attempts}
        self._lost = {row.number for row in run.attempts if failure.describe(row.failure).type == _LOST}
        self._is_dropped = False
        self.open: dict[int, Open] = {}
        # The same by what they do, since thousands may be open: not running and not ended; running; compensations.
        self._waiting: dict[int, Open] = {}
        self._running: dict[int, Open] = {}
        self._compensations: set[int] = set()
        self.failed: list[Attempt] = []  # to be written
        self.begin_in(contextvars.copy_context())

    def begin_in(self, context: contextvars.Context) -> None:
        """From now on each attempt has a copy of this context: what it logs says of which run it is."""
        self._context, run = context, self._run
        context.run(structlog.contextvars.bind_contextvars, run_id=str(run.run_id), run=run.name, workflow=run.workflow)

    # --- what the code asks for --------------------------------------------------------------------------------

    def add(self, command: RunActivity, *, is_lost: bool) -> None:
        """The code asks for an activity. It starts when it is durable."""
        last = self._last.get(command.number)
        each = Open(
            command,
            failed=last.attempt if last else 0,
            not_before=last.next_at if last else None,
            error=one_line(last.failure) if last else "",
            is_lost=is_lost or command.number in self._lost,
        )
        self.open[command.number] = self._waiting[command.number] = each
        if command.is_compensation:
            self._compensations.add(command.number)

    def restore(self, entry: Entry) -> None:
        """It had completed when the run failed beside it; the run is retried, and asks for the same again."""
        each = self.open.get(entry.number)
        if each is not None and each.is_waiting and is_of(entry, each.command):
            self._end(each, Kind.ACTIVITY_COMPLETED, entry.payload, entry.at)

    def cancel(self, command: CancelActivity) -> None:
        """The code has given an activity up, and that is durable."""
        each = self.open.get(command.number)
        if each is None or each.is_cancel_asked:
            return
        if not command.is_shielded:
            self._forget(command.number)
            self._delivery.forget_end(command.number)
            if each.task is not None:
                each.task.cancel()
            return
        if each.is_lost or self._delivery.has_end(command.number):
            return  # it runs to its end to learn what was done, or has ended already
        each.is_cancel_asked = True
        if each.task is not None:
            each.task.cancel()
        else:
            self._end(each, Kind.ACTIVITY_CANCELLED, "")

    def take(self, number: int) -> RunActivity:
        """Its end is delivered now."""
        return self._forget(number).command

    def note_losses(self, losses: int) -> None:
        """Each worker lost since counts as an attempt: else a run that kills its process would never use up its retries."""
        now = self._host.now()
        for each in list(self.open.values()):
            each.is_lost = True
            text = failure.encode(WorkerLostError())
            for _ in range(losses):
                each.failed += 1
                self._note(Attempt(each.command.number, each.failed, text, now, now))
            delay = self._policy(each).delay_seconds(each.failed, self._host.random.random)
            if delay is None and not each.command.is_shielded:
                self._end(each, Kind.ACTIVITY_FAILED, failure.encode(WorkerLostError(), note=_used_up(each)))

    def note_left_running(self) -> None:
        """What runs is left: whether a shielded one has its effect is known only by running it again.

        The others lose no attempt: a run must not fail because its workers are stopped in good order.
        """
        now = self._host.now()
        text = failure.encode(WorkerLostError(), note="its worker was stopped, and its grace period was over")
        for each in self._running.values():
            if each.command.is_shielded:
                each.failed += 1
                self._note(Attempt(each.command.number, each.failed, text, now, now))

    # --- starting and ending -------------------------------------------------------------------------------------

    def start(self, *, is_held: bool) -> None:
        """Start what is durable and due."""
        found = [each for each in self._waiting.values() if self._is_startable(each, is_held)]
        if not found or not self._may_start():
            return
        for each in found:
            if each.not_before is None or each.not_before <= self._host.now():
                self._start(each)

    def durable(self, activities: Iterable[Open]) -> None:
        """What they waited for is written."""
        for each in activities:
            each.is_durable = True

    def drop(self) -> None:
        """Cancel all; nobody sees how they end."""
        self._is_dropped = True
        for each in self.open.values():
            if each.task is not None:
                each.task.cancel()
        self.open.clear()
        self._waiting.clear()
        self._running.clear()
        self._compensations.clear()

    def _forget(self, number: int) -> Open:
        each = self.open.pop(number)
        if not each.has_ended:
            self._waiting.pop(number, None)
            self._running.pop(number, None)
        if each.command.is_compensation:
            self._compensations.discard(number)
        return each

    def _may_start(self) -> bool:
        return not self._host.is_draining and self._host.may_start_activities()

    def _was_asked(self, each: Open) -> bool:
        return each.is_cancel_asked or self._is_dropped or self.open.get(each.command.number) is not each

    def _start(self, each: Open) -> None:
        command, run = each.command, self._run
        info = ActivityInfo(
            run_id=run.run_id,
            namespace=run.namespace,
            run=run.name,
            workflow=run.workflow,
            activity=command.name,
            number=command.number,
            attempt=each.failed + 1,
        )
        attempt = self._host.activities.attempt(
            command,
            info,
            may_start=self._may_start,
            was_asked=partial(self._was_asked, each),
            transacts=_Transacts(self._host, partial(self._checkpoint, command.number)),
        )
        context = self._context.copy()
        context.run(structlog.contextvars.bind_contextvars, activity=command.name, attempt=info.attempt)
        self._running[command.number] = self._waiting.pop(command.number)
        # Begun here and now: one that awaits nothing costs no turn of the loop.
        task = each.task = asyncio.Task(
            attempt,
            loop=asyncio.get_running_loop(),
            name=f"activity {command.name}",
            context=context,
            eager_start=True,
        )
        if task.done():
            self._ended(each, task)
        else:
            task.add_done_callback(partial(self._ended, each))

    def _ended(self, each: Open, task: "asyncio.Task[Ended]") -> None:
        if self.open.get(each.command.number) is not each:
            return  # abandoned, or dropped
        each.task = None
        del self._running[each.command.number]
        ended = Ended() if task.cancelled() else task.result()
        if ended.payload is not None:
            self._end(each, Kind.ACTIVITY_COMPLETED, ended.payload, ended.at)
        elif ended.error is not None:
            self._failed(each, ended.error, ended.at)
        elif each.is_cancel_asked:
            self._end(each, Kind.ACTIVITY_CANCELLED, "")
        else:  # it was not started after all, because of a drain or an uncertain lease: it stays open
            self._wait(each)

    def _wait(self, each: Open) -> None:
        self._waiting[each.command.number] = each
        self._changed()

    def _policy(self, each: Open) -> RetryPolicy:
        return each.definition.retry or self._host.retry

    def _failed(self, each: Open, error: Exception, at: datetime | None) -> None:
        each.failed += 1
        policy = self._policy(each)
        delay = policy.delay_seconds(each.failed, self._host.random.random)
        if each.is_cancel_asked or delay is None or not is_retryable(error, policy):
            self._end(each, Kind.ACTIVITY_FAILED, failure.encode(error, note=_used_up(each)), at)
            return
        now = self._host.now()
        text = failure.encode(error)
        metrics.ACTIVITY_RETRIES.labels(each.command.name).inc()
        each.not_before = now + timedelta(seconds=delay)
        each.error = one_line(text)
        each.is_durable = each.is_handed_over = False  # the next attempt waits until this one is counted for ever
        self._wait(each)
        self._note(Attempt(each.command.number, each.failed, text, now, each.not_before))
        self._log.warning(
            "activity_attempt_failed",
            activity=each.command.name,
            attempt=each.failed,
            error=each.error,
            retry_in_seconds=round(delay, 3),
        )

    def _note(self, row: Attempt) -> None:
        self.failed.append(row)
        self._last[row.number] = row

    def _end(self, each: Open, kind: Kind, payload: str, at: datetime | None = None) -> None:
        each.has_ended = True
        self._waiting.pop(each.command.number, None)
        self._delivery.add_end(at or self._host.now(), each.command.number, kind, payload)
        self._changed()

    # --- what may be asked ----------------------------------------------------------------------------------------

    @property
    def is_compensating(self) -> bool:
        return bool(self._compensations)

    @property
    def is_running(self) -> bool:
        return bool(self._running)

    def are_all_in_backoff(self) -> bool:
        """None could be started now."""
        return all(
            each.not_before is not None and each.not_before > self._host.now() for each in self._waiting.values()
        )

    def hand_over(self) -> list[Open]:
        """Those that wait for the write that is made now, and for none before it."""
        found = [each for each in self._waiting.values() if not each.is_handed_over]
        for each in found:
            each.is_handed_over = True
        return found

    def backoffs(self) -> dict[int, Backoff]:
        """What will be tried again, by number."""
        return {
            number: Backoff(each.command.name, each.failed + 1, each.not_before, each.error)
            for number, each in self._waiting.items()
            if each.not_before is not None
        }

    def seconds_until_start(self, *, is_held: bool) -> float | None:
        """Until the next could be started; None if none could."""
        if not self._waiting:
            return None
        soonest: float | None = None
        for each in self._waiting.values():
            if self._is_startable(each, is_held):
                left = (each.not_before - self._host.now()).total_seconds() if each.not_before else 0.0
                # One that is due was not started just now: the lease is not certain, which comes back soon or never.
                left = max(LOOK_AGAIN_SECONDS, left)
                soonest = left if soonest is None else min(soonest, left)
        return soonest

    def _is_startable(self, each: Open, is_held: bool) -> bool:
        return each.is_durable and (each.command.is_compensation or not is_held)


def is_of(entry: Entry, command: RunActivity) -> bool:
    """It is what came of this command, and not of one that had its number before."""
    return (entry.name, entry.digest) == (command.name, command.digest)


def one_line(text: str) -> str:
    """A failure for messages to people."""
    shown = failure.describe(text)
    line = f"{shown.type.rpartition('.')[2]}: {shown.message}".splitlines()[0]
    return line if len(line) <= 300 else line[:297] + "..."


def _used_up(each: Open) -> str:
    return f"activity {each.command.name!r} failed in attempt {each.failed}"
