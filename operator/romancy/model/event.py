"""Events: CloudEvents 1.0 in their JSON format, and what of them a `where` may name. Pure."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

from romancy.errors import EventInvalidError
from romancy.model.record import record

Scalar = str | int | float | bool | None
Where = Mapping[str, Scalar]

SPEC_VERSION: Final = "1.0"
TYPE_ATTRIBUTE: Final = "ce-type"
ATTRIBUTES_MAX: Final = 200
"""Attributes of one event that a `where` may name; those after it can't be matched."""
VALUE_CHARS_MAX: Final = 1000
"""The longest text that can be matched."""
NAME_CHARS_MAX: Final = 255
WHERE_MAX: Final = 10
_DEPTH_MAX: Final = 8
_INTEGER_MAX: Final = 2**63
_CONTEXT: Final = ("id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "specversion")


@record
class CloudEvent:
    """A CloudEvent as a run receives it (CloudEvents 1.0.2, section 3).

    `data` is the plain value of its JSON; `extensions` are further context attributes.
    """

    id: str
    source: str
    type: str
    data: Any = None
    time: datetime | None = None
    subject: str | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    extensions: Mapping[str, str | int | bool] = field(default_factory=dict)

    def as_text(self) -> str:
        """In the JSON event format, section 2 and 3.

        Raises:
            EventInvalidError: an attribute is missing or too long, or the data is no JSON.
        """
        self._check()
        shown: dict[str, Any] = {"specversion": SPEC_VERSION, "id": self.id, "source": self.source, "type": self.type}
        if self.time is not None:
            shown["time"] = self.time.isoformat()
        for name in ("subject", "datacontenttype", "dataschema"):
            if (value := getattr(self, name)) is not None:
                shown[name] = value
        shown |= self.extensions
        if self.data is not None:
            shown["data"] = self.data
        try:
            return json.dumps(shown, allow_nan=False, separators=(",", ":"))
        except (ValueError, TypeError, RecursionError) as error:
            raise EventInvalidError(f"the data of event {self.id!r} is no JSON: {error}") from error

    def _check(self) -> None:
        for name in ("id", "source", "type"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARS_MAX:
                raise EventInvalidError(
                    f"an event needs {name!r}: a text of 1 to {NAME_CHARS_MAX} characters, not {value!r:.80}",
                    hint="id and source together name an event: the same pair twice is the same event",
                )
            _refuse_unstorable(name, value)
        if self.time is not None and self.time.tzinfo is None:
            raise EventInvalidError("the time of an event needs a time zone", hint="datetime(..., tzinfo=UTC)")
        for name in ("subject", "datacontenttype", "dataschema"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise EventInvalidError(f"{name!r} of an event is a text that is not empty, not {value!r:.80}")
            _refuse_unstorable(name, value or "")
        for name, extension in self.extensions.items():
            if not ((name.isalnum() and name.isascii() and name.islower()) or name.isdecimal()) or name in _CONTEXT:
                raise EventInvalidError(
                    f"{name!r:.80} can't be an extension of an event",
                    hint="lower-case letters and digits, and no attribute of CloudEvents itself (section 3.1)",
                )
            if not isinstance(extension, (str, int, bool)):
                raise EventInvalidError(f"extension {name!r} is a text, an integer or a bool, not {extension!r:.80}")


def _refuse_unstorable(name: str, value: str) -> None:
    """What no attribute may hold (section 3.1): control characters, and halves of surrogate pairs."""
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
        raise EventInvalidError(f"{name!r} of an event holds a control character or half a surrogate: {value!r:.80}")


def source_of(namespace: str, workflow: str, name: str) -> str:
    """The source of what a run emits: a URI reference, cut where it would be too long."""
    return ("/romancy/" + "/".join(quote(part, safe="") for part in (namespace, workflow, name)))[:NAME_CHARS_MAX]


def read(text: str) -> CloudEvent:
    """The event of what `as_text` has written."""
    return of_json(json.loads(text))


def of_json(kept: Mapping[str, Any]) -> CloudEvent:
    """The event of the plain value of its JSON format."""
    extensions = {name: value for name, value in kept.items() if name not in _CONTEXT and name != "data"}
    return CloudEvent(
        id=kept["id"],
        source=kept["source"],
        type=kept["type"],
        data=kept.get("data"),
        time=datetime.fromisoformat(kept["time"]) if "time" in kept else None,
        subject=kept.get("subject"),
        datacontenttype=kept.get("datacontenttype"),
        dataschema=kept.get("dataschema"),
        extensions=extensions,
    )


def arrived(at: datetime, text: str) -> str:
    """The payload of an entry: when an event arrived, by the database's clock, and its own text."""
    return f'{{"at":"{at.isoformat()}","event":{text}}}'


# --- matching ---------------------------------------------------------------------------------------------------------


def attributes_of(event: CloudEvent) -> dict[str, Scalar]:
    """What a `where` may name: the scalars of the data by their dotted paths, and context attributes as `ce-subject`.

    The names of the latter are those of the HTTP binding of CloudEvents (section 3.1.3.1). What is too long, too deep or in a
    list can't be matched.
    """
    found: dict[str, Scalar] = {TYPE_ATTRIBUTE: event.type, "ce-id": event.id, "ce-source": event.source}
    if event.subject is not None:
        found["ce-subject"] = event.subject
    for name, value in event.extensions.items():
        _add(found, f"ce-{name}", value)
    if isinstance(event.data, dict):
        _flatten(found, "", event.data, depth=1)
    return found


def _flatten(found: dict[str, Scalar], prefix: str, data: Mapping[str, Any], *, depth: int) -> None:
    for name, value in data.items():
        if len(found) >= ATTRIBUTES_MAX:
            return
        if isinstance(value, dict):
            if depth < _DEPTH_MAX:
                _flatten(found, f"{prefix}{name}.", value, depth=depth + 1)
        else:
            _add(found, prefix + name, value)


def _add(found: dict[str, Scalar], name: str, value: object) -> None:
    if _is_matchable(name) and len(found) < ATTRIBUTES_MAX and name not in found:
        try:
            found[name] = canonical(value)
        except ValueError:
            return  # it can be received, not matched


def canonical(value: object) -> Scalar:
    """A value as it is compared: 1.0 is 1, and a text is what it is.

    Raises:
        ValueError: it can't be matched.
    """
    match value:
        case None | bool():
            return value
        case str() if _is_matchable(value):
            return value
        case int() if abs(value) < _INTEGER_MAX:
            return value
        case float() if math.isfinite(value):
            return int(value) if value.is_integer() and abs(value) < _INTEGER_MAX else value
        case _:
            raise ValueError(f"{value!r:.80} can't be matched")


def _is_matchable(text: str) -> bool:
    """PostgreSQL can hold it in its projection of the event, and an index too."""
    return len(text) <= VALUE_CHARS_MAX and "\0" not in text and text.isprintable()


def checked(where: Mapping[str, object]) -> dict[str, Scalar]:
    """A `where` as it is compared.

    Raises:
        EventInvalidError: it names what can't be matched.
    """
    if not isinstance(where, Mapping):
        raise EventInvalidError(
            f"where is a mapping of attributes and values, not {where!r:.80}", hint="where={'order': order.id}"
        )
    if len(where) > WHERE_MAX:
        raise EventInvalidError(f"where names {len(where)} attributes; the limit is {WHERE_MAX}")
    found: dict[str, Scalar] = {}
    for name, value in where.items():
        if not isinstance(name, str) or not name or not _is_matchable(name) or name == TYPE_ATTRIBUTE:
            raise EventInvalidError(
                f"where names {name!r:.80}, which is no attribute of an event",
                hint="a path into its data, as in 'order.id', or an attribute of the event itself, as in 'ce-subject'",
            )
        try:
            found[name] = canonical(value)
        except ValueError:
            raise EventInvalidError(
                f"where asks that {name!r} is {value!r:.80}, which can't be matched",
                hint=f"a text of up to {VALUE_CHARS_MAX} printable characters, a number, a bool or None",
            ) from None
    return dict(sorted(found.items()))


def matches(type: str, where: Where, event: CloudEvent, attributes: Where) -> bool:
    """Whether the event is of that type and has all that is named."""
    return event.type == type and all(
        name in attributes and _is_same(attributes[name], value) for name, value in where.items()
    )


def _is_same(one: Scalar, other: Scalar) -> bool:
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def key_of(type: str, where: Where) -> UUID:
    """What a subscription is found by: 128 bits of SHA-256 of the type and what must be equal, in the form of a UUID."""
    text = json.dumps([type, sorted(where.items())], separators=(",", ":"))
    return UUID(bytes=hashlib.sha256(text.encode()).digest()[:16])


def identity_of(event: CloudEvent) -> str:
    """Source and id as 32 characters that a name can hold."""
    return hashlib.sha256(json.dumps([event.source, event.id]).encode()).hexdigest()[:32]


def keys_of(event: CloudEvent, shapes: Sequence[Sequence[str]]) -> list[UUID]:
    """The keys of all subscriptions that the event matches.

    Args:
        shapes: the sets of attributes that anybody has asked for with its type.
    """
    attributes = attributes_of(event)
    return [
        key_of(event.type, {name: attributes[name] for name in shape})
        for shape in shapes
        if all(name in attributes for name in shape)
    ]
