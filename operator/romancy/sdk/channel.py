"""Channels: messages between runs, and from outside to runs; broadcast, competing and direct."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, overload
from uuid import UUID

from pydantic import ValidationError

from romancy.errors import ChannelInvalidError, ChannelModeError, PayloadTooLargeError, RunNotFoundError
from romancy.model import event as events
from romancy.model.channel import (
    MESSAGE_BYTES_MAX,
    ChannelMode,
    checked_channel,
    checked_metadata,
    message_of,
    type_of,
)
from romancy.model.codec import Codec, digest, problems
from romancy.model.event import CloudEvent
from romancy.model.outbox import OutboxKind
from romancy.sdk.event import checked_timeout

if TYPE_CHECKING:
    from romancy.replay.mailbox import Stream
    from romancy.replay.replay import Replay

_BYTES_MAX: Final = 1400 * 1024


class Channel[T]:
    """A channel. Declare it once, and import it where it is used: its first use decides its mode for ever.

    Args:
        name: 1 to 200 printable characters.
        type: of the data; anything that can be an argument of an activity, `bytes` too.
        mode: who gets a message.

    Raises:
        ChannelInvalidError: the name is none.
        PayloadError: the type can't be stored.
    """

    @overload
    def __init__(self: "Channel[Any]", name: str, *, mode: ChannelMode = ChannelMode.BROADCAST) -> None: ...
    @overload
    def __init__(self, name: str, type: type[T], *, mode: ChannelMode = ChannelMode.BROADCAST) -> None: ...
    def __init__(self, name: str, type: Any = Any, *, mode: ChannelMode = ChannelMode.BROADCAST) -> None:
        self.name, self.mode = checked_channel(name), ChannelMode(mode)
        self._codec: Codec[T] = Codec(type, what=f"message to channel {name!r}")

    def encode(self, data: T) -> str:
        """The exact JSON text of the data.

        Raises:
            PayloadError: it can't be stored.
        """
        return self._codec.encode(data, bytes_max=_BYTES_MAX)

    def message(self, cloudevent: CloudEvent) -> "Message[T]":
        """A message as it was received.

        Raises:
            ChannelInvalidError: its data does not fit the channel's type.
        """
        try:
            data = self._codec.decode(cloudevent.data["data"])
        except ValidationError as error:
            raise ChannelInvalidError(
                f"message {cloudevent.id!r} of channel {self.name!r} does not fit its type: {'; '.join(problems(error))}",
                hint="the channel is declared with another type where it was sent",
            ) from error
        metadata = cloudevent.data["metadata"]
        return Message(data, metadata, cloudevent.id, cloudevent.source, cloudevent.time)

    def __repr__(self) -> str:
        return f"<channel {self.name} {self.mode}>"


class Message[T]:
    """A message that was received.

    Attributes:
        data: what was sent.
        metadata: what was sent beside it.
        id: with `publisher` it names the message.
        publisher: `run/<id>`, or what the outside called itself.
        published_at: by the publisher's clock, if it has said so.
    """

    __slots__ = ("data", "id", "metadata", "published_at", "publisher")

    def __init__(
        self, data: T, metadata: dict[str, Any], id: str, publisher: str, published_at: datetime | None
    ) -> None:
        self.data, self.metadata, self.id = data, metadata, id
        self.publisher, self.published_at = publisher, published_at


class ChannelSubscription[T]:
    """Messages of a channel, from its `async with` on, in order."""

    def __init__(self, replay: "Replay", channel: Channel[T]) -> None:
        self._replay, self._channel = replay, channel
        self._stream: Stream | None = None
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Raises ChannelModeError if the channel has another mode."""
        if self._is_open:
            raise ChannelInvalidError("a subscription is entered once", hint="call ctx.subscribe again")
        channel = self._channel
        await ask(self._replay, OutboxKind.OPEN_CHANNEL, channel, {})
        self._is_open = True
        if channel.mode is not ChannelMode.COMPETING:
            self._stream = self._replay.mailbox.open(
                type_of(channel.name), {}, since=self._replay.now, is_direct=channel.mode is ChannelMode.DIRECT
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        if self._stream is not None and not self._replay.is_discarded:
            self._replay.mailbox.close(self._stream)

    async def receive(self, *, timeout: float | timedelta | None = None) -> Message[T]:
        """The next message. On a competing channel it is nobody else's from here on.

        Args:
            timeout: in seconds; durable.

        Raises:
            TimeoutError: none came in time; one that is on its way then is given back.
            ChannelInvalidError: its data does not fit the channel's type, or the subscription is not open.
            EventInvalidError: the timeout is 0 or less.
        """
        self._replay.check_open()
        if not self._is_open:
            raise ChannelInvalidError(
                "the subscription is not open", hint="async with ctx.subscribe(channel) as messages:"
            )
        async with asyncio.timeout(checked_timeout(timeout)):
            if self._stream is None:
                told = await ask(self._replay, OutboxKind.TAKE, self._channel, {})
                return self._channel.message(events.of_json(told["event"]))
            self._stream.receivers += 1
            try:
                arrived = await self._stream.queue.get()
            finally:
                self._stream.receivers -= 1
        return self._channel.message(arrived.event)

    async def __aiter__(self) -> AsyncIterator[Message[T]]:
        while True:
            yield await self.receive()


async def publish[T](replay: "Replay", channel: Channel[T], data: T, metadata: Mapping[str, Any] | None) -> None:
    """Publish a message; returns when it is durable."""
    if channel.mode is ChannelMode.DIRECT:
        raise ChannelInvalidError(
            f"channel {channel.name!r} is Direct", hint="send_to(run, channel, data) names the receiver"
        )
    await ask(replay, OutboxKind.PUBLISH, channel, content_of(channel, data, metadata))


async def send_to[T](
    replay: "Replay", namespace: str, run: str | UUID, channel: Channel[T], data: T, metadata: Mapping[str, Any] | None
) -> None:
    """Send a message to one run; returns when it is durable."""
    asked = {**content_of(channel, data, metadata), "namespace": namespace, "to": str(run)}
    await ask(replay, OutboxKind.SEND_TO, channel, asked)


def content_of(channel: Channel[Any], data: Any, metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a message holds; refused here if the store would."""
    content: dict[str, Any] = {"data": channel.encode(data), "metadata": checked_metadata(metadata)}
    message = message_of(channel.name, content["data"], content["metadata"], source=f"run/{UUID(int=0)}", id="0" * 10)
    if (size := len(message.as_text().encode())) > MESSAGE_BYTES_MAX:
        raise PayloadTooLargeError(
            what=f"a message to channel {channel.name!r}", size_bytes=size, max_bytes=MESSAGE_BYTES_MAX
        )
    return content


async def ask(replay: "Replay", kind: OutboxKind, channel: Channel[Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Ask something of a channel; its answer.

    Raises:
        ChannelModeError: the channel has another mode.
        RunNotFoundError: there is no such receiver.
    """
    text = json.dumps({"channel": channel.name, "mode": channel.mode, **asked})
    answer = await replay.ask(kind, f"{kind} {channel.name}"[:255], text, digest(text))
    told: dict[str, Any] = json.loads(answer)
    raise_for(channel.name, channel.mode, told)
    return told


def raise_for(channel: str, wanted: str, told: Mapping[str, Any]) -> None:
    """What an answer says is wrong."""
    if (mode := told.get("mode")) is not None:
        raise ChannelModeError(channel=channel, mode=mode, wanted=wanted)
    if (unknown := told.get("unknown")) is not None:
        raise RunNotFoundError(unknown)
