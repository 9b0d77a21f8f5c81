"""sql/resources.sql."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from romancy.testing.memory.tables import DueRow, Row, RunRow, Tables, unnest

_STRANDED = "WorkflowNotRegistered"


class Resources(Tables):
    """Runs as objects, and what people must be told of runs that nobody can take."""

    def set_wishes(self, **columns: Sequence[Any]) -> list[Row]:
        for wish in unnest(columns):
            if (run := self.run.get(wish["ids"])) is not None:
                self.run[run.id] = replace(
                    run,
                    wish_suspend=wish["suspends"],
                    wish_cancel=wish["cancels"],
                    deletion_policy=wish["deletion_policies"],
                    ttl_seconds=wish["ttls"],
                    resource_due_at=run.resource_due(run.finished_at, wish["ttls"]),
                )
        return []

    def resources(self, *, namespaces: Sequence[str] | None) -> list[Row]:
        found = [
            run
            for run in self.run.values()
            if run.is_resource
            and run.resource_gone_at is None
            and (namespaces is None or run.namespace in namespaces)
            and (run.phase is None or run.ttl_seconds is not None or self._is_owed(run.id))
        ]
        return [self._resource(run) for run in sorted(found, key=lambda run: (run.namespace, run.id))]

    def read_resources(self, *, ids: Sequence[UUID]) -> list[Row]:
        found = (self.run.get(run_id) for run_id in dict.fromkeys(ids))
        return [self._resource(run) for run in found if run is not None and run.is_resource]

    def resources_gone(self, *, ids: Sequence[UUID]) -> list[Row]:
        for run_id in ids:
            self.mirror.pop(run_id, None)
            run = self.run.get(run_id)
            if run is not None and run.is_resource and run.resource_gone_at is None:
                self.run[run_id] = replace(run, resource_gone_at=self.clock.now())
        return []

    def expired_resources(self, *, limit: int) -> list[Row]:
        now = self.clock.now()
        found = [
            run
            for run in self.run.values()
            if run.resource_due_at is not None
            and run.resource_due_at <= now
            and run.resource_gone_at is None
            and not self._is_owed(run.id)
        ]
        found.sort(key=lambda run: run.resource_due_at or now)
        return [self._resource(run) for run in found[:limit]]

    def _is_owed(self, run_id: UUID) -> bool:
        row = self.mirror.get(run_id)
        return row is not None and row.mirror_at is not None

    def _resource(self, run: RunRow) -> Row:
        due = self.due.get(run.id)
        return {
            "id": run.id,
            "namespace": run.namespace,
            "name": run.name,
            "phase": run.phase if due is None else due.phase,
            "wish_suspend": run.wish_suspend,
            "wish_cancel": run.wish_cancel,
            "deletion_policy": run.deletion_policy,
            "ttl_seconds": run.ttl_seconds,
        }

    # --- runs that nobody can take --------------------------------------------------------------------------------

    def stranded_queues(self) -> list[Row]:
        now = self.clock.now()
        offered = {queue for worker in self.worker.values() if worker.expires_at >= now for queue in worker.queues}
        first: dict[tuple[int, str], DueRow] = {}
        for row in sorted((row for row in self.due.values() if row.is_due(now)), key=lambda row: row.wake_at or now):
            if row.queue not in offered:
                first.setdefault((row.priority, row.queue), row)
        has_told = any(row.reason == _STRANDED for row in self.due.values())
        nothing = {"priority": None, "queue": None, "workflow": None, "python": None, "has_told": has_told}
        return [
            {
                "priority": row.priority,
                "queue": row.queue,
                "workflow": row.workflow,
                "python": row.python,
                "has_told": has_told,
            }
            for _key, row in sorted(first.items())
        ] or [nothing]

    def offers(self) -> list[Row]:
        pythons: dict[str, set[str]] = {}
        for worker in self.worker.values():
            if worker.expires_at >= self.clock.now():
                for workflow in worker.workflows:
                    pythons.setdefault(workflow, set()).add(worker.python)
        return [{"workflow": workflow, "pythons": sorted(have)} for workflow, have in sorted(pythons.items())]

    def strand(
        self, *, priority: int, queue: str, message: str, since: datetime, limit: int, mirror_channel: str
    ) -> list[Row]:
        now = self.clock.now()
        found = [
            row
            for row in self.due.values()
            if (row.priority, row.queue) == (priority, queue)
            and row.wake_at is not None
            and since <= row.wake_at <= now
            and (row.reason, row.message) != (_STRANDED, message)
        ]
        found.sort(key=lambda row: row.wake_at or now)
        said = found[:limit]
        notified = self._say(said, _STRANDED, message, mirror_channel)
        last_at = max((row.wake_at for row in said if row.wake_at), default=None)
        return [{"changed": len(said), "last_at": last_at, "asked_at": now, "leader_notified": notified}]

    def unstrand(self, *, queues: Sequence[str], limit: int, mirror_channel: str) -> list[Row]:
        found = [row for row in self.due.values() if row.reason == _STRANDED and row.queue not in queues][:limit]
        notified = self._say(found, "", "", mirror_channel)
        return [{"changed": len(found), "leader_notified": notified}]

    def _say(self, rows: Iterable[DueRow], reason: str, message: str, mirror_channel: str) -> int:
        changed = list(rows)
        for row in changed:
            self.due[row.id] = replace(row, reason=reason, message=message)
        is_owed = self.owe(row.id for row in changed if row.is_resource)
        return self.tell(mirror_channel, [""]) if is_owed else 0

    def backlog(self) -> list[Row]:
        now = self.clock.now()
        due = [row.wake_at for row in self.due.values() if row.wake_at is not None and row.wake_at <= now]
        return [
            {
                "due": len(due),
                "held": sum(row.worker_id is not None for row in self.due.values()),
                "open": len(self.due),
                "blocked": sum(row.phase == "Blocked" for row in self.due.values()),
                "oldest_due_seconds": (now - min(due, default=now)).total_seconds(),
                "emitted": sum(map(len, self.emitted.values())),
                "dead_letters": len(self.dead_letter),
            }
        ]
