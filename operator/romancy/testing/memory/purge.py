"""sql/purge.sql."""

from datetime import datetime, timedelta
from uuid import UUID

from romancy.testing.memory.tables import Row, RunRow, Tables


class Purge(Tables):
    """Runs that ended long enough ago are deleted."""

    def may_purge(self, *, every_seconds: float) -> list[Row]:
        now, before = self.clock.now(), self.purge_checked_at
        if before is not None and before >= now - timedelta(seconds=every_seconds):
            return []
        self.purge_checked_at = now
        return [{"may_purge": True}]

    def purge_runs(
        self,
        *,
        phase: str,
        older_than_seconds: float,
        namespace: str | None,
        workflow: str | None,
        since: datetime | None,
        runs_max: int,
        rows_max: int,
    ) -> list[Row]:
        old = [
            (finished_at, run.id)
            for finished_at, run in self._purgeable(phase, older_than_seconds, namespace, workflow)
            if (since is None or finished_at >= since) and not self._former(run.id)
        ]
        amount, runs, last_at = 0, 0, None
        for finished_at, run_id in sorted(old)[:runs_max]:
            if amount >= rows_max:
                break
            amount += max(self.history.pop(run_id, {}), default=0) + max(self.inbox.pop(run_id, {}), default=0)
            self.attempt.pop(run_id, None)
            self.value.pop(run_id, None)
            self.member -= {each for each in self.member if each[1] == run_id}
            del self.run[run_id]
            runs, last_at = runs + 1, finished_at
        return [{"runs": runs, "last_at": last_at}]

    def purge_former(
        self,
        *,
        phase: str,
        older_than_seconds: float,
        namespace: str | None,
        workflow: str | None,
        runs_max: int,
        rows_max: int,
    ) -> list[Row]:
        old = [
            run for _, run in self._purgeable(phase, older_than_seconds, namespace, workflow) if not run.recurred_into
        ]
        former = sorted(run_id for run in old for run_id in self._former(run.id))[:runs_max]
        amount = runs = 0
        for run_id in former:
            if amount >= rows_max:
                break
            amount += max(self.history.pop(run_id, {}), default=0)
            del self.run[run_id]
            runs += 1
        return [{"runs": runs}]

    def _former(self, run_id: UUID) -> list[UUID]:
        return [run.id for run in self.run.values() if run.recurred_into == run_id]

    def purge_events(self, *, after: int, older_than_seconds: float, limit: int) -> list[Row]:
        before = self.clock.now() - timedelta(seconds=older_than_seconds)
        old = [number for number, row in sorted(self.event.items()) if number > after and row.at < before][:limit]
        wanted = {event_id for waiting in self.pending.values() for event_id in waiting}
        wanted |= {row.event_id for run_id in self.due for row in self.inbox.get(run_id, {}).values() if row.event_id}
        gone = [number for number in old if number not in wanted]
        for number in gone:
            del self.event[number]
        return [{"events": len(gone), "last": old[-1] if old else None}]

    def count_purgeable(
        self, *, phase: str, older_than_seconds: float, namespace: str | None, workflow: str | None
    ) -> list[Row]:
        return [{"runs": len(self._purgeable(phase, older_than_seconds, namespace, workflow))}]

    def _purgeable(
        self, phase: str, older_than_seconds: float, namespace: str | None, workflow: str | None
    ) -> list[tuple[datetime, RunRow]]:
        before = self.clock.now() - timedelta(seconds=older_than_seconds)
        return [
            (run.finished_at, run)
            for run in self.run.values()
            if run.phase == phase
            and run.finished_at is not None
            and run.finished_at < before
            and namespace in (None, run.namespace)
            and workflow in (None, run.workflow)
            and (not run.is_resource or run.resource_gone_at is not None)
            and run.id not in self.outbox
            and (run.recurred_into is None or run.recurred_into in self.due)
        ]
