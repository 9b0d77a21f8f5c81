"""What the code of a workflow asks for. Commands are numbered per kind, in the order in which they were asked."""

from dataclasses import field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from romancy.model.outbox import Outgoing
from romancy.model.record import record


@record
class RunActivity:
    """Run an activity, when the flush of the entry that led to it is durable.

    `arguments` is the exact JSON text of its arguments by name; `digest` a digest of it. `is_shielded`: it has a
    compensation, so it is never abandoned. `is_compensation`: nothing interrupts it.
    """

    number: int
    name: str
    arguments: str
    digest: str
    is_shielded: bool = False
    is_compensation: bool = False
    definition: object = field(default=None, compare=False, repr=False)  # what the code called; never stored

    def __str__(self) -> str:
        return f"activity {self.name}#{self.number}"


@record
class StartTimer:
    """Fire at `due_at`. Costs no row until it fires."""

    number: int
    due_at: datetime
    digest: str
    name: str = "timer"

    def __str__(self) -> str:
        return f"timer #{self.number}"


@record
class CancelActivity:
    """Stop an activity. One that is shielded ends with an entry that says how; any other is abandoned at no row."""

    number: int
    is_shielded: bool


@record
class CancelTimer:
    """Forget a timer: it leaves no entry."""

    number: int


@record
class WriteLog:
    """A line of `ctx.logger`: written when the flush is durable, never while replaying."""

    level: str
    event: str
    fields: tuple[tuple[str, object], ...] = ()


@record
class StartChild:
    """Start another run, and be told how it ends. It is sent by a `Post`; this is what its end is compared with."""

    number: int
    name: str  # of the workflow
    digest: str  # of the input
    run_id: UUID
    run_name: str

    def __str__(self) -> str:
        return f"child {self.name}#{self.number}"


@record
class Ask:
    """Something that is sent and answered; sent by a `Post` of the same number."""

    number: int
    name: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}#{self.number}"


@record
class Post:
    """Put this into the outbox, in the write of the entry that led to it. Replay never asks for it again."""

    outgoing: Outgoing


@record
class Patch:
    """The code takes the new path at this gate: an entry says so, and every replay takes it too."""

    id: str


Command = RunActivity | StartTimer | CancelActivity | CancelTimer | WriteLog | Post | Patch


class End(StrEnum):
    """How a workflow function ended."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"
    RECURRED = "Recurred"  # the run goes on with a new input and an empty history


@record
class Outcome:
    """The end of a run: its output, or why there is none. `payload` is the exact JSON text of the output, or the next input."""

    end: End
    payload: str | None = None
    failure: str | None = None
    reason: str = ""
    message: str = ""
