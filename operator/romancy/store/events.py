"""Events: stored once, and brought to the runs that wait for them; and those that runs begin to wait for later."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from romancy.errors import PayloadTooLargeError, StoreUnavailableError
from romancy.model import event as events
from romancy.model.codec import PAYLOAD_BYTES_MAX
from romancy.model.event import CloudEvent
from romancy.model.history import Message, MessageKind
from romancy.model.outbox import OutboxRow
from romancy.model.run import NAME_MAX, Form, NewRun, run_id_of
from romancy.store.interface import Receipt, Starter
from romancy.store.messages import Messages
from romancy.store.queries import SQL
from romancy.store.runs import Runs
from romancy.store.texts import size_bytes

FOUND_MAX: Final = 100
"""Kept events that one look back brings to a run; then it looks again."""
_TRIES_MAX: Final = 5


class Events(Runs, Messages):
    """The part of the store that knows events."""

    async def send_event(
        self, event: CloudEvent, *, to: UUID | None = None, bytes_max: int = PAYLOAD_BYTES_MAX
    ) -> Receipt:
        """Store an event, and bring it to all open runs that wait for it, or to one run whether it waits or not.

        The same source and id is the same event: sent again, what a crash has kept from its receivers is made up for.

        Args:
            to: a run; nothing happens if it is done or unknown.
            bytes_max: the largest event.

        Raises:
            EventInvalidError: an attribute is missing or wrong.
            PayloadTooLargeError: it is larger than a payload may be.
            PayloadRefusedError: it can't be stored; nothing was.
        """
        text = event.as_text()
        if (size := size_bytes([text])) > bytes_max:
            raise PayloadTooLargeError(what=f"event {event.id!r}", size_bytes=size, max_bytes=bytes_max)
        number, is_new = await self._store_event(event, text, to)
        if to is not None:
            return Receipt(await self.send([_brings(to, number)]), 0, is_new)
        shapes, starters = await self._read_interest(event.type)
        keys = events.keys_of(event, shapes)
        waiting = await self._find_waiting(keys) if keys else []
        started = await self._start_by(event, starters) if starters else 0
        return Receipt(await self.send([_brings(run_id, number) for run_id in waiting]), started, is_new)

    async def _store_event(self, event: CloudEvent, text: str, to: UUID | None) -> tuple[int, bool]:
        statement = SQL.store_event(
            source=event.source,
            event_id=event.id,
            type=event.type,
            target=to,
            payload=text,
            attributes=json.dumps(events.attributes_of(event)),
        )
        for _ in range(_TRIES_MAX):
            [row] = await self._fetch(statement)
            if row["id"] is not None:
                return int(row["id"]), bool(row["is_new"])
        raise StoreUnavailableError(f"event {event.id!r} of {event.source!r} was sent by others at the same time")

    async def _read_interest(self, type: str) -> tuple[list[list[str]], list[tuple[str, Starter]]]:
        """The sets of attributes that are asked for with a type; namespaces, and the workflows that it starts there."""
        rows = await self._fetch(SQL.read_interest(type=type))
        shapes = [json.loads(row["attributes"]) for row in rows if row["attributes"] is not None]
        starters = [
            (row["namespace"], Starter(row["workflow"], type, json.loads(row["wanted"]), Form(row["form"])))
            for row in rows
            if row["workflow"] is not None
        ]
        return shapes, starters

    async def _start_by(self, event: CloudEvent, starters: Sequence[tuple[str, Starter]]) -> int:
        """Start the runs that an event starts, once: their names are made of it. How many are new."""
        attributes = events.attributes_of(event)
        new = [
            _started_by(event, namespace, starter)
            for namespace, starter in starters
            if events.matches(starter.type, starter.where, event, attributes)
        ]
        return sum(started.existing is None for started in await self.start_runs(new))

    async def set_starters(self, namespace: str, offered: Sequence[str], starters: Sequence[Starter]) -> None:
        """Say which of the offered workflows events start, and by which."""
        await self._fetch(
            SQL.set_starters(
                namespace=namespace,
                offered=list(offered),
                workflows=[starter.workflow for starter in starters],
                types=[starter.type for starter in starters],
                wanteds=[json.dumps(starter.where) for starter in starters],
                forms=[starter.form for starter in starters],
            )
        )

    async def _find_waiting(self, keys: Sequence[UUID]) -> list[UUID]:
        return [row["run_id"] for row in await self._fetch(SQL.find_waiting(keys=list(keys)))]

    async def subscribe(self, rows: Sequence[OutboxRow]) -> None:
        """Subscribe runs, and bring them what has come already and they have not had."""
        asked = [(row, json.loads(row.payload)) for row in rows]
        there = await self._fetch(
            SQL.subscribe(
                run_ids=[row.run_id for row, _ in asked],
                numbers=[row.number for row, _ in asked],
                keys=[events.key_of(each["type"], each["where"]) for _, each in asked],
                types=[each["type"] for _, each in asked],
                shapes=[json.dumps(sorted(each["where"])) for _, each in asked],
            )
        )
        at = {(row["run_id"], row["number"]): row["at"] for row in there}
        looking = [
            _Look(row.run_id, each["type"], each["where"], at[row.run_id, row.number] if each["is_stream"] else None)
            for row, each in asked
            if (row.run_id, row.number) in at
        ]
        while looking:
            found = await self._find_events([look for look in looking if look.where])
            found += await self._find_events_of_type([look for look in looking if not look.where])
            await self.send([_brings(run_id, number) for run_id, number in found])
            counts = Counter(run_id for run_id, _ in found)
            looking = [look for look in looking if counts[look.run_id] >= FOUND_MAX]

    async def _find_events(self, looking: "Sequence[_Look]") -> list[tuple[UUID, int]]:
        """Runs and the kept events that they ask for by values."""
        if not looking:
            return []
        statement = SQL.find_events(
            run_ids=[look.run_id for look in looking],
            matches=[json.dumps({events.TYPE_ATTRIBUTE: look.type, **look.where}) for look in looking],
            sinces=[look.since for look in looking],
            limit=FOUND_MAX,
        )
        return [(row["run_id"], row["id"]) for row in await self._fetch(statement)]

    async def _find_events_of_type(self, looking: "Sequence[_Look]") -> list[tuple[UUID, int]]:
        """Runs and the kept events that they ask for by their type alone."""
        if not looking:
            return []
        statement = SQL.find_events_of_type(
            run_ids=[look.run_id for look in looking],
            types=[look.type for look in looking],
            sinces=[look.since for look in looking],
            limit=FOUND_MAX,
        )
        return [(row["run_id"], row["id"]) for row in await self._fetch(statement)]

    async def unsubscribe(self, rows: Sequence[OutboxRow]) -> None:
        """Undo subscriptions, by the numbers of the outbox rows that made them."""
        numbers = [json.loads(row.payload)["number"] for row in rows]
        await self._fetch(SQL.unsubscribe(run_ids=[row.run_id for row in rows], numbers=numbers))

    async def unsubscribe_all(self, run_ids: Sequence[UUID]) -> None:
        """Runs that are done wait for nothing."""
        await self._fetch(SQL.unsubscribe_all(run_ids=list(run_ids)))


class _Look:
    """What one run asks for, back to a moment."""

    def __init__(self, run_id: UUID, type: str, where: events.Where, since: datetime | None) -> None:
        self.run_id, self.type, self.where, self.since = run_id, type, where, since


def _started_by(event: CloudEvent, namespace: str, starter: Starter) -> NewRun:
    name = f"{starter.workflow[: NAME_MAX - 33].replace('_', '-')}-{events.identity_of(event)}"
    return NewRun(
        id=run_id_of(namespace, name),
        namespace=namespace,
        name=name,
        workflow=starter.workflow,
        input=json.dumps(event.data if isinstance(event.data, dict) else {"data": event.data}, separators=(",", ":")),
        form=starter.form,
        labels={"event-id": event.id, "event-source": event.source},
    )


def _brings(run_id: UUID, number: int) -> Message:
    return Message(run_id, MessageKind.EVENT, f"event:{number}", event_id=number)
