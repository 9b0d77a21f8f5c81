"""Reads `sql/<concern>.sql`: each statement has a name and parameters by name, so that it can be run in psql as it stands.

A statement begins with `-- name: claim_runs` and the comment that explains it. `:worker_id::bigint` becomes `$1::bigint`.
Every statement has exactly one caller: the store's method of the same name (a test holds this).
"""

import re
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

_NAME: Final = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
_COMMENT: Final = re.compile(r"--[^\n]*")
_PARAMETER: Final = re.compile(r"(?<![:\w]):([a-z_]\w*)")  # not the second colon of a cast


@dataclass(frozen=True, slots=True)
class Query:
    """One statement. Calling it with its parameters by name gives what asyncpg takes: the text and the arguments."""

    name: str
    concern: str
    text: str
    parameters: tuple[str, ...]

    def __call__(self, **arguments: Any) -> tuple[Any, ...]:
        if len(arguments) != len(self.parameters):
            raise TypeError(f"statement {self.name} takes {self.parameters}, not {tuple(arguments)}")
        return (self.text, *[arguments[name] for name in self.parameters])


class Queries:
    """The statements of a set of files, as attributes."""

    def __init__(self, files: dict[str, str]) -> None:
        self.by_name: dict[str, Query] = {}
        for concern, text in files.items():
            head, *parts = _NAME.split(text)
            assert not _COMMENT.sub("", head).strip(), f"sql/{concern}.sql begins with something that has no name"
            for name, body in zip(parts[::2], parts[1::2], strict=True):
                assert name not in self.by_name, f"two statements are named {name}"
                self.by_name[name] = _query(name, concern, body)

    def __getattr__(self, name: str) -> Query:
        try:
            return self.by_name[name]
        except KeyError:
            raise AttributeError(f"there is no statement {name} in sql/") from None


def _query(name: str, concern: str, body: str) -> Query:
    parameters: list[str] = []

    def numbered(match: re.Match[str]) -> str:
        if match[1] not in parameters:
            parameters.append(match[1])
        return f"${parameters.index(match[1]) + 1}"

    # Comments are for readers: sent along they would only make the text longer that is hashed for each call.
    lines = [line.rstrip() for line in _COMMENT.sub("", body).splitlines()]
    text = _PARAMETER.sub(numbered, "\n".join(line for line in lines if line).removesuffix(";"))
    return Query(name=name, concern=concern, text=text, parameters=tuple(parameters))


def read() -> Queries:
    """The statements beside this module."""
    files = sorted((resources.files(__package__) / "sql").iterdir(), key=lambda file: file.name)
    return Queries({file.name.removesuffix(".sql"): file.read_text() for file in files if file.name.endswith(".sql")})


SQL: Final = read()
