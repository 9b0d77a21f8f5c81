"""A TCP proxy before PostgreSQL that knows statements by their names in sql/: it loses, delays and repeats what it is told.

It reads the protocol's messages, so a fault falls exactly where it is meant to: before a statement, between its COMMIT and its
answer, between its work and its COMMIT, or long after somebody has given it up.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretStr

from romancy.base.settings import DatabaseSettings
from romancy.store.arrays import rewritten
from romancy.store.queries import SQL

_SSL_REQUEST: Final = (80877103).to_bytes(4)
_CANCEL_REQUEST: Final = (80877102).to_bytes(4)
_FLUSH: Final = b"H" + (4).to_bytes(4)
_NAMES: Final = {text: name for name, query in SQL.by_name.items() for text in (query.text, rewritten(query.text)[0])}


class Mode(Enum):
    """What happens to a statement."""

    NOT_APPLIED = "not applied"  # the connection is cut before it reaches the server
    UNHEARD = "applied but unheard"  # the connection is cut when the server has answered
    LATE = "late"  # the connection is cut; the statement reaches the server when it is released
    ANSWER_HELD = "answer held"  # the server has answered; the answer goes on when it is released
    COMMIT_HELD = "commit held"  # its work is done in an open transaction; the COMMIT follows when it is released


@dataclass(eq=False)
class Fault:
    """One fault to come.

    Args:
        mode: what happens.
        statement: its name in sql/, or the text of one that has none (`COMMIT;`); empty: whatever comes next.
        word: that its arguments must hold, such as the act of a flush.
        closes: every other connection is cut as well, and new ones wait until `is_open` is set again.
    """

    mode: Mode
    statement: str = ""
    word: bytes = b""
    closes: bool = False
    happened: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    landed: asyncio.Event = field(default_factory=asyncio.Event)  # the server has answered a late one, or ended it

    def is_meant(self, statement: str, body: bytes) -> bool:
        return self.statement in {"", statement} and self.word in body


Message = tuple[bytes, bytes]  # kind and body


@dataclass(eq=False)
class _Link:
    """One connection: the client's two ends, and the server's."""

    proxy: "Proxy"
    from_client: asyncio.StreamReader
    to_client: asyncio.StreamWriter
    from_server: asyncio.StreamReader
    to_server: asyncio.StreamWriter
    prepared: dict[bytes, str] = field(default_factory=dict)
    running: str = ""  # the statement that is not answered yet
    fault: Fault | None = None  # of that statement

    def abort(self) -> None:
        for writer in (self.to_client, self.to_server):
            writer.transport.abort()

    async def greet(self) -> bool:
        """The messages before the first statement, which have no kind; False if it is only a cancel."""
        while True:
            length = await self.from_client.readexactly(4)
            body = await self.from_client.readexactly(int.from_bytes(length) - 4)
            self.to_server.write(length + body)
            if body[:4] == _CANCEL_REQUEST:
                await self.to_server.drain()
                self.to_server.close()
                return False
            if body[:4] != _SSL_REQUEST:
                return True
            self.to_client.write(await self.from_server.readexactly(1))

    async def up(self) -> None:
        """What the client says."""
        while True:
            kind, body = await _read(self.from_client)
            self.proxy.sent_by_clients += 5 + len(body)
            if kind == b"P":
                name, text, *_ = body.split(b"\0", 2)
                self.prepared[name] = _NAMES.get(text.decode(), text.decode())
            elif kind in {b"B", b"Q"}:
                self.running = self.prepared[body.split(b"\0", 2)[1]] if kind == b"B" else body[:-1].decode()
                self.proxy.seen[self.running] += 1
                self.fault = self.proxy.take(self.running, body)
                if self.fault is not None and self.fault.mode is Mode.NOT_APPLIED:
                    self.proxy.happens(self.fault)
                    self.abort()
                    return
                if self.fault is not None and self.fault.mode is Mode.LATE:
                    await self.come_late(self.fault, (kind, body))
                    return
            if kind == b"S" and self.fault is not None and self.fault.mode is Mode.COMMIT_HELD:
                self.to_server.write(_FLUSH)  # the server says that the work is done, and waits for the rest
                await self.to_server.drain()
                await self.fault.release.wait()
            _write(self.to_server, kind, body)
            await self.to_server.drain()

    async def come_late(self, fault: Fault, first: Message) -> None:
        """The client is told nothing and gives up; what it has sent waits on the way, as in the buffer of a router."""
        messages = [first]
        while messages[-1][0] not in {b"S", b"Q"}:
            messages.append(await _read(self.from_client))
        self.to_client.transport.abort()
        self.proxy.happens(fault)
        await fault.release.wait()
        for kind, body in messages:
            _write(self.to_server, kind, body)
        await self.to_server.drain()

    async def down(self) -> None:
        """What the server says."""
        held: list[Message] = []
        while True:
            kind, body = await _read(self.from_server)
            fault = self.fault
            if fault is None:
                if kind == b"Z" and self.running:
                    self.proxy.answered(self.running)
                    self.running = ""
                _write(self.to_client, kind, body)
                await self.to_client.drain()
                continue
            held.append((kind, body))
            if fault.mode is Mode.COMMIT_HELD and kind in {b"C", b"s"}:  # complete, or as many rows as were asked for
                self.proxy.happens(fault)
            if kind != b"Z":
                continue
            if fault.mode is Mode.LATE:
                fault.landed.set()
                self.abort()
                return
            if fault.mode is Mode.UNHEARD:
                self.proxy.happens(fault)
                self.abort()
                return
            self.proxy.happens(fault)
            await fault.release.wait()
            self.fault, self.running = None, ""
            for each in held:
                _write(self.to_client, *each)
            held.clear()
            await self.to_client.drain()


@dataclass(eq=False)
class Proxy:
    """What it is told to do, and what it has seen."""

    host: str
    port: int
    sent_by_clients: int = 0  # bytes
    seen: Counter[str] = field(default_factory=Counter)  # statements by name
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)  # of `lose_next_answer`
    _faults: list[Fault] = field(default_factory=list)
    _late: list[Fault] = field(default_factory=list)
    _links: set[_Link] = field(default_factory=set)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def fail(self, mode: Mode, statement: str = "", *, word: str = "", closes: bool = False) -> Fault:
        """Let this happen to the next statement of that name. A late one is released when its like has been answered."""
        fault = Fault(mode, statement, word.encode(), closes)
        self._faults.append(fault)
        return fault

    def lose_next_answer(self) -> None:
        """Lose it, and cut every connection; new ones wait until `is_open` is set again."""
        self.lost = self.fail(Mode.UNHEARD, closes=True).happened

    def cut(self) -> None:
        """End every connection without a word."""
        for link in list(self._links):
            link.abort()

    # --- what its connections ask -----------------------------------------------------------------------------------

    def take(self, statement: str, body: bytes) -> Fault | None:
        found = next((fault for fault in self._faults if fault.is_meant(statement, body)), None)
        if found is not None:
            self._faults.remove(found)
            if found.mode is Mode.LATE:
                self._late.append(found)
        return found

    def happens(self, fault: Fault) -> None:
        if fault.closes:
            self.is_open.clear()
            self.cut()
        fault.happened.set()

    def answered(self, statement: str) -> None:
        for fault in self._late:
            if fault.statement == statement:
                fault.release.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        link: _Link | None = None
        try:
            await self.is_open.wait()
            link = _Link(self, reader, writer, *await asyncio.open_connection(self.host, self.port))
            self._links.add(link)
            if not await link.greet():
                await link.from_server.read()
                return
            up, down = asyncio.create_task(link.up()), asyncio.create_task(link.down())
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                if link.fault is not None and link.fault.mode is Mode.LATE:
                    await asyncio.wait({up, down})
            finally:
                for each in (up, down):
                    each.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass  # one of both is gone: so is this connection
        finally:
            if link is not None:
                self._links.discard(link)
                link.abort()
                if link.fault is not None:
                    link.fault.landed.set()  # or never will
            writer.transport.abort()
            self._tasks.discard(task)

    async def close(self) -> None:
        """End everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Message:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:]) - 4)


def _write(writer: asyncio.StreamWriter, kind: bytes, body: bytes) -> None:
    writer.write(kind + (len(body) + 4).to_bytes(4) + body)


@asynccontextmanager
async def proxy_to(settings: DatabaseSettings) -> AsyncIterator[tuple[Proxy, DatabaseSettings]]:
    """A proxy, and settings that go through it."""
    parts = urlsplit(settings.url.get_secret_value())
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    proxy.is_open.set()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
    try:
        yield proxy, settings.model_copy(update={"url": SecretStr(url)})
    finally:
        server.close()
        with suppress(OSError):
            await proxy.close()
