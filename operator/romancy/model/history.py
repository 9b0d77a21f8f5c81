"""A history: the entries of a run in the order in which they were delivered to its code. An entry never changes (I3)."""

from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import UUID

from romancy.model.record import record


class Kind(StrEnum):
    """What happened."""

    STARTED = "Started"  # written only if the first leg has rows to write
    ACTIVITY_COMPLETED = "ActivityCompleted"
    ACTIVITY_FAILED = "ActivityFailed"  # its last attempt
    ACTIVITY_CANCELLED = "ActivityCancelled"  # only of activities with a compensation: others are abandoned at no row
    TIMER_FIRED = "TimerFired"
    CANCEL_REQUESTED = "CancelRequested"
    CHILD_COMPLETED = "ChildCompleted"
    CHILD_FAILED = "ChildFailed"
    CHILD_CANCELLED = "ChildCancelled"
    ANSWERED = "Answered"  # what was asked of a channel
    PATCHED = "Patched"  # the code took the new path at a gate; the name is the gate's
    EVENT_RECEIVED = "EventReceived"  # payload: when it arrived, and the event
    RETRIED = "Retried"  # a failed run goes on from before its failure: model/retried.py


ACTIVITY_ENDS: Final = frozenset({Kind.ACTIVITY_COMPLETED, Kind.ACTIVITY_FAILED, Kind.ACTIVITY_CANCELLED})
CHILD_ENDS: Final = frozenset({Kind.CHILD_COMPLETED, Kind.CHILD_FAILED, Kind.CHILD_CANCELLED})


@record
class Entry:
    """One thing that happened to a run.

    `at` is when it was delivered, by the database's clock, never before the entry before: it is the run's clock.
    `number`, `name` and `digest` are those of the command that it answers; `inbox` the number of the inbox row that
    it came from. `payload` is the exact JSON text of a result, a failure or a cancel.
    """

    position: int
    kind: Kind
    at: datetime
    number: int = 0
    name: str = ""
    digest: str = ""
    payload: str = ""
    inbox: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}#{self.number}" if self.number else str(self.kind)


class MessageKind(StrEnum):
    """What the outside sends to a run: the inbox is the only way in."""

    CANCEL = "Cancel"
    SUSPEND = "Suspend"
    RESUME = "Resume"
    EVENT = "Event"
    ANSWER = "Answer"  # to what it has asked of a channel; the number of that stands in the source
    CHILD = "Child"  # one of its children has ended
    RETRY = "Retry"  # it had failed, and goes on: which entries stand no more


@record
class Message:
    """One message to one run, not yet stored. The same `source` twice is one message.

    `event_id` names the stored event that it brings: a payload once for all who receive it.
    """

    run_id: UUID
    kind: MessageKind
    source: str
    payload: str = ""
    event_id: int | None = None


@record
class InboxRow:
    """A stored message: `number` is the run's inbox version with it.

    `at` is when it came, by the database's clock: its insertion, or the arrival of the event that it brings.
    """

    number: int
    kind: MessageKind
    source: str
    payload: str
    at: datetime


@record
class Attempt:
    """A failed attempt of an activity: so that attempts and backoff survive a crash."""

    number: int  # of the activity's command
    attempt: int  # from 1
    failure: str  # model.failure as JSON text
    failed_at: datetime
    next_at: datetime
