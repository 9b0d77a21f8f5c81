"""What has happened to a run and is not delivered to its code yet, in the order in which it happened. Pure.

By the database's clock: a message at its insertion, a timer at its deadline, an activity at its end; a timer first when
equal. So what came before a deadline wins over the timer, even if both are found an hour later.
"""

import heapq
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Final, assert_never

from romancy.model import event
from romancy.model.history import ACTIVITY_ENDS, InboxRow, Kind, MessageKind
from romancy.model.record import record
from romancy.model.run import Phase, Reason

_TIMER, _OTHER = 0, 1
_BRING: Final = frozenset({MessageKind.EVENT, MessageKind.CHILD, MessageKind.ANSWER})
"""Messages that bring something to the code; the others are orders."""


@record(order=True)
class Ready:
    """Something that happened. `number` is that of the command that it answers, or of the message that brings it."""

    at: datetime
    rank: int
    number: int
    kind: Kind = field(compare=False)
    payload: str = field(compare=False, default="")
    inbox: int | None = field(compare=False, default=None)
    command: int = field(compare=False, default=0)

    @property
    def answers(self) -> int:
        """The number of the command; 0 if it answers none."""
        return self.command if self.inbox is not None or self.kind is Kind.CANCEL_REQUESTED else self.number


class Delivery:
    """What lies ready for one run.

    Args:
        inbox: all messages that it has been sent.
        delivered: the numbers of those that are entries of its history already.
        seen: the run's inbox version that these are all of.
        timeout_at: when the run's own timeout cancels it.
        timeout_seconds: how long that is.
        children_from, asks_from: what comes of children and answers up to these numbers is for an iteration that is over.
    """

    def __init__(
        self,
        inbox: Sequence[InboxRow],
        *,
        delivered: frozenset[int],
        seen: int,
        timeout_at: datetime | None,
        timeout_seconds: float,
        children_from: int = 0,
        asks_from: int = 0,
    ) -> None:
        self.is_suspended = False
        self.timeout_at = timeout_at
        self.seen = max(seen, max((row.number for row in inbox), default=0)) if inbox else seen
        self._generation = 0  # of the resource's spec, with the newest order that came from it
        self._timeout_seconds = timeout_seconds
        self._delivered = delivered
        self._children_from, self._asks_from = children_from, asks_from
        # Apart, for what is brought waits while a suspension holds the run, and orders do not.
        self._orders: deque[InboxRow] = deque()
        self._brought: deque[InboxRow] = deque()
        # What is open by number, and heaps to find the first of it: thousands may lie ready at once. What was cancelled
        # is left in its heap until it comes up.
        self._timers: dict[int, datetime] = {}
        self._ended: dict[int, Ready] = {}
        self._timer_heap: list[tuple[datetime, int]] = []
        self._ended_heap: list[Ready] = []
        self._sort(inbox)

    @property
    def has_any(self) -> bool:
        """Something lies ready, or will by time alone."""
        return bool(self._ended or self._orders or self._brought or self._timers or self.timeout_at)

    def has_some(self, *, holds: bool) -> bool:
        """Something besides timers lies ready.

        Args:
            holds: a suspension holds the run.
        """
        return bool(self._ended or self._orders or (self._brought and not holds))

    @property
    def timers(self) -> Mapping[int, datetime]:
        """When each open timer is due."""
        return self._timers

    @property
    def next_timer_at(self) -> datetime | None:
        """When the first timer is due."""
        heap = self._timer_heap
        while heap and heap[0][1] not in self._timers:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def add_timer(self, number: int, due_at: datetime) -> None:
        """The code waits for a moment."""
        self._timers[number] = due_at
        heapq.heappush(self._timer_heap, (due_at, number))

    def forget_timer(self, number: int) -> None:
        """The code does not wait for it any more."""
        self._timers.pop(number, None)

    def add_mail(self, rows: Sequence[InboxRow]) -> None:
        """Messages that came since."""
        self._sort(rows)
        self.seen = max([self.seen, *(row.number for row in rows)])

    def _sort(self, rows: Sequence[InboxRow]) -> None:
        for row in rows:
            if row.kind is MessageKind.RETRY:
                continue  # whoever has claimed the run writes its entry before all else
            if row.kind not in _BRING:
                self._orders.append(row)
            elif row.number not in self._delivered and not self._is_of_the_past(row):
                self._brought.append(row)

    def _is_of_the_past(self, row: InboxRow) -> bool:
        if row.kind is MessageKind.ANSWER:
            return _asked_by(row) <= self._asks_from
        return row.kind is MessageKind.CHILD and json.loads(row.payload)["number"] <= self._children_from

    def left(self) -> list[int]:
        """The numbers of messages that are for the code, and are not delivered."""
        cancels = [row.number for row in self._orders if row.kind is MessageKind.CANCEL]
        return cancels + [row.number for row in self._brought]

    def add_end(self, at: datetime, number: int, kind: Kind, payload: str) -> None:
        """An activity has ended."""
        assert kind in ACTIVITY_ENDS
        ready = self._ended[number] = Ready(at, _OTHER, number, kind, payload)
        heapq.heappush(self._ended_heap, ready)

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
            holds = may_hold and self.is_suspended
            first = min(self._firsts(now, holds=holds, is_cancelled=is_cancelled), default=None)
            if first is None:
                return None
            if first.inbox is not None and first.kind is not Kind.CANCEL_REQUESTED:
                self._brought.popleft()
                return first
            if first.inbox is not None:
                if self._open(self._orders.popleft(), is_cancelled=is_cancelled):
                    return first
            elif first.kind is Kind.TIMER_FIRED:
                del self._timers[first.number]
                return first
            else:
                self._ended.pop(first.answers, None)
                return first

    def _firsts(self, now: datetime, *, holds: bool, is_cancelled: bool) -> list[Ready]:
        """The first of each sort that lies ready."""
        found: list[Ready] = []
        ended = self._ended_heap
        while ended and self._ended.get(ended[0].number) is not ended[0]:
            heapq.heappop(ended)
        if ended:
            found.append(ended[0])
        if not holds:
            if (due_at := self.next_timer_at) is not None and due_at <= now:
                found.append(Ready(due_at, _TIMER, self._timer_heap[0][1], Kind.TIMER_FIRED))
            if self.timeout_at is not None and self.timeout_at <= now and not is_cancelled:
                found.append(self._timeout(self.timeout_at))
            if self._brought:
                found.append(_brought(self._brought[0]))
        if self._orders:
            row = self._orders[0]
            found.append(Ready(row.at, _OTHER, row.number, Kind.CANCEL_REQUESTED, row.payload, row.number))
        return found

    def _open(self, row: InboxRow, *, is_cancelled: bool) -> bool:
        """Fold a message into what is wished; True if it is to be an entry of the history."""
        match row.kind:
            case MessageKind.SUSPEND | MessageKind.RESUME:
                generation = _generation_of(row.source)
                if generation is None or generation >= self._generation:
                    self.is_suspended = row.kind is MessageKind.SUSPEND
                    self._generation = generation or self._generation
                return False
            case MessageKind.CANCEL:
                self.is_suspended = False  # the run must be able to clean up
                return row.number not in self._delivered and not is_cancelled
            case MessageKind.EVENT | MessageKind.CHILD | MessageKind.ANSWER | MessageKind.RETRY:
                raise AssertionError(row.kind)  # it is no order
            case _:
                assert_never(row.kind)

    def _timeout(self, timeout_at: datetime) -> Ready:
        message = f"the run did not end within its timeout of {self._timeout_seconds:g} s"
        payload = json.dumps({"reason": Reason.TIMED_OUT, "message": message})
        return Ready(timeout_at, _TIMER, 0, Kind.CANCEL_REQUESTED, payload)


_CHILD_ENDS: Final = {
    Phase.SUCCEEDED: Kind.CHILD_COMPLETED,
    Phase.FAILED: Kind.CHILD_FAILED,
    Phase.CANCELLED: Kind.CHILD_CANCELLED,
}


def _brought(row: InboxRow) -> Ready:
    """What a message brings to the code."""
    if row.kind is MessageKind.EVENT:
        text = event.arrived(row.at, row.payload)
        return Ready(row.at, _OTHER, row.number, Kind.EVENT_RECEIVED, text, row.number)
    if row.kind is MessageKind.ANSWER:
        taken = row.source.split(":")[2]
        text = f'{{"taken":{taken},"event":{row.payload}}}' if taken else row.payload
        return Ready(row.at, _OTHER, row.number, Kind.ANSWERED, text, row.number, _asked_by(row))
    told = json.loads(row.payload)
    kind = _CHILD_ENDS[Phase(told["phase"])]
    text = told["output"] if kind is Kind.CHILD_COMPLETED else row.payload
    return Ready(row.at, _OTHER, row.number, kind, text, row.number, told["number"])


def _asked_by(row: InboxRow) -> int:
    """The number of what an answer answers: `answer:<number>:<event>`."""
    return int(row.source.split(":")[1])


def _generation_of(source: str) -> int | None:
    """Which spec of its resource an order comes from; None if it comes from none.

    A leader that stood still after it had asked whether it leads sends what the next one has overtaken.
    """
    who, _, order = source.partition(":")
    generation = order.rpartition(":")[2]
    return int(generation) if who == "resource" and generation.isdecimal() else None
