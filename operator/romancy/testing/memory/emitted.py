"""sql/emitted.sql."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from romancy.testing.memory.tables import DeadLetterRow, EmittedRow, EmitterRow, Row, Tables, unnest


class Emitted(Tables):
    """Events that go out, and those that none took."""

    def emit(self, *, run_ids: Sequence[UUID], kinds: Sequence[str]) -> list[Row]:
        for run_id in run_ids:
            outbox = self.outbox.get(run_id, {})
            there = [(number, row) for number, row in outbox.items() if row.kind in kinds]
            run = self.run.get(run_id)
            for number, row in sorted(there, key=lambda each: (each[1].at, _rank(each[0]), each[0])):
                del outbox[number]
                self._put(run_id, EmittedRow(run.namespace if run else "", row.at, row.payload))
            if not outbox:
                self.outbox.pop(run_id, None)
            if there:
                self._owe(run_id)
        return []

    def claim_emitters(self, *, room: int, failing_max: int, lease_seconds: float) -> list[Row]:
        now, answer = self.clock.now(), list[Row]()
        due = sorted((row.due_at, run_id) for run_id, row in self.emitter.items() if row.due_at <= now)
        failing = [run_id for _, run_id in due if self.emitter[run_id].attempts > 0][:failing_max]
        fresh = [run_id for _, run_id in due if self.emitter[run_id].attempts == 0][: room - len(failing)]
        for run_id in failing + fresh:
            row = self.emitter[run_id]
            row = replace(row, claim=row.claim + 1, due_at=now + timedelta(seconds=lease_seconds))
            self.emitter[run_id] = row
            seconds = (now - row.failing_since).total_seconds() if row.failing_since else 0.0
            answer.append(
                {
                    "run_id": run_id,
                    "claim": row.claim,
                    "version": row.version,
                    "attempts": row.attempts,
                    "failing_seconds": seconds,
                }
            )
        return answer

    def read_emitted(self, *, run_ids: Sequence[UUID], limit: int) -> list[Row]:
        return [
            {"run_id": run_id, "position": position, "payload": row.payload}
            for run_id in sorted(run_ids)
            for position, row in sorted(self.emitted.get(run_id, {}).items())[:limit]
        ]

    def settle_emitters(
        self,
        *,
        run_ids: Sequence[UUID],
        claims: Sequence[int],
        versions: Sequence[int],
        delivered_tos: Sequence[int | None],
        deads: Sequence[int | None],
        failures: Sequence[str],
        attempts: Sequence[int],
        delays: Sequence[float | None],
        has_mores: Sequence[bool],
    ) -> list[Row]:
        delivered = died = 0
        columns = {
            "run_id": run_ids, "claim": claims, "version": versions, "delivered_to": delivered_tos, "dead": deads,
            "failure": failures, "attempts": attempts, "delay": delays, "has_more": has_mores,
        }  # fmt: skip
        for each in unnest(columns):
            row = self.emitter.get(each["run_id"])
            if row is None or row.claim != each["claim"]:
                continue
            mine = self.emitted.get(each["run_id"], {})
            for position in [p for p in mine if each["delivered_to"] is not None and p <= each["delivered_to"]]:
                del mine[position]
                delivered += 1
            if (dead := mine.pop(each["dead"], None)) is not None:
                self._bury(each, dead)
                died += 1
            if not mine:
                self.emitted.pop(each["run_id"], None)
            if each["delay"] is None and not each["has_more"] and row.version == each["version"]:
                del self.emitter[each["run_id"]]
            else:
                self.emitter[each["run_id"]] = self._tried(row, each)
        return [{"delivered": delivered, "died": died}]

    def list_dead_letters(self, *, namespace: str | None, before: int | None, limit: int) -> list[Row]:
        return [
            {
                "id": number,
                "run_id": row.run_id,
                "namespace": row.namespace,
                "run_name": self.run[row.run_id].name if row.run_id in self.run else None,
                "at": row.at,
                "died_at": row.died_at,
                "attempts": row.attempts,
                "failure": row.failure,
                "payload": row.payload,
            }
            for number, row in sorted(self.dead_letter.items(), reverse=True)
            if namespace in (None, row.namespace) and (before is None or number < before)
        ][:limit]

    def resend_dead_letter(self, *, letter_id: int, namespace: str | None) -> list[Row]:
        row = self.dead_letter.get(letter_id)
        if row is None or namespace not in (None, row.namespace):
            return []
        del self.dead_letter[letter_id]
        self._put(row.run_id, EmittedRow(row.namespace, row.at, row.payload))
        self._owe(row.run_id)
        return [{"run_id": row.run_id}]

    def delete_dead_letter(self, *, letter_id: int, namespace: str | None) -> list[Row]:
        row = self.dead_letter.get(letter_id)
        if row is None or namespace not in (None, row.namespace):
            return []
        del self.dead_letter[letter_id]
        return [{"id": letter_id}]

    def purge_dead_letters(self, *, older_than_seconds: float, limit: int) -> list[Row]:
        before = self.clock.now() - timedelta(seconds=older_than_seconds)
        old = [number for number, row in sorted(self.dead_letter.items()) if row.died_at < before][:limit]
        return [row for number in old for row in self.delete_dead_letter(letter_id=number, namespace=None)]

    def _put(self, run_id: UUID, row: EmittedRow) -> None:
        self.emitted_ever += 1
        self.emitted.setdefault(run_id, {})[self.emitted_ever] = row

    def _owe(self, run_id: UUID) -> None:
        row = self.emitter.get(run_id)
        self.emitter[run_id] = EmitterRow(self.clock.now()) if row is None else replace(row, version=row.version + 1)

    def _bury(self, each: Row, dead: EmittedRow) -> None:
        self.dead_letters_ever += 1
        self.dead_letter[self.dead_letters_ever] = DeadLetterRow(
            each["run_id"], dead.namespace, dead.at, self.clock.now(), each["attempts"], each["failure"], dead.payload
        )

    def _tried(self, row: EmitterRow, each: Row) -> EmitterRow:
        now = self.clock.now()
        if each["delay"] is None:
            return replace(row, due_at=now, attempts=0, failing_since=None, failure="")
        since: datetime | None = row.failing_since if each["attempts"] > 1 else now
        return replace(
            row,
            due_at=now + timedelta(seconds=each["delay"]),
            attempts=each["attempts"],
            failing_since=since,
            failure=each["failure"],
        )


def _rank(number: int) -> int:
    """What goes first of one write (model/outbox.py: told_number)."""
    return 1 if number > 0 else 0 if number % 2 == 0 else 2
