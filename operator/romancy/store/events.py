"""Events: stored once, and brought to the runs that wait for them; and those that runs begin to wait for later."""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from romancy.errors import PayloadTooLargeError, StoreUnavailableError
from romancy.model import event as events
from romancy.model import trace
from romancy.model.codec import PAYLOAD_BYTES_MAX
from romancy.model.event import CloudEvent
from romancy.model.history import Message, MessageKind
from romancy.model.outbox import OutboxRow
from romancy.model.run import NAME_MAX, Form, NewRun, run_id_of
from romancy.store.interface import Receipt, Sending, Starter
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
        """The same as `send_events` for one event, to all that wait for it or to one run."""
        [receipt] = await self.send_events([Sending(event, to)], bytes_max=bytes_max)
        return receipt

    async def send_events(self, sent: Sequence[Sending], *, bytes_max: int = PAYLOAD_BYTES_MAX) -> list[Receipt]:
        """Store events, and bring each to all open runs that wait for it, or to one run whether it waits or not.

        The same source and id is the same event: sent again, what a crash has kept from its receivers is made up for. However
        many there are, it takes a constant number of statements.

        Args:
            sent: each with the run that it is for; nothing happens if that is done or unknown.
            bytes_max: the largest event.

        Returns:
            A receipt for each, in order.

        Raises:
            EventInvalidError: an attribute is missing or wrong; nothing was stored.
            PayloadTooLargeError: one is larger than a payload may be; nothing was stored.
            PayloadRefusedError: one can't be stored; nothing was.
        """
        texts = [each.event.as_text() for each in sent]
        for each, text in zip(sent, texts, strict=True):
            if (size := size_bytes([text])) > bytes_max:
                raise PayloadTooLargeError(what=f"event {each.event.id!r}", size_bytes=size, max_bytes=bytes_max)
        stored = await self._store_events(sent, texts)
        interest = await self._read_interest({each.event.type for each in sent if each.to is None})
        keys = [
            [] if each.to is not None else events.keys_of(each.event, interest.shapes.get(each.event.type, ()))
            for each in sent
        ]
        waiting = await self._find_waiting({key for of_one in keys for key in of_one})
        started = await self._start_by(sent, interest)
        messages = []
        for each, (number, _), of_one in zip(sent, stored, keys, strict=True):
            runs = {run_id for key in of_one for run_id in waiting.get(key, ())} if each.to is None else {each.to}
            messages += [_brings(run_id, number) for run_id in sorted(runs)]
        brought = await self._send(messages) if messages else Counter[int | None]()
        receipts = []
        for (number, is_new), count in zip(stored, started, strict=True):
            receipts.append(Receipt(brought.pop(number, 0), count, is_new))  # who sends it twice at once is told once
        return receipts

    async def _store_events(self, sent: Sequence[Sending], texts: Sequence[str]) -> list[tuple[int, bool]]:
        statement = SQL.store_events(
            sources=[each.event.source for each in sent],
            event_ids=[each.event.id for each in sent],
            types=[each.event.type for each in sent],
            targets=[each.to for each in sent],
            payloads=texts,
            attributes=[json.dumps(events.attributes_of(each.event)) for each in sent],
        )
        new: set[int] = set()
        for _ in range(_TRIES_MAX):
            rows = await self._fetch(statement)
            new.update(row["id"] for row in rows if row["is_new"])
            if all(row["id"] is not None for row in rows):
                first = {
                    row["id"]: nth for nth, row in reversed(list(enumerate(rows)))
                }  # twice in one batch is new once
                return [(row["id"], row["id"] in new and first[row["id"]] == nth) for nth, row in enumerate(rows)]
        raise StoreUnavailableError(f"event {sent[0].event.id!r} or one with it was sent by others at the same time")

    async def _read_interest(self, types: Collection[str]) -> "_Interest":
        """What anybody asks for with these types, and what they start."""
        interest = _Interest()
        for row in await self._fetch(SQL.read_interest(types=sorted(types))) if types else ():
            if row["attributes"] is not None:
                interest.shapes[row["type"]].append(json.loads(row["attributes"]))
            else:
                starter = Starter(row["workflow"], row["type"], json.loads(row["wanted"]), Form(row["form"]))
                interest.starters[row["type"]].append((row["namespace"], starter))
        return interest

    async def _start_by(self, sent: Sequence[Sending], interest: "_Interest") -> list[int]:
        """Start the runs that events start, once: their names are made of them. How many are new, for each event."""
        new: list[tuple[int, NewRun]] = []
        for place, each in enumerate(sent):
            if each.to is None and (starters := interest.starters.get(each.event.type)):
                attributes = events.attributes_of(each.event)
                new += [
                    (place, _started_by(each.event, namespace, starter))
                    for namespace, starter in starters
                    if events.matches(starter.type, starter.where, each.event, attributes)
                ]
        counts = [0] * len(sent)
        if new:
            answers = await self.start_runs([run for _, run in new])
            for (place, _), answer in zip(new, answers, strict=True):
                counts[place] += answer.existing is None
        return counts

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

    async def _find_waiting(self, keys: Collection[UUID]) -> dict[UUID, list[UUID]]:
        found: dict[UUID, list[UUID]] = {}
        for row in await self._fetch(SQL.find_waiting(keys=sorted(keys))) if keys else ():
            found.setdefault(row["key"], []).append(row["run_id"])
        return found

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


class _Interest:
    """By type: the sets of attributes that are asked for; namespaces, and the workflows that it starts there."""

    def __init__(self) -> None:
        self.shapes: defaultdict[str, list[list[str]]] = defaultdict(list)
        self.starters: defaultdict[str, list[tuple[str, Starter]]] = defaultdict(list)


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
        labels={"event-id": event.id, "event-source": event.source, **_trace_of(event)},
    )


def _trace_of(event: CloudEvent) -> dict[str, str]:
    """The run is of the event's trace (CloudEvents' extension for distributed tracing)."""
    parent = trace.read(event.extensions.get(trace.LABEL))
    return {} if parent is None else {trace.LABEL: str(parent)}


def _brings(run_id: UUID, number: int) -> Message:
    return Message(run_id, MessageKind.EVENT, f"event:{number}", event_id=number)
