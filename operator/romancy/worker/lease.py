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
from romancy.base.clock import Clock
from romancy.errors import RomancyError
from romancy.store.interface import Renewal, Store, WorkerId

LOG = log.get(__name__)
STUCK_EXIT_CODE = 70
RENEWALS_A_LEASE = 3  # two may fail before it runs out
OPEN_AGAIN_SECONDS = 1.0


class StoreFactory(Protocol):
    """Opens a store of its own for the loop that calls it: `async with make() as store`."""

    def __call__(self) -> Any: ...


class Lease:
    """One worker's lease: what is believed of it, and how it is kept.

    Args:
        make_store: called in the loop that keeps it.
        ttl_seconds: how long the store believes in the worker without a renewal.
        since: when it was registered, by the monotonic clock: not later than the store did it.
        chores: done after a renewal, with what it told and the same store; its errors are logged.
    """

    def __init__(
        self,
        make_store: StoreFactory,
        worker_id: WorkerId,
        *,
        ttl_seconds: float,
        since: float,
        clock: Clock,
        chores: Callable[[Store, Renewal], Awaitable[None]],
    ) -> None:
        self.worker_id, self.ttl_seconds = worker_id, ttl_seconds
        self.pause_seconds = ttl_seconds / RENEWALS_A_LEASE
        self._make_store, self._clock, self._chores = make_store, clock, chores
        self._trusted_until = since + ttl_seconds

    @property
    def is_certain(self) -> bool:
        """True while nobody can have buried this worker: without it no activity starts."""
        return self._clock.monotonic() < self._trusted_until

    async def keep(self) -> None:
        """Renew until the worker has been buried."""
        while True:
            try:
                async with self._make_store() as store:
                    await self._renew(store)
            except (RomancyError, TimeoutError, OSError) as error:
                LOG.warning("lease_renewal_failed", worker_id=self.worker_id, error=str(error) or type(error).__name__)
                await self._clock.sleep(min(self.pause_seconds, OPEN_AGAIN_SECONDS))
            else:
                self._trusted_until = 0.0
                LOG.error(
                    "lease_lost", worker_id=self.worker_id, hint="other workers resume its runs; it registers anew"
                )
                return

    async def _renew(self, store: Store) -> None:
        chores: asyncio.Task[None] | None = None
        try:
            while True:
                asked_at = self._clock.monotonic()
                async with asyncio.timeout(self.ttl_seconds):
                    renewal = await store.renew_lease(self.worker_id, ttl_seconds=self.ttl_seconds)
                if not renewal.is_ours:
                    return
                # From before the call: a late answer says nothing.
                self._trusted_until = asked_at + self.ttl_seconds
                if chores is None or chores.done():
                    # Beside the renewals: who buries may have to wait for seconds, and would be taken for dead as well.
                    chores = asyncio.create_task(self._do_chores(store, renewal))
                await self._clock.sleep(self.pause_seconds)
        finally:
            if chores is not None:
                chores.cancel()
                await asyncio.gather(chores, return_exceptions=True)

    async def _do_chores(self, store: Store, renewal: Renewal) -> None:
        try:
            await self._chores(store, renewal)
        except RomancyError as error:
            LOG.warning("lease_chores_failed", error=str(error))


class Keeper(Protocol):
    """Keeps a lease until it is stopped."""

    async def stop(self) -> None: ...


class KeepLease(Protocol):
    """Begins to keep a lease; called in the worker's loop, where `on_lost` is called when the worker has been buried."""

    def __call__(self, lease: Lease, on_lost: Callable[[], None]) -> Keeper: ...


class KeptByTask:
    """Keeps the lease in the worker's own loop: where nothing can block it, as in a simulation."""

    def __init__(self, lease: Lease, on_lost: Callable[[], None]) -> None:
        self._task = asyncio.create_task(self._keep(lease, on_lost), name=f"lease-{lease.worker_id}")

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _keep(self, lease: Lease, on_lost: Callable[[], None]) -> None:
        await lease.keep()
        on_lost()


class KeptByThread:
    """Keeps the lease in a thread with a loop of its own, and ends the process if the worker's loop does not turn.

    Args:
        stuck_seconds: how long the worker's loop may not turn.
    """

    def __init__(self, lease: Lease, on_lost: Callable[[], None], *, stuck_seconds: float) -> None:
        self._lease, self._on_lost, self._stuck_seconds = lease, on_lost, stuck_seconds
        self._loop = asyncio.get_running_loop()
        self._turned_at = self._looked_at = time.monotonic()
        self._is_stopped = threading.Event()
        self._end: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._run, name=f"lease-{lease.worker_id}", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._is_stopped.set()
        if (end := self._end) is not None:
            end()
        await asyncio.to_thread(self._thread.join, 5)

    def _run(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        keeping = asyncio.create_task(self._lease.keep())
        watching = asyncio.create_task(self._watch())

        def end() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(keeping.cancel)

        self._end = end
        if self._is_stopped.is_set():
            keeping.cancel()  # before there was anything to end it by
        try:
            await asyncio.wait({keeping})
            if not keeping.cancelled():
                keeping.result()
                self._loop.call_soon_threadsafe(self._on_lost)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            now = time.monotonic()
            if (slept := now - self._looked_at) > self._lease.ttl_seconds:
                # The whole process stood still, as a stopped one does: the loop is not to blame.
                self._turned_at += slept
            self._looked_at = now
            still = now - self._turned_at
            if still > self._stuck_seconds:
                LOG.critical(
                    "loop_stuck", seconds=round(still, 1), hint="blocking code in an async activity or a workflow"
                )
                sys.stdout.flush()
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STUCK_EXIT_CODE)
            self._loop.call_soon_threadsafe(self._turned)
            await asyncio.sleep(self._lease.pause_seconds)

    def _turned(self) -> None:
        self._turned_at = time.monotonic()
