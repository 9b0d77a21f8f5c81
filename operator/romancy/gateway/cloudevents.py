"""CloudEvents as HTTP brings them: structured, binary, batched (HTTP protocol binding 1.0.2, section 3). Pure.

The SDK reads headers and checks attributes. What it makes up or lets pass is refused before it is asked: an event without an id
would get another one with each try, and be taken for another event.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, NoReturn

from cloudevents.core.bindings import http
from cloudevents.core.exceptions import BaseCloudEventException, CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as SdkEvent

from romancy.errors import EventInvalidError, MediaTypeError
from romancy.model.event import SPEC_VERSION, CloudEvent

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
BATCH_MAX: Final = 1000
"""Events of one request."""
_REQUIRED: Final = ("specversion", "id", "source", "type")
_CONTEXT: Final = frozenset({*_REQUIRED, "subject", "time", "datacontenttype", "dataschema"})
_JSON: Final = re.compile(r"(application|text)/([a-z0-9.-]+\+)?json")
_TEXT: Final = re.compile(r"text/.*|application/([a-z0-9.-]+\+)?xml")
_HINT: Final = (
    f"send one event as {STRUCTURED}, several as {BATCH}, or its data with the attributes in ce- headers "
    "(ce-specversion: 1.0, ce-id, ce-source, ce-type)"
)


def parse(headers: Mapping[str, str], body: bytes) -> list[CloudEvent]:
    """The events of a request: one, or those of a batch, which may be empty.

    Args:
        headers: names in any case.

    Raises:
        MediaTypeError: it is no CloudEvent, or in a format that is not read.
        EventInvalidError: an attribute is missing or wrong, or the content is no JSON; says which event of a batch.
    """
    media_type, charset = _media_type(headers)
    if charset not in {"", "utf-8", "utf8", "us-ascii"}:
        raise MediaTypeError(f"the charset {charset!r:.40} is not read", hint="send UTF-8")
    if media_type == STRUCTURED:
        return [_structured(_json(body))]
    if media_type == BATCH:
        return _batch(_json(body))
    if media_type.startswith("application/cloudevents"):
        raise MediaTypeError(f"events are not read as {media_type!r:.80}", hint=_HINT)
    if any(name.lower().startswith("ce-") for name in headers):
        return [_binary(headers, body, media_type)]
    raise MediaTypeError(f"a body of type {media_type!r:.80} without ce- headers is no CloudEvent", hint=_HINT)


class _AsItIs(JSONFormat):
    """The SDK's format, without guesses about data."""

    def read_data(self, body: bytes, datacontenttype: str | None) -> bytes | None:
        del datacontenttype
        return body or None


def _binary(headers: Mapping[str, str], body: bytes, media_type: str) -> CloudEvent:
    names = {name.lower() for name in headers}
    _refuse_missing([name for name in _REQUIRED if f"ce-{name}" not in names], where="the headers")
    try:
        given = {name: text for name, text in headers.items() if text or name.lower() != "content-type"}
        found = http.from_binary(http.HTTPMessage(given, body), _AsItIs(), _made)
    except BaseCloudEventException as error:
        _refuse(error)
    except (ValueError, OverflowError) as error:
        raise EventInvalidError(f"ce-time is no time: {error}", hint="RFC 3339, as in 2026-11-24T12:00:00Z") from error
    return _event(dict(found.get_attributes()), _data(body, media_type) if body else None)


def _structured(value: Any) -> CloudEvent:
    if not isinstance(value, dict):
        raise EventInvalidError(f"an event is a JSON object, not {_kind(value)}", hint=_HINT)
    attributes = {name: each for name, each in value.items() if each is not None}  # null says that there is none
    data, encoded = attributes.pop("data", None), attributes.pop("data_base64", None)
    _refuse_missing([name for name in _REQUIRED if name not in attributes], where="the event")
    if encoded is not None:
        if data is not None:
            raise EventInvalidError("an event has data or data_base64, not both")
        try:
            raw = base64.b64decode(encoded, validate=True)
        except (ValueError, TypeError, binascii.Error) as error:
            raise EventInvalidError(f"data_base64 is no base64: {error}") from error
        data = _data(raw, _only_type(str(attributes.get("datacontenttype", ""))))
    if "time" in attributes:
        attributes["time"] = _time(attributes["time"])
    try:
        made = _made(attributes, None)
    except BaseCloudEventException as error:
        _refuse(error)
    return _event(dict(made.get_attributes()), data)


def _batch(value: Any) -> list[CloudEvent]:
    if not isinstance(value, list):
        raise EventInvalidError(f"a batch is a JSON array of events, not {_kind(value)}", hint=_HINT)
    if len(value) > BATCH_MAX:
        raise EventInvalidError(f"a batch of {len(value):,} events; the limit is {BATCH_MAX:,}", hint="send several")
    found = []
    for nth, each in enumerate(value):
        try:
            found.append(_structured(each))
        except EventInvalidError as error:
            text = f"event {nth} of the batch: {error.message}; none of them was taken"
            raise EventInvalidError(text, hint=error.hint) from error
    return found


def _made(attributes: dict[str, Any], data: Any) -> SdkEvent:
    """The SDK's event; it adds the time of now where there is none, and nobody has said that it happened now."""
    if attributes.get("specversion") != SPEC_VERSION:
        raise EventInvalidError(
            f"specversion is {attributes.get('specversion')!r:.20}; {SPEC_VERSION} is read", hint="send CloudEvents 1.0"
        )
    had_time = "time" in attributes
    made = SdkEvent(attributes, data)
    if not had_time:
        attributes.pop("time", None)
    return made


def _event(attributes: dict[str, Any], data: Any) -> CloudEvent:
    event = CloudEvent(
        id=attributes["id"],
        source=attributes["source"],
        type=attributes["type"],
        data=data,
        time=attributes.get("time"),
        subject=attributes.get("subject"),
        datacontenttype=attributes.get("datacontenttype"),
        dataschema=attributes.get("dataschema"),
        extensions={name: value for name, value in attributes.items() if name not in _CONTEXT},
    )
    event.as_text()  # what can't be kept is said here, before any event of a batch is stored
    return event


def _data(body: bytes, media_type: str) -> Any:
    """The plain value of JSON, the text of a text, base64 of everything else."""
    if not media_type or _JSON.fullmatch(media_type):
        return _json(body)
    if _TEXT.fullmatch(media_type):
        try:
            return body.decode()
        except UnicodeDecodeError as error:
            raise EventInvalidError(f"the data is said to be {media_type}, and is no UTF-8: {error}") from error
    return base64.b64encode(body).decode()


def _json(body: bytes) -> Any:
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = "too deep" if isinstance(error, RecursionError) else str(error)
        raise EventInvalidError(f"the body is no JSON: {text}", hint="JSON in UTF-8 (RFC 8259)") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


def _time(value: Any) -> datetime:
    try:
        return datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise EventInvalidError(
            f"the time of an event is no {value!r:.60}", hint="RFC 3339, as in 2026-11-24T12:00:00Z"
        ) from error


def _refuse_missing(names: list[str], *, where: str) -> None:
    if names:
        raise EventInvalidError(f"{where} lacks {', '.join(names)}", hint=_HINT)


def _refuse(error: BaseCloudEventException) -> NoReturn:
    found = error.errors.items() if isinstance(error, CloudEventValidationError) else [("", [error])]
    text = "; ".join(f"{name}: {', '.join(map(str, each))}" if name else str(each) for name, each in found)
    raise EventInvalidError(f"it is no CloudEvent: {text:.1000}", hint=_HINT) from error


def _media_type(headers: Mapping[str, str]) -> tuple[str, str]:
    value = next((text for name, text in headers.items() if name.lower() == "content-type"), "")
    charset = re.search(r";\s*charset\s*=\s*\"?([^\s;\"]+)", value, re.IGNORECASE)
    return _only_type(value), charset[1].lower() if charset else ""


def _only_type(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def _kind(value: Any) -> str:
    return {dict: "an object", list: "an array", str: "a text", type(None): "null"}.get(type(value), "a scalar")
