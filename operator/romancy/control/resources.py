"""The custom resources as models: what a user may write, what the engine answers, and the rules the API server holds.

`romancy.control.crds` makes the CustomResourceDefinitions of them: `kubectl explain` says what is described here.
"""

import re
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel

from romancy.model.run import PRIORITY_MAX, PRIORITY_MIN, DeletionPolicy, Phase

GROUP: Final = "romancy.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
RUNS: Final = "workflowruns"
ENGINES: Final = "workflowengines"

NAME_MAX: Final = 63  # so that a run's name also fits into a label
WORKFLOW_MAX: Final = 253
MESSAGE_MAX: Final = 2048
TRACE_MAX: Final = 4096
DURATION: Final = r"^([0-9]+([.][0-9]+)?(ns|us|ms|s|m|h))+$"  # the same for CEL and Python
_DURATION_PART: Final = re.compile(r"([0-9]+(?:[.][0-9]+)?)(ns|us|ms|s|m|h)")
_UNIT_SECONDS: Final = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class _Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True, extra="ignore"
    )


def _rule(rule: str, message: str, **more: str) -> dict[str, JsonValue]:
    return {"rule": rule, "message": message, **more}


def _kept(name: str) -> dict[str, Any]:
    """The rule of a field that has a default, and so is always there."""
    return {
        "x-kubernetes-validations": [
            _rule("self == oldSelf", f"{name} can't be changed after creation; create another WorkflowRun instead")
        ]
    }


class WorkflowRunSpec(_Part):
    """What to run. Only suspend, cancel, deletionPolicy and ttlSecondsAfterFinished may be changed later."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                _rule(
                    "has(self.timeout) == has(oldSelf.timeout) && "
                    "(!has(self.timeout) || self.timeout == oldSelf.timeout)",
                    "timeout can't be changed after creation; set cancel to end the run early",
                    fieldPath=".timeout",
                )
            ]
        }
    )

    workflow: Annotated[str, Field(min_length=1, max_length=WORKFLOW_MAX, json_schema_extra=_kept("workflow"))]
    """Name of the workflow, as workers register it. An unknown one leaves the run Pending and Stalled until a
    worker has it.
    """

    input: Annotated[
        dict[str, JsonValue], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, **_kept("input")})
    ] = {}
    """Input of the workflow: the whole object for its one parameter of an object type, else each parameter by
    its name.
    """

    suspend: bool = False
    """While true, running activities end and are recorded, and nothing new is begun; timers' time goes on."""

    cancel: Annotated[
        bool,
        Field(
            json_schema_extra={
                "x-kubernetes-validations": [
                    _rule("self || !oldSelf", "cancel can't be taken back; create another WorkflowRun to run again")
                ]
            }
        ),
    ] = False
    """Set to true to cancel the run: it cleans up and compensates, then ends as Cancelled. One way."""

    timeout: Annotated[
        str | None,
        Field(
            max_length=32,
            json_schema_extra={
                "x-kubernetes-validations": [
                    _rule(
                        f"self.matches('{DURATION}') && duration(self) > duration('0s')",
                        "timeout must be a positive duration with the units h, m, s or ms, such as 90s, 15m or 1h30m "
                        "(for days write hours: 48h)",
                    )
                ]
            },
        ),
    ] = None
    """The run is cancelled with reason TimedOut when it takes longer, counted from its start on a worker: 90s,
    15m, 24h.
    """

    priority: Annotated[
        int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX, json_schema_extra={"format": "int32", **_kept("priority")})
    ] = 0
    """Runs of a higher priority are always taken first, so the lowest may wait without limit."""

    deletion_policy: DeletionPolicy = DeletionPolicy.CANCEL
    """What deleting this object does to a run that has not ended: Cancel it (with its compensations), or let
    it go on (Orphan).
    """

    ttl_seconds_after_finished: Annotated[
        int | None, Field(ge=0, le=2**31 - 1, json_schema_extra={"format": "int32"})
    ] = None
    """This object is deleted so long after the end of the run; the run's row in PostgreSQL stays. The engine
    has a default.
    """


class ConditionStatus(StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(_Part):
    """One statement about the object, for people and for `kubectl wait`."""

    type: Annotated[str, Field(max_length=316)]
    """What it is about."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: Annotated[str, Field(min_length=1, max_length=64)]
    """One word for the cause; each has a page in docs/errors."""
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    """The same for people: why, and what comes next."""
    last_transition_time: datetime
    """When the status changed last."""
    observed_generation: Annotated[int | None, Field(ge=0, json_schema_extra={"format": "int64"})] = None
    """The generation of the spec that this is about."""


class Failure(_Part):
    """Why a run failed."""

    type: Annotated[str, Field(max_length=256)]
    """Name of the exception's type."""
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    """Its message, cut to a bound."""
    trace: Annotated[str, Field(max_length=TRACE_MAX)] = ""
    """The end of its traceback."""


_CONDITIONS: Final = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}


class WorkflowRunStatus(_Part):
    """What has become of the run: a copy of its row in PostgreSQL, which is the truth."""

    engine: Annotated[str, Field(max_length=NAME_MAX)] = ""
    """Name of the engine that runs it; other engines leave the object alone."""
    observed_generation: Annotated[int | None, Field(ge=-1, json_schema_extra={"format": "int64"})] = None
    """The generation of the spec that the engine has acted on; -1: none yet."""
    run_id: Annotated[str, Field(max_length=36)] = ""
    """Id of the run in PostgreSQL, the API and logs: this object's uid."""
    phase: Phase | None = None
    """Where the run is, in one word; the conditions say it exactly."""
    reason: Annotated[str, Field(max_length=64)] = ""
    """Why it is in this phase, in one word."""
    message: Annotated[str, Field(max_length=MESSAGE_MAX)] = ""
    """Why it is in this phase, and what comes next."""
    start_time: datetime | None = None
    """When a worker took it first."""
    completion_time: datetime | None = None
    """When it ended, however it ended."""
    duration: Annotated[str, Field(max_length=32)] = ""
    """From start to end: 1.2s, 3m5s."""
    worker: Annotated[str, Field(max_length=253)] = ""
    """Name of the worker that has it in hands; none while it waits."""
    attempts: Annotated[int, Field(ge=0, json_schema_extra={"format": "int32"})] = 0
    """Failed attempts of the activities that are being retried now."""
    output: Annotated[
        JsonValue | None, Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True, "type": None})
    ] = None
    """What the workflow returned, if it is small enough."""
    output_ref: Annotated[str, Field(max_length=253)] = ""
    """Where a larger output is: a path of the engine's HTTP API."""
    failure: Failure | None = None
    """The error that ended the run."""
    conditions: Annotated[list[Condition], Field(max_length=16, json_schema_extra=_CONDITIONS)] = []
    """Accepted, Completed, Succeeded, Stalled and Reconciling."""


class WorkflowEngineSpec(_Part):
    """Nothing to set: the engine's options are those of its pods."""


class Backlog(_Part):
    """Open runs, counted."""

    due: Annotated[int, Field(ge=0)] = 0
    """Runs that could go on now and wait for a free worker."""
    held: Annotated[int, Field(ge=0)] = 0
    """Runs in the hands of workers."""
    open: Annotated[int, Field(ge=0)] = 0
    """Runs that have not ended."""
    blocked: Annotated[int, Field(ge=0)] = 0
    """Runs that need somebody: their code does not fit, or kills its workers."""
    oldest_due: Annotated[str, Field(max_length=32)] = ""
    """How long the run that has waited longest for a worker has waited."""


class Build(_Part):
    """Workers that run the same code."""

    build: Annotated[str, Field(max_length=64)] = ""
    """Id of the workflows' code: a digest of their files, or `settings.worker.build_id`."""
    python: Annotated[str, Field(max_length=16)] = ""
    """Python's minor version: a run keeps the one that it began on."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Workers of this build with a valid lease."""
    draining: Annotated[int, Field(ge=0)] = 0
    """Those of them that are about to end."""


class WorkflowEngineStatus(_Part):
    """The health of one engine in one object; written by the pod that leads."""

    observed_generation: Annotated[int | None, Field(ge=0, json_schema_extra={"format": "int64"})] = None
    """The generation of the spec that the engine has acted on."""
    version: Annotated[str, Field(max_length=64)] = ""
    """Version of the leader."""
    schema_version: Annotated[int, Field(ge=0)] = 0
    """Version of the leader's database schema."""
    leader: Annotated[str, Field(max_length=253)] = ""
    """Name of the process that leads."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Workers with a valid lease."""
    versions: Annotated[list[Build], Field(max_length=20)] = []
    """Builds of the workflows' code that live workers run, the one that came last first."""
    backlog: Backlog = Backlog()
    """Open runs, counted."""
    workflows: Annotated[list[Annotated[str, Field(max_length=WORKFLOW_MAX)]], Field(max_length=200)] = []
    """Workflows that live workers have, by name; cut to the first 200."""
    workflow_count: Annotated[int, Field(ge=0)] = 0
    """How many workflows live workers have."""
    conditions: Annotated[list[Condition], Field(max_length=16, json_schema_extra=_CONDITIONS)] = []
    """Ready, StoreAvailable, Watching, Mirroring, CodeFits, RunsOfOthers, Reconciling and Stalled."""


def seconds_of(duration: str) -> float:
    """The seconds of a Go duration such as 1h30m.

    Raises:
        ValueError: it is none, or not positive.
    """
    if not re.fullmatch(DURATION, duration):
        raise ValueError(f"{duration!r} is no duration with the units h, m, s or ms, such as 90s, 15m or 1h30m")
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in _DURATION_PART.findall(duration))
    if seconds <= 0:
        raise ValueError(f"{duration!r} is not positive")
    return seconds


def duration_of(seconds: float) -> str:
    """A duration as people and Go read it: 0.2s, 59.9s, 3m5s, 26h0m."""
    seconds = max(0.0, seconds)
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest}s"
    return f"{minutes // 60}h{minutes % 60}m"


def time_of(moment: datetime) -> str:
    """A time as Kubernetes writes it in conditions: UTC, to the second."""
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"
