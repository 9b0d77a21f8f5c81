"""sql/workers.sql."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from romancy.testing.memory.tables import Row, Tables, WorkerRow


class Workers(Tables):
    """Which workers live."""

    def register_worker(
        self,
        *,
        name: str,
        boot_id: UUID,
        pod_uid: str,
        namespace: str,
        workflows: Sequence[str],
        forms: Sequence[str],
        build_id: str,
        python: str,
        ttl_seconds: float,
        slots: int,
    ) -> list[Row]:
        del boot_id  # for people who read the table
        now = self.clock.now()
        self.workers_ever += 1
        me = self.workers_ever
        self.worker[me] = WorkerRow(
            id=me,
            name=name,
            pod_uid=pod_uid,
            namespace=namespace,
            workflows=tuple(workflows),
            forms=tuple(forms),
            build_id=build_id,
            python=python,
            started_at=now,
            expires_at=now + timedelta(seconds=ttl_seconds),
        )
        self.fence.update((me, slot) for slot in range(slots))
        return [{"worker_id": me} for _ in range(slots)]

    def renew_lease(self, *, worker_id: int, ttl_seconds: float) -> list[Row]:
        now = self.clock.now()
        expired = [each for each in self._expired() if each != worker_id]
        if (row := self.worker.get(worker_id)) is not None:
            self.worker[worker_id] = replace(row, expires_at=now + timedelta(seconds=ttl_seconds))
        return [
            {
                "is_ours": row is not None,
                "expired": expired,
                "burial_check_seconds": (now - self.burial_checked_at).total_seconds(),
            }
        ]

    def drain_worker(self, *, worker_id: int) -> list[Row]:
        if (row := self.worker.get(worker_id)) is not None:
            self.worker[worker_id] = replace(row, is_draining=True)
        return []

    def expired_workers(self) -> list[Row]:
        self.burial_checked_at = self.clock.now()
        return [{"id": each} for each in self._expired()]

    def workers_of_pod(self, *, pod_uid: str) -> list[Row]:
        return [{"id": row.id} for row in self.worker.values() if row.pod_uid == pod_uid != ""]

    def list_workers(self) -> list[Row]:
        now = self.clock.now()
        return [
            {
                "id": row.id,
                "name": row.name,
                "pod_uid": row.pod_uid,
                "namespace": row.namespace,
                "workflows": list(row.workflows),
                "build_id": row.build_id,
                "python": row.python,
                "started_at": row.started_at,
                "expires_at": row.expires_at,
                "is_expired": row.expires_at < now,
                "is_draining": row.is_draining,
                "runs": sum(due.worker_id == row.id for due in self.due.values()),
            }
            for row in self.worker.values()
        ]

    def may_bury(self, *, worker_id: int, even_if_alive: bool) -> list[Row]:
        return [{"may_bury": self._may_bury(worker_id, even_if_alive)}]

    def delete_worker(self, *, worker_id: int, even_if_alive: bool) -> list[Row]:
        if not self._may_bury(worker_id, even_if_alive):
            return []
        dead = self.worker.pop(worker_id)
        fences = {fence for fence in self.fence if fence[0] == worker_id}
        self.fence -= fences
        return [{"name": dead.name, "build_id": dead.build_id, "fences": len(fences)}]

    def free_runs(
        self, *, worker_id: int, losses_max: int, build_id: str, message: str, due_channel: str, mirror_channel: str
    ) -> list[Row]:
        freed = sorted((row for row in self.due.values() if row.worker_id == worker_id), key=lambda row: row.id)
        woken = []
        for row in freed:
            lost = row.lost_count + 1
            if lost >= losses_max:
                self.due[row.id] = replace(
                    row,
                    worker_id=None,
                    lost_count=lost,
                    phase="Blocked",
                    wake_at=None,
                    reason="WorkerLost",
                    message=message % lost,
                    blocked_builds=row.blocked_with(build_id),
                )
            else:
                self.due[row.id] = replace(row, worker_id=None, lost_count=lost, wake_at=self.clock.now())
                woken.append(row.queue)
        is_owed = self.owe(row.id for row in freed if row.is_resource)
        return [
            {
                "freed": [row.id for row in freed],
                "notified": self.tell(due_channel, woken),
                "leader_notified": self.tell(mirror_channel, [""]) if is_owed else 0,
            }
        ]

    def now(self) -> list[Row]:
        return [{"now": self.clock.now()}]

    def _expired(self) -> list[int]:
        now = self.clock.now()
        expired = [row for row in self.worker.values() if row.expires_at < now]
        return [row.id for row in sorted(expired, key=lambda row: row.expires_at)]

    def _may_bury(self, worker_id: int, even_if_alive: bool) -> bool:
        row = self.worker.get(worker_id)
        return row is not None and (even_if_alive or row.expires_at < self.clock.now())
