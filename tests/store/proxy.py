"""A TCP proxy before PostgreSQL that loses answers: the way to see what a worker sees when the network fails it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from pydantic import SecretStr

from romancy.base.settings import DatabaseSettings
from tests import postgres

_BLOCK = 65536


@dataclass
class Proxy:
    """What it is told to do, and what it has seen."""

    upstream: int
    port: int = 0
    sent_by_clients: int = 0  # bytes
    is_open: asyncio.Event = field(default_factory=asyncio.Event)
    lost: asyncio.Event = field(default_factory=asyncio.Event)
    _lose: bool = False
    _writers: list[asyncio.StreamWriter] = field(default_factory=list)
    _tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def lose_next_answer(self) -> None:
        """Swallow what the server says next, and then cut every connection; new ones wait until `is_open` is set again."""
        self._lose = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.is_open.wait()
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        self._writers += [writer, server_writer]
        task = asyncio.ensure_future(self._pump(reader, server_writer, is_client=True))
        self._tasks.add(task)
        await self._pump(server_reader, writer, is_client=False)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_client: bool) -> None:
        try:
            while block := await reader.read(_BLOCK):
                if is_client:
                    self.sent_by_clients += len(block)
                elif self._lose:
                    # The server answers a statement when its transaction is committed: the work is done, nobody hears it.
                    self._lose = False
                    self.is_open.clear()
                    self.cut()
                    self.lost.set()
                    return
                writer.write(block)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    def cut(self) -> None:
        """End every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()


@asynccontextmanager
async def proxy_to(settings: DatabaseSettings) -> AsyncIterator[tuple[Proxy, DatabaseSettings]]:
    """A proxy, and settings that go through it."""
    address, _, database = settings.url.get_secret_value().rpartition("/")
    proxy = Proxy(upstream=int(address.rpartition(":")[2]))
    proxy.is_open.set()
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    url = postgres.Server(port=proxy.port, pid=0).url(database)
    try:
        yield proxy, settings.model_copy(update={"url": SecretStr(url)})
    finally:
        server.close()
        proxy.cut()
