"""Values of options that click has no type for: each function is one, and its name the word in the help."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

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


def json_or_text(text: str) -> Any:
    """A value as JSON; what is no JSON is a text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
