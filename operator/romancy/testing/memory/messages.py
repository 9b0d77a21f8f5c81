"""sql/messages.sql."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from romancy.testing.memory.tables import DueRow, InboxRow, OutgoingRow, Row, Tables, unnest


class Messages(Tables):
    """The inbox."""

    def send(
        self,
        *,
        run_ids: Sequence[UUID],
        kinds: Sequence[str],
        sources: Sequence[str],
        payloads: Sequence[str],
        event_ids: Sequence[int | None],
        ids_max: int,
        due_channel: str,
        inbox_channel: str,
    ) -> list[Row]:
        now = self.clock.now()
        mail: dict[UUID, list[InboxRow]] = {}
        columns = {"run_id": run_ids, "kind": kinds, "source": sources, "payload": payloads, "event_id": event_ids}
        for each in unnest(columns):
            run_id, source = each["run_id"], each["source"]
            if all(row.source != source for row in self.inbox.get(run_id, {}).values()):
                mail.setdefault(run_id, []).append(
                    InboxRow(each["kind"], now, source, each["payload"], each["event_id"])
                )
        woken: list[str] = []
        told: dict[int, list[str]] = {}
        stored = 0
        brought: list[int] = []
        for run_id in sorted(mail):
            if (row := self.due.get(run_id)) is None:
                continue
            first = row.inbox_version + 1
            self.inbox.setdefault(run_id, {}).update(enumerate(mail[run_id], first))
            stored += len(mail[run_id])
            brought += [each.event_id for each in mail[run_id] if each.event_id is not None]
            new = self.due[run_id] = self._woken(row, {each.kind for each in mail[run_id]}, len(mail[run_id]))
            if new.is_due(now):
                woken.append(new.queue)
            if new.worker_id is not None:
                told.setdefault(new.worker_id, []).append(run_id.hex)
        queues_notified = self.tell(due_channel, woken)
        for worker_id, ids in told.items():
            parts = [ids[first : first + ids_max] for first in range(0, len(ids), ids_max)]
            self.tell(f"{inbox_channel}{worker_id}", [",".join(part) for part in parts])
        return [
            {
                "stored": stored,
                "event_ids": brought,
                "queues_notified": queues_notified,
                "workers_notified": len(told),
            }
        ]

    def _woken(self, row: DueRow, kinds: set[str], count: int) -> DueRow:
        is_woken = row.worker_id is None and (
            row.phase == "Waiting"
            or ("Cancel" in kinds and row.phase in {"Pending", "Suspended"})
            or ("Resume" in kinds and row.phase == "Suspended")
        )
        wake_at = row.wake_at
        if is_woken:
            now = self.clock.now()
            wake_at = now if wake_at is None else min(wake_at, now)
        return replace(row, inbox_version=row.inbox_version + count, wake_at=wake_at)

    def end_unbegun(
        self, *, run_ids: Sequence[UUID], reasons: Sequence[str], messages: Sequence[str], mirror_channel: str
    ) -> list[Row]:
        now = self.clock.now()
        ended = []
        for run_id, reason, message in zip(run_ids, reasons, messages, strict=True):
            row = self.due.get(run_id)
            if row is None or row.worker_id is not None or row.started_at is not None:
                continue
            if all(each.kind != "Cancel" for each in self.inbox.get(run_id, {}).values()):
                continue
            del self.due[run_id]
            run = self.run[run_id]
            self.run[run_id] = replace(
                run,
                phase="Cancelled",
                reason=reason,
                message=message,
                finished_at=now,
                resource_due_at=run.resource_due(now, run.ttl_seconds) if run.is_resource else None,
            )
            ended.append(run_id)
            if run.parent_id is not None:
                self.outbox.setdefault(run_id, {})[0] = OutgoingRow("Ended", "", None, now)
        notified = self.tell(mirror_channel, [""]) if self.owe(ended, is_final=True) else 0
        return [{"ended": len(ended), "notified": notified}]

    def read_inboxes(self, *, run_ids: Sequence[UUID], afters: Sequence[int]) -> list[Row]:
        return [
            {
                "run_id": run_id,
                "number": number,
                "kind": row.kind,
                "source": row.source,
                "payload": self.event[row.event_id].payload if row.event_id else row.payload,
                "at": self.event[row.event_id].at if row.event_id else row.at,
            }
            for run_id, after in zip(run_ids, afters, strict=True)
            for number, row in sorted(self.inbox.get(run_id, {}).items())
            if number > after and not row.is_had
        ]
