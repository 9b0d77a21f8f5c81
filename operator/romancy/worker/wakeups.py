"""What wakes a worker: a NOTIFY, its own next due time, a free slot; and the slow poll, if all these were missed."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from enum import Enum


class Woken(Enum):
    """Why a worker looks."""

    RUNG = "rung"
    DUE = "due"
    POLL = "poll"


class Alarm:
    """Waits until it is rung, until the earliest moment that it was set to, or until the slow poll is due.

    Args:
        now: the database's clock.
        poll_seconds: between two slow polls.
    """

    def __init__(self, now: Callable[[], datetime], *, poll_seconds: float) -> None:
        self._now, self._poll_seconds = now, poll_seconds
        self._changed = asyncio.Event()
        self._is_rung = False
        self._at: datetime | None = None
        self._poll_at = asyncio.get_running_loop().time() + poll_seconds

    def ring(self) -> None:
        """Wake now."""
        self._is_rung = True
        self._changed.set()

    def set(self, moment: datetime | None) -> None:
        """Wake at this moment as well."""
        if moment is not None and (self._at is None or moment < self._at):
            self._at = moment
            self._changed.set()

    def poll_within(self, seconds: float) -> None:
        """Have the slow poll come sooner."""
        self._poll_at = min(self._poll_at, asyncio.get_running_loop().time() + seconds)

    async def wait(self) -> Woken:
        """Until there is reason to look."""
        loop = asyncio.get_running_loop()
        while True:
            if loop.time() >= self._poll_at:
                self._poll_at = loop.time() + self._poll_seconds
                self._is_rung = False
                return Woken.POLL
            seconds = self._poll_at - loop.time()
            if self._at is not None:
                due_seconds = (self._at - self._now()).total_seconds()
                if due_seconds <= 0:
                    self._at = None
                    return Woken.DUE
                seconds = min(seconds, max(0.0, due_seconds))
            if self._is_rung:
                self._is_rung = False
                return Woken.RUNG
            self._changed.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                continue
