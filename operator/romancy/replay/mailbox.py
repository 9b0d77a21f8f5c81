"""The events of one run: who waits for which, and those that have come and that nobody has taken yet.

An event goes to the first wait that it matches and to every stream that it matches. What nobody wants when it comes is kept for a
later wait: it was asked for once, so it was delivered.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from romancy.model.event import CloudEvent, Where, attributes_of, key_of, matches, of_json
from romancy.model.history import Entry
from romancy.model.outbox import OutboxKind
from romancy.replay.loop import RunFuture, RunLoop

Key = tuple[UUID, bool]
_SKEW: Final = timedelta(seconds=1)
"""A run's clock is a worker's idea of the database's. Nobody looks for what came before a stream was opened: only a wait beside
it may have brought that."""


class Arrived:
    """An event that this run has been sent. `inbox` is the number of its message."""

    __slots__ = ("attributes", "event", "inbox")

    def __init__(self, event: CloudEvent, inbox: int) -> None:
        self.event, self.inbox, self.attributes = event, inbox, attributes_of(event)


class _Wanted:
    """A type and what must be equal."""

    def __init__(self, type: str, where: Where) -> None:
        self.type, self.where, self.key = type, where, key_of(type, where)

    def __str__(self) -> str:
        named = ", ".join(f"{name}={value!r}" for name, value in self.where.items())
        return f"{self.type} ({named})" if named else self.type


class Wait(_Wanted):
    """Somebody awaits one event."""

    def __init__(self, type: str, where: Where, future: "asyncio.Future[Arrived]") -> None:
        super().__init__(type, where)
        self.future = future


class Stream(_Wanted):
    """All events that arrive from a moment on."""

    def __init__(self, type: str, where: Where, since: datetime, *, is_direct: bool) -> None:
        super().__init__(type, where)
        self.since, self.is_direct = since, is_direct
        self.queue: asyncio.Queue[Arrived] = asyncio.Queue()
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
        self._kept: list[Arrived] = []
        self._subscribed: dict[
            Key, int
        ] = {}  # the numbers of what is subscribed to; a wait looks back, a stream does not
        self._is_changed = False

    def wait(self, type: str, where: Where) -> "asyncio.Future[Arrived]":
        """One event that arrived since the run began, or will, and that the run has not had yet."""
        future = RunFuture(loop=self._loop)
        for nth, arrived in enumerate(self._kept):
            if matches(type, where, arrived.event, arrived.attributes):
                del self._kept[nth]
                future.set_result(arrived)
                return future
        self._waits.append(Wait(type, where, future))
        self._is_changed = True
        return future

    def give_back(self, future: "asyncio.Future[Arrived]") -> None:
        """Whoever waited was cancelled; what it was about to get is for the next."""
        if future.done() and not future.cancelled():
            self._kept.insert(0, future.result())

    def open(self, type: str, where: Where, *, since: datetime, is_direct: bool = False) -> Stream:
        """All events that arrive from this moment on, until `close`.

        Args:
            is_direct: of those that are sent to this run alone: there is nothing to subscribe to.
        """
        stream = Stream(type, where, since, is_direct=is_direct)
        self._streams.append(stream)
        self._is_changed = True
        return stream

    def close(self, stream: Stream) -> None:
        """Nothing more is wanted of it. What it has and nobody has received is kept for a wait."""
        if stream in self._streams:
            self._streams.remove(stream)
            self._is_changed = True
        while not stream.queue.empty():
            self._kept.append(stream.queue.get_nowait())

    def deliver(self, entry: Entry) -> None:
        """An event has come."""
        told = json.loads(entry.payload)
        assert entry.inbox is not None
        arrived, arrived_at = Arrived(of_json(told["event"]), entry.inbox), datetime.fromisoformat(told["at"])
        is_taken = False
        for stream in self._streams:
            if stream.since - _SKEW <= arrived_at and _is_for(stream, arrived):
                self._loop.context.run(stream.queue.put_nowait, arrived)
                is_taken = True
        for wait in self._waits:
            if not wait.future.done() and _is_for(wait, arrived):
                self._loop.context.run(wait.future.set_result, arrived)
                self._is_changed = is_taken = True
                break
        if not is_taken:
            self._kept.append(arrived)

    def subscribe_anew(self) -> None:
        """The run had ended, and its subscriptions with it."""
        self._subscribed.clear()
        self._is_changed = True

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
        wanted: dict[Key, _Wanted] = {}
        for wait in self._waits:
            wanted.setdefault((wait.key, True), wait)
        for stream in self._streams:
            if stream.is_direct:
                continue
            wanted.setdefault((stream.key, False), stream)
        for key in [key for key in self._subscribed if key not in wanted]:
            self._post(OutboxKind.UNSUBSCRIBE, json.dumps({"number": self._subscribed.pop(key)}))
        for key, what in wanted.items():
            if key not in self._subscribed:
                asked = {"type": what.type, "where": what.where, "is_stream": isinstance(what, Stream)}
                self._subscribed[key] = self._post(OutboxKind.SUBSCRIBE, json.dumps(asked))

    def awaited(self) -> list[str]:
        """What the run waits for, for people."""
        waits = [str(wait) for wait in self._waits if not wait.future.done()]
        return waits + [str(stream) for stream in self._streams if stream.receivers]

    def kept(self) -> list[int]:
        """The numbers of the messages whose events nobody has taken."""
        return [arrived.inbox for arrived in self._kept]

    def discard(self) -> None:
        """The run goes out of memory."""
        self._waits.clear()
        self._streams.clear()
        self._kept.clear()


def _is_for(wanted: _Wanted, arrived: Arrived) -> bool:
    return matches(wanted.type, wanted.where, arrived.event, arrived.attributes)
