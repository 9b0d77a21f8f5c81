"""A run: one execution of a workflow, its identity, its phase, and what may follow which phase."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID, uuid5

# The namespace of uuid5 for runs that are started by name: stable for ever, since a run's id is its identity.
_NAMES: Final = UUID("6f1d3c9e-51a5-5a53-9c1c-8a2b51b7a0f4")

PRIORITY_MIN: Final = -1000
PRIORITY_MAX: Final = 1000
NAME_MAX: Final = 253
KEPT_SECONDS_MIN: Final = 600
"""An ended run is kept so long at least: a flush whose answer was lost may still be sent again, and would bring it back."""
KEPT_SECONDS_MAX: Final = 100 * 366 * 86_400


class Phase(StrEnum):
    """Where a run is. The same words in the model, SQL, the CRD and the docs."""

    PENDING = "Pending"
    RUNNING = "Running"
    WAITING = "Waiting"
    SUSPENDED = "Suspended"
    COMPENSATING = "Compensating"
    BLOCKED = "Blocked"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def is_done(self) -> bool:
        """True at any end."""
        return self in _ENDS


_ENDS: Final = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
_MOVING: Final = frozenset({Phase.RUNNING, Phase.WAITING, Phase.SUSPENDED, Phase.COMPENSATING, Phase.BLOCKED})

TRANSITIONS: Final[dict[Phase, frozenset[Phase]]] = {
    Phase.PENDING: frozenset({Phase.RUNNING, Phase.SUSPENDED, Phase.BLOCKED}) | _ENDS,
    # Pending again: its next iteration, if whoever ended the one before was lost.
    Phase.RUNNING: (_MOVING - {Phase.RUNNING}) | {Phase.PENDING} | _ENDS,
    Phase.WAITING: (_MOVING - {Phase.WAITING}) | {Phase.PENDING} | _ENDS,
    Phase.SUSPENDED: (_MOVING - {Phase.SUSPENDED}) | _ENDS,
    Phase.COMPENSATING: frozenset({Phase.PENDING, Phase.BLOCKED, Phase.RUNNING, Phase.WAITING, Phase.SUSPENDED})
    | _ENDS,
    Phase.BLOCKED: (_MOVING - {Phase.BLOCKED}) | _ENDS,
    Phase.SUCCEEDED: frozenset(),
    Phase.FAILED: frozenset({Phase.PENDING}),  # it is retried
    Phase.CANCELLED: frozenset(),
}


class Reason(StrEnum):
    """Why a run is in its phase, where the phase alone does not say it. Each has a page in docs/errors."""

    NONE = ""
    DELAYED = "Delayed"
    WORKFLOW_NOT_REGISTERED = "WorkflowNotRegistered"
    WORKER_LOST = "WorkerLost"
    NON_DETERMINISM = "NonDeterminism"
    STEP_TOO_LONG = "StepTooLong"
    HISTORY_TOO_LONG = "HistoryTooLong"
    HISTORY_INCOMPLETE = "HistoryIncomplete"
    STORE_UNAVAILABLE = "StoreUnavailable"
    RETRYING = "Retrying"
    TIMER = "WaitingForTimer"
    EVENT = "WaitingForEvent"
    CHILD = "WaitingForChild"
    MESSAGE = "WaitingForMessage"
    RECURRED = "Recurred"
    NOTHING_OPEN = "WaitingForNothing"
    DRAINED = "Drained"
    SUSPENDED = "Suspended"
    COMPENSATING = "Compensating"
    SUCCEEDED = "Succeeded"
    WORKFLOW_FAILED = "WorkflowFailed"
    INPUT_INVALID = "InputInvalid"
    PAYLOAD_REFUSED = "PayloadRefused"
    TIMED_OUT = "TimedOut"
    CANCELLED = "Cancelled"
    DELETED = "Deleted"
    PARENT_ENDED = "ParentEnded"
    COMPENSATION_FAILED = "CompensationFailed"


class DeletionPolicy(StrEnum):
    """What the deletion of a run's resource does to the run."""

    CANCEL = "Cancel"
    ORPHAN = "Orphan"


class ParentClose(StrEnum):
    """What the end of a run does to the runs that it has started and that are open."""

    CANCEL = "Cancel"
    ABANDON = "Abandon"


class Form(StrEnum):
    """How a stored input maps to the parameters of a workflow; kept with the run from its first claim."""

    WHOLE = "Whole"  # the one parameter, of an object type, takes the whole input
    BY_NAME = "ByName"  # each parameter takes the value of its name


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the owner of a run's resource asked for last; mutable parts of its spec."""

    suspend: bool = False
    cancel: bool = False
    deletion_policy: DeletionPolicy = DeletionPolicy.CANCEL
    ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class Parent:
    """The run that started this one. `number` is that of its command; what comes of the child answers it."""

    id: UUID
    number: int
    close: ParentClose = ParentClose.CANCEL


@dataclass(frozen=True, slots=True)
class NewRun:
    """What is needed to start a run.

    `input` is the exact JSON text of an object; `form` is None where the starter has no user code (a resource): the
    first worker that claims the run decides it. `start_at` None means now.
    """

    id: UUID
    namespace: str
    name: str
    workflow: str
    input: str
    form: Form | None = None
    priority: int = 0
    timeout_seconds: float | None = None
    labels: dict[str, str] = field(default_factory=dict)
    start_at: datetime | None = None
    is_resource: bool = False
    wishes: Wishes = Wishes()
    parent: Parent | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run as lists and status show it: the row `run`, with what the row `due` adds while the run is open."""

    id: UUID
    namespace: str
    name: str
    workflow: str
    input: str
    form: Form | None
    priority: int
    phase: Phase
    reason: str
    message: str
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wake_at: datetime | None
    worker: str | None  # name of the worker that holds it
    python: str | None  # minor version that it began on, "3.12"
    timeout_seconds: float | None
    output: str | None  # exact JSON text
    failure: str | None  # model.failure as JSON text
    is_resource: bool
    wishes: Wishes
    numbers: Mapping[str, int] = field(default_factory=dict)  # what its iteration counts on from; empty in the first
    recurred_into: UUID | None = None  # this is a former iteration of that run
    first_input: str | None = None  # what it was started with, if it has begun anew since

    @property
    def is_done(self) -> bool:
        """True at any end."""
        return self.phase.is_done


def run_id_of(namespace: str, name: str) -> UUID:
    """The id of a run started by name: the name itself if it is a UUID, else uuid5 of namespace and name.

    Starting the same name twice is therefore one run (RFC 9562, section 5.5).
    """
    try:
        return UUID(name)
    except ValueError:
        return uuid5(_NAMES, f"{namespace}/{name}")


def child_id_of(parent: UUID, number: int) -> UUID:
    """The id of a child that is given no name: the same on each replay (RFC 9562, section 5.5)."""
    return uuid5(parent, f"child/{number}")


def iteration_id_of(run_id: UUID, claim: int) -> UUID:
    """The id under which an iteration of a run is kept when the next one begins."""
    return uuid5(run_id, f"iteration/{claim}")


def queue_of(workflow: str, python: str | None = None) -> str:
    """What a worker must offer to claim a run: its workflow and, once the run has begun, the Python minor as well."""
    return workflow if python is None else f"{workflow}/{python}"


def timeout_at(started_at: datetime, timeout_seconds: float | None) -> datetime | None:
    """When the run's timeout is due."""
    return None if timeout_seconds is None else started_at + timedelta(seconds=timeout_seconds)
