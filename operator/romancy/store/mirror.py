"""What is owed to the status of runs' resources. A leader's crash loses nothing: the rows say what has not been written."""

from collections.abc import Mapping
from uuid import UUID

from romancy.store.interface import Unmirrored
from romancy.store.pool import Connected
from romancy.store.queries import SQL
from romancy.store.runs import run_of


class Mirror(Connected):
    """The part of the store that the status is written from."""

    async def take_unmirrored(self, *, hold_seconds: float, limit: int) -> list[Unmirrored]:
        """Runs whose status is owed, final ones first.

        A run's first write waits `hold_seconds` after its start, unless it has ended. Nothing is marked as taken: the
        same runs are given again until `mark_mirrored`.
        """
        assert limit >= 1
        rows = await self._fetch(SQL.take_unmirrored(hold_seconds=hold_seconds, limit=limit))
        return [
            # One whose object is gone owes nothing, so none of these is.
            Unmirrored(run=run_of(row), version=row["version"], attempts=row["attempts"], is_gone=False)
            for row in rows
        ]

    async def mark_mirrored(self, versions: Mapping[UUID, int]) -> None:
        """These versions have been written. A run that has changed since is still owed."""
        if versions:
            await self._fetch(SQL.mark_mirrored(run_ids=list(versions), versions=list(versions.values())))
