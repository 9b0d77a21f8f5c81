"""What a transactional activity does: its rows, its messages and its own checkpoint are committed together, or none of them."""

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any, Final

from romancy.errors import ChannelInvalidError, OutsideWorkflowError
from romancy.model.channel import ChannelMode
from romancy.model.outbox import ANNOUNCED_MAX, OutboxKind, Outgoing, announced_number
from romancy.sdk.channel import Channel, content_of

FixMode = Callable[[str, ChannelMode], Awaitable[None]]


class Transaction:
    """A transaction of the engine's database, for one attempt of an activity: `activity.transaction()` gives it.

    Attributes:
        connection: of asyncpg, in the transaction. `async with connection.transaction()` in it is a savepoint. The activity
            neither commits nor rolls back: it returns, or it raises.
    """

    def __init__(self, connection: Any, fix_mode: FixMode) -> None:
        self._connection, self._fix_mode = connection, fix_mode
        self._published: list[str] = []
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
        if len(self._published) >= ANNOUNCED_MAX:
            raise ChannelInvalidError(f"a transaction publishes {ANNOUNCED_MAX} messages at most")
        content = content_of(channel, data, metadata)
        await self._fix_mode(channel.name, channel.mode)
        self._published.append(json.dumps({"channel": channel.name, "mode": channel.mode, **content}))

    def after_commit(self, call: Callable[[], object]) -> None:
        """Call this when the transaction has been committed, in the order given; never if it has not.

        It is lost if the process dies just then, and what it raises is logged and harms nobody: what must happen is a message.

        Args:
            call: what it returns is awaited, if it can be.
        """
        self._check_open()
        self._after.append(call)

    def end(self, number: int) -> list[Outgoing]:
        """The activity has returned; what it has published, numbered for the activity of that number."""
        self._is_over = True
        return [
            Outgoing(announced_number(number, nth), OutboxKind.ANNOUNCE, text)
            for nth, text in enumerate(self._published)
        ]

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
