"""Sends what runs have put into the outbox, when it is durable; what this process does not get round to, another one does."""

import asyncio
from collections.abc import Callable, Sequence

from romancy.base import log
from romancy.base.clock import Clock
from romancy.errors import RomancyError, StoreUnavailableError
from romancy.model.outbox import EVENT_KINDS, OutboxRow
from romancy.store.interface import Store

LOG = log.get(__name__)
BATCH_MAX = 500
AGAIN_SECONDS = 1.0
LAST_SECONDS = 2.0


class Sender:
    """Carries out one batch after the other, so that what a run sends goes out in order.

    Args:
        store: carries them out.
        clock: for the pause after a failure.
        emitted: told when events lie where relays find them.
    """

    def __init__(self, store: Store, clock: Clock, *, emitted: Callable[[], None] = lambda: None) -> None:
        self._store, self._clock, self._emitted = store, clock, emitted
        self._waiting: list[OutboxRow] = []
        self._task: asyncio.Task[None] | None = None

    def send(self, rows: Sequence[OutboxRow]) -> None:
        """Carry these out soon; they are durable."""
        if not rows:
            return
        self._waiting.extend(rows)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._send_all(), name="romancy sender")

    async def close(self) -> None:
        """Send what is left, if that is soon done: whoever polls next finds the rest."""
        if self._task is not None and not self._task.done():
            await asyncio.wait([self._task], timeout=LAST_SECONDS)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _send_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            try:
                await self._carry_out(batch)
            except StoreUnavailableError as error:
                LOG.warning("outbox_not_sent", rows=len(batch), error=error.message, again_in_seconds=AGAIN_SECONDS)
                self._waiting = batch + self._waiting
                await self._clock.sleep(AGAIN_SECONDS)
            except RomancyError:
                await self._send_apart(batch)

    async def _carry_out(self, rows: Sequence[OutboxRow]) -> None:
        await self._store.carry_out(rows)
        if any(row.kind in EVENT_KINDS for row in rows):
            self._emitted()

    async def _send_apart(self, batch: Sequence[OutboxRow]) -> None:
        """One of them can't be sent: the others are not to wait for it. It stays where it is."""
        for nth, row in enumerate(batch):
            try:
                await self._carry_out([row])
            except StoreUnavailableError:
                self._waiting[:0] = batch[nth:]
                await self._clock.sleep(AGAIN_SECONDS)
                return
            except RomancyError as error:
                LOG.error(
                    "outbox_refused",
                    run_id=str(row.run_id),
                    kind=row.kind,
                    number=row.number,
                    reason=error.reason,
                    error=error.message,
                )
