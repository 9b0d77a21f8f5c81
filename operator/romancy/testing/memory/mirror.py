"""sql/mirror.sql."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from romancy.model.history import ACTIVITY_ENDS
from romancy.testing.memory.runs import Runs
from romancy.testing.memory.tables import Row


class Mirror(Runs):
    """What is owed to the status of runs' resources."""

    def take_unmirrored(self, *, hold_seconds: float, limit: int) -> list[Row]:
        before = self.clock.now() - timedelta(seconds=hold_seconds)
        owed = [
            (not row.is_final, row.mirror_at, run_id)
            for run_id, row in self.mirror.items()
            if row.mirror_at is not None and (row.is_final or row.mirrored > 0 or row.mirror_at <= before)
        ]
        owed.sort()
        return [
            {**self.shown(run_id), "version": self.mirror[run_id].version, "attempts": self._open_attempts(run_id)}
            for _is_open, _at, run_id in owed[:limit]
        ]

    def mark_mirrored(self, *, run_ids: Sequence[UUID], versions: Sequence[int]) -> list[Row]:
        for run_id, version in zip(run_ids, versions, strict=True):
            if (row := self.mirror.get(run_id)) is None:
                continue
            if row.is_final and row.version == version:
                del self.mirror[run_id]
            else:
                self.mirror[run_id] = replace(
                    row,
                    mirrored=max(row.mirrored, version),
                    mirror_at=row.mirror_at if row.version > version else None,
                )
        return []

    def _open_attempts(self, run_id: UUID) -> int:
        ended = {row.number: row.at for row in self.history.get(run_id, {}).values() if row.kind in ACTIVITY_ENDS}
        return sum(
            number not in ended or ended[number] < row.failed_at
            for (number, _attempt), row in self.attempt.get(run_id, {}).items()
        )
