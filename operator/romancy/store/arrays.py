"""Arrays as PostgreSQL's own text for them: asyncpg asks two abstract base classes about each element, in Python, which was 5 %
of all that a run costs its worker.
"""

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final
from uuid import UUID

_ARRAY: Final = re.compile(r"\$(\d+)::(text|uuid|timestamptz|smallint|integer|bigint|float8|boolean)\[\]")

_Maker = Callable[[Sequence[Any]], str]


def as_text(statement: tuple[Any, ...]) -> tuple[Any, ...]:
    """The statement and its arguments, where each `$1::uuid[]` is `$1::text::uuid[]` and its list is such a text."""
    query, makers = rewritten(statement[0])
    pairs = zip(statement[1:], makers, strict=True)
    return (query, *[argument if make is None else make(argument) for argument, make in pairs])


@cache
def rewritten(query: str) -> tuple[str, tuple[_Maker | None, ...]]:
    """The text that is sent, and for each parameter what makes a text of its list; None if it is none."""
    kinds = {int(place): kind for place, kind in _ARRAY.findall(query)}
    places = range(1, max(map(int, re.findall(r"\$(\d+)", query)), default=0) + 1)
    makers = tuple(_MAKERS.get(kinds[place], _plain) if place in kinds else None for place in places)
    return _ARRAY.sub(r"$\1::text::\2[]", query), makers


def _texts(values: Sequence[str | None]) -> str:
    if not values:
        return "{}"
    if None not in values:
        joined = '","'.join(values)  # type: ignore[arg-type]
        if "\\" not in joined and joined.count('"') == 2 * (len(values) - 1):
            return f'{{"{joined}"}}'
    return f"{{{','.join([_NULL if each is None else _quoted(each) for each in values])}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _ids(values: Sequence[UUID | None]) -> str:
    return f"{{{','.join([_NULL if each is None else f'{each.int:032x}' for each in values])}}}"


def _moments(values: Sequence[datetime | None]) -> str:
    return f"{{{','.join([_NULL if each is None else each.isoformat() for each in values])}}}"


def _plain(values: Sequence[float | bool | None]) -> str:
    return f"{{{','.join([_NULL if each is None else str(each) for each in values])}}}"


_NULL: Final = "null"
_MAKERS: Final[dict[str, _Maker]] = {"text": _texts, "uuid": _ids, "timestamptz": _moments}
