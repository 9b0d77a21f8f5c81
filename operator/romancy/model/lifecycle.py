"""Events that a run emits about itself: the workflow lifecycle events of the Serverless Workflow DSL 1.0. Pure."""

import json
from datetime import datetime
from enum import IntEnum
from typing import Any, Final
from uuid import UUID

from romancy.model import failure
from romancy.model.command import End, Outcome
from romancy.model.event import CloudEvent, source_of
from romancy.model.outbox import OutboxKind, Outgoing, told_number

TYPES: Final = "io.serverlessworkflow.workflow"
ERROR: Final = "https://serverlessworkflow.io/spec/1.0.0/errors/runtime"
VERSION: Final = "1.0.0"
"""Of a workflow in Python: its code has none that the event could name."""


class Change(IntEnum):
    """Of the phase of a run. What is even goes out before what the code has emitted in the same write, what is odd after."""

    STARTED = 0
    RESUMED = 2
    SUSPENDED = 1
    CANCELLED = 3
    FAULTED = 5
    COMPLETED = 7


OF_END: Final = {
    End.SUCCEEDED: Change.COMPLETED,
    End.FAILED: Change.FAULTED,
    End.CANCELLED: Change.CANCELLED,
}


def told(
    change: Change,
    *,
    run_id: UUID,
    namespace: str,
    name: str,
    workflow: str,
    claim: int,
    at: datetime,
    outcome: Outcome | None = None,
) -> Outgoing:
    """What is sent of a change of phase. Sent again (of another claim, too) it is the same event, if a run can do it but once.

    Args:
        claim: of the run, under which it happened.
        outcome: of one that has ended.
    """
    word = change.name.lower()
    data: dict[str, Any] = {"name": f"{name}.{namespace}", f"{word}At": at.isoformat()}
    match change:
        case Change.STARTED:
            data["definition"] = {"name": workflow, "namespace": namespace, "version": VERSION}
        case Change.FAULTED:
            assert outcome is not None
            data["error"] = _error(outcome)
        case Change.COMPLETED:
            assert outcome is not None
            data["output"] = None if outcome.payload is None else json.loads(outcome.payload)
        case Change.SUSPENDED | Change.RESUMED | Change.CANCELLED:
            pass
    often = f"-{claim}" if change in (Change.SUSPENDED, Change.RESUMED) else ""
    event = CloudEvent(
        id=f"{run_id}-{word}{often}",
        source=source_of(namespace, workflow, name),
        type=f"{TYPES}.{word}.v1",
        data=data,
        time=at,
        subject=str(run_id),
    )
    return Outgoing(told_number(claim, change), OutboxKind.TELL, event.as_text())


def _error(outcome: Outcome) -> dict[str, Any]:
    found = failure.describe(outcome.failure) if outcome.failure is not None else None
    title = outcome.reason or (found.type if found else "") or "Failed"
    detail = outcome.message or (found.message if found else "")
    return {"type": ERROR, "title": title, "status": 500, **({"detail": detail} if detail else {})}
