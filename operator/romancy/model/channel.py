"""Channels: how runs send each other messages. A message travels as an event of a type of its own. Pure."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

from romancy.errors import ChannelInvalidError
from romancy.model.event import CloudEvent

NAME_CHARS_MAX: Final = 200
MESSAGE_BYTES_MAX: Final = 1536 * 1024
"""The largest message with all its attributes: 1 MB of bytes, as base64, fits."""
METADATA_MAX: Final = 50
_TYPE: Final = "romancy.channel/"


class ChannelMode(StrEnum):
    """Who gets a message. The first use of a channel decides, for ever."""

    BROADCAST = "Broadcast"  # everybody who has subscribed when it is published
    COMPETING = "Competing"  # one of those who want one, now or later
    DIRECT = "Direct"  # the run that it is sent to


def checked_channel(name: object) -> str:
    """The name of a channel.

    Raises:
        ChannelInvalidError: it can't be one.
    """
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise ChannelInvalidError(
            f"a channel has a name of 1 to {NAME_CHARS_MAX} printable characters, not {name!r:.250}",
            hint="as in Channel('jobs')",
        )
    return name


def checked_metadata(metadata: Mapping[str, Any] | None) -> dict[str, str | int | float | bool | None]:
    """What travels beside the data.

    Raises:
        ChannelInvalidError: it is no mapping of names and scalars, or too large.
    """
    found = dict(metadata or {})
    if len(found) > METADATA_MAX:
        raise ChannelInvalidError(f"metadata has {len(found)} values; the limit is {METADATA_MAX}")
    for name, value in found.items():
        if not isinstance(name, str) or not (value is None or isinstance(value, (str, int, float, bool))):
            raise ChannelInvalidError(
                f"metadata maps names to texts, numbers, bools or None, not {name!r:.80} to {value!r:.80}",
                hint="put anything else into the data",
            )
    return found


def type_of(channel: str) -> str:
    """The type of the events that are its messages."""
    return _TYPE + channel


def message_of(channel: str, data: str, metadata: Mapping[str, Any], *, source: str, id: str) -> CloudEvent:
    """A message as an event.

    Args:
        data: exact JSON text.
    """
    return CloudEvent(id=id, source=source, type=type_of(channel), data={"data": data, "metadata": dict(metadata)})
