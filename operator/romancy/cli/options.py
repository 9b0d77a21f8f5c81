"""Options: values that click has no type for (each function is one, its name the word in the help), and what commands share."""

import functools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from romancy.cli.backend import TOKEN_FILE_VARIABLE, TOKEN_VARIABLE, URL_VARIABLE, Reach
from romancy.cli.output import FORMS

_UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(?:\d{1,9}[smhd])+")
_DURATION_PART: Final = re.compile(r"(\d+)([smhd])")


def duration(text: str) -> timedelta:
    """Numbers with units: 30d, 12h, 1h30m."""
    if not _DURATION.fullmatch(text):
        raise click.BadParameter(f"{text!r} is no duration with the units d, h, m or s, such as 30d, 12h or 1h30m")
    try:
        return timedelta(seconds=sum(int(n) * _UNIT_SECONDS[unit] for n, unit in _DURATION_PART.findall(text)))
    except OverflowError as error:
        raise click.BadParameter(f"{text!r} is longer than any time") from error


def time(text: str) -> datetime:
    """A time (2026-01-31T12:00:00Z; UTC if it names no zone), or a duration: so long ago."""
    try:
        if _DURATION.fullmatch(text):
            return datetime.now(UTC) - duration(text)
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise click.BadParameter(
            f"{text!r} is no time such as 2026-01-31T12:00:00Z, and no duration such as 12h"
        ) from error


def pair(text: str) -> tuple[str, str]:
    """name=value."""
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise click.BadParameter(f"{text!r} is not of the form name=value")
    return name, value


def pairs(text: str) -> dict[str, str]:
    """name=value, or several of them with commas between; a comma in a value is one where no name follows it."""
    return dict(pair(each) for each in re.split(r",(?=[^,=]+=)", text))


def json_or_text(text: str) -> Any:
    """A value as JSON; what is no JSON is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def json_object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"the input is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"the input must be a JSON object, not {type(value).__name__}")
    return value


# --- options that several commands have: the names and letters of kubectl ---------------------------------------------

namespace = click.option("-n", "--namespace", default="default", show_default=True)
all_namespaces = click.option("-A", "--all-namespaces", is_flag=True, help="In all namespaces.")
output = click.option(
    "-o",
    "--output",
    "--format",
    "form",
    type=click.Choice(FORMS),
    default="text",
    show_default=True,
    help="In this form.",
)


def asking[R](command: Callable[..., R]) -> Callable[..., R]:
    """Of a command that asks the engine: by its HTTP API if that is named, else the database."""
    server = click.option(
        "--server", metavar="URL", help=f"HTTP API to ask, else {URL_VARIABLE}; without: the database."
    )
    token = click.option(
        "--token-file",
        type=click.Path(dir_okay=False, path_type=Path),
        help=f"Holds the token for it, else {TOKEN_FILE_VARIABLE} or {TOKEN_VARIABLE}.",
    )

    @functools.wraps(command)
    def with_reach(*args: Any, server: str | None, token_file: Path | None, **kwargs: Any) -> R:
        return command(*args, reach=Reach(server, token_file), **kwargs)

    return server(token(with_reach))
