"""What a transactional activity does: its rows, its messages and its own checkpoint are committed together, or none of them."""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

from romancy.errors import ChannelInvalidError, EventInvalidError, OutsideWorkflowError
from romancy.model.channel import ChannelMode
from romancy.model.event import CloudEvent, source_of
from romancy.model.outbox import ANNOUNCED_MAX, OutboxKind, Outgoing, announced_number
from romancy.sdk.channel import Channel, content_of
from romancy.sdk.event import Event, emitted

FixMode = Callable[[str, ChannelMode], Awaitable[None]]


class Attempt(Protocol):
    """Of which activity of which run."""

    @property
    def run_id(self) -> UUID: ...
    @property
    def namespace(self) -> str: ...
    @property
    def run(self) -> str: ...
    @property
    def workflow(self) -> str: ...
    @property
    def number(self) -> int: ...


class Transaction:
    """A transaction of the engine's database, for one attempt of an activity: `activity.transaction()` gives it.

    Attributes:
        connection: of asyncpg, in the transaction. `async with connection.transaction()` in it is a savepoint. The activity
            neither commits nor rolls back: it returns, or it raises.
    """

    def __init__(self, connection: Any, fix_mode: FixMode, attempt: Attempt, now: Callable[[], datetime]) -> None:
        self._connection, self._fix_mode, self._attempt, self._now = connection, fix_mode, attempt, now
        self._sent: list[tuple[OutboxKind, str]] = []
        self._after: list[Callable[[], object]] = []
        self._is_over = False

    @property
    def connection(self) -> Any:
        """See the class.

        Raises:
            OutsideWorkflowError: the activity has returned, or there is no database, as in a simulation.
        """
        self._check_open()
        if self._connection is None:
            raise OutsideWorkflowError(
                "there is no database here",
                hint="in a test without one give the simulation another function: sim.fake(...)",
            )
        return self._connection

    async def publish[T](self, channel: Channel[T], data: T, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Publish a message when the transaction has been committed; never if it has not.

        Raises:
            ChannelModeError: the channel has another mode.
            ChannelInvalidError: the channel is direct, the metadata are wrong, or it is one message too many.
            PayloadError: the data can't be stored.
        """
        self._check_open()
        if channel.mode is ChannelMode.DIRECT:
            raise ChannelInvalidError(f"channel {channel.name!r} is Direct", hint="Client.send_to, after the commit")
        if len(self._sent) >= ANNOUNCED_MAX:
            raise ChannelInvalidError(f"a transaction sends {ANNOUNCED_MAX} messages at most")
        content = content_of(channel, data, metadata)
        await self._fix_mode(channel.name, channel.mode)
        text = json.dumps({"channel": channel.name, "mode": channel.mode, **content})
        self._sent.append((OutboxKind.ANNOUNCE, text))

    def emit(
        self,
        event: Event | str,
        data: Any = None,
        *,
        id: str | None = None,
        source: str | None = None,
        subject: str | None = None,
        extensions: Mapping[str, str | int | bool] | None = None,
    ) -> CloudEvent:
        """Emit a CloudEvent when the transaction has been committed, as `ctx.emit` does; never if it has not.

        Raises:
            DefinitionError: `event` is no event.
            EventInvalidError: an attribute is wrong, or it is one message too many.
            PayloadError: the data can't be stored, or are too large.
        """
        self._check_open()
        if len(self._sent) >= ANNOUNCED_MAX:
            raise EventInvalidError(f"a transaction sends {ANNOUNCED_MAX} messages at most")
        attempt = self._attempt
        made = emitted(
            event,
            data,
            id=id if id is not None else f"{attempt.run_id}-{attempt.number}.{len(self._sent)}",
            source=source if source is not None else source_of(attempt.namespace, attempt.workflow, attempt.run),
            time=self._now(),
            subject=subject,
            extensions=extensions,
        )
        self._sent.append((OutboxKind.EMIT, made.as_text()))
        return made

    def after_commit(self, call: Callable[[], object]) -> None:
        """Call this when the transaction has been committed, in the order given; never if it has not.

        It is lost if the process dies just then, and what it raises is logged and harms nobody: what must happen is a message.

        Args:
            call: what it returns is awaited, if it can be.
        """
        self._check_open()
        self._after.append(call)

    def end(self) -> list[Outgoing]:
        """The activity has returned; what it has sent."""
        self._is_over = True
        number = self._attempt.number
        return [Outgoing(announced_number(number, nth), kind, text) for nth, (kind, text) in enumerate(self._sent)]

    async def committed(self, failed: Callable[[Exception], object]) -> None:
        """Call what waited for the commit; `failed` is told of what that raises."""
        for call in self._after:
            try:
                found = call()
                if inspect.isawaitable(found):
                    await found
            except Exception as error:
                failed(error)

    def _check_open(self) -> None:
        if self._is_over:
            raise OutsideWorkflowError(
                "the transaction of this activity is over", hint="ask for it in the activity, and await what uses it"
            )


TRANSACTION: Final[ContextVar[Transaction]] = ContextVar("romancy_transaction")


def current() -> Transaction:
    """That of the attempt that calls this.

    Raises:
        OutsideWorkflowError: no attempt of a transactional activity does.
    """
    if (found := TRANSACTION.get(None)) is None:
        raise OutsideWorkflowError(
            "activity.transaction() was used outside of a running transactional activity",
            hint="decorate the activity: @activity(transactional=True)",
        )
    return found
