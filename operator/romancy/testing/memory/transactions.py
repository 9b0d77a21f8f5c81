"""sql/transactions.sql."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from romancy.testing.memory.tables import EntryRow, OutgoingRow, Row, Tables


class Transactions(Tables):
    """Checkpoints of activities that commit by themselves."""

    def hold_run(self, *, worker_id: int, slot: int, run_id: UUID, claim: int) -> list[Row]:
        is_alive = self.is_fit(worker_id, slot)
        row = self.due.get(run_id)
        is_held = is_alive and row is not None and (row.worker_id, row.claim) == (worker_id, claim)
        return [{"is_alive": is_alive, "is_held": is_held}]

    def checkpoint(self, *, worker_id: int, slot: int, run_id: UUID, claim: int, **columns: Sequence[Any]) -> list[Row]:
        [row] = self.hold_run(worker_id=worker_id, slot=slot, run_id=run_id, claim=claim)
        if not row["is_held"]:
            return [{"is_held": False}]
        self.due[run_id] = replace(self.due[run_id], lost_count=0, lost_noted=0)
        history = self.history.setdefault(run_id, {})
        entries = ("e_positions", "e_kinds", "e_ats", "e_numbers", "e_names", "e_digests", "e_payloads")
        for position, kind, at, number, name, digest, payload in zip(*(columns[each] for each in entries), strict=True):
            assert position not in history, "all earlier entries are durable, and later ones wait"
            history[position] = EntryRow(
                kind=kind, at=at, number=number, name=name, digest=digest, payload=payload, inbox=None
            )
        outbox = self.outbox.setdefault(run_id, {})
        posted = ("o_numbers", "o_kinds", "o_payloads")
        for number, kind, payload in zip(*(columns[each] for each in posted), strict=True):
            outbox.setdefault(number, OutgoingRow(kind, payload, worker_id, self.clock.now()))
        return [{"is_held": True}]
