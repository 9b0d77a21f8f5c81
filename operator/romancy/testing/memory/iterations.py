"""sql/iterations.sql."""

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from romancy.testing.memory.tables import Row, RunRow, Tables, unnest


class Iterations(Tables):
    """What a run does to itself."""

    def recur(
        self,
        *,
        run_ids: Sequence[UUID],
        numbers: Sequence[int],
        claims: Sequence[int],
        archives: Sequence[UUID],
        inputs: Sequence[str],
        counts: Sequence[str],
        positions: Sequence[int],
        sents: Sequence[int],
        seens: Sequence[int],
        kepts: Sequence[str],
        due_channel: str,
    ) -> list[Row]:
        columns = {"run_id": run_ids, "number": numbers, "claim": claims, "archive": archives, "input": inputs}
        woken: list[str] = []
        began: list[UUID] = []
        for asked in unnest(
            {**columns, "counts": counts, "position": positions, "sent": sents, "seen": seens, "kept": kepts}
        ):
            run_id = asked["run_id"]
            if asked["number"] not in self.outbox.get(run_id, {}):
                continue
            due = self.due.get(run_id)
            if due is not None and due.claim == asked["claim"]:
                if due.worker_id is not None:
                    continue  # who holds it comes to the same end
                woken.append(self._renew(asked))
                began.append(run_id)
            del self.outbox[run_id][asked["number"]]
            if not self.outbox[run_id]:
                del self.outbox[run_id]
        return [{"began": began, "notified": self.tell(due_channel, woken)}]

    def _renew(self, asked: Row) -> str:
        run_id, archive = asked["run_id"], asked["archive"]
        run, due, now = self.run[run_id], self.due[run_id], self.clock.now()
        was = RunRow(
            id=archive,
            namespace=run.namespace,
            name=run.name,
            workflow=run.workflow,
            priority=run.priority,
            labels=run.labels,
            input=run.input,
            timeout_seconds=run.timeout_seconds,
            created_at=run.created_at,
            form=due.form,
            python=due.python,
            started_at=due.started_at,
            phase="Succeeded",
            reason="Recurred",
            message="",
            output="null",
            finished_at=now,
            numbers=run.numbers,
            recurred_into=run_id,
            history_from=run.history_from,
            outbox_from=run.outbox_from,
        )
        self.run.setdefault(archive, was)  # a late copy of what asked for it comes to the same
        first_input = run.input if run.first_input is None else run.first_input
        self.run[run_id] = replace(
            run,
            input=asked["input"],
            numbers=asked["counts"],
            first_input=first_input,
            started_at=None,
            python=None,
            history_from=asked["position"],
            outbox_from=asked["sent"],
        )
        if (history := self.history.pop(run_id, None)) is not None:
            self.history[archive] = {at: row for at, row in history.items() if at > run.history_from}
        self.attempt.pop(run_id, None)
        self.subscription.pop(run_id, None)
        kept = {int(number) for number in asked["kept"].split(",") if number}
        for number, row in list(self.inbox.get(run_id, {}).items()):
            if number <= asked["seen"] and row.kind not in {"Suspend", "Resume"} and number not in kept:
                self.inbox[run_id][number] = replace(row, is_had=True)
        self.due[run_id] = replace(
            due,
            phase="Pending",
            reason="",
            message="",
            wake_at=now,
            queue=due.workflow,
            python=None,
            started_at=None,
            lost_count=0,
            lost_noted=0,
            is_compensated=False,
        )
        return due.workflow

    def set_values(
        self, *, run_ids: Sequence[UUID], names: Sequence[str], numbers: Sequence[int], payloads: Sequence[str]
    ) -> list[Row]:
        for run_id, name, number, payload in zip(run_ids, names, numbers, payloads, strict=True):
            if run_id not in self.run:
                continue
            of_run = self.value.setdefault(run_id, {})
            if name not in of_run or of_run[name][0] < number:
                of_run[name] = (number, payload)
        return []

    def read_set_values(self, *, run_id: UUID) -> list[Row]:
        return [
            {"name": name, "number": row[0], "payload": row[1]}
            for name, row in sorted(self.value.get(run_id, {}).items())
        ]
