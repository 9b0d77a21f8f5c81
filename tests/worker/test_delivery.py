"""What lies ready is delivered in the order in which it happened, by the database's clock; a timer first when equal."""

from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest

from romancy.model.history import InboxRow, Kind, MessageKind
from romancy.worker.delivery import Delivery

START = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def delivery(*rows: InboxRow, timeout_at: datetime | None = None) -> Delivery:
    return Delivery(rows, delivered=frozenset(), seen=0, timeout_at=timeout_at, timeout_seconds=60)


def message(kind: MessageKind, seconds: float, number: int = 1) -> InboxRow:
    return InboxRow(number, kind, f"source {number}", "{}", after(seconds))


def all_of(found: Delivery, *, now: datetime = START + HOUR) -> list[Kind]:
    """Everything that is delivered, in order."""
    kinds: list[Kind] = []
    while (ready := found.next(now, may_hold=True, is_cancelled=Kind.CANCEL_REQUESTED in kinds)) is not None:
        kinds.append(ready.kind)
    return kinds


@pytest.mark.parametrize("order", list(permutations(("result", "cancel", "timer"))))
def test_in_the_order_in_which_it_happened(order: tuple[str, ...]) -> None:
    """However it was found: results last, messages first."""
    at = {what: seconds for seconds, what in enumerate(order, start=1)}
    found = delivery(message(MessageKind.CANCEL, at["cancel"]))
    found.add_timer(1, after(at["timer"]))
    found.add_end(after(at["result"]), 1, Kind.ACTIVITY_COMPLETED, "1")
    kinds = {"result": Kind.ACTIVITY_COMPLETED, "cancel": Kind.CANCEL_REQUESTED, "timer": Kind.TIMER_FIRED}

    assert all_of(found) == [kinds[what] for what in order]


def test_a_timer_is_first_when_equal() -> None:
    found = delivery(message(MessageKind.CANCEL, 5))
    found.add_timer(1, after(5))
    found.add_end(after(5), 2, Kind.ACTIVITY_FAILED, "{}")

    assert all_of(found) == [Kind.TIMER_FIRED, Kind.CANCEL_REQUESTED, Kind.ACTIVITY_FAILED]


def test_timers_fire_by_deadline_and_results_by_their_end() -> None:
    found = delivery()
    found.add_timer(1, after(9))
    found.add_timer(2, after(3))
    found.add_end(after(4), 1, Kind.ACTIVITY_COMPLETED, "1")
    found.add_end(after(2), 2, Kind.ACTIVITY_COMPLETED, "2")
    numbers = []
    while (ready := found.next(after(60), may_hold=True, is_cancelled=False)) is not None:
        numbers.append((ready.kind, ready.number))

    assert numbers == [
        (Kind.ACTIVITY_COMPLETED, 2),
        (Kind.TIMER_FIRED, 2),
        (Kind.ACTIVITY_COMPLETED, 1),
        (Kind.TIMER_FIRED, 1),
    ]


def test_a_timer_that_is_not_due_waits() -> None:
    found = delivery()
    found.add_timer(1, after(10))

    assert all_of(found, now=after(9.999)) == []
    assert all_of(found, now=after(10)) == [Kind.TIMER_FIRED]


def test_while_suspended_results_are_delivered_and_timers_wait() -> None:
    found = delivery(message(MessageKind.SUSPEND, 1))
    found.add_timer(1, after(2))
    found.add_end(after(3), 1, Kind.ACTIVITY_COMPLETED, "1")
    assert all_of(found) == [Kind.ACTIVITY_COMPLETED]

    found.add_mail([message(MessageKind.RESUME, 50, 2)])

    assert all_of(found) == [Kind.TIMER_FIRED]


def test_a_suspension_that_was_taken_back_is_none() -> None:
    found = delivery(message(MessageKind.SUSPEND, 1), message(MessageKind.RESUME, 2, 2))
    found.add_timer(1, after(3))

    assert all_of(found) == [Kind.TIMER_FIRED]


def test_a_cancel_ends_a_suspension_and_a_second_cancel_changes_nothing() -> None:
    found = delivery(
        message(MessageKind.SUSPEND, 1), message(MessageKind.CANCEL, 2, 2), message(MessageKind.CANCEL, 3, 3)
    )

    assert all_of(found) == [Kind.CANCEL_REQUESTED]
    assert not found.is_suspended


def test_a_run_s_timeout_is_a_cancel_at_its_time() -> None:
    found = delivery(message(MessageKind.CANCEL, 6), timeout_at=after(5))
    first = found.next(after(60), may_hold=True, is_cancelled=False)

    assert first is not None
    assert (first.kind, first.inbox) == (Kind.CANCEL_REQUESTED, None)
    assert '"TimedOut"' in first.payload
    assert found.next(after(60), may_hold=True, is_cancelled=True) is None


def test_what_is_an_entry_already_is_not_delivered_again() -> None:
    rows = (message(MessageKind.CANCEL, 1, 1),)
    found = Delivery(rows, delivered=frozenset({1}), seen=1, timeout_at=None, timeout_seconds=0)

    assert all_of(found) == []
    assert found.seen == 1
