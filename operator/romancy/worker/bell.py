"""Wakes the one task that waits for it."""

import asyncio


class Bell:
    """Rung while nobody waits, it is heard by the next wait, unless it is hushed before."""

    __slots__ = ("_is_rung", "_waiter")

    def __init__(self) -> None:
        self._is_rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Something changed."""
        self._is_rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def hush(self) -> None:
        """All that it was rung for so far is about to be looked at."""
        self._is_rung = False

    async def wait(self, seconds: float | None = None) -> None:
        """Until it is rung, or for so many seconds."""
        assert self._waiter is None, "one task at a time"
        if self._is_rung:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if seconds is None else loop.call_later(seconds, self.ring)
        try:
            await self._waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()
