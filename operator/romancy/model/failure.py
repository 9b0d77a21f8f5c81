"""Exceptions to data and back, so that what was caught by type live is caught by the same type on replay.

An exception is rebuilt without its own `__init__` (args, attributes, notes, cause, groups), from classes that are loaded
already and never imported by name. What can't be rebuilt to the same thing is an `ActivityError` from the beginning, so
that the code sees the same live and on replay.
"""

import dataclasses
import json
import sys
import traceback
from base64 import b64decode, b64encode
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from romancy.errors import ActivityError
from romancy.model.codec import Codec, difference

MESSAGE_MAX: Final = 8_000
TRACE_MAX: Final = 16_000
DEPTH_MAX: Final = 8
FAILURE_BYTES_MAX: Final = 256 * 1024
_PACKAGE: Final = str(Path(__file__).parents[1])


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """What status and lists show of a failure."""

    type: str
    message: str
    trace: str
    reason: str = ""


# What builtin exceptions keep beside their arguments, and is plain data. (`obj` of an AttributeError is not.)
_MEMBERS: Final[tuple[tuple[type[Exception], tuple[str, ...]], ...]] = (
    (ImportError, ("name", "path")),
    (NameError, ("name",)),
    (AttributeError, ("name",)),
)

# Classes may be rebuilt only from modules that were loaded when the workflows had been: what an activity imports later
# is loaded here and perhaps not where the run is replayed.
_known_modules: frozenset[str] | None = None


def freeze_modules() -> None:
    """Say that the workflows are loaded: exceptions of modules that come later travel as `ActivityError`."""
    global _known_modules  # noqa: PLW0603 - what is loaded is a fact of the process
    _known_modules = frozenset(sys.modules)


def encode(error: BaseException, *, note: str = "") -> str:
    """The failure as JSON text.

    Args:
        note: added to the notes of the exception, as in "activity 'charge' failed after 5 attempts".
    """
    try:
        if note:
            error.add_note(note)
        data = _data(error, depth=0)
        text = json.dumps(data, separators=(",", ":"))
        if len(text) > FAILURE_BYTES_MAX or not _is_faithful(error, text):
            text = json.dumps(_foreign(error), separators=(",", ":"))
    except Exception as unreadable:
        # Its `__str__`, its notes or its attributes raise. It must be counted and shown all the same: an attempt that
        # could not be written down would be tried again for ever.
        text = json.dumps(_unreadable(error, unreadable, note), separators=(",", ":"))
    return text


def decode(text: str) -> Exception:
    """The exception of a failure: of its own type if that can be, else an `ActivityError`."""
    return _exception(json.loads(text))


def describe(text: str) -> Failure:
    """What people see of a failure."""
    data = json.loads(text)
    return Failure(
        type=data["type"].rpartition(".")[2] if data["type"].startswith("builtins.") else data["type"],
        message=data["message"],
        trace=data.get("trace", ""),
        reason=data.get("reason", ""),
    )


def _data(error: BaseException, depth: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "type": _name(type(error)),
        "message": _cut(str(error), MESSAGE_MAX),
        "trace": trace_of(error) if depth == 0 else "",
    }
    if reason := getattr(type(error), "reason", ""):
        data["reason"] = str(reason)
    try:
        data["args"] = [_tagged(value, depth) for value in _arguments(error)]
        members = {key: getattr(error, key, None) for kind, keys in _MEMBERS if isinstance(error, kind) for key in keys}
        if members := {key: _tagged(value, depth) for key, value in members.items() if value is not None}:
            data["members"] = members
        state = {key: _tagged(value, depth) for key, value in vars(error).items() if key != "__notes__"}
        if state:
            data["state"] = state
    except _Untaggable:
        return _foreign(error)
    if notes := getattr(error, "__notes__", None):
        data["notes"] = [_cut(str(note), MESSAGE_MAX) for note in notes]
    if isinstance(error.__cause__, Exception) and depth < DEPTH_MAX:
        data["cause"] = _data(error.__cause__, depth + 1)
    return data


def _arguments(error: BaseException) -> tuple[Any, ...]:
    """What makes it: OSError keeps its file names beside `args`."""
    if isinstance(error, OSError) and error.filename is not None and len(error.args) == 2:
        return (
            (*error.args, error.filename)
            if error.filename2 is None
            else (*error.args, error.filename, None, error.filename2)
        )
    return error.args


def _foreign(error: BaseException) -> dict[str, Any]:
    data = {
        "type": _name(type(error)),
        "message": _cut(str(error), MESSAGE_MAX),
        "trace": trace_of(error),
        "foreign": True,
    }
    if notes := getattr(error, "__notes__", None):
        data["notes"] = [_cut(str(note), 1000) for note in notes[:20]]
    return data


def _unreadable(error: BaseException, why: Exception, note: str) -> dict[str, Any]:
    """What is known of an exception without asking it anything."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    data: dict[str, Any] = {
        "type": _name(type(error)),
        "message": f"(the exception can't be read: {type(why).__name__})",
        "trace": frames if len(frames) <= TRACE_MAX else "... (cut)\n" + frames[-TRACE_MAX:],
        "foreign": True,
    }
    return data | {"notes": [note]} if note else data


def trace_of(error: BaseException) -> str:
    """The traceback as text: the frames of the user's code, and its end where it is too long."""
    found = traceback.TracebackException.from_exception(error)
    _leave_out_ours(found, depth=0)
    text = "".join(found.format())
    return text if len(text) <= TRACE_MAX else "... (cut)\n" + text[-TRACE_MAX:]


def _leave_out_ours(found: traceback.TracebackException | None, depth: int) -> None:
    """Take the engine's own frames out of a traceback, unless there are no others."""
    if found is None or depth > DEPTH_MAX:
        return
    theirs = [frame for frame in found.stack if not frame.filename.startswith(_PACKAGE)]
    if theirs:
        found.stack = traceback.StackSummary.from_list(theirs)
    for other in (found.__cause__, found.__context__, *(found.exceptions or ())):
        _leave_out_ours(other, depth + 1)


def _exception(data: dict[str, Any]) -> Exception:
    error = None if data.get("foreign") else _rebuilt(data)
    if error is None:
        error = ActivityError(data["message"], type_name=data["type"], trace=data.get("trace", ""))
    for note in data.get("notes", ()):
        error.add_note(note)
    if "cause" in data:
        error.__cause__ = _exception(data["cause"])
    return error


def _rebuilt(data: dict[str, Any]) -> Exception | None:
    kind = _class(data["type"])
    if kind is None or not issubclass(kind, Exception):
        return None
    # The builtin among its bases makes it: its `__init__` fills what `__new__` leaves (errno, start, end, ...), and the
    # class's own, which may take anything, is not called.
    base = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    try:
        args = tuple(_untagged(value) for value in data["args"])
        error = base.__new__(kind, *args)
        base.__init__(error, *args)  # type: ignore[misc]  # the builtin's, on purpose
        if not isinstance(error, OSError):
            error.args = args
        for key, value in data.get("members", {}).items():
            setattr(error, key, _untagged(value))
        vars(error).update({key: _untagged(value) for key, value in data.get("state", {}).items()})
    except Exception:
        return None
    return error if isinstance(error, Exception) else None


def _is_faithful(error: BaseException, text: str) -> bool:
    """Rebuilt here and now, is it the same?"""
    back = decode(text)
    return _is_alike(error, back, depth=0)


def _is_alike(error: BaseException, back: BaseException, depth: int) -> bool:
    if type(error) is not type(back) or len(error.args) != len(back.args):
        return False
    if str(error) != str(back) or set(_state(error)) != set(_state(back)):
        return False
    pairs = [*zip(error.args, back.args, strict=True), *((_state(error)[k], _state(back)[k]) for k in _state(error))]
    return all(_is_value_alike(a, b, depth) for a, b in pairs)


def _is_value_alike(sent: object, back: object, depth: int) -> bool:
    if isinstance(sent, BaseException) and isinstance(back, BaseException):
        return depth < DEPTH_MAX and _is_alike(sent, back, depth + 1)
    if isinstance(sent, list | tuple) and type(sent) is type(back):
        others: Any = back
        return len(sent) == len(others) and all(_is_value_alike(a, b, depth) for a, b in zip(sent, others, strict=True))
    return difference(sent, back, "") is None


def _state(error: BaseException) -> dict[str, Any]:
    return {key: value for key, value in vars(error).items() if key != "__notes__"}


# --- values inside exceptions: of any type, so each says which ---------------------------------------------------------


class _Untaggable(Exception):  # noqa: N818
    """A value that can't be stored with its type."""


_TEXT: Final[dict[type, tuple[Callable[[Any], str], Callable[[str], Any]]]] = {
    bytes: (lambda value: b64encode(value).decode(), b64decode),
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (
        lambda value: f"{value.days} {value.seconds} {value.microseconds}",
        lambda text: timedelta(*map(int, text.split())),
    ),
    Decimal: (str, Decimal),
    UUID: (str, UUID),
}
_TEXT_BY_NAME: Final = {kind.__name__: functions for kind, functions in _TEXT.items()}
_LISTS: Final[dict[str, Callable[[list[Any]], Any]]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


def _tagged(value: Any, depth: int) -> Any:
    if depth > DEPTH_MAX:
        raise _Untaggable
    kind = type(value)
    if value is None or kind in {str, bool, int}:
        return value
    if kind is float:
        return value if value - value == 0 else {"$": "float", "v": repr(value)}
    if kind in _TEXT:
        return {"$": kind.__name__, "v": _TEXT[kind][0](value)}
    if kind is list:
        return [_tagged(item, depth + 1) for item in value]
    if kind in {tuple, set, frozenset}:
        return {"$": kind.__name__, "v": [_tagged(item, depth + 1) for item in value]}
    if kind is dict:
        return {"$": "dict", "v": [[_tagged(k, depth + 1), _tagged(v, depth + 1)] for k, v in value.items()]}
    if isinstance(value, Exception):
        return {"$": "exception", "v": _data(value, depth + 1)}
    if isinstance(value, Enum):
        return {"$": "enum", "type": _name(kind), "v": value.name}
    if isinstance(value, BaseModel) or dataclasses.is_dataclass(kind):
        if _class(_name(kind)) is not kind:
            raise _Untaggable
        try:
            return {"$": "object", "type": _name(kind), "v": Codec(kind, what="attribute").encode(value)}
        except Exception as error:
            raise _Untaggable from error
    raise _Untaggable


def _untagged(data: Any) -> Any:
    if isinstance(data, list):
        return [_untagged(item) for item in data]
    if not isinstance(data, dict):
        return data
    tag, value = data["$"], data["v"]
    if tag in _TEXT_BY_NAME:
        return _TEXT_BY_NAME[tag][1](value)
    if tag in _LISTS:
        return _LISTS[tag]([_untagged(item) for item in value])
    match tag:
        case "float":
            return float(value)
        case "dict":
            return {_untagged(key): _untagged(item) for key, item in value}
        case "exception":
            return _exception(value)
        case "enum":
            kind = _class(data["type"])
            if kind is None or not issubclass(kind, Enum):
                raise _Untaggable
            return kind[value]
        case "object":
            kind = _class(data["type"])
            if kind is None or not (issubclass(kind, BaseModel) or dataclasses.is_dataclass(kind)):
                raise _Untaggable
            return Codec(kind, what="attribute").decode(value)
        case _:
            raise _Untaggable


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _class(name: str) -> type | None:
    """A class by its name, only from modules that are loaded; never imported."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if module in sys.modules and (_known_modules is None or module in _known_modules):
            found: Any = sys.modules[module]
            for part in parts[cut:]:
                found = getattr(found, part, None)
            if isinstance(found, type) and _name(found) == name and found.__module__ == module:
                return found
    return None


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 12] + "... (cut)"
