"""What has happened to a run and is not delivered to its code yet, in the order in which it happened. Pure.

By the database's clock: a message at its insertion, a timer at its deadline, an activity at its end; a timer first when
equal. So what came before a deadline wins over the timer, even if both are found an hour later.
"""

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import assert_never

from romancy.model.history import ACTIVITY_ENDS, InboxRow, Kind, MessageKind
from romancy.model.run import Reason

_TIMER, _OTHER = 0, 1


@dataclass(frozen=True, slots=True, order=True)
class Ready:
    """Something that happened. `number` is that of the command that it answers, or of the message."""

    at: datetime
    rank: int
    number: int
    kind: Kind = field(compare=False)
    payload: str = field(compare=False, default="")
    inbox: int | None = field(compare=False, default=None)

    @property
    def answers(self) -> int:
        """The number of the command; 0 if it answers none."""
        return 0 if self.kind is Kind.CANCEL_REQUESTED else self.number


class Delivery:
    """What lies ready for one run.

    Args:
        inbox: all messages that it has been sent.
        delivered: the numbers of those that are entries of its history already.
        seen: the run's inbox version that these are all of.
        timeout_at: when the run's own timeout cancels it.
    """

    def __init__(
        self,
        inbox: Sequence[InboxRow],
        *,
        delivered: frozenset[int],
        seen: int,
        timeout_at: datetime | None,
        timeout_text: str,
    ) -> None:
        self.timers: dict[int, datetime] = {}
        self.is_suspended = False
        self.timeout_at = timeout_at
        self.seen = max([seen, *(row.number for row in inbox)])
        self._timeout_text = timeout_text
        self._mail: deque[InboxRow] = deque(inbox)
        self._delivered = delivered
        self._ended: dict[int, Ready] = {}

    @property
    def has_some(self) -> bool:
        """Something besides timers lies ready."""
        return bool(self._ended or self._mail)

    def add_mail(self, rows: Sequence[InboxRow], *, seen: int = 0) -> None:
        """Messages that came since."""
        self._mail.extend(rows)
        self.seen = max([self.seen, seen, *(row.number for row in rows)])

    def add_end(self, at: datetime, number: int, kind: Kind, payload: str) -> None:
        """An activity has ended."""
        assert kind in ACTIVITY_ENDS
        self._ended[number] = Ready(at, _OTHER, number, kind, payload)

    def has_end(self, number: int) -> bool:
        return number in self._ended

    def forget_end(self, number: int) -> None:
        """The code has given the activity up: its end is seen by nobody, and costs no row."""
        self._ended.pop(number, None)

    def next(self, now: datetime, *, may_hold: bool, is_cancelled: bool) -> Ready | None:
        """Take away and return what happened first; None if nothing lies ready.

        Args:
            may_hold: a suspension holds the run: the time of its timers goes on, but they do not fire.
            is_cancelled: a cancel has been delivered: another one changes nothing.
        """
        while True:
            found = list(self._ended.values())
            if not (may_hold and self.is_suspended):
                due = ((due_at, number) for number, due_at in self.timers.items() if due_at <= now)
                found.extend(Ready(due_at, _TIMER, number, Kind.TIMER_FIRED) for due_at, number in due)
                if self.timeout_at is not None and self.timeout_at <= now and not is_cancelled:
                    found.append(self._timeout(self.timeout_at))
            if self._mail:
                row = self._mail[0]
                found.append(Ready(row.at, _OTHER, row.number, Kind.CANCEL_REQUESTED, row.payload, row.number))
            first = min(found, default=None)
            if first is None:
                return None
            if first.inbox is not None:
                if self._open(self._mail.popleft(), is_cancelled=is_cancelled):
                    return first
            elif first.kind is Kind.TIMER_FIRED:
                del self.timers[first.number]
                return first
            else:
                self._ended.pop(first.answers, None)
                return first

    def _open(self, row: InboxRow, *, is_cancelled: bool) -> bool:
        """Fold a message into what is wished; True if it is to be an entry of the history."""
        match row.kind:
            case MessageKind.SUSPEND:
                self.is_suspended = True
                return False
            case MessageKind.RESUME:
                self.is_suspended = False
                return False
            case MessageKind.CANCEL:
                self.is_suspended = False  # the run must be able to clean up
                return row.number not in self._delivered and not is_cancelled
            case _:
                assert_never(row.kind)

    def _timeout(self, timeout_at: datetime) -> Ready:
        payload = json.dumps({"reason": Reason.TIMED_OUT, "message": self._timeout_text})
        return Ready(timeout_at, _TIMER, 0, Kind.CANCEL_REQUESTED, payload)
