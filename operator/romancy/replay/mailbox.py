"""The events of one run: who waits for which, and those that have come and that nobody has taken yet.

An event goes to the first wait that it matches and to every stream that it matches. What nobody wants when it comes is kept for a
later wait: it was asked for once, so it was delivered.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from romancy.model.event import CloudEvent, Scalar, Where, attributes_of, key_of, matches, of_json
from romancy.model.history import Entry
from romancy.model.outbox import OutboxKind
from romancy.replay.loop import RunFuture, RunLoop

Key = tuple[UUID, bool]


class _Wanted:
    """A type and what must be equal."""

    def __init__(self, type: str, where: Where) -> None:
        self.type, self.where, self.key = type, where, key_of(type, where)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.where.items())
        return f"{self.type} ({named})" if named else self.type


class Wait(_Wanted):
    """Somebody awaits one event."""

    def __init__(self, type: str, where: Where, future: "asyncio.Future[CloudEvent]") -> None:
        super().__init__(type, where)
        self.future = future


class Stream(_Wanted):
    """All events that arrive from a moment on."""

    def __init__(self, type: str, where: Where, since: datetime) -> None:
        super().__init__(type, where)
        self.since = since
        self.queue: asyncio.Queue[CloudEvent] = asyncio.Queue()
        self.receivers = 0


class Mailbox:
    """What a run has asked for, and what it has been sent.

    Args:
        post: puts something into the outbox; its number.
    """

    def __init__(self, loop: RunLoop, post: Callable[[OutboxKind, str], int]) -> None:
        self._loop, self._post = loop, post
        self._waits: list[Wait] = []
        self._streams: list[Stream] = []
        self._kept: list[tuple[CloudEvent, dict[str, Scalar]]] = []
        self._subscribed: dict[
            Key, int
        ] = {}  # the numbers of what is subscribed to; a wait looks back, a stream does not
        self._is_changed = False

    def wait(self, type: str, where: Where) -> "asyncio.Future[CloudEvent]":
        """One event that arrived since the run began, or will, and that the run has not had yet."""
        future = RunFuture(loop=self._loop)
        for nth, (event, attributes) in enumerate(self._kept):
            if matches(type, where, event, attributes):
                del self._kept[nth]
                future.set_result(event)
                return future
        self._waits.append(Wait(type, where, future))
        self._is_changed = True
        return future

    def give_back(self, future: "asyncio.Future[CloudEvent]") -> None:
        """Whoever waited was cancelled; what it was about to get is for the next."""
        if future.done() and not future.cancelled():
            event = future.result()
            self._kept.insert(0, (event, attributes_of(event)))

    def open(self, type: str, where: Where, *, since: datetime) -> Stream:
        """All events that arrive from this moment on, until `close`."""
        stream = Stream(type, where, since)
        self._streams.append(stream)
        self._is_changed = True
        return stream

    def close(self, stream: Stream) -> None:
        """Nothing more is wanted of it."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._is_changed = True

    def deliver(self, entry: Entry) -> None:
        """An event has come."""
        told = json.loads(entry.payload)
        event, arrived_at = of_json(told["event"]), datetime.fromisoformat(told["at"])
        attributes = attributes_of(event)
        is_taken = False
        for stream in self._streams:
            if stream.since <= arrived_at and matches(stream.type, stream.where, event, attributes):
                self._loop.context.run(stream.queue.put_nowait, event)
                is_taken = True
        for wait in self._waits:
            if not wait.future.done() and matches(wait.type, wait.where, event, attributes):
                self._loop.context.run(wait.future.set_result, event)
                self._is_changed = is_taken = True
                break
        if not is_taken:
            self._kept.append((event, attributes))

    def settle(self) -> None:
        """At the end of a step: subscribe to what is wanted now, and no more to what is not.

        So a loop that waits for one event after the other is subscribed once.
        """
        if any(wait.future.done() for wait in self._waits):
            self._waits = [wait for wait in self._waits if not wait.future.done()]
            self._is_changed = True
        if not self._is_changed:
            return
        self._is_changed = False
        wanted: dict[Key, tuple[_Wanted, datetime | None]] = {}
        for wait in self._waits:
            wanted.setdefault((wait.key, True), (wait, None))
        for stream in self._streams:
            wanted.setdefault((stream.key, False), (stream, stream.since))
        for key in [key for key in self._subscribed if key not in wanted]:
            self._post(OutboxKind.UNSUBSCRIBE, json.dumps({"number": self._subscribed.pop(key)}))
        for key, (what, since) in wanted.items():
            if key not in self._subscribed:
                asked = {"type": what.type, "where": what.where, "since": since and since.isoformat()}
                self._subscribed[key] = self._post(OutboxKind.SUBSCRIBE, json.dumps(asked))

    def awaited(self) -> list[str]:
        """What the run waits for, for people."""
        waits = [str(wait) for wait in self._waits if not wait.future.done()]
        return waits + [str(stream) for stream in self._streams if stream.receivers]

    def discard(self) -> None:
        """The run goes out of memory."""
        self._waits.clear()
        self._streams.clear()
        self._kept.clear()
