"""What a run waits for, when it would go on, and how to say it: the same words in status, API, CLI and log. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from romancy.errors import at
from romancy.model.run import Reason


@dataclass(frozen=True, slots=True)
class Backoff:
    """A failed activity that will be tried again."""

    name: str
    next_attempt: int
    next_at: datetime
    error: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """Why a run does not move, and when it will by itself; `wake_at` None: only something from outside wakes it."""

    reason: Reason
    message: str
    wake_at: datetime | None


SUSPENDED = Waiting(
    Reason.SUSPENDED,
    "",  # what there is to say of it is the same for all: model/message.py
    None,
)


def of(
    timers: Mapping[int, datetime],
    backoffs: Mapping[int, Backoff],
    timeout_at: datetime | None,
    awaited: Sequence[str],
    children: Sequence[str],
    channels: Sequence[str],
) -> Waiting:
    """Describe what an idle run waits for: what fails first, then what the outside brings, then time.

    Args:
        timeout_at: when the run's own timeout cancels it, if it has one.
        awaited: the events that it waits for.
        children: the runs that it has started and that have not ended.
        channels: those that it wants a message of.
    """
    timer_at = min(timers.values(), default=None)
    backoff = min(backoffs.values(), key=lambda each: each.next_at, default=None)
    wake_at = min((moment for moment in (timer_at, backoff and backoff.next_at, timeout_at) if moment), default=None)
    if backoff is not None and (timer_at is None or backoff.next_at <= timer_at):
        text = f"attempt {backoff.next_attempt} of activity {backoff.name!r} at {at(backoff.next_at)}; the last one failed: "
        return Waiting(Reason.RETRYING, text + backoff.error, wake_at)
    until = f" until {at(timer_at)} at the latest" if timer_at is not None else ""
    if awaited:
        return Waiting(Reason.EVENT, f"waiting for event {_first_of(awaited)}{until}", wake_at)
    if channels:
        return Waiting(Reason.MESSAGE, f"waiting for channel {_first_of(channels)}{until}", wake_at)
    if children:
        return Waiting(Reason.CHILD, f"waiting for child run {_first_of(children)}{until}", wake_at)
    if timer_at is not None:
        more = f" ({len(timers)} timers are open)" if len(timers) > 1 else ""
        return Waiting(Reason.TIMER, f"waiting for a timer until {at(timer_at)}{more}", wake_at)
    until = f"; its timeout is at {at(timeout_at)}" if timeout_at is not None else ""
    return Waiting(
        Reason.NOTHING_OPEN,
        "the workflow awaits something that nothing will ever bring: no activity or timer is open" + until,
        wake_at,
    )


def _first_of(named: Sequence[str]) -> str:
    return named[0] + (f" and {len(named) - 1} more" if len(named) > 1 else "")


def storable(text: str) -> str:
    """A text for people as PostgreSQL can hold it: without NUL and lone surrogates, which are shown as escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
