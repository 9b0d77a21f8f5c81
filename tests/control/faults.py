"""A proxy before the API server that answers, cuts and loses as it is told: what a real cluster does on a bad day."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from tests.controlplane.plane import ControlPlane

_HOP_BY_HOP = {"Host", "Connection", "Transfer-Encoding", "Content-Length", "Content-Encoding", "Accept-Encoding"}


@dataclass
class Fault:
    """What happens to the next `times` requests that match. `code` 0: it is done, and the answer is lost.

    With `held`, they are sent on only when that is set, and nobody waits for the answer any more: late, as after a network's
    trouble.
    """

    matches: Callable[[web.Request], bool]
    code: int
    times: int = 1
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    held: asyncio.Event | None = None


@dataclass
class Proxy:
    """As admin before the API server. `happened` has the code of each fault that came to pass."""

    port: int = 0
    faults: list[Fault] = field(default_factory=list)
    happened: list[int] = field(default_factory=list)
    _watches: "set[asyncio.Task[None]]" = field(default_factory=set)

    @property
    def kubeconfig(self) -> str:
        """For a client of the proxy."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "proxy", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
                "users": [{"name": "user", "user": {}}],
                "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "user"}}],
                "current-context": "proxy",
            }
        )

    @property
    def open_watches(self) -> "list[asyncio.Task[None]]":
        """Those that are being sent on now."""
        return [task for task in self._watches if not task.done()]

    def cut_watches(self) -> int:
        """End every open watch without a word; how many there were."""
        open_now = self.open_watches
        for task in open_now:
            task.cancel()
        return len(open_now)

    async def handle(self, request: web.Request, upstream: aiohttp.ClientSession) -> web.StreamResponse:
        fault = next((each for each in self.faults if each.times and each.matches(request)), None)
        if fault is not None:
            fault.times -= 1
            self.happened.append(fault.code)
            if fault.code:
                return web.Response(status=fault.code, text=fault.body or _status(fault.code), headers=fault.headers)
        body = await request.read()
        if fault is not None and fault.held is not None:
            await fault.held.wait()
        headers = {name: value for name, value in request.headers.items() if name.title() not in _HOP_BY_HOP}
        async with upstream.request(request.method, request.raw_path, data=body or None, headers=headers) as answer:
            if fault is not None:
                await answer.read()
                if request.transport is not None:
                    request.transport.abort()
                return web.Response()
            if request.query.get("watch") == "true":
                return await self._stream(request, answer)
            content_type = answer.headers.get("Content-Type", "")
            return web.Response(status=answer.status, body=await answer.read(), headers={"Content-Type": content_type})

    async def _stream(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
        await response.prepare(request)

        async def pump() -> None:
            async for block in answer.content.iter_any():
                await response.write(block)

        task = asyncio.create_task(pump())
        self._watches.add(task)
        try:
            await asyncio.wait({task})
            if task.cancelled() and request.transport is not None:
                request.transport.abort()
        finally:
            task.cancel()
            self._watches.discard(task)
            await asyncio.gather(task, return_exceptions=True)
        return response


@asynccontextmanager
async def proxy_before(plane: ControlPlane) -> AsyncIterator[Proxy]:
    """A proxy that does nothing yet."""
    proxy = Proxy()
    context = ssl.create_default_context(cafile=plane.ca_file)
    context.load_cert_chain(plane.directory / "pki/admin.crt", plane.directory / "pki/admin.key")
    connector = aiohttp.TCPConnector(ssl=context, limit=0)
    async with aiohttp.ClientSession(plane.server, connector=connector, auto_decompress=False) as upstream:
        application = web.Application()

        async def handle(request: web.Request) -> web.StreamResponse:
            return await proxy.handle(request, upstream)

        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.port = runner.addresses[0][1]
        try:
            yield proxy
        finally:
            proxy.cut_watches()
            await runner.cleanup()


def broken_watch(code: int) -> str:
    """The one line of a watch that tells of an error, as the API server does: within an answer of 200."""
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": "as told"}
    return json.dumps({"type": "ERROR", "object": status}) + "\n"


def is_watch_of(resource: str) -> Callable[[web.Request], bool]:
    """Matches kopf's watches of a kind."""
    return lambda request: request.path.endswith(f"/{resource}") and request.query.get("watch") == "true"


def _status(code: int) -> str:
    return json.dumps({"kind": "Status", "status": "Failure", "code": code, "reason": "Fault", "message": "as told"})
