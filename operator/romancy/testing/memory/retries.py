"""sql/retries.sql."""

import json
import re
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from romancy.testing.memory.tables import DueRow, InboxRow, MirrorRow, Row, RunRow, Tables

_OF_RESOURCE = re.compile("resource:.*:([0-9]+)")


class Retries(Tables):
    """Failed runs that go on."""

    def retry_run(
        self, *, run_id: UUID, finished_at: datetime | None, payload: str, due_channel: str, mirror_channel: str
    ) -> list[Row]:
        if (run := self.run.get(run_id)) is None:
            return []
        is_child = run.parent_id is not None and (run.parent_close == "Cancel" or self._has_told(run.parent_id, run.id))
        is_retried = (
            (run.phase, run.recurred_into, run.is_compensated) == ("Failed", None, False)
            and run.finished_at == finished_at
            and not (run.wish_cancel or run.resource_gone_at or is_child or self.outbox.get(run_id))
            and not self._has_children_that_count(run)
        )
        notified = leader_notified = 0
        if is_retried:
            notified = self.tell(due_channel, [self._reopen(run, payload)])
            leader_notified = self.tell(mirror_channel, [""]) if run.is_resource else 0
        return [
            {
                "is_retried": is_retried,
                "is_compensated": run.is_compensated,
                "is_gone": run.resource_gone_at is not None,
                "is_child": is_child,
                "notified": notified,
                "leader_notified": leader_notified,
            }
        ]

    def _has_told(self, parent_id: UUID, child_id: UUID) -> bool:
        return any(row.source == f"child:{child_id}" for row in self.inbox.get(parent_id, {}).values())

    def _has_children_that_count(self, run: RunRow) -> bool:
        first = json.loads(run.numbers).get("child", 0)
        return any(
            child.parent_id == run.id
            and (child.parent_number or 0) > first
            and (child.parent_close == "Cancel" or child.phase is not None)
            and not self._has_told(run.id, child.id)
            for child in self.run.values()
        )

    def _reopen(self, run: RunRow, payload: str) -> str:
        now, number = self.clock.now(), max(self.inbox.get(run.id, {}), default=0) + 1
        queue = f"{run.workflow}/{run.python}"
        self.due[run.id] = DueRow(
            id=run.id,
            queue=queue,
            workflow=run.workflow,
            priority=run.priority,
            phase="Pending",
            claim=run.claim or 0,
            wake_at=now,
            inbox_version=number + 1 if run.is_resource else number,
            started_at=run.started_at,
            python=run.python,
            form=run.form,
            is_resource=run.is_resource,
        )
        self.run[run.id] = replace(
            run,
            phase=None,
            reason=None,
            message=None,
            failure=None,
            finished_at=None,
            resource_due_at=None,
            is_compensated=None,
        )
        self.attempt.pop(run.id, None)
        self.inbox.setdefault(run.id, {})[number] = InboxRow("Retry", now, f"retry:{number}", payload)
        generation = 0
        for at, row in list(self.inbox[run.id].items()):
            if row.kind in {"Cancel", "Suspend", "Resume"}:
                source = f"{row.source}/before-{number}" if row.kind == "Cancel" else row.source
                self.inbox[run.id][at] = replace(row, is_had=True, source=source)
                if row.kind != "Cancel" and (found := _OF_RESOURCE.fullmatch(row.source)):
                    generation = max(generation, int(found[1]))
        if run.is_resource:
            wish = "Suspend" if run.wish_suspend else "Resume"
            self.inbox[run.id][number + 1] = InboxRow(wish, now, f"resource:retry/{number}:{generation}", "{}")
            self.mirror[run.id] = MirrorRow(number * 1_000_000 + 1, number * 1_000_000, now)
        return queue
