"""The outbox: what a run sends out. A row is written with the entry that led to it, and carried out when that is durable.

Carrying one out twice is carrying it out once: whoever does it may die in between, and another does it again.
"""

from enum import StrEnum
from uuid import UUID

from romancy.model.record import record


class OutboxKind(StrEnum):
    """What is sent."""

    SUBSCRIBE = "Subscribe"
    UNSUBSCRIBE = "Unsubscribe"
    START_CHILD = "StartChild"
    CANCEL_CHILD = "CancelChild"
    OPEN_CHANNEL = "OpenChannel"
    PUBLISH = "Publish"
    SEND_TO = "SendTo"
    TAKE = "Take"  # one message of a competing channel
    UNTAKE = "Untake"  # it is not wanted any more
    GIVE_BACK = "GiveBack"  # a message that came too late
    JOIN = "Join"
    LEAVE = "Leave"
    SET_VALUE = "SetValue"
    ANNOUNCE = "Announce"  # a message that a transactional activity publishes; numbered by `announced_number`
    EMIT = "Emit"  # a CloudEvent to the world
    TELL = "Tell"  # a CloudEvent about the run itself; numbered by `told_number`
    RECUR = "Recur"  # the run begins anew; numbered by minus its claim, since it is for that claim alone
    ENDED = "Ended"  # the run is done: what it has open elsewhere is closed


def ended_number(claim: int) -> int:
    """The number of the row of a run's end; those that its code asks for are numbered from 1.

    A run that is retried ends again, by another claim: who carries out the row of its former end must not delete the new one.
    """
    return -(2**28 + claim)


ANNOUNCED_MAX = 64
"""Messages of one transaction."""


def announced_number(activity: int, nth: int) -> int:
    """The number of a message that an activity publishes in its transaction: above all that the run's code asks for."""
    assert 0 <= nth < ANNOUNCED_MAX
    return 2**29 + activity * ANNOUNCED_MAX + nth


EVENT_KINDS = (OutboxKind.EMIT, OutboxKind.TELL)
"""What leaves for a sink."""


def told_number(claim: int, what: int) -> int:
    """The number of a row that tells of a change of phase, once for each claim.

    Args:
        what: 0 to 7; an even one goes out before what the code has emitted beside it, an odd one after.
    """
    return -(2**24 + claim * 8 + what)  # below those of Recur


@record
class Outgoing:
    """One thing that a run sends. `number` is the run's own; `payload` the exact JSON text of what it is about."""

    number: int
    kind: OutboxKind
    payload: str = ""


@record
class OutboxRow:
    """One that is stored, and to be carried out."""

    run_id: UUID
    number: int
    kind: OutboxKind
    payload: str
