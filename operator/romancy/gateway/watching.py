"""Server-sent events: a run, or a list, again whenever it changes."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

from aiohttp import web

from romancy.base.clock import Clock
from romancy.errors import RomancyError, TooManyRequestsError
from romancy.gateway import problems

WATCHES_MAX: Final = 500
RUN_SECONDS: Final = 0.5
"""How often a watched run is looked at."""
LIST_SECONDS: Final = 2.0
ALIVE_SECONDS: Final = 15.0
"""After so long without news a comment is sent, so that nothing between takes the connection for dead."""
WATCH_SECONDS_MAX: Final = 3600.0
"""Then whoever watches begins anew, and who they are is asked again."""
Shown = dict[str, Any]


class Watches:
    """How many watch at once."""

    def __init__(self) -> None:
        self._open = 0
        self._stopping = asyncio.Event()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """One more, until it is left.

        Raises:
            TooManyRequestsError: there are too many.
        """
        if self._open >= WATCHES_MAX:
            raise TooManyRequestsError(f"{self._open} watch already", retry_after_seconds=10)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def stop(self) -> None:
        """The process drains: each watch ends, and whoever wants to begins anew at another one."""
        self._stopping.set()

    async def pause(self, seconds: float) -> bool:
        """Wait for the next look; False when it is time to end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        return not self._stopping.is_set()


async def stream(
    request: web.Request,
    watches: Watches,
    clock: Clock,
    look: Callable[[], Awaitable[list[Shown]]],
    *,
    seconds: float,
    is_over: Callable[[list[Shown]], bool] = lambda _: False,
) -> web.StreamResponse:
    """Send what `look` finds, each object again when it has changed, until that is over or whoever watches leaves.

    Args:
        look: the objects, each with an id.
        seconds: between two looks.
        is_over: nothing can change any more.
    """
    with watches.one():
        found: list[Shown] | None = await look()  # an error is a problem document as long as nothing was sent
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        begun = spoken = clock.monotonic()
        known: list[Shown] = []
        with contextlib.suppress(ConnectionError):  # whoever watched has left
            while True:
                text = ""
                if found is not None:
                    text, known = _news(known, found), found
                if not text and clock.monotonic() - spoken >= ALIVE_SECONDS:
                    text = ": still here\n\n"
                if text:
                    await response.write(text.encode())
                    spoken = clock.monotonic()
                if is_over(known) or clock.monotonic() - begun >= WATCH_SECONDS_MAX or not await watches.pause(seconds):
                    break
                try:
                    found = await look()
                except RomancyError as error:
                    found = None
                    shown = problems.document(problems.status_of(error), error.reason, error.message, error.hint)
                    await response.write(_event("problem", shown).encode())
        return response


def _news(before: list[Shown], now: list[Shown]) -> str:
    """What has changed, as events; oldest first, since lists have the newest first."""
    known = {each["id"]: each for each in before}
    there = {each["id"] for each in now}
    changed = [_event("run", each) for each in reversed(now) if known.get(each["id"]) != each]
    return "".join([*changed, *[_event("gone", {"id": name}) for name in known if name not in there]])


def _event(kind: str, data: Shown) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
