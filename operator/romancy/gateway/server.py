"""The HTTP server of a process: health for kubelets and people, metrics for Prometheus."""

from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from aiohttp import web
from prometheus_client import exposition

from romancy.base import log, metrics
from romancy.base.settings import GatewaySettings
from romancy.errors import RomancyError
from romancy.store.interface import Store

LOG = log.get(__name__)
STORE: Final = web.AppKey("store", Store)


class Part(Protocol):
    """A part of the process that can be ready or not."""

    @property
    def is_ready(self) -> bool: ...


PARTS: Final = web.AppKey("parts", list[Part])


def application(store: Store, parts: Sequence[Part]) -> web.Application:
    """The aiohttp application: `/healthz/live`, `/healthz/ready` and `/metrics`.

    Args:
        store: asked for readiness, never for liveness: a restart does not mend a database.
        parts: all of them must be ready.
    """
    app = web.Application(client_max_size=1024 * 1024)
    app[STORE], app[PARTS] = store, list(parts)
    app.add_routes(
        [web.get("/healthz/live", live), web.get("/healthz/ready", ready), web.get("/metrics", show_metrics)]
    )
    return app


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
async def serving(app: web.Application, settings: GatewaySettings) -> Any:
    """Serve until the block is left; gives the port."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        assert runner.addresses
        port = runner.addresses[0][1]
        LOG.info("gateway_started", host=settings.host, port=port)
        yield port
    finally:
        await runner.cleanup()


def _not_ready(reason: str) -> web.Response:
    return web.json_response({"status": "not ready", "reason": reason}, status=503)
