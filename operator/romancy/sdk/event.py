"""Typed events: a CloudEvent type with its data as a pydantic model."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

from pydantic import BaseModel, ConfigDict, PrivateAttr, TypeAdapter, ValidationError

from romancy.errors import DefinitionError, EventInvalidError
from romancy.model.codec import Codec, problems
from romancy.model.event import NAME_CHARS_MAX, CloudEvent, Scalar, checked

if TYPE_CHECKING:
    from romancy.replay.mailbox import Stream
    from romancy.replay.replay import Replay

_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


class Event(BaseModel):
    """Base of typed events: `class Paid(Event, type="com.shop.paid")`, with the fields of its data.

    Raises:
        DefinitionError: at the class, without a fit type.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

    event_type: ClassVar[str] = ""
    _received: CloudEvent | None = PrivateAttr(default=None)

    def __init_subclass__(cls, *, type: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if type is None and not cls.event_type:
            raise DefinitionError(
                f"event {cls.__name__} names no type", hint=f'class {cls.__name__}(Event, type="com.example.paid")'
            )
        if type is not None:
            cls.event_type = checked_type(type)

    @property
    def cloudevent(self) -> CloudEvent:
        """Id, source, time, subject and extensions with which it was received.

        Raises:
            EventInvalidError: it was made here, and not received.
        """
        if self._received is None:
            raise EventInvalidError(
                f"this {type(self).__name__} was not received, so it has no id and source",
                hint="only what wait_event or a subscription returns has them",
            )
        return self._received


def checked_type(type: str) -> str:
    """The type of an event.

    Raises:
        DefinitionError: it can't be one.
    """
    if not isinstance(type, str) or not _TYPE.fullmatch(type) or len(type) > NAME_CHARS_MAX:
        raise DefinitionError(
            f"{type!r:.80} is no type of an event",
            hint="letters, digits, dots, slashes, hyphens and underscores, as in 'com.shop.paid'",
        )
    return type


def type_of(event: type[Event] | str) -> str:
    """The CloudEvents type that is meant.

    Raises:
        DefinitionError: neither an event class nor a type.
    """
    if isinstance(event, str):
        return checked_type(event)
    if isinstance(event, type) and issubclass(event, Event) and event.event_type:
        return event.event_type
    raise DefinitionError(
        f"{event!r:.80} is no event", hint="give a class that derives from romancy.Event, or the type as a text"
    )


def where_of(event: type[Event] | str, where: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """A `where` as it is matched: values as they stand in the JSON of the event.

    Raises:
        EventInvalidError: it names a field that the event has not, or a value that can't be matched.
    """
    if where is None:
        return {}
    if not isinstance(where, Mapping):
        return checked(where)  # says what is wrong with it
    if isinstance(event, type):
        names = {field.serialization_alias or field.alias or name for name, field in event.model_fields.items()}
        for name in where:
            first = str(name).partition(".")[0]
            if first not in names and not first.startswith("ce-"):
                near = get_close_matches(first, names, n=1)
                raise EventInvalidError(
                    f"where names {name!r:.80}, and {event.__name__} has no such field",
                    hint=f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(names)) or 'none'}",
                )
    return checked({name: _plain(value) for name, value in where.items()})


def _plain(value: object) -> object:
    if value is None or (isinstance(value, (str, int, float)) and type(value) in (str, int, float, bool)):
        return value
    try:
        return json.loads(_ANY.dump_json(value))  # a UUID, an enum, a moment: as they stand in JSON
    except Exception:
        return value  # it is refused by its own name


_ANY: TypeAdapter[Any] = TypeAdapter(Any)
_ANY_DATA: Codec[Any] = Codec(Any, what="data of an event")


@cache
def codec_of(event: type[Event]) -> "Codec[Any]":
    """Encodes and decodes the data of an event."""
    return Codec(event, what=f"event {event.event_type!r}")


@overload
def received[E: Event](event: type[E], cloudevent: CloudEvent) -> E: ...
@overload
def received(event: str, cloudevent: CloudEvent) -> CloudEvent: ...
def received(event: type[Event] | str, cloudevent: CloudEvent) -> Event | CloudEvent:
    """An event as the code gets it.

    Raises:
        EventInvalidError: its data does not fit the class.
    """
    if isinstance(event, str):
        return cloudevent
    try:
        found: Event = codec_of(event).decode(json.dumps(cloudevent.data if cloudevent.data is not None else {}))
    except ValidationError as error:
        raise EventInvalidError(
            f"event {cloudevent.id!r} from {cloudevent.source!r} does not fit {event.__name__}: "
            f"{'; '.join(problems(error))}",
            hint="the sender is wrong, or the class is: catch this error to go on without the event",
        ) from error
    found._received = cloudevent
    return found


def emitted(
    event: Event | str,
    data: Any,
    *,
    id: str,
    source: str,
    time: datetime,
    subject: str | None,
    extensions: Mapping[str, str | int | bool] | None,
) -> CloudEvent:
    """An event as it goes out.

    Raises:
        DefinitionError: `event` is no event.
        EventInvalidError: an attribute is wrong, or there is data beside an event that has its own.
        PayloadError: its data can't be stored, or are too large.
    """
    if isinstance(event, Event):
        if data is not None:
            raise EventInvalidError(
                f"{type(event).__name__} has data of its own", hint="give either an event, or a type and data"
            )
        text = codec_of(type(event)).encode(event)
    else:
        text = _ANY_DATA.encode(data)
    type_ = type_of(type(event) if isinstance(event, Event) else event)
    made = CloudEvent(
        id=id,
        source=source,
        type=type_,
        data=json.loads(text),
        time=time,
        subject=subject,
        extensions=dict(extensions or {}),
    )
    made.as_text()  # what can't be sent is said where it is asked for
    return made


def checked_timeout(timeout: float | timedelta | None) -> float | None:
    """In seconds.

    Raises:
        EventInvalidError: 0 or less.
    """
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if seconds is not None and not seconds > 0:
        raise EventInvalidError(
            f"a timeout is more than 0 s, not {seconds!r}",
            hint="None waits for ever; what has arrived already is found whatever the timeout is",
        )
    return seconds


class Subscription[E]:
    """All events of one type that arrive from its `async with` on, in order.

    Use it to act first and receive then, and lose nothing between:

        async with ctx.subscribe(Paid, where={"order": order.id}) as payments:
            await request_payment(order)
            paid = await payments.receive(timeout=3600)
    """

    def __init__(self, replay: "Replay", event: Any, where: Mapping[str, Any] | None) -> None:
        self._replay, self._event = replay, event
        self._type, self._where = type_of(event), where_of(event, where)
        self._stream: Stream | None = None

    async def __aenter__(self) -> Self:
        self._replay.check_open()
        if self._stream is not None:
            raise EventInvalidError("a subscription is entered once", hint="call ctx.subscribe again")
        self._stream = self._replay.mailbox.open(self._type, self._where, since=self._replay.now)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None and not self._replay.is_discarded:
            self._replay.mailbox.close(self._stream)

    async def receive(self, *, timeout: float | timedelta | None = None) -> E:
        """The next event.

        Args:
            timeout: in seconds; durable.

        Raises:
            TimeoutError: none came in time.
            EventInvalidError: its data does not fit the class, or the subscription is not open.
        """
        self._replay.check_open()
        stream = self._stream
        if stream is None:
            raise EventInvalidError("the subscription is not open", hint="async with ctx.subscribe(...) as events:")
        seconds = checked_timeout(timeout)
        stream.receivers += 1
        try:
            async with asyncio.timeout(seconds):
                found = await stream.queue.get()
        finally:
            stream.receivers -= 1
        return received(self._event, found.event)  # type: ignore[no-any-return]

    async def __aiter__(self) -> AsyncIterator[E]:
        while True:
            yield await self.receive()
