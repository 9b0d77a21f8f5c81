"""Every phase and condition that a WorkflowRun may show, with its reason and its text. Pure: a row in, a status out."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from romancy.control.kube import Json
from romancy.control.resources import MESSAGE_MAX, TRACE_MAX, duration_of, time_of
from romancy.model import failure
from romancy.model.message import message_of
from romancy.model.run import Phase, Reason, Run

STATUS_BYTES_MAX: Final = 16 * 1024
# What a text may have when the status would be too large otherwise; tried in this order.
_SHRINKING: Final = ((1024, MESSAGE_MAX, TRACE_MAX), (512, 1024, 1024), (128, 256, 0))


LOST: Final = "RunLost"
"""The reason of a run that the database has forgotten."""
STORED: Final = "Stored"
"""The reason of Accepted when it is True."""


class Type(StrEnum):
    """The conditions of a WorkflowRun."""

    ACCEPTED = "Accepted"
    COMPLETED = "Completed"
    SUCCEEDED = "Succeeded"
    STALLED = "Stalled"
    RECONCILING = "Reconciling"


@dataclass(frozen=True, slots=True)
class Stalled:
    """Whether a run was shown as Stalled before, and since when: the row does not say it."""

    is_true: bool
    since: datetime


@dataclass(frozen=True, slots=True)
class Shown:
    """What the status needs beside the row."""

    engine: str
    generation: int | None  # of the spec that was acted on; None if unknown
    attempts: int = 0
    stalled_before: Stalled | None = None  # None: never True, as far as known
    output_bytes_max: int = STATUS_BYTES_MAX


def is_stalled(run: Run) -> bool:
    """Whether the run can't go on by itself."""
    if run.is_done:
        return False
    return run.phase is Phase.BLOCKED or run.reason in {Reason.WORKFLOW_NOT_REGISTERED, Reason.STORE_UNAVAILABLE}


def shows_stalled(run: Run) -> bool:
    """Whether the condition Stalled is True: the run can't go on, or ended as Failed.

    For a run that failed it is what kstatus asks for (Flux, and whoever computes health from conditions): it would take
    such a run for well otherwise.
    """
    return is_stalled(run) or run.phase is Phase.FAILED


def stalled_since(run: Run, before: Stalled | None, now: datetime) -> Stalled:
    """The state of the condition Stalled, with a time that changes only when the state does."""
    is_true = shows_stalled(run)
    if before is None:
        return Stalled(is_true, (run.finished_at or now) if is_true else run.created_at)
    return before if before.is_true == is_true else Stalled(is_true, now)


def of_run(run: Run, shown: Shown, *, now: datetime) -> Json:
    """The whole status of a run's resource, under 16 KB of JSON."""
    status = _small_enough(run, shown, now)
    if run.output is not None and run.output != "null":
        room = min(shown.output_bytes_max, STATUS_BYTES_MAX - _size(status) - len(',"output":'))
        if len(run.output.encode()) <= room:
            status["output"] = json.loads(run.output)
        else:
            status["outputRef"] = output_path(run)
    return status


def refused(*, engine: str, generation: int, reason: str, message: str, now: datetime) -> Json:
    """The status of an object that will never be run: its spec can't be changed, so another must be made."""
    text = f"{cut(message, 1024)}; create another WorkflowRun"
    conditions = [
        _condition(Type.ACCEPTED, "False", reason, text, now, generation),
        _condition(Type.COMPLETED, "True", reason, text, now, generation),
        _condition(Type.SUCCEEDED, "False", reason, text, now, generation),
        _condition(Type.STALLED, "True", reason, text, now, generation),
        _condition(Type.RECONCILING, "False", reason, "there is no run", now, generation),
    ]
    return {
        "engine": engine,
        "observedGeneration": generation,
        "phase": Phase.FAILED.value,
        "reason": reason,
        "message": text,
        "completionTime": time_of(now),
        "conditions": conditions,
    }


def store_away(*, engine: str, generation: int, message: str, now: datetime) -> Json:
    """The status of a new object that can't be stored now. It is no promise: the database may be away for long."""
    reason = Reason.STORE_UNAVAILABLE.value
    text = f"PostgreSQL does not answer, so the run is not stored yet; this is tried again until it does: {message}"
    return _unstored(engine, generation, reason, text, now)


def lost(*, engine: str, generation: int, now: datetime) -> Json:
    """The status of an object that was accepted once, and that the database does not know any more."""
    text = (
        "the status says that the run was accepted, but PostgreSQL has no row of it, and running it again could do things "
        "twice: restore the database, or delete this object and apply it again"
    )
    return _unstored(engine, generation, LOST, text, now)


def output_path(run: Run) -> str:
    """Where an output is that does not fit into a status: a path of the engine's HTTP API."""
    return f"/api/v1/runs/{run.id}"


def _unstored(engine: str, generation: int, reason: str, text: str, now: datetime) -> Json:
    text = cut(text, 1024)
    return {
        "engine": engine,
        "phase": Phase.PENDING.value,
        "reason": reason,
        "message": text,
        "conditions": [
            _condition(Type.ACCEPTED, "False", reason, text, now, generation),
            _condition(Type.COMPLETED, "False", Phase.PENDING.value, text, now, generation),
            _condition(Type.SUCCEEDED, "Unknown", Phase.PENDING.value, text, now, generation),
            _condition(Type.STALLED, "True", reason, text, now, generation),
            _condition(Type.RECONCILING, "False", reason, "the run is not stored", now, generation),
        ],
    }


def _small_enough(run: Run, shown: Shown, now: datetime) -> Json:
    *first, last = _SHRINKING
    for message_bytes, failure_bytes, trace_bytes in first:
        status = _status(run, shown, now, message_bytes, failure_bytes, trace_bytes)
        if _size(status) <= STATUS_BYTES_MAX:
            return status
    return _status(run, shown, now, *last)


def _status(
    run: Run, shown: Shown, now: datetime, message_bytes: int, failure_bytes: int, trace_bytes: int
) -> dict[str, Any]:
    message = cut(message_of(run), message_bytes)
    stalled = stalled_since(run, shown.stalled_before, now)
    status: dict[str, Any] = {
        "engine": shown.engine,
        "observedGeneration": shown.generation,
        "runId": str(run.id),
        "phase": run.phase.value,
        "reason": run.reason[:64],
        "message": message,
        "startTime": run.started_at and time_of(run.started_at),
        "completionTime": run.finished_at and time_of(run.finished_at),
        "duration": run.started_at
        and run.finished_at
        and duration_of((run.finished_at - run.started_at).total_seconds()),
        "worker": (run.worker or "")[:253],
        "attempts": shown.attempts,
        "failure": run.failure and _failure(run.failure, failure_bytes, trace_bytes),
        "conditions": _conditions(run, shown.generation, message, stalled),
    }
    return {name: value for name, value in status.items() if value not in (None, "", 0)}


def _conditions(run: Run, generation: int | None, message: str, stalled: Stalled) -> list[Json]:
    word = run.reason[:64] or run.phase.value
    ended_at = run.finished_at or run.created_at
    is_moving = not (run.is_done or stalled.is_true or run.phase is Phase.SUSPENDED)
    if is_moving:
        moving_text = "the run has not ended"
    else:
        moving_text = "the run has ended" if run.is_done else "the run does not go on by itself now"
    stalled_text = message if stalled.is_true else "the run has ended" if run.is_done else "the run is not stalled"
    return [
        _condition(
            Type.ACCEPTED, "True", STORED, f"the run is in PostgreSQL with id {run.id}", run.created_at, generation
        ),
        _condition(Type.COMPLETED, "True" if run.is_done else "False", word, message, ended_at, generation),
        _condition(Type.SUCCEEDED, _success(run.phase), word, message, ended_at, generation),
        _condition(Type.STALLED, str(stalled.is_true), word, stalled_text, stalled.since, generation),
        # What the row can't say either, and nobody waits for: since when. The start or the end is near enough.
        _condition(Type.RECONCILING, str(is_moving), word, moving_text, ended_at, generation),
    ]


def _success(phase: Phase) -> str:
    if not phase.is_done:
        return "Unknown"
    return "True" if phase is Phase.SUCCEEDED else "False"


def _failure(text: str, message_bytes: int, trace_bytes: int) -> Json:
    found = failure.describe(text)
    shown: Json = {"type": cut(found.type, 256), "message": cut(found.message, message_bytes)}
    if found.trace and trace_bytes:
        shown["trace"] = _cut_head(found.trace, trace_bytes)  # what raised stands at the end
    return shown


def _condition(
    kind: Type, status: str, reason: str, message: str, since: datetime, generation: int | None
) -> dict[str, Any]:
    condition = {
        "type": kind.value,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": time_of(since),
    }
    return condition if generation is None else {**condition, "observedGeneration": generation}


def _size(status: Json) -> int:
    return len(json.dumps(status, ensure_ascii=False).encode())


def cut(text: str, bytes_max: int) -> str:
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return data.decode()
    return data[: bytes_max - 3].decode(errors="ignore") + "…"


def _cut_head(text: str, bytes_max: int) -> str:
    data = text.encode(errors="replace")
    if len(data) <= bytes_max:
        return data.decode()
    return "…" + data[-(bytes_max - 3) :].decode(errors="ignore")
