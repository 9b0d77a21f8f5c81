"""Stores and workers with a defect each: a check that can't fail is a defect itself, so each of these must be found."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any, Final

from romancy.testing import MemoryDatabase
from romancy.testing.memory.tables import DueRow, Row
from romancy.worker.attempts import Attempts, Open
from romancy.worker.lease import Lease
from tests.simulation.network import Fate, Weather


class IgnoresFence(MemoryDatabase):
    """Whoever was buried can go on writing (I2)."""

    def flush(self, **columns: Any) -> list[Row]:
        self.fence.add((columns["worker_id"], columns["slot"]))
        found = super().flush(**columns)
        if columns["worker_id"] not in self.worker:
            self.fence.discard((columns["worker_id"], columns["slot"]))
        return found


class ParksWithMail(MemoryDatabase):
    """A run is parked though there is mail that its worker has not seen (I7)."""

    def _changed(self, row: DueRow, new: Row) -> DueRow:
        return super()._changed(row, {**new, "seen": row.inbox_version})


class WakesNobody(MemoryDatabase):
    """A message does not make its waiting run due (I7)."""

    def _woken(self, row: DueRow, kinds: set[str], count: int) -> DueRow:
        return replace(row, inbox_version=row.inbox_version + count)


class KeepsClaimNumber(MemoryDatabase):
    """A claim does not raise the number, so a late copy can't be told from what the new owner says."""

    def _take(self, row: DueRow, me: Any) -> DueRow:
        taken = super()._take(row, me)
        self.due[row.id] = replace(taken, claim=max(1, row.claim))
        return self.due[row.id]


class IgnoresClaimNumber(MemoryDatabase):
    """A late copy of an old flush takes a run from under its new owner, if that is the same worker."""

    def flush(self, **columns: Any) -> list[Row]:
        due = [self.due.get(run_id) for run_id in columns["c_ids"]]
        claims = [number if row is None else row.claim for row, number in zip(due, columns["c_claims"], strict=True)]
        return super().flush(**{**columns, "c_claims": claims})


class BeginsTwice(MemoryDatabase):
    """A begin that is sent again begins again."""

    def _begin(self, worker_id: int, new: Row) -> bool:
        self.run.pop(new["id"], None)
        return super()._begin(worker_id, new)


class BuriesAlone(MemoryDatabase):
    """Burial as one statement: runs that a flush on its way begins are left with the dead."""

    def free_runs(self, **arguments: Any) -> list[Row]:
        begun = {row.id: row for row in self.due.values() if row.claim == 1 and row.worker_id == arguments["worker_id"]}
        for run_id in begun:
            del self.due[run_id]
        found = super().free_runs(**arguments)
        self.due.update(begun)
        return found


class PollsBlindly(MemoryDatabase):
    """Runs whose claim was not heard are not found by the slow poll."""

    def poll(self, **arguments: Any) -> list[Row]:
        return [{**row, "id": None} for row in super().poll(**arguments)[:1]]


class ForgetsWishes(MemoryDatabase):
    """A change of a resource is not kept."""

    def set_wishes(self, **columns: Any) -> list[Row]:
        return []


BROKEN_STORES: Final[Sequence[type[MemoryDatabase]]] = (
    IgnoresFence,
    ParksWithMail,
    WakesNobody,
    KeepsClaimNumber,
    IgnoresClaimNumber,
    BeginsTwice,
    BuriesAlone,
    PollsBlindly,
    ForgetsWishes,
)


def late_flushes(random: Random) -> Weather:
    """Where copies of old flushes come long after their answers were given up."""
    return Weather(random, {Fate.LATE: 0.1}, frozenset({"flush"}))


WEATHER: Final[Mapping[type[MemoryDatabase], Callable[[Random], Weather]]] = {IgnoresClaimNumber: late_flushes}
"""For defects that matter in one kind of weather."""


@contextmanager
def starts_before_it_is_durable() -> Iterator[None]:
    """An activity starts when it is asked for, not when that is written (I4)."""

    def is_startable(_self: Attempts, each: Open, is_held: bool) -> bool:
        return each.command.is_compensation or not is_held

    with _instead(Attempts, "_is_startable", is_startable):
        yield


@contextmanager
def is_always_certain() -> Iterator[None]:
    """A worker believes itself alive whatever its lease says."""
    with _instead(Lease, "is_certain", property(lambda _self: True)):
        yield


@contextmanager
def forgets_what_was_lost() -> Iterator[None]:
    """A booking that a dead worker may have made is taken for one that was never made."""
    real = Attempts.cancel

    def cancel(self: Attempts, command: Any) -> None:
        for each in self.open.values():
            each.is_lost = False
        real(self, command)

    with _instead(Attempts, "cancel", cancel):
        yield


@contextmanager
def _instead(owner: type, name: str, value: object) -> Iterator[None]:
    before = owner.__dict__[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


BROKEN_WORKERS: Final[Mapping[str, Callable[[], Any]]] = {
    "starts before it is durable": starts_before_it_is_durable,
    "is always certain": is_always_certain,
    "forgets what was lost": forgets_what_was_lost,
}
