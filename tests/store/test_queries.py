"""The statements: read from sql/, each with one caller, each accepted by every PostgreSQL."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from romancy.store import queries
from romancy.store.queries import SQL, Queries

ON_EVERY_POSTGRES = True

STORE = Path(queries.__file__).parent


def test_parameters_by_name_become_numbers() -> None:
    sql = Queries(
        {
            "x": "-- name: one\n-- why: because\nselect :b::int, :a::text || ':' , t.c::text\n  -- more\n from t where b = :b;\n"
        }
    )

    assert sql.one(a="x", b=2) == ("select $1::int, $2::text || ':' , t.c::text\n from t where b = $1", 2, "x")


def test_wrong_parameters_are_found_at_once() -> None:
    sql = Queries({"x": "-- name: one\nselect :a::int;"})

    with pytest.raises(TypeError):
        sql.one(a=1, b=2)
    with pytest.raises(KeyError):
        sql.one(b=2)
    with pytest.raises(AttributeError):
        sql.two()


def callers() -> dict[str, list[tuple[str, str]]]:
    """Every use of SQL.<name> in the store: the file and the method that it stands in."""
    found: dict[str, list[tuple[str, str]]] = {}
    for path in STORE.glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "SQL":
                        found.setdefault(node.attr, []).append((path.stem, function.name))
    return found


# The two forms of one flush are chosen between by the function that builds their arguments; a send goes out in parts.
OTHER_NAMES = {"flush_entries": "flush", "send": "_send_part"}


@pytest.mark.parametrize("name", sorted(SQL.by_name))
def test_a_statement_has_one_caller_of_its_name(name: str) -> None:
    [(_file, method)] = callers()[name]

    assert method.removeprefix("_") == OTHER_NAMES.get(name, name).removeprefix("_")


@pytest.mark.parametrize("query", SQL.by_name.values(), ids=SQL.by_name)
def test_a_statement_names_its_columns(query: Any) -> None:
    """`select *` fails once in each connection after a migration that adds a column."""
    assert not re.search(r"select\s+(\w+\.)?\*|returning\s+(\w+\.)?\*", query.text)


async def test_every_statement_can_be_prepared(connect: Any) -> None:
    connection = await connect()

    for query in SQL.by_name.values():
        prepared = await connection.prepare(query.text)
        assert len(prepared.get_parameters()) == len(query.parameters), query.name
