"""What runs are searched by, checked before anybody is asked; and the tokens of pages.

An input is searched as PostgreSQL's `jsonb @>` does it: an object contains another one if it has all its keys, with values that
contain theirs; an array if each element of the other is contained in one of its own; everything else must be equal.
"""

import base64
import binascii
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal, DecimalException
from typing import Any, Final
from uuid import UUID

from romancy.errors import FilterError
from romancy.model.run import Phase

PAGE_MAX: Final = 1000
"""Runs of one page."""
INPUT_BYTES_MAX: Final = 16 * 1024
INPUT_DEPTH_MAX: Final = 32
_PATH_PART: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TOKEN_VERSION: Final = 1
_DIGEST_BYTES: Final = 8
_NUMERIC_DIGITS_MAX: Final = 131_072  # before the point, in PostgreSQL


# --- filters ----------------------------------------------------------------------------------------------------------


def page_size(limit: int) -> int:
    """A page's size, 1 to 1000.

    Raises:
        FilterError: it is another one.
    """
    if not 1 <= limit <= PAGE_MAX:
        raise FilterError(f"a page has 1 to {PAGE_MAX} runs, not {limit}", hint="go on with the token of the page")
    return limit


def phases_of(names: Iterable[str]) -> frozenset[Phase]:
    """Phases by their names.

    Raises:
        FilterError: there is no such phase.
    """
    found = set()
    for name in [names] if isinstance(names, str) else names:
        try:
            found.add(Phase(name))
        except ValueError as error:
            near = difflib.get_close_matches(str(name).capitalize(), list(Phase), n=1)
            hint = f"did you mean {near[0]}?" if near else f"phases are {', '.join(Phase)}"
            raise FilterError(f"there is no phase {name!r}", hint=hint) from error
    return frozenset(found)


def labels_of(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels, all of which a run must have.

    Raises:
        FilterError: a name or a value is no text, or one that no run can have.
    """
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str) or not name:  # what a type checker would have said
            raise FilterError(f"label {name!r}={value!r} is not a pair of texts", hint="write both as str")
        _refuse_unstorable(f"label {name!r}", name + value)
    return dict(labels)


def text_of(what: str, text: str | None) -> str | None:
    """A text to look for.

    Raises:
        FilterError: it is empty, or holds what no stored text can.
    """
    if text is not None:
        if not text:
            raise FilterError(f"{what} is empty", hint="leave it out to find all")
        _refuse_unstorable(what, text)
    return text


def moment_of(what: str, moment: datetime | None) -> datetime | None:
    """A time with its zone, in UTC.

    Raises:
        FilterError: it has none, and would mean another moment on another machine.
    """
    if moment is not None and moment.tzinfo is None:
        raise FilterError(f"{what} has no time zone: {moment}", hint="use datetime.now(UTC), or moment.astimezone()")
    return moment and moment.astimezone(UTC)


def ids_of(prefix: str | None) -> tuple[UUID, UUID] | None:
    """The first and the last id that begin so.

    Raises:
        FilterError: no id begins so.
    """
    if prefix is None:
        return None
    digits = prefix.replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{1,32}", digits):
        raise FilterError(
            f"no id begins with {prefix!r}", hint="an id is a UUID: up to 32 digits 0-9 and a-f, with or without dashes"
        )
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def input_of(part: Mapping[str, Any] | None, at: Mapping[str, Any] | None) -> str | None:
    """JSON text of the object that an input must contain; None if nothing is asked.

    Args:
        part: an object.
        at: values by their paths, as in {"order.id": 7}; the same as {"order": {"id": 7}}.

    Raises:
        FilterError: a path is not made of names and dots, two contradict each other, a value is not JSON, or it is too large
            or too deep.
    """
    if part is None and not at:
        return None
    if part is not None and not isinstance(part, Mapping):  # what a type checker would have said
        raise FilterError(
            f"an input is searched by an object, not by {type(part).__name__}",
            hint='the input of a run is an object: write {"order": {"id": 7}}',
        )
    wanted = {**(part or {})}
    for path, value in (at or {}).items():
        _put(wanted, path, value)
    _refuse_too_deep(wanted)
    try:
        text = json.dumps(wanted, ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
    except (TypeError, ValueError) as error:
        raise FilterError(
            f"the input to search for is no JSON: {error}", hint="give the value as it is stored: numbers, texts, lists"
        ) from error
    if (size := len(text.encode(errors="replace"))) > INPUT_BYTES_MAX:
        raise FilterError(
            f"the input to search for has {size:,} bytes; the limit is {INPUT_BYTES_MAX:,}",
            hint="name the few values that tell the run apart",
        )
    if _jsonb(text) is None:
        raise FilterError(
            "the input to search for holds a NUL, a lone surrogate or a number without end: PostgreSQL can't compare them",
            hint="search by another value of the input",
        )
    return text


def _put(wanted: dict[str, Any], path: str, value: Any) -> None:
    *above, last = names = path.split(".")
    if not all(_PATH_PART.fullmatch(name) for name in names):
        raise FilterError(
            f"input path {path!r} is not safe",
            hint="a path is names with dots between, as in order.id: letters, digits, _ and -; write others as `input`",
        )
    inner = wanted
    for name in above:
        nested = inner.get(name, {})
        if not isinstance(nested, Mapping):
            raise FilterError(f"input path {path!r} goes through {name!r}, which is to be {nested!r}", hint="name one")
        inner[name] = inner = dict(nested)  # a copy: the caller's own object stays as it is
    if last in inner and inner[last] != value:
        raise FilterError(f"input path {path!r} is to be {inner[last]!r} and {value!r}", hint="no run has both")
    inner[last] = value


def _refuse_too_deep(value: Any, depth: int = 1) -> None:
    if isinstance(value, Mapping | list | tuple):
        if depth > INPUT_DEPTH_MAX:
            raise FilterError(
                f"the input to search for is nested more than {INPUT_DEPTH_MAX} deep", hint="name a value further up"
            )
        for each in value.values() if isinstance(value, Mapping) else value:
            _refuse_too_deep(each, depth + 1)


def _refuse_unstorable(what: str, text: str) -> None:
    if not _is_storable(text):
        raise FilterError(f"{what} holds a NUL or a lone surrogate: no stored text does", hint="take it away")


def _is_storable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text))


# --- containment, as PostgreSQL does it -----------------------------------------------------------------------------


def contains(document: str, part: str) -> bool:
    """Whether one JSON text contains the other; False also if `jsonb` refuses the document."""
    outer, inner = _jsonb(document), _jsonb(part)
    return outer is not None and inner is not None and _contains(outer[0], inner[0])


def _contains(outer: Any, inner: Any) -> bool:
    match outer, inner:
        case dict(), dict():
            return all(name in outer and _contains(outer[name], value) for name, value in inner.items())
        case list(), list():
            return all(any(_contains(each, value) for each in outer) for value in inner)
        case _:
            return type(outer) is type(inner) and bool(outer == inner)


def _jsonb(text: str) -> tuple[Any] | None:
    """The value of a JSON text, numbers exact; None where `jsonb` refuses it."""
    try:
        value = json.loads(
            text, parse_int=_number, parse_float=_number, parse_constant=_refuse, object_pairs_hook=_object
        )
        _refuse_texts([value])
    except (ValueError, RecursionError):
        return None
    return (value,)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_texts([each for pair in pairs for each in pair])  # a name that stands twice is read twice
    return dict(pairs)


def _refuse_texts(values: list[Any]) -> None:
    for value in values:
        if isinstance(value, list):
            _refuse_texts(value)
        elif isinstance(value, str) and not _is_storable(value):
            raise ValueError("a text that jsonb refuses")


def _number(text: str) -> Decimal:
    try:
        number = Decimal(text)
    except DecimalException as error:
        raise ValueError("a number without end") from error
    if number and number.adjusted() >= _NUMERIC_DIGITS_MAX:
        raise ValueError("a number that numeric can't hold")
    return number


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# --- tokens of pages ----------------------------------------------------------------------------------------------------


def token_of(after: tuple[datetime, UUID], search: str) -> str:
    """Where a page ended, for whoever asks for the next one; the same page has the same token.

    Args:
        after: creation and id of its last run.
        search: all filters, as one text: the token is of use to the same search alone.
    """
    created_at, run_id = after
    body = (
        bytes([_TOKEN_VERSION])
        + ((created_at - _EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)
        + run_id.bytes
    )
    return base64.urlsafe_b64encode(body + _digest(body, search)).decode().rstrip("=")


def after_of(token: str, search: str) -> tuple[datetime, UUID]:
    """The inverse of `token_of`.

    Raises:
        FilterError: it is no token, or that of another search.
    """
    try:
        found = base64.b64decode(token.encode("ascii") + b"=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        found = b""
    body, check = found[:-_DIGEST_BYTES], found[-_DIGEST_BYTES:]
    if len(body) != 25 or body[0] != _TOKEN_VERSION or check != _digest(body, search):
        raise FilterError(
            f"{token[:80]!r} is no token of a page of this search",
            hint="use the token as it was given, with the same filters; without one, the first page is shown",
        )
    return _EPOCH + timedelta(microseconds=int.from_bytes(body[1:9], "big", signed=True)), UUID(bytes=body[9:])


def _digest(body: bytes, search: str) -> bytes:
    return hashlib.sha256(body + search.encode()).digest()[:_DIGEST_BYTES]
