"""An event loop with virtual time, shared by several simulated processes: nothing sleeps, nobody else decides what comes next.

Time jumps to the next timer when nothing is ready. Each callback belongs to the process in whose context it was scheduled: those
of a process that stands still are kept until it goes on, those of a dead one for ever. Within a process callbacks run in
the order in which they were scheduled, as asyncio promises; which process runs first is drawn by lot.
"""

import asyncio
import heapq
from collections import deque
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

PROCESS: Final[ContextVar["Body | None"]] = ContextVar("process", default=None)
"""The process that a task or callback belongs to; None: the world outside."""


_CANCELLED_MAX: Final = 100


class StuckError(AssertionError):
    """Nothing is ready and nothing will ever be, though somebody waits."""


@dataclass(eq=False)
class Body:
    """What a loop knows of a process."""

    is_dead: bool = False
    is_frozen: bool = False
    held: "deque[asyncio.Handle]" = field(default_factory=deque)
    remains: "list[asyncio.Task[Any]]" = field(default_factory=list)


class _NoSelector:
    """There are no sockets."""

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """Args:
    random: draws the order.
    """

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.turns = 0
        self.is_ending = False  # everything is cleaned up, also what is dead
        self._random = random
        self._moment = 0.0
        self._selector = _NoSelector()  # what the base class closes
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]

    def time(self) -> float:
        return self._moment

    def thaw(self, body: Body) -> None:
        """Let a process go on with what was kept for it."""
        body.is_frozen = body.is_dead = False
        self._ready.extendleft(reversed(body.held))
        body.held.clear()

    def bury(self, body: Body) -> None:
        """Call no callback of this process any more; what it was about to do is kept, so that nothing is cleaned up."""
        if self.is_ending:
            return
        body.is_dead = True
        body.remains = [task for task in asyncio.all_tasks(self) if task.get_context().get(PROCESS) is body]

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def _run_once(self) -> None:
        self.turns += 1
        self._forget_cancelled()
        scheduled, ready = self._scheduled, self._ready
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False  # type: ignore[attr-defined]
        if not ready:
            if not scheduled:
                raise StuckError("nothing is ready, and no timer is set")
            self._moment = max(self._moment, scheduled[0].when())
        while scheduled and (scheduled[0]._cancelled or scheduled[0].when() <= self._moment):
            timer = heapq.heappop(scheduled)
            timer._scheduled = False  # type: ignore[attr-defined]
            if not timer._cancelled:
                ready.append(timer)
        for handle in self._in_order(ready):
            body = _context_of(handle).get(PROCESS)
            if handle._cancelled:
                continue
            if body is not None and (body.is_frozen or body.is_dead):
                body.held.append(handle)
            else:
                handle._run()

    def _forget_cancelled(self) -> None:
        """Time may stand still for long, and cancelled timers would pile up: away with them, as asyncio's own loop does."""
        cancelled: int = self._timer_cancelled_count  # type: ignore[has-type]
        if cancelled > _CANCELLED_MAX and 2 * cancelled > len(self._scheduled):
            self._scheduled = [timer for timer in self._scheduled if not timer._cancelled]
            heapq.heapify(self._scheduled)
            self._timer_cancelled_count = 0

    def _in_order(self, ready: "deque[asyncio.Handle]") -> "list[asyncio.Handle]":
        """Take away what is ready, process by process in an order drawn by lot."""
        if len(ready) == 1:
            return [ready.popleft()]
        by_process: dict[Body | None, list[asyncio.Handle]] = {}
        for handle in ready:
            by_process.setdefault(_context_of(handle).get(PROCESS), []).append(handle)
        ready.clear()
        if len(by_process) == 1:
            return next(iter(by_process.values()))
        groups = list(by_process.values())
        self._random.shuffle(groups)
        return [handle for group in groups for handle in group]


def _context_of(handle: asyncio.Handle) -> Context:
    context: Context = handle._context  # type: ignore[attr-defined]
    return context
