"""sql/journal.sql."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from romancy.testing.memory.tables import AttemptRow, DueRow, EntryRow, OutgoingRow, Row, RunRow, Tables, unnest

_HELD = frozenset({"Keep", "Progress", ""})
"""Acts after which the run stays with who writes."""
_SINGULAR = {
    "priorities": "priority",
    "labels": "labels",
    "inboxes": "inbox",
    "begun": "is_begun",
    "noted": "is_noted",
    "entries": "has_entries",
}
"""What a column of a parameter's name is called in a row, where that is not the name without its s."""


class Journal(Tables):
    """What workers write."""

    def flush(self, *, worker_id: int, slot: int, **columns: Sequence[Any]) -> list[Row]:
        if not self.is_fit(worker_id, slot):
            return [_nothing(columns)]
        begun = _rows("b_", columns)
        began = [each["id"] for each in begun if self._begin(worker_id, each)]
        is_new = set(began)
        opened = [self._open(worker_id, each) for each in begun if each["id"] in is_new and each["act"] != "Finish"]
        woken = [row.queue for row in opened if row.is_due(self.clock.now())]
        changed: list[UUID] = []
        stays: list[UUID] = []
        shown: list[UUID] = []
        ended: list[UUID] = []
        for each in sorted(_rows("c_", columns), key=lambda row: row["id"]):
            row = self.due.get(each["id"])
            if row is None or row.worker_id != worker_id or row.claim != each["claim"]:
                continue  # a late copy takes nothing from under a new owner
            if each["act"] == "Finish":
                self._end(row, each)
                ended.append(row.id)
                continue
            new = self.due[row.id] = self._changed(row, each)
            changed.append(row.id)
            if each["act"] == "Park" and new.worker_id is not None:
                stays.append(row.id)
            if each["act"] == "Release":
                woken.append(new.queue)
            is_other = (new.phase, new.reason, new.message) != (row.phase, row.reason, row.message)
            if new.is_resource and (each["act"] == "Release" or is_other):
                shown.append(row.id)
        owed = self.owe(shown)
        owed |= self.owe(ended, is_final=True)
        had = {run_id: len(self.history.get(run_id, ())) for run_id in columns["e_run_ids"]}
        appended = self._append(_rows("e_", columns), is_new)
        has_new = {run_id for run_id, count in had.items() if len(self.history.get(run_id, ())) > count}
        self._try(_rows("a_", columns), is_new)
        self._post(worker_id, _rows("o_", columns), is_new, has_new, set(ended), set(stays))
        asked = columns["c_ids"]
        return [
            {
                "is_alive": True,
                "began": began,
                "appended": len(appended),
                "appended_of": appended if len(appended) < len(columns["e_run_ids"]) else None,
                "changed_of": [*changed, *ended] if len(changed) + len(ended) < len(asked) else None,
                "stays": stays,
                "woken": list(dict.fromkeys(woken)),
                "is_owed": owed,
            }
        ]

    def flush_entries(self, *, worker_id: int, slot: int, **columns: Sequence[Any]) -> list[Row]:
        is_alive = self.is_fit(worker_id, slot)
        appended = self._append(_rows("e_", columns), set()) if is_alive else []
        is_whole = len(appended) == len(columns["e_run_ids"])
        return [
            {"is_alive": is_alive, "appended": len(appended), "appended_of": None if is_whole else appended},
        ]

    def flush_begun(self, *, worker_id: int, ids: Sequence[UUID], numbers: Sequence[int]) -> list[Row]:
        found = []
        for run_id, number in zip(ids, numbers, strict=True):
            run = self.run.get(run_id)
            if run is not None and run.begun_by == worker_id and run.begun_number == number:
                found.append({"id": run_id})
        return found

    # --- runs that begin ------------------------------------------------------------------------------------------

    def _begin(self, worker_id: int, new: Row) -> bool:
        if new["id"] in self.run:
            return False
        is_end = new["act"] == "Finish"
        now = self.clock.now()
        self.run[new["id"]] = RunRow(
            id=new["id"],
            namespace=new["namespace"],
            name=new["name"],
            workflow=new["workflow"],
            priority=new["priority"],
            labels=new["labels"],
            input=new["input"],
            timeout_seconds=new["timeout"],
            created_at=min(new["started_at"], now),
            begun_by=worker_id,
            begun_number=new["number"],
            form=new["form"],
            python=new["python"],
            started_at=new["started_at"],
            phase=new["phase"] if is_end else None,
            reason=new["reason"] if is_end else None,
            message=new["message"] if is_end else None,
            output=new["output"] if is_end else None,
            failure=new["failure"] if is_end else None,
            finished_at=now if is_end else None,
            claim=1 if is_end else None,
            is_compensated=False if is_end else None,
        )
        return True

    def _open(self, worker_id: int, new: Row) -> DueRow:
        act = new["act"]
        row = self.due[new["id"]] = DueRow(
            id=new["id"],
            queue=f"{new['workflow']}/{new['python']}",
            workflow=new["workflow"],
            priority=new["priority"],
            phase={"Keep": new["phase"], "Park": new["phase"], "Block": "Blocked"}.get(act, "Running"),
            reason=new["reason"],
            message=new["message"],
            worker_id=worker_id if act in _HELD else None,
            claim=1,
            wake_at={"Park": new["wake_at"], "Release": self.clock.now()}.get(act),
            started_at=new["started_at"],
            python=new["python"],
            form=new["form"],
            blocked_builds=(new["build"],) if act == "Block" else (),
        )
        return row

    # --- runs that are held ---------------------------------------------------------------------------------------

    def _changed(self, row: DueRow, new: Row) -> DueRow:
        act = new["act"]
        is_parked = act == "Park" and row.inbox_version == new["seen"]  # compared on the row itself (I7)
        if act == "Keep" or is_parked:
            phase, reason, message = new["phase"], new["reason"], new["message"]
        elif act == "Block":
            phase, reason, message = "Blocked", new["reason"], new["message"]
        else:
            phase, reason, message = row.phase, row.reason, row.message
        noted = row.lost_count if new["is_noted"] else row.lost_noted
        return replace(
            row,
            phase=phase,
            reason=reason,
            message=message,
            worker_id=row.worker_id if act in _HELD or (act == "Park" and not is_parked) else None,
            wake_at=new["wake_at"] if is_parked else self.clock.now() if act == "Release" else None,
            lost_count=0 if new["has_entries"] else row.lost_count,
            lost_noted=0 if new["has_entries"] else noted,
            blocked_builds=row.blocked_with(new["build"]) if act == "Block" else row.blocked_builds,
            is_compensated=row.is_compensated or row.phase == "Compensating",
        )

    def _end(self, row: DueRow, new: Row) -> None:
        del self.due[row.id]
        run = self.run[row.id]
        now = self.clock.now()
        self.run[row.id] = replace(
            run,
            phase=new["phase"],
            reason=new["reason"],
            message=new["message"],
            output=new["output"],
            failure=new["failure"],
            started_at=row.started_at,
            python=row.python,
            form=row.form,
            finished_at=now,
            claim=row.claim,
            is_compensated=row.is_compensated or row.phase == "Compensating",
            resource_due_at=run.resource_due(now, run.ttl_seconds) if run.is_resource else None,
        )

    # --- entries and attempts -------------------------------------------------------------------------------------

    def _append(self, entries: Sequence[Row], began: set[UUID]) -> list[UUID]:
        """The runs of the entries that are there as sent, each as often as it has some; none of a begin that was refused."""
        appended = []
        for each in entries:
            run_id = each["run_id"]
            if each.get("is_begun") and run_id not in began:
                continue
            row = EntryRow(
                kind=each["kind"],
                at=each["at"],
                number=each["number"],
                name=each["name"],
                digest=each["digest"],
                payload=each["payload"],
                inbox=each["inbox"],
            )
            if self.history.setdefault(run_id, {}).setdefault(each["position"], row) == row:
                appended.append(run_id)
        return appended

    def _try(self, attempts: Sequence[Row], began: set[UUID]) -> None:
        for each in attempts:
            run_id = each["run_id"]
            if not each["is_begun"] or run_id in began:
                row = AttemptRow(each["failure"], each["failed_at"], each["next_at"])
                self.attempt.setdefault(run_id, {}).setdefault((each["number"], each["attempt"]), row)

    def _post(
        self,
        worker_id: int,
        outgoing: Sequence[Row],
        began: set[UUID],
        has_new: set[UUID],
        ended: set[UUID],
        stays: set[UUID],
    ) -> None:
        now = self.clock.now()
        for each in outgoing:
            run_id = each["run_id"]
            if each["kind"] == "Tell" and run_id in stays:
                continue  # it was not parked
            if each["kind"] not in {"Ended", "Recur", "Tell"} and run_id not in has_new:
                continue  # a late copy: it was carried out long ago
            if each["kind"] == "Ended" and not each["is_begun"] and run_id not in ended:
                continue  # a late copy: the run may have been retried since
            if each["kind"] not in {"Ended", "Recur", "Tell"} and each["number"] <= self.run[run_id].outbox_from:
                continue  # of an iteration that is over
            if not each["is_begun"] or run_id in began:
                row = OutgoingRow(each["kind"], each["payload"], worker_id, now)
                self.outbox.setdefault(run_id, {}).setdefault(each["number"], row)


def _rows(prefix: str, columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The columns whose names begin with this as rows."""
    plurals = [name[len(prefix) :] for name in columns if name.startswith(prefix)]
    return unnest({_SINGULAR.get(each, each.removesuffix("s")): columns[prefix + each] for each in plurals})


def _nothing(columns: Mapping[str, Sequence[Any]]) -> Row:
    """The answer to somebody who is fenced."""
    return {
        "is_alive": False,
        "began": [],
        "appended": 0,
        "appended_of": [] if columns["e_run_ids"] else None,
        "changed_of": [] if columns["c_ids"] else None,
        "stays": [],
        "woken": [],
        "is_owed": False,
    }
