"""One attempt of an activity: its arguments, its slot, its timeout, its thread, and what came of it."""

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, Protocol

from romancy.base import log, metrics
from romancy.errors import ActivityError, ActivityTimeoutError, DefinitionError, PayloadError, TerminalError
from romancy.model.command import RunActivity
from romancy.model.outbox import Outgoing
from romancy.model.record import record
from romancy.model.retry import RetryPolicy
from romancy.sdk.activity import INFO, Activity, ActivityInfo
from romancy.sdk.middleware import Middleware
from romancy.sdk.transaction import TRANSACTION, Transaction
from romancy.store.interface import ActivityTransaction
from romancy.worker import around
from romancy.worker.threads import Threads

LOG = log.get(__name__)


@record
class Ended:
    """What came of an attempt: a payload, an error, or neither if it was cancelled as asked."""

    payload: str | None = None
    error: Exception | None = None
    at: datetime | None = None  # when it ended, also if the loop learned of it later

    @property
    def is_cancelled(self) -> bool:
        return self.payload is None and self.error is None


class Transacts(Protocol):
    """Transactions for the activities of one run."""

    async def begin(self) -> ActivityTransaction: ...

    async def commit(
        self, transaction: ActivityTransaction, payload: str, at: datetime, outbox: Sequence[Outgoing]
    ) -> bool:
        """Commit, with the entry that the activity has ended; it is delivered then. False: the run is not ours any more."""
        ...


class Activities:
    """The slots of one worker.

    Args:
        async_max: asynchronous attempts at once.
        threads_max: attempts in threads at once.
        payload_bytes_max: of a result.
        now: the database's clock; called from threads as well.
        middleware: stands around each attempt.
    """

    def __init__(
        self,
        *,
        async_max: int,
        threads_max: int,
        payload_bytes_max: int,
        now: Callable[[], datetime],
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self.middleware = middleware
        self._async_slots = asyncio.Semaphore(async_max)
        self._thread_slots = asyncio.Semaphore(threads_max)
        self.threads = Threads("activity")
        self._payload_bytes_max = payload_bytes_max
        self._now = now

    async def attempt(
        self,
        command: RunActivity,
        info: ActivityInfo,
        *,
        may_start: Callable[[], bool],
        was_asked: Callable[[], bool],
        transacts: "Transacts",
    ) -> Ended:
        """Run one attempt to its end, in a context of its own; never raises.

        Args:
            may_start: asked again when there is a slot; False ends it as if it had been cancelled before it began.
            was_asked: whether a CancelledError is one that we asked for.
            transacts: begins and commits the transaction of a transactional activity.
        """
        activity = command.definition
        assert isinstance(activity, Activity)
        INFO.set(info)
        began, outcome = time.monotonic(), "failed"
        try:
            arguments = activity.decode_arguments(command.arguments)
            if activity.is_transactional:
                ended = await self._in_transaction(activity, arguments, info, may_start, transacts)
                outcome = "completed"
                return ended
            if activity.is_async:
                value, at = await self._here(activity, arguments, may_start)
            else:
                value, at = await self._in_thread(activity, arguments, may_start, is_shielded=command.is_shielded)
            payload = activity.signature.result.encode(value, bytes_max=self._payload_bytes_max)
            outcome = "completed"
            return Ended(payload, None, at)
        except _NotStarted:
            outcome = "cancelled"
            return Ended()
        except asyncio.CancelledError as error:
            if was_asked():
                outcome = "cancelled"
                return Ended()
            return Ended(error=_foreign(error))
        except Exception as error:
            return Ended(error=error)
        except BaseException as error:
            return Ended(error=_foreign(error))
        finally:
            metrics.child(metrics.ACTIVITY_SECONDS, command.name, outcome).observe(time.monotonic() - began)

    def call(self, activity: Activity[..., Any], arguments: dict[str, Any]) -> Any:
        """Its result, or an awaitable of it. Tests call something else."""
        return activity.call(arguments)

    def _called(self, activity: Activity[..., Any], arguments: dict[str, Any]) -> Any:
        if not self.middleware:
            return self.call(activity, arguments)
        if activity.is_async:
            return self._awaited(activity, arguments)
        with around.activity(self.middleware, INFO.get()):
            return self.call(activity, arguments)

    async def _awaited(self, activity: Activity[..., Any], arguments: dict[str, Any]) -> Any:
        with around.activity(self.middleware, INFO.get()):
            called: Awaitable[Any] = self.call(activity, arguments)
            return await called

    def close(self) -> None:
        """Take no more; threads that run are left to end by themselves."""
        self.threads.close()

    async def _here(
        self, activity: Activity[..., Any], arguments: dict[str, Any], may_start: Callable[[], bool]
    ) -> tuple[Any, datetime]:
        await self._async_slots.acquire()
        try:
            if not may_start():
                raise _NotStarted
            return await self._in_time(activity, arguments)
        finally:
            self._async_slots.release()

    async def _in_time(self, activity: Activity[..., Any], arguments: dict[str, Any]) -> tuple[Any, datetime]:
        if activity.timeout_seconds is None:
            return await self._called(activity, arguments), self._now()
        timeout = asyncio.timeout(activity.timeout_seconds)
        try:
            async with timeout:
                return await self._called(activity, arguments), self._now()
        except TimeoutError:
            if not timeout.expired():
                raise  # the activity's own
            raise _timed_out(activity) from None

    async def _in_transaction(
        self,
        activity: Activity[..., Any],
        arguments: dict[str, Any],
        info: ActivityInfo,
        may_start: Callable[[], bool],
        transacts: "Transacts",
    ) -> Ended:
        await self._async_slots.acquire()
        try:
            if not may_start():
                raise _NotStarted
            opened = await transacts.begin()
            mine = Transaction(opened.connection, opened.fix_mode, info, self._now)
            try:
                TRANSACTION.set(mine)
                value, at = await self._in_time(activity, arguments)
                payload = activity.signature.result.encode(value, bytes_max=self._payload_bytes_max)
                outbox = mine.end()
            except BaseException:
                await asyncio.shield(opened.rollback())
                raise
            if not await transacts.commit(opened, payload, at, outbox):
                raise _NotStarted  # the run is another worker's
            await mine.committed(lambda error: LOG.warning("after_commit_failed", error=repr(error)))
            return Ended(payload, None, at)
        finally:
            self._async_slots.release()

    async def _in_thread(
        self,
        activity: Activity[..., Any],
        arguments: dict[str, Any],
        may_start: Callable[[], bool],
        *,
        is_shielded: bool,
    ) -> tuple[Any, datetime]:
        context = contextvars.copy_context()

        def call() -> tuple[Any, datetime, BaseException | None]:
            try:
                return context.run(self._called, activity, arguments), self._now(), None
            except BaseException as error:  # a future can't hold every exception: StopIteration is one
                return None, self._now(), error

        await self._thread_slots.acquire()
        if not may_start():
            self._thread_slots.release()
            raise _NotStarted
        running = self.threads.run(call)
        # A thread can't be stopped: one that outlives its timeout keeps its slot until it ends by itself.
        running.add_done_callback(lambda _: self._thread_slots.release())
        try:
            async with asyncio.timeout(activity.timeout_seconds) as timeout:
                try:
                    value, at, error = await asyncio.shield(running)
                except asyncio.CancelledError:
                    if not is_shielded or timeout.expired():
                        raise
                    # The thread goes on, and has its effect: it must not be said that it was cancelled. So its end is
                    # waited for, unless it is cancelled once more: then the run is dropped.
                    _uncancel()
                    value, at, error = await asyncio.shield(running)
        except TimeoutError:
            raise _timed_out(activity) from None
        if error is not None:
            raise error
        return value, at


class _NotStarted(Exception):  # noqa: N818
    """There was a slot, but the attempt was not wanted any more."""


def _uncancel() -> None:
    """Be as if not cancelled: a timeout tells its own cancel from another by the count."""
    task = asyncio.current_task()
    assert task is not None
    task.uncancel()


def _timed_out(activity: Activity[..., Any]) -> ActivityTimeoutError:
    assert activity.timeout_seconds is not None
    return ActivityTimeoutError(activity.name, timeout_seconds=activity.timeout_seconds)


def is_retryable(error: Exception, policy: RetryPolicy) -> bool:
    """Whether another attempt could end otherwise: not for what was said to be final, nor for what can't be stored."""
    return not isinstance(error, (TerminalError, PayloadError, DefinitionError, *policy.non_retryable))


def _foreign(error: BaseException) -> ActivityError:
    """Only `Exception` travels."""
    kind = type(error)
    made = ActivityError(
        f"{kind.__name__}: {error}" if str(error) else kind.__name__, type_name=f"{kind.__module__}.{kind.__qualname__}"
    )
    made.__cause__ = error
    return made
