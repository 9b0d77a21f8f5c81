"""The inbox: the only way in. Messages are stored and their runs woken in one transaction (I7)."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from romancy.errors import PayloadRefusedError, StoreUnavailableError
from romancy.model.history import InboxRow, Message, MessageKind
from romancy.model.run import Reason
from romancy.store.notify import IDS_MAX, MESSAGES_MAX, due_channel, inbox_channel, mirror_channel
from romancy.store.pool import Connected, sqlstate_of
from romancy.store.queries import SQL
from romancy.store.texts import size_bytes

_MEETINGS_MAX: Final = 5
"""How often a statement is sent again that met its like; once is enough, unless others go on sending the same."""
_MET: Final = frozenset({"23505", "40001", "40P01"})


class Messages(Connected):
    """The part of the store that takes mail to runs."""

    async def send(self, messages: Sequence[Message]) -> int:
        """Store messages and wake their runs in one transaction (I7); how many were new. Runs that are done get none.

        A run that has not begun ends at a cancel. A waiting run becomes due; a delayed or suspended one keeps its time,
        but a cancel wakes it too, and a resume wakes
        suspended ones. More than 1,000 messages go out in several transactions, each of which is whole.

        Raises:
            PayloadRefusedError: a text can't be stored; nothing was.
        """
        return (await self._send(messages)).total()

    async def _send(self, messages: Sequence[Message]) -> "Counter[int | None]":
        """The same; how many were new by the event that they bring, or None."""
        new: dict[tuple[UUID, str], Message] = {}
        for message in messages:
            size_bytes([message.source, message.payload])
            new.setdefault((message.run_id, message.source), message)
        rest, stored = list(new.values()), Counter[int | None]()
        while rest:
            part, rest = rest[:MESSAGES_MAX], rest[MESSAGES_MAX:]
            stored += await self._send_part(part)
        if cancels := {message.run_id: message for message in new.values() if message.kind is MessageKind.CANCEL}:
            await self._end_unbegun(cancels)
        return stored

    async def _end_unbegun(self, cancels: Mapping[UUID, Message]) -> None:
        """A cancelled run that no worker has ever taken ends here: it has nothing to clean up, and nobody may ever take it.

        Apart from `send`: if it is lost, the message is there all the same, and sending it again ends the run.
        """
        said = [json.loads(message.payload or "{}") for message in cancels.values()]
        await self._fetch(
            SQL.end_unbegun(
                run_ids=list(cancels),
                reasons=[each.get("reason") or Reason.CANCELLED for each in said],
                messages=[each.get("message") or "" for each in said],
                mirror_channel=mirror_channel(self.settings),
            )
        )

    async def _send_part(self, messages: Sequence[Message]) -> "Counter[int | None]":
        statement = SQL.send(
            run_ids=[message.run_id for message in messages],
            kinds=[message.kind for message in messages],
            sources=[message.source for message in messages],
            payloads=[message.payload for message in messages],
            event_ids=[message.event_id for message in messages],
            ids_max=IDS_MAX,
            due_channel=due_channel(self.settings),
            inbox_channel=inbox_channel(self.settings),
        )
        for _ in range(_MEETINGS_MAX):
            try:
                [row] = await self._fetch(statement)
            except (PayloadRefusedError, StoreUnavailableError) as error:
                # The same message was on its way on another connection: now it is there, and is found.
                if sqlstate_of(error.__cause__ or error) not in _MET:
                    raise
                met = error
            else:
                brought = Counter[int | None](row["event_ids"])
                brought[None] = row["stored"] - brought.total()
                return brought
        raise StoreUnavailableError(f"the same messages were sent by others {_MEETINGS_MAX} times over") from met

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]:
        """The mail of a run with a number above `after`, in order."""
        return (await self.read_inboxes({run_id: after}))[run_id]

    async def read_inboxes(self, afters: dict[UUID, int]) -> dict[UUID, list[InboxRow]]:
        """The same for several runs; a run without mail has an empty list."""
        inboxes: dict[UUID, list[InboxRow]] = {run_id: [] for run_id in afters}
        for row in await self._fetch(SQL.read_inboxes(run_ids=list(afters), afters=list(afters.values()))):
            inboxes[row["run_id"]].append(_inbox_row_of(row))
        return inboxes


def _inbox_row_of(row: Any) -> InboxRow:
    return InboxRow(
        number=row["number"],
        kind=MessageKind(row["kind"]),
        source=row["source"],
        payload=row["payload"],
        at=row["at"],
    )
