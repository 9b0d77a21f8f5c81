"""sql/outbox.sql."""

from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID

from romancy.testing.memory.tables import Row, Tables

LEFT_AFTER = timedelta(seconds=2)


class Outbox(Tables):
    """What runs send out."""

    def read_outboxes(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        return [row for run_id in dict.fromkeys(run_ids) for row in self._outgoing_of(run_id)]

    def read_left(self, *, limit: int) -> list[Row]:
        left = sorted(self.left(), key=lambda row: (row["at"], row["run_id"], row["number"]))
        return left[:limit]

    def left(self) -> Iterable[Row]:
        """What its writer has not sent in the time that it takes, or never will, of runs that nobody holds."""
        before = self.clock.now() - LEFT_AFTER
        for run_id, rows in self.outbox.items():
            if (due := self.due.get(run_id)) is not None and due.worker_id is not None:
                continue
            for row in self._outgoing_of(run_id):
                stored = rows[row["number"]]
                if stored.at < before or stored.worker_id not in self.worker:
                    yield {**row, "at": stored.at}

    def delete_sent(self, *, run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        for run_id, number in zip(run_ids, numbers, strict=True):
            rows = self.outbox.get(run_id, {})
            rows.pop(number, None)
            if not rows:
                self.outbox.pop(run_id, None)
        return []

    def _outgoing_of(self, run_id: UUID) -> list[Row]:
        return [
            {"run_id": run_id, "number": number, "kind": row.kind, "payload": row.payload}
            for number, row in sorted(self.outbox.get(run_id, {}).items())
        ]
