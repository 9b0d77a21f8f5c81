"""sql/runs.sql, and the view run_shown."""

import json
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from romancy.model import search
from romancy.testing.memory.tables import DueRow, MirrorRow, Row, RunRow, Tables, unnest

_OF_RUN = (
    *("id", "namespace", "name", "workflow", "input", "priority", "labels", "created_at", "finished_at"),
    *("timeout_seconds", "output", "failure", "is_resource", "wish_suspend", "wish_cancel", "deletion_policy"),
    *("ttl_seconds", "numbers", "recurred_into", "first_input"),
)
_OF_BOTH = ("form", "phase", "reason", "message", "started_at", "python")  # while it is open, the due row has them


class Runs(Tables):
    """Runs as people see them."""

    def shown(self, run_id: UUID) -> Row:
        """The view run_shown."""
        run, due = self.run[run_id], self.due.get(run_id)
        row = {name: getattr(run, name) for name in _OF_RUN}
        for name in _OF_BOTH:
            value = None if due is None else getattr(due, name)
            row[name] = getattr(run, name) if value is None else value
        worker = None if due is None or due.worker_id is None else self.worker.get(due.worker_id)
        row["wake_at"] = None if due is None else due.wake_at
        row["worker"] = None if worker is None else worker.name
        return row

    def start_runs(self, *, due_channel: str, mirror_channel: str, **columns: Sequence[Any]) -> list[Row]:
        now = self.clock.now()
        started: list[UUID] = []
        woken: list[str] = []
        has_resources = False
        for new in sorted(unnest(columns), key=lambda row: row["ids"]):
            run_id = new["ids"]
            if run_id in self.run:
                continue
            started.append(run_id)
            woken.append(new["workflows"])
            self.run[run_id] = RunRow(
                id=run_id,
                namespace=new["namespaces"],
                name=new["names"],
                workflow=new["workflows"],
                priority=new["priorities"],
                labels=new["labels"],
                input=new["inputs"],
                timeout_seconds=new["timeouts"],
                created_at=now,
                is_resource=new["are_resources"],
                wish_suspend=new["suspends"],
                wish_cancel=new["cancels"],
                deletion_policy=new["deletion_policies"],
                ttl_seconds=new["ttls"],
                parent_id=new["parent_ids"],
                parent_number=new["parent_numbers"],
                parent_close=new["parent_closes"],
            )
            is_suspended, start_at = new["suspends"], new["start_ats"] or now
            self.due[run_id] = DueRow(
                id=run_id,
                queue=new["workflows"],
                workflow=new["workflows"],
                priority=new["priorities"],
                phase="Suspended" if is_suspended else "Pending",
                reason="Suspended" if is_suspended else "Delayed" if start_at > now else "",
                wake_at=None if is_suspended else max(start_at, now),
                form=new["forms"],
                is_resource=new["are_resources"],
            )
            if new["are_resources"]:
                has_resources = True
                self.mirror[run_id] = MirrorRow(mirror_at=now)
        notified = self.tell(due_channel, woken)
        leader_notified = self.tell(mirror_channel, [""]) if has_resources else 0
        return [{"started": started, "notified": notified, "leader_notified": leader_notified}]

    def read_runs(self, *, ids: Sequence[UUID]) -> list[Row]:
        return [self.shown(run_id) for run_id in dict.fromkeys(ids) if run_id in self.run]

    def find_run(self, *, namespace: str, name: str) -> list[Row]:
        found = [
            run for run in self.run.values() if (run.namespace, run.name, run.recurred_into) == (namespace, name, None)
        ]
        return self._page(found, lambda _row: True, limit=1)

    def list_any_runs(self, *, phases: Sequence[str] | None, limit: int, **where: Any) -> list[Row]:
        wanted = None if phases is None else set(phases)
        return self._page(
            self._filtered(self.run.values(), **where),
            lambda row: wanted is None or row["phase"] in wanted,
            limit=limit,
        )

    def list_open_runs(self, *, phases: Sequence[str], limit: int, **where: Any) -> list[Row]:
        found = (self.run[row.id] for row in self.due.values() if row.phase in set(phases))
        return self._page(self._filtered(found, **where), lambda _row: True, limit=limit)

    def list_done_runs(
        self,
        *,
        phases: Sequence[str],
        finished_from: datetime | None,
        finished_before: datetime | None,
        limit: int,
        **where: Any,
    ) -> list[Row]:
        found = (
            run
            for run in self.run.values()
            if run.phase in set(phases)
            and run.finished_at is not None
            and (finished_from is None or run.finished_at >= finished_from)
            and (finished_before is None or run.finished_at < finished_before)
        )
        return self._page(self._filtered(found, **where), lambda _row: True, limit=limit)

    def _filtered(
        self,
        runs: Iterable[RunRow],
        *,
        namespace: str | None,
        workflow: str | None,
        labels: str | None,
        name_part: str | None,
        id_first: UUID | None,
        id_last: UUID | None,
        created_from: datetime | None,
        created_before: datetime | None,
        input_part: str | None,
        after_at: datetime | None,
        after_id: UUID | None,
    ) -> list[RunRow]:
        wanted = json.loads(labels).items() if labels else ()
        return [
            run
            for run in runs
            if run.recurred_into is None
            and namespace in (None, run.namespace)
            and workflow in (None, run.workflow)
            and (not wanted or wanted <= json.loads(run.labels).items())
            and (name_part is None or name_part in run.name)
            and (id_first is None or id_last is None or id_first <= run.id <= id_last)
            and (created_from is None or run.created_at >= created_from)
            and (created_before is None or run.created_at < created_before)
            and (input_part is None or search.contains(run.input, input_part))
            and (after_at is None or after_id is None or (run.created_at, run.id) < (after_at, after_id))
        ]

    def _page(self, runs: Iterable[RunRow], is_wanted: Callable[[Row], bool], *, limit: int) -> list[Row]:
        page: list[Row] = []
        for run in sorted(runs, key=lambda each: (each.created_at, each.id), reverse=True):
            if len(page) == limit:
                break
            if is_wanted(row := self.shown(run.id)):
                page.append(row)
        return page
