"""What commands print: tables for people, and the same as JSON, YAML or names for programs. Nothing else goes to stdout."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from romancy.cli.backend import Json

FORMS: Final = ("text", "wide", "name", "json", "yaml")
_WHY_MAX: Final = 100
_WIDTHS: Final = {
    "NAMESPACE": 12,
    "NAME": 28,
    "WORKFLOW": 20,
    "PHASE": 12,
    "CREATED": 23,
    "ENDED": 23,
    "ID": 36,
    "WORKER": 16,
}

Column = tuple[str, Callable[[Json], object]]


def _created(run: Json) -> str:
    return moment(run["createdAt"])


def _state_of(worker: Json) -> str:
    return "expired" if worker["isExpired"] else "draining" if worker["isDraining"] else "alive"


RUN_COLUMNS: Final[tuple[Column, ...]] = (
    ("NAMESPACE", lambda run: run["namespace"]),
    ("NAME", lambda run: run["name"]),
    ("WORKFLOW", lambda run: run["workflow"]),
    ("PHASE", lambda run: run["phase"]),
    ("CREATED", _created),
    ("WHY", lambda run: in_a_line(run["message"])),
)
RUN_WIDE: Final[tuple[Column, ...]] = (
    *RUN_COLUMNS[:-1],
    ("ENDED", lambda run: moment(run["finishedAt"])),
    ("ID", lambda run: run["id"]),
    ("WORKER", lambda run: run["worker"]),
    ("REASON", lambda run: run["reason"]),
    ("WHY", lambda run: " ".join(run["message"].split())),
    ("NEXT", lambda run: run["next"]),
)
ENTRY_COLUMNS: Final[tuple[Column, ...]] = (
    ("POSITION", lambda entry: entry["position"]),
    ("AT", lambda entry: moment(entry["at"])),
    ("KIND", lambda entry: entry["kind"] if entry["stands"] else f"({entry['kind']})"),
    ("NAME", lambda entry: f"{entry['name']}#{entry['number']}" if entry["number"] else entry["name"]),
    ("VALUE", lambda entry: in_a_line(_value_of(entry))),
)
WORKER_COLUMNS: Final[tuple[Column, ...]] = (
    ("ID", lambda worker: worker["id"]),
    ("NAME", lambda worker: worker["name"]),
    ("NAMESPACE", lambda worker: worker["namespace"]),
    ("STATE", _state_of),
    ("RUNS", lambda worker: worker["runs"]),
    ("PYTHON", lambda worker: worker["python"]),
    ("STARTED", lambda worker: moment(worker["startedAt"])),
    ("WORKFLOWS", lambda worker: ",".join(worker["workflows"])),
)
WORKER_WIDE: Final[tuple[Column, ...]] = (
    *WORKER_COLUMNS,
    ("EXPIRES", lambda worker: moment(worker["expiresAt"])),
    ("BUILD", lambda worker: worker["build"]),
)
LETTER_COLUMNS: Final[tuple[Column, ...]] = (
    ("ID", lambda letter: letter["id"]),
    ("NAMESPACE", lambda letter: letter["namespace"]),
    ("RUN", lambda letter: letter["run"] or letter["runId"]),
    ("TYPE", lambda letter: letter["event"]["type"]),
    ("DIED", lambda letter: moment(letter["diedAt"])),
    ("ATTEMPTS", lambda letter: letter["attempts"]),
    ("WHY", lambda letter: in_a_line(letter["failure"])),
)
WORKFLOW_COLUMNS: Final[tuple[Column, ...]] = (
    ("NAME", lambda workflow: workflow["name"]),
    ("WORKERS", lambda workflow: workflow["workers"]),
    ("DESCRIPTION", lambda workflow: in_a_line(workflow["description"] or "")),
)


def show(
    form: str,
    things: Sequence[Json],
    columns: Sequence[Column],
    *,
    whole: object,
    wide: Sequence[Column] | None = None,
    name: Callable[[Json], str] = lambda thing: str(thing["name"]),
) -> None:
    """Print some things in the form that is asked for.

    Args:
        whole: what JSON and YAML show.
        wide: columns of the wide table, if it has others.
        name: what `-o name` prints of each.
    """
    match form:
        case "json" | "yaml":
            say_data(form, whole)
        case "name":
            for thing in things:
                click.echo(name(thing))
        case _:
            table(things, wide if form == "wide" and wide else columns)


def with_what_stands(entries: Sequence[Json]) -> list[Json]:
    """Entries that say whether a retry has put them aside (model/retried.py)."""
    asked = [entry["value"] for entry in entries if entry["kind"] == "Retried"]
    put_aside = {position for each in asked for position in range(each["from"], each["to"] + 1)}
    return [{**entry, "stands": entry["position"] not in put_aside} for entry in entries]


def say_data(form: str, whole: object) -> None:
    """JSON or YAML."""
    if form == "yaml":
        import yaml

        click.echo(yaml.safe_dump(whole, allow_unicode=True, sort_keys=False), nl=False)
    else:
        click.echo(json.dumps(whole, ensure_ascii=False, indent=2))


def table(things: Iterable[Json], columns: Sequence[Column]) -> None:
    """Columns under their heads, as wide as what is in them."""
    rows = [[head for head, _ in columns], *[[text_of(of(thing)) for _, of in columns] for thing in things]]
    widths = [max(len(row[nth]) for row in rows) for nth in range(len(columns))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def line(cells: Sequence[tuple[str, object]]) -> str:
    """One row of a table that goes on for ever: cells by their heads, of fixed widths."""
    return "  ".join(text_of(cell).ljust(_WIDTHS.get(head, 0)) for head, cell in cells).rstrip()


def text_of(value: object) -> str:
    """A cell."""
    return "" if value is None else str(value)


def name_of(run: Mapping[str, Any], *, is_of_all: bool) -> str:
    """What other commands take for this run."""
    return f"{run['namespace']}/{run['name']}" if is_of_all else str(run["name"])


def in_a_line(text: str) -> str:
    """The beginning of a text, for a table."""
    found = " ".join(text.split())
    return found if len(found) <= _WHY_MAX else f"{found[: _WHY_MAX - 1]}…"


def moment(text: str | None) -> str:
    """A time for people: UTC, to the second."""
    return "" if text is None else f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def _value_of(entry: Json) -> str:
    if (failure := entry.get("failure")) is not None:
        return f"{failure['type']}: {failure['message']}"
    return "" if entry.get("value") is None else json.dumps(entry["value"], ensure_ascii=False)
