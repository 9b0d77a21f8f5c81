"""A TCP proxy before PostgreSQL: it can pass a statement on and keep the answer back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes both ways until it sees a word from a client; from then on that connection gets no more answers."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._word: bytes | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.has_seen = asyncio.Event()

    def keep_answers_after(self, word: str) -> None:
        """Pass on what holds this word, and nothing that comes back on its connection."""
        self._word = word.encode()
        self.has_seen.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to_server: asyncio.StreamWriter | None = None
        try:
            upstream, to_server = await asyncio.open_connection(self._host, self._port)
            keeps = asyncio.Event()
            up = asyncio.ensure_future(self._to_server(reader, to_server, keeps))
            down = asyncio.ensure_future(self._to_client(upstream, writer, keeps))
            try:
                await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except OSError:
            pass  # the server is gone: so is this connection
        finally:
            for each in (writer, to_server):
                if each is not None:
                    each.transport.abort()
                    with suppress(OSError):
                        await each.wait_closed()
            self._tasks.discard(task)

    async def close(self) -> None:
        """Cut every connection."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _to_server(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keeps: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if self._word is not None and self._word in data:
                keeps.set()
                self.has_seen.set()
            writer.write(data)
            await writer.drain()

    async def _to_client(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, keeps: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if not keeps.is_set():
                writer.write(data)
                await writer.drain()


@asynccontextmanager
async def before(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the database of this URL, and the URL through it."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    proxy = Proxy(parts.hostname, parts.port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}"))
    finally:
        server.close()
        await proxy.close()
