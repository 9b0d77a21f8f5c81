"""LISTEN and NOTIFY: who must be woken. What is lost on the way the slow poll finds.

Commits with a NOTIFY are serialized by one lock of the whole cluster, so no flush has one (at 8 connections it would halve
the throughput). A flush answers what must be told, and one statement on another connection tells it, at most every 20 ms.
Statements from outside (start, send, bury) are rare enough to notify in their own transaction.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg

from romancy.base import log
from romancy.base.settings import DatabaseSettings
from romancy.errors import StoreError
from romancy.store.pool import FOREIGN_ERRORS, Connected, close_quietly, connect, unavailable_as_ours
from romancy.store.queries import SQL

logger = log.get(__name__)

NOTIFY_SECONDS: Final = 0.02
"""The shortest time between two statements that only notify."""
MESSAGES_MAX: Final = 1000
"""Messages in one statement."""
IDS_MAX: Final = 200
"""Ids of runs in one payload, which must stay under 8,000 bytes."""
PROBE_SECONDS: Final = 30
"""A connection that only listens is asked for a sign of life so often."""
_CHANNEL_BYTES_MAX: Final = 63


def channel(settings: DatabaseSettings, what: str) -> str:
    """The name of a channel: channels belong to the database, so they carry the schema's name."""
    name = f"{settings.schema_name}_{what}"
    if len(name) <= _CHANNEL_BYTES_MAX - 20:  # room for a worker's id
        return name
    return f"romancy_{hashlib.sha256(settings.schema_name.encode()).hexdigest()[:16]}_{what}"


def due_channel(settings: DatabaseSettings) -> str:
    """Payload: a queue with runs that are due."""
    return channel(settings, "due")


def inbox_channel(settings: DatabaseSettings) -> str:
    """The worker's id is appended. Payload: ids of its runs that have mail, in hexadecimal, separated by commas."""
    return channel(settings, "inbox_")


def mirror_channel(settings: DatabaseSettings) -> str:
    """No payload: a status is owed."""
    return channel(settings, "mirror")


class Notifier(Connected):
    """Gathers what is to be told, and tells it over a connection of the pool."""

    def __init__(self, settings: DatabaseSettings, pool: asyncpg.Pool) -> None:
        self.settings, self._pool = settings, pool
        self._pending: dict[tuple[str, str], None] = {}
        self._task: asyncio.Task[None] | None = None

    def queues_due(self, queues: Sequence[str]) -> None:
        """Tell the workers that runs of these queues are due."""
        for queue in queues:
            self._tell(due_channel(self.settings), queue)

    def status_owed(self) -> None:
        """Tell the leader that a status is owed."""
        self._tell(mirror_channel(self.settings), "")

    async def close(self) -> None:
        """Tell what is still to be told."""
        if self._task is not None:
            await self._task

    def _tell(self, name: str, payload: str) -> None:
        self._pending[name, payload] = None
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._tell_all(), name="romancy notifier")

    async def _tell_all(self) -> None:
        while self._pending:
            told, self._pending = list(self._pending), {}
            try:
                await self.notify(told)
            except StoreError as error:
                logger.warning("notify_failed", error=repr(error), hint="the slow poll of the others finds it")
            await asyncio.sleep(NOTIFY_SECONDS)  # what gathers meanwhile goes out together

    async def notify(self, told: Sequence[tuple[str, str]]) -> None:
        """Send these notifications: pairs of channel and payload."""
        channels, payloads = [list(column) for column in zip(*told, strict=True)]
        await self._fetch(SQL.notify(channels=channels, payloads=payloads))


class PostgresWakeups:
    """Listens on a connection of its own, and opens it anew when it broke. One for a worker, or (None) for the leader.

    After an interruption it says so with an empty list of queues: anything may be due.
    """

    def __init__(self, settings: DatabaseSettings, worker_id: int | None, *, name: str) -> None:
        self._settings, self._name = settings, name
        self._due: list[Callable[[Sequence[str]], None]] = []
        self._inbox: list[Callable[[Sequence[UUID]], None]] = []
        self._mirror: list[Callable[[], None]] = []
        self._heard: dict[str, Callable[[str], None]] = {
            due_channel(settings): self._hear_due,
            mirror_channel(settings): self._hear_mirror,
        }
        if worker_id is not None:
            self._heard[f"{inbox_channel(settings)}{worker_id}"] = self._hear_inbox
        self._broken = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._task: asyncio.Task[None] | None = None

    def on_due(self, callback: Callable[[Sequence[str]], None]) -> None:
        """Runs of these queues are due, or will be soon: claim, and ask for the next due time. Empty: any queue may be."""
        self._due.append(callback)

    def on_inbox(self, callback: Callable[[Sequence[UUID]], None]) -> None:
        """These runs of this worker have new mail."""
        self._inbox.append(callback)

    def on_mirror(self, callback: Callable[[], None]) -> None:
        """A status is owed."""
        self._mirror.append(callback)

    async def open(self) -> None:
        """Listen; what is notified from here on is heard.

        Raises:
            StoreUnavailableError: there is no connection now. Once there was one, it is opened anew until `close`.
        """
        with unavailable_as_ours():
            await self._listen()
        self._task = asyncio.get_running_loop().create_task(self._keep_listening(), name="romancy wakeups")

    async def close(self) -> None:
        """Hear nothing any more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._drop()

    async def __aenter__(self) -> "PostgresWakeups":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _listen(self) -> None:
        connection = await connect(self._settings, name=self._name)
        connection.add_termination_listener(self._on_end)
        self._broken.clear()
        self._connection = connection
        for name in self._heard:
            await connection.add_listener(name, self._on_notify)

    async def _keep_listening(self) -> None:
        delay_seconds = 0.1
        while True:
            try:
                await asyncio.wait_for(self._broken.wait(), PROBE_SECONDS)
            except TimeoutError:
                if await self._probe():
                    continue
            try:
                await self._drop()
                await self._listen()
            except FOREIGN_ERRORS as error:
                logger.warning("wakeups_interrupted", error=repr(error), again_in_seconds=delay_seconds)
                self._broken.set()
                await asyncio.sleep(delay_seconds)
                delay_seconds = min(delay_seconds * 2, 2)
                continue
            delay_seconds = 0.1
            for told in self._due:
                told(())
            for told_mirror in self._mirror:
                told_mirror()

    async def _probe(self) -> bool:
        """Whether the server still knows this connection: a peer that went without a word is never heard of otherwise."""
        if self._connection is None or self._connection.is_closed():
            return False
        try:
            await self._connection.execute(SQL.probe()[0])
        except FOREIGN_ERRORS:
            return False
        return True

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            await close_quietly(connection)

    def _on_end(self, connection: Any) -> None:
        if connection is self._connection:  # else it is an old one that we closed ourselves
            self._broken.set()

    def _on_notify(self, _connection: Any, _pid: int, name: str, payload: str) -> None:
        self._heard[name](payload)

    def _hear_due(self, payload: str) -> None:
        for callback in self._due:
            callback((payload,))

    def _hear_inbox(self, payload: str) -> None:
        run_ids = [UUID(part) for part in payload.split(",")]
        for callback in self._inbox:
            callback(run_ids)

    def _hear_mirror(self, _payload: str) -> None:
        for callback in self._mirror:
            callback()
