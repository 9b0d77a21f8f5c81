"""The outbox: what runs have put there is carried out, by kinds, whole batches at once."""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Final
from uuid import UUID

from romancy.model.outbox import EVENT_KINDS, OutboxKind, OutboxRow
from romancy.store.channels import Channels
from romancy.store.children import Children
from romancy.store.emitted import Emitted
from romancy.store.iterations import Iterations
from romancy.store.queries import SQL

_ALL: Final = 2**31 - 1
_DELETED_APART: Final = frozenset({OutboxKind.RECUR, OutboxKind.GIVE_BACK, *EVENT_KINDS})
"""Deleted by what carries them out, in one statement with what they do."""


class Outbox(Children, Channels, Iterations, Emitted):
    """The part of the store that sends what runs have written."""

    async def carry_out(self, rows: Sequence[OutboxRow]) -> None:
        """Send these, and delete them. Each of its statements may be repeated, and so may all of it.

        Raises:
            StoreUnavailableError: there was no answer: some of it may have been done.
        """

        def of(kind: OutboxKind) -> list[OutboxRow]:
            return [row for row in rows if row.kind is kind]

        # Ends come last: what a run has opened before it ended is then open, and can be closed.
        if subscribes := of(OutboxKind.SUBSCRIBE):
            await self.subscribe(subscribes)
        if unsubscribes := of(OutboxKind.UNSUBSCRIBE):
            await self.unsubscribe(unsubscribes)
        if starts := of(OutboxKind.START_CHILD):
            await self.start_children(starts)
        if cancels := of(OutboxKind.CANCEL_CHILD):
            await self.cancel_children(cancels)
        answered = (OutboxKind.OPEN_CHANNEL, OutboxKind.PUBLISH, OutboxKind.SEND_TO)
        if asks := [row for row in rows if row.kind in answered]:
            await self.answer_channels(asks)
        if announced := of(OutboxKind.ANNOUNCE):
            await self.announce(announced)
        if takes := of(OutboxKind.TAKE):
            await self.take(takes)
        if untakes := of(OutboxKind.UNTAKE):
            await self.undemand(untakes)
        if backs := of(OutboxKind.GIVE_BACK):
            await self.give_back(backs)
        # In their order: who leaves and joins again is a member.
        memberships = [row for row in rows if row.kind in (OutboxKind.JOIN, OutboxKind.LEAVE)]
        for kind, together in groupby(memberships, key=lambda row: row.kind):
            if kind is OutboxKind.JOIN:
                await self.join_groups(list(together))
            else:
                await self.leave_groups([(json.loads(row.payload)["group"], row.run_id) for row in together])
        if values := of(OutboxKind.SET_VALUE):
            await self.set_values(values)
        if emitting := [row.run_id for row in rows if row.kind in EVENT_KINDS]:
            await self.emit(emitting)
        if recurs := of(OutboxKind.RECUR):
            await self.end_children({row.run_id: json.loads(row.payload)["numbers"]["child"] for row in recurs})
            began = await self.recur(recurs)
            asked = {row.run_id: json.loads(row.payload)["numbers"]["outbox"] for row in recurs}
            if began:
                await self.return_untaken({run_id: asked[run_id] for run_id in began})
        if ended := of(OutboxKind.ENDED):
            await self.unsubscribe_all([row.run_id for row in ended])
            await self.close_runs([row.run_id for row in ended])
            await self.return_untaken(dict.fromkeys([row.run_id for row in ended], _ALL))
            await self.leave_groups([(None, row.run_id) for row in ended])
        if sent := [row for row in rows if row.kind not in _DELETED_APART]:
            await self._delete_sent(sent)

    async def _delete_sent(self, rows: Sequence[OutboxRow]) -> None:
        await self._fetch(SQL.delete_sent(run_ids=[row.run_id for row in rows], numbers=[row.number for row in rows]))

    async def read_values(self, run_id: UUID) -> dict[str, str]:
        """What a run shows to outsiders: JSON texts by name; also what is on its way."""
        # The outbox first: what has left it meanwhile is in the table.
        coming = (await self.read_outboxes([run_id])).get(run_id, [])
        values = await self.read_set_values(run_id)
        for row in coming:
            if row.kind is OutboxKind.SET_VALUE:
                asked = json.loads(row.payload)
                if asked["name"] not in values or values[asked["name"]][0] < row.number:
                    values[asked["name"]] = (row.number, asked["value"])
        return {name: text for name, (_, text) in sorted(values.items())}

    async def read_outboxes(self, run_ids: Sequence[UUID]) -> dict[UUID, list[OutboxRow]]:
        """What these runs have put there and nobody has sent, in order."""
        found: dict[UUID, list[OutboxRow]] = {}
        for row in await self._fetch(SQL.read_outboxes(run_ids=list(run_ids))):
            found.setdefault(row["run_id"], []).append(_row_of(row))
        return found

    async def read_left(self, *, limit: int) -> list[OutboxRow]:
        """What lies there for longer than it takes, of runs that nobody holds: whoever should have sent it is dead."""
        return [_row_of(row) for row in await self._fetch(SQL.read_left(limit=limit))]


def _row_of(row: Any) -> OutboxRow:
    return OutboxRow(row["run_id"], row["number"], OutboxKind(row["kind"]), row["payload"])
