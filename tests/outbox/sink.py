"""A sink that answers as it is told, and remembers what it got."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from aiohttp import web
from aiohttp.test_utils import TestServer

from romancy.base.settings import OutboxSettings
from romancy.gateway.cloudevents import parse
from romancy.model.event import CloudEvent


@dataclass
class Request:
    """What came, and when by the loop's clock."""

    headers: Mapping[str, str]
    body: bytes
    event: CloudEvent
    at: float


@dataclass
class StubSink:
    """An aiohttp server on a port of its own.

    Attributes:
        answer: says what to answer to an event: a status, or a response.
        before_answer: awaited before.
    """

    answer: Callable[[CloudEvent], int | web.Response] = lambda _: 202
    before_answer: Callable[[CloudEvent], Awaitable[None]] | None = None
    requests: list[Request] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        application = web.Application()
        application.router.add_post("/sink", self._post)
        self._server = TestServer(application)
        await self._server.start_server()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.close()

    @property
    def url(self) -> str:
        return str(self._server.make_url("/sink"))

    def settings(self, **changes: object) -> OutboxSettings:
        """A relay's, to here, and quick."""
        quick = {"timeout_seconds": 1.0, "backoff_seconds": 0.01, "backoff_max_seconds": 0.05}
        return OutboxSettings.model_validate({"sink_url": self.url, **quick, **changes})

    @property
    def ids(self) -> list[str]:
        """Of the events, in the order in which they came."""
        return [request.event.id for request in self.requests]

    async def _post(self, request: web.Request) -> web.Response:
        body = await request.read()
        [event] = parse(request.headers, body)
        self.requests.append(Request(dict(request.headers), body, event, asyncio.get_running_loop().time()))
        if self.before_answer is not None:
            await self.before_answer(event)
        answer = self.answer(event)
        return web.Response(status=answer) if isinstance(answer, int) else answer
