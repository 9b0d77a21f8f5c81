"""Event loops of control's threads, which end when their last connection has."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, Final

GOOD_BYE_SECONDS: Final = 2.0
"""How long a server may take to say good-bye on a TLS connection that was closed."""
_LOOK_SECONDS: Final = 0.005


def run(main: Coroutine[Any, Any, None]) -> None:
    """As asyncio.run, but the loop is closed only when no socket is open any more.

    A TLS connection that is closed waits for the other side's good-bye, and nobody waits for that: kopf closes its watches
    and ends. A loop that is closed before leaves the sockets to the garbage collector.
    """
    selector = selectors.DefaultSelector()
    own = 0

    async def run_to_the_last() -> None:
        nonlocal own
        own = len(selector.get_map())  # what the loop wakes itself with
        try:
            await main
        finally:
            loop = asyncio.get_running_loop()
            deadline = loop.time() + GOOD_BYE_SECONDS
            while len(selector.get_map()) > own and loop.time() < deadline:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(_LOOK_SECONDS)
            await asyncio.sleep(0)  # a socket is closed one turn after it was taken from the selector

    asyncio.run(run_to_the_last(), loop_factory=lambda: asyncio.SelectorEventLoop(selector))
