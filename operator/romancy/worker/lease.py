"""A worker's sign of life, renewed by a thread of its own: a blocked event loop must not look like a dead process at once.

The same thread watches the loop: a process whose loop has not turned for too long stops renewing and exits with the stack
that blocks it, since it holds runs that others could go on with.
"""

import asyncio
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from romancy.base import log
from romancy.errors import RomancyError
from romancy.store.interface import Store, WorkerId

LOG = log.get(__name__)
STUCK_EXIT_CODE = 70


class StoreFactory(Protocol):
    """Opens a store of its own for the loop that calls it: `async with make() as store`."""

    def __call__(self) -> Any: ...


class Lease:
    """One worker's lease.

    Args:
        make_store: called in the lease's own thread and loop.
        ttl_seconds: how long the store believes in the worker without a renewal.
        stuck_seconds: how long the worker's loop may not turn.
        on_lost: called in the worker's loop when the worker has been buried.
        chores: run after each renewal, in the thread's loop, with the thread's store; its errors are logged.
    """

    def __init__(
        self,
        make_store: StoreFactory,
        worker_id: WorkerId,
        *,
        ttl_seconds: float,
        stuck_seconds: float,
        on_lost: Callable[[], None],
        chores: Callable[[Store], Awaitable[None]] | None = None,
    ) -> None:
        self._make_store, self._worker_id = make_store, worker_id
        self._ttl_seconds, self._stuck_seconds = ttl_seconds, stuck_seconds
        self._on_lost, self._chores = on_lost, chores
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._trusted_until = time.monotonic() + ttl_seconds
        self._turned_at = self._looked_at = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{worker_id}", daemon=True)
        self._thread.start()

    @property
    def is_certain(self) -> bool:
        """True while nobody can have buried this worker: without it no activity starts."""
        return time.monotonic() < self._trusted_until

    async def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        await asyncio.to_thread(self._thread.join, 5)

    def _run(self) -> None:
        asyncio.run(self._keep())

    async def _keep(self) -> None:
        pause = self._ttl_seconds / 3
        while not self._stop.is_set():
            try:
                async with self._make_store() as store:
                    await self._renew(store, pause)
                    return
            except (RomancyError, TimeoutError, OSError) as error:
                LOG.warning("lease_renewal_failed", worker_id=self._worker_id, error=str(error) or type(error).__name__)
                await self._pause(min(pause, 1.0))

    async def _renew(self, store: Store, pause: float) -> None:
        """Renew until it is stopped, or lost."""
        chores: asyncio.Task[None] | None = None
        try:
            while not self._stop.is_set():
                self._watch_loop()
                asked_at = time.monotonic()
                async with asyncio.timeout(self._ttl_seconds):
                    is_ours = await store.renew_lease(self._worker_id, ttl_seconds=self._ttl_seconds)
                if not is_ours:
                    self._lose()
                    return
                # From before the call: a late answer says nothing.
                self._trusted_until = asked_at + self._ttl_seconds
                if chores is None or chores.done():
                    # Beside the renewals: who buries may have to wait for seconds, and would be taken for dead as well.
                    chores = asyncio.create_task(self._do_chores(store))
                await self._pause(pause)
        finally:
            if chores is not None:
                chores.cancel()
                await asyncio.gather(chores, return_exceptions=True)

    async def _do_chores(self, store: Store) -> None:
        if self._chores is not None:
            try:
                await self._chores(store)
            except RomancyError as error:
                LOG.warning("lease_chores_failed", error=str(error))

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past a stop."""
        await asyncio.to_thread(self._stop.wait, seconds)

    def _lose(self) -> None:
        self._trusted_until = 0.0
        LOG.error("lease_lost", worker_id=self._worker_id, hint="other workers resume its runs; it registers anew")
        self._loop.call_soon_threadsafe(self._on_lost)

    def _watch_loop(self) -> None:
        now = time.monotonic()
        if (slept := now - self._looked_at) > self._ttl_seconds:
            self._turned_at += slept  # the whole process stood still, as a stopped one does: the loop is not to blame
        self._looked_at = now
        still = now - self._turned_at
        if still > self._stuck_seconds:
            LOG.critical("loop_stuck", seconds=round(still, 1), hint="blocking code in an async activity or a workflow")
            sys.stdout.flush()
            faulthandler.dump_traceback(all_threads=True)
            os._exit(STUCK_EXIT_CODE)
        self._loop.call_soon_threadsafe(self._turned)

    def _turned(self) -> None:
        self._turned_at = time.monotonic()
