"""Code against history: does this entry answer what the code asked for? Pure."""

from collections.abc import Iterable
from typing import Final

from romancy.errors import NonDeterminismError
from romancy.model.command import Ask, RunActivity, StartChild, StartTimer
from romancy.model.history import ACTIVITY_ENDS, CHILD_ENDS, Entry, Kind

Numbered = RunActivity | StartTimer | StartChild | Ask
Key = tuple[str, int]

ACTIVITY = "activity"
TIMER = "timer"
CHILD = "child"
ASK = "ask"

_KINDS: Final = {RunActivity: ACTIVITY, StartTimer: TIMER, StartChild: CHILD, Ask: ASK}


def key_of(entry: Entry) -> Key:
    """Which command an entry answers: commands are numbered per kind."""
    if entry.kind in ACTIVITY_ENDS:
        return ACTIVITY, entry.number
    if entry.kind in CHILD_ENDS:
        return CHILD, entry.number
    return (ASK if entry.kind is Kind.ANSWERED else TIMER), entry.number


def check(entry: Entry, command: Numbered | None, open_commands: Iterable[Numbered]) -> str | None:
    """Compare an entry with the command of its kind and number.

    Args:
        entry: an end of an activity or a child, or a timer that fired.
        command: what the code asked for under that kind and number; None if it has not asked.
        open_commands: all that is asked for and not answered, to tell swapped calls.

    Returns:
        A warning where the arguments differ and it can't be told that this matters; else None.

    Raises:
        NonDeterminismError: the code asked for something else.
    """
    if command is None:
        raise NonDeterminismError(position=entry.position, history=str(entry), code=_asked(open_commands))
    if command.name != entry.name or _KINDS[type(command)] != key_of(entry)[0]:
        raise NonDeterminismError(position=entry.position, history=str(entry), code=str(command))
    if command.digest == entry.digest:
        return None
    swapped = [
        other
        for other in open_commands
        if other is not command and other.name == entry.name and other.digest == entry.digest
    ]
    if swapped:
        raise NonDeterminismError(
            position=entry.position,
            history=f"{entry} with the arguments of {swapped[0]}",
            code=f"{command} with other arguments",
        )
    return f"{command} is asked for with other arguments than those in history at position {entry.position}"


def _asked(open_commands: Iterable[Numbered]) -> str:
    shown = sorted(str(command) for command in open_commands)
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "") if shown else "nothing"
