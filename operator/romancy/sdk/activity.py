"""Activities: steps with side effects. Called in a workflow they are commands; elsewhere they are the function itself."""

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Final, Protocol, overload
from uuid import UUID

from pydantic import ValidationError

from romancy.errors import DefinitionError, OutsideWorkflowError
from romancy.model import failure
from romancy.model.codec import digest, problems
from romancy.model.history import Entry, Kind
from romancy.model.record import record
from romancy.model.retry import RetryPolicy
from romancy.replay.current import current
from romancy.replay.replay import Replay
from romancy.sdk import saga, signature
from romancy.sdk.registry import Registry
from romancy.sdk.transaction import Transaction
from romancy.sdk.transaction import current as current_transaction

ACTIVITIES: Final[Registry["Activity[..., Any]"]] = Registry("activities")


@record(kw_only=True)
class ActivityInfo:
    """Which attempt this is; `activity.info()` gives it inside of an activity.

    `idempotency_key` is the same in every attempt of this call, on every worker: hand it to services that know such keys.
    """

    run_id: UUID
    namespace: str
    run: str
    workflow: str
    activity: str
    number: int
    attempt: int

    @property
    def idempotency_key(self) -> str:
        return f"{self.run_id}/{self.number}"


INFO: Final[ContextVar[ActivityInfo]] = ContextVar("romancy_activity")


class Activity[**P, R]:
    """A function whose finished calls are saved before execution continues.

    Attributes:
        fn: the plain function.
        name: in history, logs and metrics.
        retry: when a failed attempt is tried again; None: as the worker is told for all that do not say it.
        timeout_seconds: of one attempt; None for no limit.
        is_transactional: what it writes and that it has ended are committed together.
        compensation: what takes back a result, or None.
    """

    def __init__(
        self,
        fn: Callable[P, Awaitable[R]] | Callable[P, R],
        *,
        name: str | None,
        retry: RetryPolicy | None,
        timeout: float | timedelta | None,
        transactional: bool = False,
    ) -> None:
        refuse_wrapped(fn, "activity")
        self.fn: Callable[P, Awaitable[R]] | Callable[P, R] = fn
        self.name: str = name or fn.__name__
        self.path = f"{fn.__module__}.{fn.__qualname__}"
        self.where = signature.where(fn)
        self.retry = retry
        self.timeout_seconds = _seconds(timeout, self.name)
        self.compensation: Activity[[R], Any] | None = None
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(fn)) or inspect.iscoroutinefunction(fn)
        self.is_transactional = transactional
        if transactional and not self.is_async:
            raise DefinitionError(
                f"activity {self.name!r} at {self.where} is transactional, and no `async def`",
                hint="its connection belongs to the event loop: write `async def`",
            )
        self.signature = signature.read(fn, kind="activity", name=self.name)
        functools.update_wrapper(self, fn)
        if "<locals>" not in fn.__qualname__:
            ACTIVITIES.add(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """In a workflow: ask for the activity when awaited. Elsewhere: call the function; a plain one in a thread."""
        if (replay := current()) is None:
            return self._run_directly(*args, **kwargs)
        replay.check_open()
        arguments = self.signature.bind(args, kwargs)  # a wrong call is wrong here, not at the await
        call: list[Any] = []
        coroutine = self._ask(replay, arguments, call)
        call.append(replay.track_call(self.name, coroutine))
        return coroutine

    @overload
    def compensate[X](self, fn: Callable[[R], Awaitable[X]], /) -> "Activity[[R], X]": ...
    @overload
    def compensate[X](self, fn: Callable[[R], X], /) -> "Activity[[R], X]": ...
    @overload
    def compensate(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> "_Compensates[R]": ...
    def compensate(
        self,
        fn: Callable[[R], Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> Any:
        """Decorate what takes back a result of this activity: it is called with that result.

        It is an ordinary activity, run last-in first-out when the workflow has failed or was cancelled.
        """

        def decorate(function: Callable[[R], Any]) -> Activity[[R], Any]:
            if self.compensation is not None:
                raise DefinitionError(
                    f"activity {self.name!r} has two compensations: {self.compensation.where} and "
                    f"{signature.where(function)}",
                    hint="keep one",
                )
            made: Activity[[R], Any] = Activity(function, name=name, retry=retry, timeout=timeout)
            if len(made.signature.parameters.parameters) != 1:
                raise DefinitionError(
                    f"compensation {made.name!r} at {made.where} must take exactly one argument: what "
                    f"{self.name!r} returned",
                    hint="take the result, and keep in it whatever is needed to take it back",
                )
            self.compensation = made
            return made

        return decorate if fn is None else decorate(fn)

    def issue(self, replay: Replay, arguments: dict[str, Any], *, is_compensation: bool = False) -> "asyncio.Future[R]":
        """Ask for the activity now.

        Raises:
            PayloadError: an argument can't be stored.
        """
        return self.issue_encoded(replay, self.signature.arguments.encode(arguments), is_compensation=is_compensation)

    def issue_encoded(self, replay: Replay, text: str, *, is_compensation: bool = False) -> "asyncio.Future[R]":
        """The same with arguments that are encoded already."""
        undo = self.compensation
        return replay.issue_activity(
            self.name,
            text,
            digest(text),
            definition=self,
            decode=self._decode,
            is_shielded=undo is not None or is_compensation,
            is_compensation=is_compensation,
            on_completed=None if undo is None else lambda entry: saga.of(replay).push_result(undo, entry),
        )

    def decode_arguments(self, text: str) -> dict[str, Any]:
        """The decoded copy that the function is called with.

        Raises:
            DefinitionError: stored arguments do not fit the function any more.
        """
        try:
            return self.signature.arguments.decode(text)
        except ValidationError as error:
            raise DefinitionError(
                f"stored arguments do not fit activity {self.name!r} any more: {'; '.join(problems(error))}",
                hint="give new parameters a default, and keep old ones",
            ) from error

    def call(self, arguments: dict[str, Any]) -> Any:
        """Call the function with arguments by name: its result, or an awaitable of it."""
        args, kwargs = self.signature.unbind(arguments)
        return self.fn(*args, **kwargs)

    async def _ask(self, replay: Replay, arguments: dict[str, Any], call: list[Any]) -> R:
        call[0].started()
        return await self.issue(replay, arguments)

    async def _run_directly(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.is_async:
            async with asyncio.timeout(self.timeout_seconds) as timeout:
                result: Any = await self.fn(*args, **kwargs)  # type: ignore[misc]
            assert not timeout.expired()
            return result  # type: ignore[no-any-return]
        return await asyncio.to_thread(self.fn, *args, **kwargs)  # type: ignore[arg-type]

    def _decode(self, entry: Entry) -> object:
        if entry.kind is Kind.ACTIVITY_FAILED:
            return failure.decode(entry.payload)
        return self.signature.decode_result(entry)

    def __repr__(self) -> str:
        return f"<activity {self.name}>"


class _Compensates[R](Protocol):
    @overload
    def __call__[X](self, fn: Callable[[R], Awaitable[X]], /) -> Activity[[R], X]: ...
    @overload
    def __call__[X](self, fn: Callable[[R], X], /) -> Activity[[R], X]: ...


class _DecoratesAsync(Protocol):
    def __call__[**P, R](self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...


class _Decorates(Protocol):
    @overload
    def __call__[**P, R](self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
    @overload
    def __call__[**P, R](self, fn: Callable[P, R], /) -> Activity[P, R]: ...


class ActivityDecorator:
    """`@activity`, and what an activity may ask about itself."""

    @overload
    def __call__[**P, R](self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...
    @overload
    def __call__[**P, R](self, fn: Callable[P, R], /) -> Activity[P, R]: ...
    @overload
    def __call__(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> _Decorates: ...
    @overload
    def __call__(
        self,
        fn: None = None,
        /,
        *,
        transactional: bool,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
    ) -> _DecoratesAsync: ...
    def __call__(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        retry: RetryPolicy | None = None,
        timeout: float | timedelta | None = None,
        transactional: bool = False,
    ) -> Any:
        """Make a function an activity: a step with side effects, saved before execution continues, at least once.

        Args:
            name: in history; changing it is changing the code. Default: the function's name.
            retry: when a failed attempt is tried again. By default as the process says for all activities
                (`WorkerSettings.retry`, ROMANCY_WORKER__RETRY), and that is `RetryPolicy()`.
            timeout: of one attempt, in seconds. A plain function goes on in its thread after it, and its result is lost.
            transactional: what it writes by `activity.transaction()`, and that it has ended, are committed together: exactly
                once. A connection is held from its begin to its end: nothing in it should wait for others.

        Raises:
            DefinitionError: the function can't be an activity; says why, with the line.
        """

        def decorate(function: Callable[..., Any]) -> Activity[..., Any]:
            return Activity(function, name=name, retry=retry, timeout=timeout, transactional=transactional)

        return decorate if fn is None else decorate(fn)

    @staticmethod
    def info() -> ActivityInfo:
        """The attempt that calls this.

        Raises:
            OutsideWorkflowError: no attempt of a run does.
        """
        if (found := INFO.get(None)) is None:
            raise OutsideWorkflowError(
                "activity.info() was used outside of a running activity",
                hint="call it in an activity that a run executes",
            )
        return found

    @staticmethod
    def transaction() -> Transaction:
        """The transaction of the attempt that calls this.

        Raises:
            OutsideWorkflowError: no attempt of a transactional activity does.
        """
        return current_transaction()


activity: Final = ActivityDecorator()


def refuse_wrapped(fn: object, kind: str) -> None:
    """A decorator over a decorated function would lose the registration, or register twice."""
    if not callable(fn) or isinstance(fn, type):
        raise DefinitionError(f"@{kind} decorates a function, not {fn!r}", hint=f"write @{kind} directly above `def`")
    if isinstance(fn, Activity) or hasattr(fn, "is_workflow"):
        raise DefinitionError(
            f"{fn!r} is decorated twice", hint=f"keep one of @workflow and @activity, outermost: @{kind}"
        )


def _seconds(timeout: float | timedelta | None, name: str) -> float | None:
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not seconds > 0:
        raise DefinitionError(f"activity {name!r}: timeout must be more than 0 s, not {seconds!r}", hint="or None")
    return seconds
