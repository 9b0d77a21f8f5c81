"""The HTTP server of a process: events and the API, health for kubelets and people, metrics for Prometheus."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, Protocol

from aiohttp import web
from prometheus_client import exposition

from romancy.base import log, metrics
from romancy.base.settings import GatewaySettings
from romancy.errors import RomancyError
from romancy.gateway import api, openapi, problems
from romancy.gateway.operations import SERVICES
from romancy.gateway.services import Services
from romancy.store.interface import Store

LOG = log.get(__name__)
STORE: Final = web.AppKey("store", Store)
FIRST_SECONDS: Final = 15.0
"""A connection on which no request has come after so long is closed: whoever opens many does not keep others out."""
KEEPALIVE_SECONDS: Final = 60.0
SHUTDOWN_SECONDS: Final = 2.0
LINE_BYTES_MAX: Final = 64 * 1024
"""Of a request's first line: the longest query of a list, each character of it written as three."""
# aiohttp tells each request that is no HTTP with a trace: a log that anybody can fill. Errors of handlers are told by `problems`.
_QUIET: Final = logging.getLogger("romancy.gateway.http")
_QUIET.setLevel(logging.CRITICAL)
CONNECTIONS_BACKLOG: Final = 1024
SERVED: Final = web.AppKey("served", weakref.WeakSet[asyncio.BaseTransport])


class Part(Protocol):
    """A part of the process that can be ready or not."""

    @property
    def is_ready(self) -> bool: ...


PARTS: Final = web.AppKey("parts", list[Part])


def application(services: Services, parts: Sequence[Part]) -> web.Application:
    """The aiohttp application: `/events`, `/api/v1`, `/openapi.json`, `/healthz/live`, `/healthz/ready` and `/metrics`.

    Args:
        services: its store is asked for readiness, never for liveness: a restart does not mend a database.
        parts: all of them must be ready.
    """
    app = web.Application(client_max_size=services.body_bytes_max, middlewares=[count_as_served, problems.middleware])
    app[STORE], app[PARTS], app[SERVICES] = services.store, list(parts), services
    app[SERVED] = weakref.WeakSet()
    app.add_routes(
        [
            web.get("/healthz/live", live),
            web.get("/healthz/ready", ready),
            web.get("/metrics", show_metrics),
            web.get("/openapi.json", show_document),
            *api.routes(),
        ]
    )
    app.on_shutdown.append(_end_watches)
    app.on_cleanup.append(_close_intake)
    return app


async def _end_watches(app: web.Application) -> None:
    app[SERVICES].watches.stop()


async def _close_intake(app: web.Application) -> None:
    await app[SERVICES].intake.close()


@web.middleware
async def count_as_served(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """A request has come on this connection: it need not be closed for bringing none."""
    if request.transport is not None:
        request.app[SERVED].add(request.transport)
    return await handler(request)


async def show_document(request: web.Request) -> web.Response:
    """The OpenAPI document."""
    del request
    return web.json_response(openapi.document())


async def live(request: web.Request) -> web.Response:
    """200 while the event loop turns: that is all it says."""
    del request
    return web.json_response({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """200 if the database answers and every part takes work; 503 with the reason if not."""
    waiting = [type(part).__name__.lower() for part in request.app[PARTS] if not part.is_ready]
    if waiting:
        return _not_ready(f"not ready: {', '.join(waiting)} (starting, draining, or without a lease)")
    try:
        await request.app[STORE].now()
    except RomancyError as error:
        return _not_ready(error.message)
    return web.json_response({"status": "ready"})


async def show_metrics(request: web.Request) -> web.Response:
    """All metrics of this process, in the text format that the scraper asks for."""
    encode, content_type = exposition.choose_encoder(request.headers.get("Accept", ""))
    return web.Response(body=encode(metrics.REGISTRY), headers={"Content-Type": content_type})


@asynccontextmanager
async def serving(app: web.Application, settings: GatewaySettings) -> AsyncIterator[int]:
    """Serve until the block is left; gives the port."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_QUIET,
        keepalive_timeout=KEEPALIVE_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
        max_line_size=LINE_BYTES_MAX,
    )
    await runner.setup()
    assert runner.server is not None
    loop = asyncio.get_running_loop()
    make, served = runner.server, app[SERVED]
    server = await loop.create_server(
        lambda: Door(make(), served), settings.host, settings.port, backlog=CONNECTIONS_BACKLOG
    )
    try:
        port: int = server.sockets[0].getsockname()[1]
        LOG.info("gateway_started", host=settings.host, port=port)
        yield port
    finally:
        server.close()
        await runner.cleanup()


class Door(asyncio.Protocol):
    """Lets a connection in, and closes it if no request has come after a while: aiohttp would wait for ever.

    Args:
        inner: what speaks HTTP.
        served: connections on which a request has come.
    """

    def __init__(self, inner: asyncio.Protocol, served: "weakref.WeakSet[asyncio.BaseTransport]") -> None:
        self._inner, self._served = inner, served

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        asyncio.get_running_loop().call_later(FIRST_SECONDS, self._close_idle, weakref.ref(transport))
        transport.set_protocol(self._inner)
        self._inner.connection_made(transport)

    def _close_idle(self, reference: "weakref.ref[asyncio.Transport]") -> None:
        transport = reference()
        if transport is not None and not transport.is_closing() and transport not in self._served:
            transport.abort()


def _not_ready(reason: str) -> web.Response:
    return web.json_response({"status": "not ready", "reason": reason}, status=503)
