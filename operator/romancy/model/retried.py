"""A failed run that is retried: from where it goes on, and what of its history stands then. Pure.

No entry changes (I3). A run is retried by one more entry, `Retried`, which names entries that stand no more: from the failure
that ended the run on. What stands before it is replayed; what was asked for before it and not answered is asked for anew.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from romancy.errors import RetryRefusedError
from romancy.model.history import Entry, Kind
from romancy.model.run import Reason, Run

NUMBERS_APART: Final = 100_000
"""A retried run counts its commands on from so much higher: none has the number, and so the key, of one that stands no more."""
_BRING_NOTHING: Final = frozenset({Kind.STARTED, Kind.PATCHED, Kind.RETRIED})
_CHILD_FAILURES: Final = frozenset({Kind.CHILD_FAILED, Kind.CHILD_CANCELLED})


def standing(history: Sequence[Entry], asked: str | None = None) -> list[Entry]:
    """The entries that count: without those that a retry has put aside.

    Args:
        asked: the payload of a message that asks for a retry, and has not become an entry yet.
    """
    put_aside = _put_aside(history, asked)
    return [entry for entry in history if entry.position not in put_aside] if put_aside else list(history)


def fallen(history: Sequence[Entry], asked: str | None = None) -> list[Entry]:
    """The others."""
    put_aside = _put_aside(history, asked)
    return [entry for entry in history if entry.position in put_aside] if put_aside else []


def point_of(run: Run, history: Sequence[Entry]) -> int:
    """The position of the first entry that is to stand no more when this failed run is retried.

    That is the last failure of the activity whose exception has ended the run; of several that have (a group of exceptions, a
    cause) the first; the time-out, if the run has used up its own. If its own code has failed it, it is the last thing that
    came to it, which then comes again: to the code of now.

    Args:
        history: all of it.

    Raises:
        RetryRefusedError: a child has failed it, and that can't run again under its id.
    """
    stands = standing(history)
    if run.reason == Reason.TIMED_OUT:
        point = next((entry.position for entry in stands if entry.kind is Kind.CANCEL_REQUESTED), None)
    else:
        point = min((entry.position for entry in _causes(run.failure, stands)), default=None)
    if point is None:
        point = next((entry.position for entry in reversed(stands) if entry.kind not in _BRING_NOTHING), None)
    last = history[-1].position if history else run.numbers.get("position", 0)
    point = last + 1 if point is None else point
    for entry in stands:
        if entry.position >= point and entry.kind in _CHILD_FAILURES:
            raise RetryRefusedError(
                f"its child run of workflow {entry.name!r} has not succeeded, and a child runs but once",
                hint="start a new run",
            )
    return point


def asked_of(entry: Entry) -> dict[str, int]:
    """What a `Retried` says: the commands are counted on from these numbers."""
    numbers: dict[str, int] = json.loads(entry.payload)["numbers"]
    return numbers


def payload_of(asked: str, numbers: Mapping[str, int], history: Sequence[Entry]) -> str:
    """What the entry `Retried` says.

    Args:
        asked: the payload of the message that asks for it.
        numbers: of the commands that were asked for by what stands.
        history: all of it, for numbers that were given before and must not be given again.
    """
    former = [asked_of(entry) for entry in history if entry.kind is Kind.RETRIED]
    apart = {
        kind: NUMBERS_APART + max([number, *(each.get(kind, 0) for each in former)]) for kind, number in numbers.items()
    }
    return json.dumps({**json.loads(asked), "numbers": apart})


def _put_aside(history: Sequence[Entry], asked: str | None) -> set[int]:
    put_aside: set[int] = set()
    texts = [entry.payload for entry in history if entry.kind is Kind.RETRIED]
    for each in map(json.loads, texts if asked is None else [*texts, asked]):
        put_aside.update(range(each["from"], each["to"] + 1))
    return put_aside


def _causes(failed: str | None, stands: Sequence[Entry]) -> Iterator[Entry]:
    """The last failure of an activity or child for each exception that a run has failed with, as far as it came from one."""
    wanted = list(_exceptions(json.loads(failed))) if failed else []
    for entry in reversed(stands):
        if entry.kind is Kind.ACTIVITY_FAILED:
            told = json.loads(entry.payload)
        elif entry.kind in _CHILD_FAILURES and (text := json.loads(entry.payload)["failure"]) is not None:
            told = json.loads(text)
        else:
            continue
        if (named := (told["type"], told["message"])) in wanted:
            wanted.remove(named)
            yield entry


def _exceptions(data: Any) -> Iterator[tuple[str, str]]:
    """All exceptions in what is stored of one: its cause, and those of a group, however deep."""
    if isinstance(data, list):
        for item in data:
            yield from _exceptions(item)
    elif isinstance(data, dict):
        if "type" in data and "message" in data:
            # One that could not be rebuilt was raised as an ActivityError, which keeps the name of its type.
            yield (data.get("state") or {}).get("type_name") or data["type"], data["message"]
        for value in data.values():
            yield from _exceptions(value)
