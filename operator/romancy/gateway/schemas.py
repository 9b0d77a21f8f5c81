"""What the HTTP API takes and gives: one model each, from which requests are checked and the OpenAPI document is made."""

import json
import re
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator
from pydantic.alias_generators import to_camel

from romancy.model.run import NAME_MAX, PRIORITY_MAX, PRIORITY_MIN, Phase

WAIT_SECONDS_MAX: Final = 60.0
YEARS_SECONDS_MAX: Final = 10 * 366 * 86_400
LABELS_MAX: Final = 64
QUERY_LABELS_MAX: Final = 16
QUERY_INPUT_CHARS_MAX: Final = 4096

# No control characters, and no halves of surrogate pairs: PostgreSQL stores neither NUL nor these, and a log line none of them.
_PLAIN: Final = r"^[^\x00-\x1f\x7f-\x9f]*$"
Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_MAX, pattern=_PLAIN)]
Text = Annotated[str, StringConstraints(max_length=1024, pattern=_PLAIN)]
_MOMENT: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)


def _rfc3339(value: object) -> object:
    if isinstance(value, str) and not _MOMENT.fullmatch(value):
        raise ValueError("should be a time of RFC 3339 with its zone, as in 2026-11-24T12:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_rfc3339)]


class _Shape(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, frozen=True, extra="forbid", use_attribute_docstrings=True, validate_by_name=False
    )


# --- what is asked ----------------------------------------------------------------------------------------------------


class NoQuery(_Shape):
    """Nothing is asked for in the query."""


class RunQuery(_Shape):
    """Which runs; all that is given must hold."""

    workflow: Name | None = None
    phase: list[Phase] = []
    """Any of them."""
    label: Annotated[
        list[Annotated[str, StringConstraints(max_length=512, pattern=r"^[^=\x00-\x1f]+=[^\x00-\x1f]*$")]],
        Field(max_length=QUERY_LABELS_MAX),
    ] = []
    """`name=value`; each of them."""
    name_part: Name | None = None
    id_prefix: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F-]{1,36}$")] | None = None
    created_after: Moment | None = None
    created_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    input: Annotated[str, StringConstraints(max_length=QUERY_INPUT_CHARS_MAX)] | None = None
    """A JSON object that the input contains."""
    limit: Annotated[int, Field(ge=1, le=1000)] = 50
    page: Annotated[str, StringConstraints(max_length=512)] | None = None
    """The `next` of the page before."""
    watch: bool = False
    """Server-sent events instead of a page: each run of the list, and again whenever it changes."""


class ResultQuery(_Shape):
    """How long to wait for the end."""

    wait_seconds: Annotated[float, Field(ge=0, le=WAIT_SECONDS_MAX, allow_inf_nan=False)] = 0


class DeadLetterQuery(_Shape):
    """Which dead letters."""

    limit: Annotated[int, Field(ge=1, le=999)] = 50
    page: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """The `next` of the page before."""


class NewRun(_Shape):
    """A run to be started. The same name (or id) twice is one run."""

    workflow: Name
    input: dict[str, Any] = {}
    name: Name | None = None
    """Generated if it is not given; a UUID is the run's id."""
    labels: Annotated[
        dict[Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=_PLAIN)], Text],
        Field(max_length=LABELS_MAX),
    ] = {}
    priority: Annotated[int, Field(ge=PRIORITY_MIN, le=PRIORITY_MAX, strict=True)] = 0
    delay_seconds: Annotated[float, Field(ge=0, le=YEARS_SECONDS_MAX, allow_inf_nan=False, strict=True)] = 0
    timeout_seconds: (
        Annotated[float, Field(ge=0.001, le=YEARS_SECONDS_MAX, allow_inf_nan=False, strict=True)] | None
    ) = None

    @field_validator("input")
    @classmethod
    def _is_json(cls, value: dict[str, Any]) -> dict[str, Any]:
        json.dumps(value, allow_nan=False)
        return value


class Change(_Shape):
    """Why a run is to be changed."""

    message: Text = ""


# --- what is given ----------------------------------------------------------------------------------------------------


class _Answer(_Shape):
    model_config = ConfigDict(alias_generator=to_camel, use_attribute_docstrings=True)


class Failure(_Answer):
    """What ended a run, or an attempt."""

    type: str
    message: str
    trace: str


class Run(_Answer):
    """A run as it is now."""

    id: UUID
    namespace: str
    name: str
    workflow: str
    phase: Phase
    reason: str
    """The word for why it is so; docs/errors has a page for each."""
    message: str
    """Why it does not move, or how it ended."""
    next: str
    """What comes next, or what a person can do."""
    priority: int
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    due_at: datetime | None
    worker: str | None
    timeout_seconds: float | None
    is_resource: bool
    """It is shown by a WorkflowRun of its name."""
    input: Any
    output: Any
    failure: Failure | None


class Runs(_Answer):
    """A page of runs, newest first."""

    runs: list[Run]
    next: str | None
    """For `page`; null on the last page."""


class Entry(_Answer):
    """One thing that happened to a run."""

    position: int
    kind: str
    command: str | None
    """The kind of command that it answers."""
    number: int | None
    name: str | None
    at: datetime
    value: Any
    failure: Failure | None = None


class Attempt(_Answer):
    """A failed attempt of an activity that has not ended."""

    number: int
    attempt: int
    failed_at: datetime
    next_at: datetime
    failure: Failure


class History(_Answer):
    """All entries of a run, in order, and the failed attempts of its activities."""

    entries: list[Entry]
    attempts: list[Attempt]


class Values(_Answer):
    """What a run shows to outsiders."""

    values: dict[str, Any]


class Workflow(_Answer):
    """A workflow that live workers have. The schemas are those of this process; null if it has not the code."""

    name: str
    description: str | None
    input_schema: dict[str, Any] | None
    output_schema: dict[str, Any] | None
    workers: int


class Workflows(_Answer):
    """All of them, by name."""

    workflows: list[Workflow]


class Worker(_Answer):
    """One life of a process that executes runs."""

    id: int
    name: str
    namespace: str
    build: str
    python: str
    workflows: list[str]
    started_at: datetime
    expires_at: datetime
    is_expired: bool
    is_draining: bool
    runs: int


class Workers(_Answer):
    """All that are registered."""

    workers: list[Worker]


class DeadLetter(_Answer):
    """An event that a run has emitted, and no sink has taken."""

    id: int
    run_id: UUID
    namespace: str
    run: str | None
    """Its name; null if it has been purged."""
    at: datetime
    died_at: datetime
    attempts: int
    failure: str
    event: dict[str, Any]


class DeadLetters(_Answer):
    """A page of them, newest first."""

    dead_letters: list[DeadLetter]
    next: int | None
    """For `page`; null on the last page."""


class DeadLetterId(_Answer):
    """The one that was changed."""

    id: int


class Accepted(_Answer):
    """An event is stored, and with the runs that wait for it."""

    status: str
    id: str
    source: str
    runs: int
    """How many runs have got it by this request."""
    started: int
    """How many it began."""
    duplicate: bool
    """It had come before."""


class AcceptedBatch(_Answer):
    """The events of a batch, in its order."""

    status: str
    events: list[Accepted]


class Problem(_Answer):
    """Why a request was refused (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    hint: str = ""
    retryable: bool
