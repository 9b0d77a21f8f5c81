"""Threads for activities that are plain functions.

They are daemons: when a process has been told to end and its grace period is over, it does not wait for a call that can't be
stopped. (Those of `concurrent.futures` are joined when the interpreter ends.)
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any


class Threads:
    """Threads of one event loop, made when they are needed, and used again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._made = self._busy = 0

    def run[T](self, call: Callable[[], T]) -> "asyncio.Future[T]":
        """Call it in a thread at once; it must not raise. Cancelling the future stops nothing."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._busy += 1
        if self._busy > self._made:
            self._made += 1
            threading.Thread(target=self._work, name=f"{self._name}-{self._made}", daemon=True).start()
        self._calls.put((call, future))
        return future

    def close(self) -> None:
        """Let the threads end, each when it has nothing more to do."""
        for _ in range(self._made):
            self._calls.put(None)

    def _work(self) -> None:
        while (taken := self._calls.get()) is not None:
            call, future = taken
            result = call()
            try:
                future.get_loop().call_soon_threadsafe(self._ended, future, result)
            except RuntimeError:
                return  # the loop is closed: nobody wants to know
            del taken, call, future, result  # nothing of a run is held while it waits for the next

    def _ended(self, future: "asyncio.Future[Any]", result: Any) -> None:
        self._busy -= 1
        if not future.done():
            future.set_result(result)
