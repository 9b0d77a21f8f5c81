"""Children: runs that a run has started. How they end, their parent is told; how it ends, ends those that it takes with it."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from romancy.errors import RunExistsError
from romancy.model import failure
from romancy.model.history import Message, MessageKind
from romancy.model.outbox import OutboxRow
from romancy.model.run import Form, NewRun, Parent, ParentClose, Phase, Reason
from romancy.store.messages import Messages
from romancy.store.queries import SQL
from romancy.store.runs import Runs

_ALL: Final = 2**31 - 1


class Children(Runs, Messages):
    """The part of the store that starts, cancels and reports children."""

    async def start_children(self, rows: Sequence[OutboxRow]) -> None:
        """Start what runs have asked for; a run whose id was taken is told so."""
        new = [_new_of(row) for row in rows]
        taken = [started.existing for started in await self.start_runs(new) if started.existing is not None]
        if not taken:
            return
        parents = await self._read_parents([run.id for run in taken])
        refused = [run for run in new if run.id in parents and parents[run.id] != _link(run)]
        await self.send([_told(run.parent, _exists(run), f"refused:{run.id}") for run in refused if run.parent])

    async def cancel_children(self, rows: Sequence[OutboxRow]) -> None:
        """Ask children to end whose parents do not want them any more."""
        content = json.dumps({"reason": Reason.CANCELLED, "message": "the run that started it has cancelled it"})
        await self.send(
            [
                Message(UUID(json.loads(row.payload)["id"]), MessageKind.CANCEL, f"parent:{row.run_id}", content)
                for row in rows
            ]
        )

    async def close_runs(self, run_ids: Sequence[UUID]) -> None:
        """Tell the parents of these runs how they have ended, and cancel those of their children that end with them."""
        ended = await self._read_ended(run_ids)
        told = [
            _told(
                Parent(row["parent_id"], row["parent_number"]),
                {name: row[name] for name in ("phase", "reason", "message", "output", "failure")},
                f"child:{row['id']}",
            )
            for row in ended
        ]
        await self.send(told)
        await self.end_children(dict.fromkeys(run_ids, _ALL))

    async def end_children(self, upto: Mapping[UUID, int]) -> None:
        """Cancel the open children that end with these runs, or with an iteration of theirs.

        Args:
            upto: the number of the last child, by the run that has ended.
        """
        content = json.dumps({"reason": Reason.PARENT_ENDED, "message": "the run that started it has ended"})
        cancels = [
            Message(row["id"], MessageKind.CANCEL, f"parent:{row['parent_id']}", content)
            for row in await self._read_open_children(upto)
        ]
        await self.send(cancels)

    async def _read_parents(self, run_ids: Sequence[UUID]) -> dict[UUID, tuple[UUID | None, int | None]]:
        rows = await self._fetch(SQL.read_parents(run_ids=list(run_ids)))
        return {row["id"]: (row["parent_id"], row["parent_number"]) for row in rows}

    async def _read_ended(self, run_ids: Sequence[UUID]) -> Sequence[Any]:
        return await self._fetch(SQL.read_ended(run_ids=list(run_ids)))

    async def _read_open_children(self, upto: Mapping[UUID, int]) -> Sequence[Any]:
        return await self._fetch(SQL.read_open_children(run_ids=list(upto), numbers=list(upto.values())))


def _new_of(row: OutboxRow) -> NewRun:
    asked = json.loads(row.payload)
    return NewRun(
        id=UUID(asked["id"]),
        namespace=asked["namespace"],
        name=asked["name"],
        workflow=asked["workflow"],
        input=asked["input"],
        form=Form(asked["form"]),
        priority=asked["priority"],
        timeout_seconds=asked["timeout_seconds"],
        labels=asked["labels"],
        start_at=datetime.fromisoformat(asked["start_at"]) if asked["start_at"] else None,
        parent=Parent(row.run_id, asked["number"], ParentClose(asked["close"])),
    )


def _link(run: NewRun) -> tuple[UUID, int]:
    assert run.parent is not None
    return run.parent.id, run.parent.number


def _exists(run: NewRun) -> dict[str, Any]:
    error = RunExistsError(namespace=run.namespace, name=run.name, what_differs="parent")
    return {
        "phase": Phase.FAILED,
        "reason": error.reason,
        "message": error.message,
        "output": None,
        "failure": failure.encode(error),
    }


def _told(parent: Parent, how: dict[str, Any], source: str) -> Message:
    """The message that tells a parent how a child has ended."""
    return Message(parent.id, MessageKind.CHILD, source, json.dumps({"number": parent.number, **how}))
