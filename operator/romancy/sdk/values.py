"""Values that a run shows to outsiders."""

import json
from typing import Any, Final

from romancy.errors import ValueInvalidError
from romancy.model.codec import Codec
from romancy.model.outbox import OutboxKind
from romancy.replay.replay import Replay

NAME_CHARS_MAX: Final = 100
BYTES_MAX: Final = 64 * 1024
_ANY: Final[Codec[Any]] = Codec(Any, what="value")


def post(replay: Replay, name: str, value: Any) -> None:
    """Show a value.

    Raises:
        ValueInvalidError: the name is no text of 1 to 100 characters.
        PayloadError: the value can't be stored, or is too large.
    """
    checked_name(name, "ctx.set_value")
    text = _ANY.encode(value, bytes_max=BYTES_MAX)
    replay.post(OutboxKind.SET_VALUE, json.dumps({"name": name, "value": text}))


def checked_name(name: object, what: str) -> str:
    """A name as it can be stored.

    Raises:
        ValueInvalidError: it is none.
    """
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise ValueInvalidError(
            f"{what} takes a name of 1 to {NAME_CHARS_MAX} printable characters, not {name!r:.120}",
            hint="a short word for what it is",
        )
    return name
