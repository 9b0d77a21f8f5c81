"""sql/history.sql."""

from collections.abc import Sequence
from uuid import UUID

from romancy.testing.memory.tables import Row, Tables


class History(Tables):
    """What happened, read."""

    def read_histories(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        return [
            {
                "run_id": run_id,
                "position": position,
                "kind": row.kind,
                "at": row.at,
                "number": row.number,
                "name": row.name,
                "digest": row.digest,
                "payload": row.payload,
                "inbox": row.inbox,
            }
            for run_id in dict.fromkeys(run_ids)
            if (run := self.run.get(run_id)) is not None
            for position, row in sorted(self.history.get(run_id, {}).items())
            if position > run.history_from
        ]

    def read_attempts(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        return [
            {
                "run_id": run_id,
                "number": number,
                "attempt": attempt,
                "failure": row.failure,
                "failed_at": row.failed_at,
                "next_at": row.next_at,
            }
            for run_id in dict.fromkeys(run_ids)
            for (number, attempt), row in sorted(self.attempt.get(run_id, {}).items())
        ]
