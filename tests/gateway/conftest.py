"""An application with the HTTP API on a PostgreSQL, and a session that asks it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession

from romancy import App
from romancy.base.settings import DatabaseSettings, GatewaySettings, WorkerSettings
from romancy.gateway import server
from tests.gateway.flows import WORKFLOWS

LOCAL = GatewaySettings(host="127.0.0.1", port=0)


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class Api:
    """The API of one process, and a session that asks it."""

    app: App
    session: ClientSession
    port: int
    database: DatabaseSettings

    async def ask(self, method: str, path: str, **given: Any) -> Answer:
        """One request; its body as JSON, if it is any."""
        async with self.session.request(method, path, **given) as response:
            text = await response.text()
            body = await response.json() if "json" in response.headers.get("Content-Type", "") else text
            return Answer(response.status, dict(response.headers), body)

    async def event(self, **attributes: Any) -> Answer:
        """Send one event in structured mode."""
        event = {"specversion": "1.0", "id": "e1", "source": "/shop", "type": "shop.paid", **attributes}
        body = io.BytesIO(json.dumps(event).encode())
        return await self.ask("POST", "/events", data=body, headers={"Content-Type": "application/cloudevents+json"})


async def until[T](ask: Callable[[], Awaitable[T]], holds: Callable[[T], object]) -> T:
    """Ask again and again, until the answer is the wanted one: only the database knows when that is."""
    async with asyncio.timeout(10):
        while not holds(found := await ask()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return found


@pytest.fixture
async def api(database: DatabaseSettings) -> AsyncIterator[Api]:
    """Everybody may do everything."""
    worker = WorkerSettings(name="w", park_after_seconds=0)
    async with (
        App(database, WORKFLOWS, worker=worker) as app,
        server.serving(app.http(is_open=True), LOCAL) as port,
        ClientSession(f"http://127.0.0.1:{port}") as session,
    ):
        yield Api(app, session, port, database)
