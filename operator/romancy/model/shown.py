"""Runs, entries and workers as JSON: the same objects in the HTTP API and on the command line.

Names are camelCase as in the resources, times RFC 3339 in UTC, values what their stored JSON says.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from romancy.model import failure
from romancy.model.dead_letter import DeadLetter
from romancy.model.history import Attempt, Entry, Kind
from romancy.model.message import message_of, why_of
from romancy.model.run import Run
from romancy.model.worker import WorkerRow

Json = dict[str, Any]

_COMMANDS: Final[Mapping[Kind, str]] = {
    Kind.ACTIVITY_COMPLETED: "activity",
    Kind.ACTIVITY_FAILED: "activity",
    Kind.ACTIVITY_CANCELLED: "activity",
    Kind.TIMER_FIRED: "timer",
    Kind.CHILD_COMPLETED: "child",
    Kind.CHILD_FAILED: "child",
    Kind.CHILD_CANCELLED: "child",
    Kind.ANSWERED: "ask",
}


def run_as_json(run: Run) -> Json:
    """A run. `message` and `next` say why it is where it is, and what comes or is to be done."""
    return {
        "id": str(run.id),
        "namespace": run.namespace,
        "name": run.name,
        "workflow": run.workflow,
        "phase": run.phase.value,
        "reason": run.reason,
        "message": message_of(run),
        "next": why_of(run).next,
        "labels": dict(run.labels),
        "priority": run.priority,
        "createdAt": time_of(run.created_at),
        "startedAt": time_of(run.started_at),
        "finishedAt": time_of(run.finished_at),
        "dueAt": time_of(run.wake_at),
        "worker": run.worker,
        "timeoutSeconds": run.timeout_seconds,
        "isResource": run.is_resource,
        "input": json.loads(run.input),
        "output": _value(run.output),
        "failure": None if run.failure is None else failure_as_json(run.failure),
    }


def failure_as_json(text: str) -> Json:
    """An exception, from what is stored of it."""
    found = failure.describe(text)
    return {"type": found.type, "message": found.message, "trace": found.trace}


def entry_as_json(entry: Entry) -> Json:
    """An entry. `command` is the kind of command that it answers, None if none; `failure` is there where it brought one."""
    shown: Json = {
        "position": entry.position,
        "kind": entry.kind.value,
        "command": _COMMANDS.get(entry.kind),
        "number": entry.number,
        "name": entry.name,
        "at": time_of(entry.at),
    }
    match entry.kind:
        case Kind.ACTIVITY_FAILED:
            return {**shown, "value": None, "failure": failure_as_json(entry.payload)}
        case Kind.CHILD_FAILED | Kind.CHILD_CANCELLED:
            told = json.loads(entry.payload)
            text = told.pop("failure", None)
            return {**shown, "value": told, "failure": None if text is None else failure_as_json(text)}
        case _:
            return {**shown, "value": _value(entry.payload or None)}


def attempt_as_json(attempt: Attempt) -> Json:
    """A failed attempt of an activity that has not ended."""
    return {
        "number": attempt.number,
        "attempt": attempt.attempt,
        "failure": failure_as_json(attempt.failure),
        "failedAt": time_of(attempt.failed_at),
        "nextAt": time_of(attempt.next_at),
    }


def worker_as_json(worker: WorkerRow) -> Json:
    """A worker. `isExpired`: it has given no sign of life for too long; `runs` is how many it holds."""
    return {
        "id": worker.id,
        "name": worker.name,
        "namespace": worker.namespace,
        "workflows": sorted(worker.workflows),
        "build": worker.build_id,
        "python": worker.python,
        "startedAt": time_of(worker.started_at),
        "expiresAt": time_of(worker.expires_at),
        "isExpired": worker.is_expired,
        "isDraining": worker.is_draining,
        "runs": worker.runs,
    }


def dead_letter_as_json(letter: DeadLetter) -> Json:
    """An event that no sink took. `run` is the name of its run, None if that has been purged."""
    return {
        "id": letter.id,
        "runId": str(letter.run_id),
        "namespace": letter.namespace,
        "run": letter.run_name or None,
        "at": time_of(letter.at),
        "diedAt": time_of(letter.died_at),
        "attempts": letter.attempts,
        "failure": letter.failure,
        "event": json.loads(letter.event.as_text()),
    }


def dead_letters_as_json(found: Sequence[DeadLetter], limit: int) -> Json:
    """A page of them, of one more than it may show: that one tells whether there is a next page."""
    shown = [dead_letter_as_json(letter) for letter in found[:limit]]
    return {"deadLetters": shown, "next": shown[-1]["id"] if len(found) > limit else None}


def time_of(moment: datetime | None) -> str | None:
    """A moment as RFC 3339 has it, in UTC, to the microsecond."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _value(text: str | None) -> Any:
    return None if text is None else json.loads(text)
