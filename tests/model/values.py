"""Values and exceptions of every type that may travel; imported here and by another process that reads them back."""

import datetime as dt
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Any, NotRequired, TypedDict
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from romancy.model.codec import difference


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Item(BaseModel):
    sku: str
    price: Decimal
    at: dt.datetime
    tags: set[str] = set()
    color: Color = Color.RED


class Special(Item):
    extra: int = 0


class Aliased(BaseModel):
    name: str = Field(alias="fullName")


class Binary(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    data: bytes


class PlainBytes(BaseModel):
    data: bytes


@dataclass
class Point:
    x: float
    y: float = 0.0


class Address(TypedDict):
    street: str
    zip: NotRequired[int]


class Secret(BaseModel):
    shown: int
    hidden: int = Field(default=1, exclude=True)


MOMENT = dt.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
ITEM = Item(sku="a", price=Decimal("1.50"), at=MOMENT, tags={"x", "y"}, color=Color.BLUE)

# name: (annotation, value)
FAITHFUL: dict[str, tuple[Any, Any]] = {
    "none": (None, None),
    "bool": (bool, True),
    "int": (int, 2**80),
    "float": (float, 1.5),
    "int for float": (float, 3),
    "nan": (float, float("nan")),
    "inf": (float, float("-inf")),
    "minus zero": (float, -0.0),
    "str": (str, "žluťoučký \U0001f40e"),
    "nul": (str, "a\x00b"),
    "bytes": (bytes, b"\xff\x00\xfe"),
    "datetime": (dt.datetime, MOMENT),
    "naive datetime": (dt.datetime, dt.datetime(2026, 1, 1, 3)),  # noqa: DTZ001 - on purpose
    "offset": (dt.datetime, MOMENT.astimezone(dt.timezone(dt.timedelta(hours=5, minutes=30)))),
    "date": (dt.date, dt.date(2026, 1, 1)),
    "time": (dt.time, dt.time(1, 2, 3, 4)),
    "timedelta": (dt.timedelta, dt.timedelta(days=-1, microseconds=7)),
    "decimal": (Decimal, Decimal("1.500")),
    "uuid": (UUID, UUID(int=7)),
    "enum": (Color, Color.RED),
    "int enum": (Level, Level.LOW),
    "model": (Item, ITEM),
    "alias": (Aliased, Aliased(fullName="x")),
    "binary model": (Binary, Binary(data=b"\xff")),
    "dataclass": (Point, Point(1.0)),
    "typed dict": (Address, {"street": "s", "zip": 1}),
    "list": (list[Item], [ITEM, ITEM]),
    "tuple": (tuple[int, str], (1, "a")),
    "tuple of many": (tuple[int, ...], (1, 2, 3)),
    "set": (set[UUID], {UUID(int=1), UUID(int=2)}),
    "frozenset": (frozenset[int], frozenset({1, 2})),
    "dict": (dict[str, list[Point]], {"b": [Point(1.0)], "a": []}),
    "dict with int keys": (dict[int, str], {1: "a"}),
    "optional": (Item | None, None),
    "union of models": (Point | Item, ITEM),
    "union of numbers": (int | str, "1"),
    "any": (Any, {"a": [1, None, "x", 1.5]}),
    "empty": (dict[str, int], {}),
}

# name: (annotation, value): pydantic alone would lose these without a word, or can't write them
UNFAITHFUL: dict[str, tuple[Any, Any]] = {
    "str or date": (str | dt.date, dt.date(2026, 1, 1)),
    "enum or str": (Color | str, Color.RED),
    "subclass in a field of its base": (list[Item], [Special(sku="a", price=Decimal(1), at=MOMENT, extra=5)]),
    "model as any": (Any, ITEM),
    "tuple as any": (Any, (1, 2)),
    "bytes of a model": (PlainBytes, PlainBytes(data=b"\xff\xfe")),
    "excluded field": (Secret, Secret(shown=1, hidden=2)),
    "wrong type": (int, "1"),
    "string subclass": (str, type("Name", (str,), {})("x")),
    "lone surrogate": (str, "\ud800"),
    "object": (Any, object()),
}


class PlainError(Exception):
    pass


class InitError(Exception):
    """Its `__init__` takes what `args` do not hold."""

    def __init__(self, code: int, *, detail: str, item: Item) -> None:
        super().__init__(f"code {code}")
        self.code, self.detail, self.item = code, detail, item


class ChainedError(ValueError):
    pass


def exceptions() -> dict[str, Exception]:
    """Exceptions that must come back by type and content."""
    noted = PlainError("noted")
    noted.add_note("first note")
    try:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ChainedError("outer") from inner
    except ChainedError as error:
        chained = error
    return {
        "plain": PlainError("a", 1, None),
        "no args": PlainError(),
        "init": InitError(7, detail="d", item=ITEM),
        "os error": FileNotFoundError(2, "No such file", "/x"),
        "unicode": UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        "key": KeyError("k"),
        "timeout": TimeoutError(),
        "stop": StopAsyncIteration("s"),
        "values": PlainError(
            MOMENT, Decimal("1.0"), UUID(int=1), b"\xff", (1, {2}), {"a": [Point(1.0)]}, Color.RED, float("nan")
        ),
        "import": ModuleNotFoundError("no x", name="x"),
        "attribute": AttributeError("no y", name="y"),
        "two files": OSError(18, "Cross-device link", "/a", None, "/b"),
        "noted": noted,
        "chained": chained,
        "group": ExceptionGroup("several", [PlainError(1), ExceptionGroup("inner", [ValueError("v")])]),
        "message": PlainError("nul \x00 and surrogate \ud800"),
    }


def is_same_exception(sent: BaseException, back: BaseException) -> bool:
    """Type, text, arguments, attributes, notes, cause, group."""
    if type(sent) is not type(back) or str(sent) != str(back):
        return False
    if getattr(sent, "__notes__", []) != getattr(back, "__notes__", []):
        return False
    if (sent.__cause__ is None) != (back.__cause__ is None):
        return False
    if (
        sent.__cause__ is not None
        and back.__cause__ is not None
        and not is_same_exception(sent.__cause__, back.__cause__)
    ):
        return False
    if isinstance(sent, ExceptionGroup) and isinstance(back, ExceptionGroup):
        return all(is_same_exception(a, b) for a, b in zip(sent.exceptions, back.exceptions, strict=True))
    if getattr(sent, "filename", None) != getattr(back, "filename", None) or getattr(sent, "name", None) != getattr(
        back, "name", None
    ):
        return False
    state = {key: value for key, value in vars(sent).items() if key != "__notes__"}
    other = {key: value for key, value in vars(back).items() if key != "__notes__"}
    return difference(list(sent.args), list(back.args), "") is None and difference(state, other, "") is None
