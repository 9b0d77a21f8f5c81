"""sql/children.sql."""

from collections.abc import Sequence
from uuid import UUID

from romancy.testing.memory.tables import Row, Tables


class Children(Tables):
    """Runs that runs have started."""

    def read_parents(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        found = [self.run[run_id] for run_id in dict.fromkeys(run_ids) if run_id in self.run]
        return [{"id": run.id, "parent_id": run.parent_id, "parent_number": run.parent_number} for run in found]

    def read_ended(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        found = [self.run[run_id] for run_id in dict.fromkeys(run_ids) if run_id in self.run]
        names = ("id", "parent_id", "parent_number", "phase", "reason", "message", "output", "failure")
        return [
            {name: getattr(run, name) for name in names}
            for run in found
            if run.parent_id is not None and run.phase is not None
        ]

    def read_open_children(self, *, run_ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        upto = dict(zip(run_ids, numbers, strict=True))
        return [
            {"id": run.id, "parent_id": run.parent_id}
            for run in (self.run[run_id] for run_id in sorted(self.due))
            if run.parent_id in upto
            and run.parent_close == "Cancel"
            and (run.parent_number or 0) <= upto[run.parent_id]
        ]
