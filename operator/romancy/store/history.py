"""Histories, read. They are written by the journal alone (I3)."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from romancy.model.history import ACTIVITY_ENDS, Attempt, Entry, Kind
from romancy.store.pool import Connected
from romancy.store.queries import SQL


class Histories(Connected):
    """The part of the store that reads what happened."""

    async def read_history(self, run_id: UUID) -> list[Entry]:
        """All entries of a run, in order; empty also if there is no such run."""
        return (await self.read_histories([run_id]))[run_id]

    async def read_histories(self, run_ids: Sequence[UUID]) -> dict[UUID, list[Entry]]:
        """The same for several runs; a run without entries has an empty list."""
        histories: dict[UUID, list[Entry]] = {run_id: [] for run_id in run_ids}
        for row in await self._fetch(SQL.read_histories(run_ids=list(run_ids))):
            histories[row["run_id"]].append(_entry_of(row))
        return histories

    async def read_attempts(self, run_ids: Sequence[UUID]) -> dict[UUID, list[Attempt]]:
        """Every failed attempt of the activities of some runs, also of those that ended."""
        attempts: dict[UUID, list[Attempt]] = {run_id: [] for run_id in run_ids}
        for row in await self._fetch(SQL.read_attempts(run_ids=list(run_ids))):
            attempts[row["run_id"]].append(_attempt_of(row))
        return attempts


def still_open(attempts: Sequence[Attempt], history: Sequence[Entry]) -> tuple[Attempt, ...]:
    """The attempts of activities that have not ended by this history."""
    if not attempts:
        return ()
    ended = {entry.number for entry in history if entry.kind in ACTIVITY_ENDS}
    return tuple(attempt for attempt in attempts if attempt.number not in ended)


def _entry_of(row: Any) -> Entry:
    return Entry(
        position=row["position"],
        kind=Kind(row["kind"]),
        at=row["at"],
        number=row["number"],
        name=row["name"],
        digest=row["digest"],
        payload=row["payload"],
        inbox=row["inbox"],
    )


def _attempt_of(row: Any) -> Attempt:
    return Attempt(
        number=row["number"],
        attempt=row["attempt"],
        failure=row["failure"],
        failed_at=row["failed_at"],
        next_at=row["next_at"],
    )
