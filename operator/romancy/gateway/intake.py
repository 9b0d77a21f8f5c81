"""Events on their way into the database: what has gathered while the last batch was on its way goes out as the next one."""

import asyncio
from collections.abc import Sequence
from typing import Final

from romancy.base import metrics
from romancy.errors import PayloadRefusedError, RomancyError, StoreUnavailableError, TooManyRequestsError
from romancy.store.interface import Receipt, Sending, Store

BATCH_MAX: Final = 500
WAITING_MAX: Final = 10_000
"""Events that wait to be stored; above it whoever sends is told to come again."""
AT_ONCE: Final = 2
"""Batches on their way: while one commits, the next one's statements are done."""
ANSWER_SECONDS: Final = 20.0


class Intake:
    """Stores events; whoever waits for it is told when theirs is durable, and with the runs that wait for it (I5)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: list[tuple[Sending, asyncio.Future[Receipt]]] = []
        self._senders: set[asyncio.Task[None]] = set()

    async def take(self, sent: Sequence[Sending]) -> list[Receipt]:
        """Store these events, in order.

        Raises:
            StoreUnavailableError: no answer came in time; what is sent again is the same event.
            PayloadRefusedError: one can't be stored.
            TooManyRequestsError: too many wait already.
        """
        if len(self._waiting) + len(sent) > WAITING_MAX and self._waiting:
            raise TooManyRequestsError(f"{len(self._waiting):,} events wait to be stored", retry_after_seconds=1)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Receipt]] = [loop.create_future() for _ in sent]
        self._waiting += zip(sent, futures, strict=True)
        if len(self._senders) < AT_ONCE:
            task = loop.create_task(self._store_all(), name="event intake")
            self._senders.add(task)
            task.add_done_callback(self._senders.discard)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answers = await asyncio.gather(*futures, return_exceptions=True)
        except TimeoutError as error:
            raise StoreUnavailableError(f"the database did not answer within {ANSWER_SECONDS:g} s") from error
        receipts = []
        for each in answers:
            if isinstance(each, BaseException):
                raise each
            receipts.append(each)
        return receipts

    async def close(self) -> None:
        """What waits is stored; nothing comes any more."""
        await asyncio.gather(*self._senders, return_exceptions=True)

    async def _store_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
            await self._store_batch(batch)

    async def _store_batch(self, batch: "Sequence[tuple[Sending, asyncio.Future[Receipt]]]") -> None:
        try:
            receipts = await self._store.send_events([sending for sending, _ in batch])
        except PayloadRefusedError as error:
            if len(batch) == 1:
                _fail(batch, error)
                return
            for each in batch:  # one of them is to blame: the others are not to suffer
                await self._store_batch([each])
        except RomancyError as error:
            _fail(batch, error)
        except BaseException as error:
            _fail(batch, StoreUnavailableError(f"an error of the engine: {type(error).__name__}"))
            raise
        else:
            metrics.EVENTS_TAKEN.inc(sum(receipt.is_new for receipt in receipts))
            for (_, future), receipt in zip(batch, receipts, strict=True):
                if not future.done():  # whoever sent it has left: it is stored all the same
                    future.set_result(receipt)


def _fail(batch: "Sequence[tuple[Sending, asyncio.Future[Receipt]]]", error: RomancyError) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
