"""sql/claims.sql."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from romancy.testing.memory.outbox import Outbox
from romancy.testing.memory.tables import DueRow, Row, WorkerRow

_NO_CLAIM = dict.fromkeys(("id", "claim", "workflow", "inbox_version", "phase", "lost_count", "lost_noted"))


class Claims(Outbox):
    """Who holds which run."""

    def claim_runs(self, *, worker_id: int, slot: int, turn: int, limit: int) -> list[Row]:
        me = self.worker.get(worker_id) if self.is_fit(worker_id, slot) else None
        if me is None:
            return _claimed(is_alive=False, is_owed=False, rows=())
        now = self.clock.now()
        place = _places(me, turn)
        due = [row for row in self.of_queues(place, build_id=me.build_id) if row.is_due(now)]
        due.sort(key=lambda row: (-row.priority, place[row.queue], row.wake_at))
        taken = [(row, self._take(row, me)) for row in due[:limit]]
        owed = self.owe(new.id for old, new in taken if new.is_resource and new.phase != old.phase)
        suspended = {old.id for old, _new in taken if old.phase == "Suspended"}
        answer = _claimed(is_alive=True, is_owed=owed, rows=[new for _old, new in taken])
        return [{**row, "was_suspended": row["id"] in suspended} for row in answer]

    def claim_blocked(self, *, worker_id: int, slot: int, limit: int) -> list[Row]:
        me = self.worker.get(worker_id) if self.is_fit(worker_id, slot) else None
        if me is None:
            return _claimed(is_alive=False, is_owed=False, rows=())
        blocked = sorted(self._blocked_for(me), key=lambda row: row.id)[:limit]
        taken = [self._take(row, me) for row in blocked]
        owed = self.owe(new.id for new in taken if new.is_resource)
        return _claimed(is_alive=True, is_owed=owed, rows=taken)

    def read_begun(self, *, run_ids: Sequence[UUID]) -> list[Row]:
        return [
            {
                "id": due.id,
                "namespace": run.namespace,
                "name": run.name,
                "workflow": run.workflow,
                "input": run.input,
                "form": due.form,
                "labels": run.labels,
                "started_at": due.started_at,
                "timeout_seconds": run.timeout_seconds,
                "has_outbox": due.id in self.outbox,
                "is_child": run.parent_id is not None,
                "numbers": run.numbers,
                "history_from": run.history_from,
            }
            for due in (self.due.get(run_id) for run_id in dict.fromkeys(run_ids))
            if due is not None and (run := self.run.get(due.id)) is not None
        ]

    def poll(self, *, worker_id: int, run_ids: Sequence[UUID], claims: Sequence[int]) -> list[Row]:
        in_hand = set(zip(run_ids, claims, strict=True))
        mine = [row for row in self.due.values() if row.worker_id == worker_id and (row.id, row.claim) not in in_hand]
        me = self.worker.get(worker_id)
        answer = {
            "now": self.clock.now(),
            "due_at": self._next_due_at(me),
            "has_blocked": me is not None and any(True for _ in self._blocked_for(me)),
            "has_left": any(True for _ in self.left()),
            "emitted_due_at": min((row.due_at for row in self.emitter.values()), default=None),
        }
        return [{**answer, **_claim(row)} for row in mine] or [{**answer, **_NO_CLAIM}]

    def next_due_at(self, *, worker_id: int) -> list[Row]:
        return [{"next_due_at": self._next_due_at(self.worker.get(worker_id))}]

    def _next_due_at(self, me: WorkerRow | None) -> datetime | None:
        if me is None:
            return None
        return min(
            (row.wake_at for row in self.of_queues(me.queues, build_id=me.build_id) if row.wake_at), default=None
        )

    def _blocked_for(self, me: WorkerRow) -> Iterable[DueRow]:
        offered = set(me.queues)
        for row in self.due.values():
            is_free = row.phase == "Blocked" and row.worker_id is None
            if is_free and row.queue in offered and me.build_id not in row.blocked_builds:
                yield row

    def _take(self, row: DueRow, me: WorkerRow) -> DueRow:
        is_compensating = row.phase == "Compensating"
        python = row.python or me.python
        taken = self.due[row.id] = replace(
            row,
            phase=row.phase if is_compensating else "Running",
            reason=row.reason if is_compensating else "",
            message=row.message if is_compensating else "",
            worker_id=me.id,
            claim=row.claim + 1,
            wake_at=None,
            queue=f"{row.workflow}/{python}",
            python=python,
            started_at=row.started_at or self.clock.now(),
            form=row.form or me.forms[me.workflows.index(row.workflow)],
        )
        return taken


def _places(me: WorkerRow, turn: int) -> Mapping[str, tuple[int, str]]:
    """The order of its queues: its workflows take turns."""
    count = len(me.workflows)
    return {
        queue: ((nth + turn) % count, queue)
        for nth, workflow in enumerate(me.workflows, 1)
        for queue in (workflow, f"{workflow}/{me.python}")
    }


def _claim(row: DueRow) -> Row:
    return {name: getattr(row, name) for name in _NO_CLAIM}


def _claimed(*, is_alive: bool, is_owed: bool, rows: Sequence[DueRow]) -> list[Row]:
    answer = {"is_alive": is_alive, "is_owed": is_owed}
    return [{**answer, **_claim(row)} for row in rows] or [{**answer, **_NO_CLAIM}]
