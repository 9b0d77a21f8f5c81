"""Delivers what runs have emitted: at least once, in the order of each run, and nobody waits for another run's event.

Any number of relays work beside each other: each claims runs for the time of a lease, and sends their first events. What a relay
that died has claimed is found again when that time is over.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from random import Random
from typing import Final

from romancy.base import log, metrics
from romancy.base.clock import Clock
from romancy.base.settings import OutboxSettings
from romancy.errors import RomancyError
from romancy.model.event import CloudEvent
from romancy.outbox.delivery import Answer, Sink
from romancy.store.interface import EmittedEvent, Emitter, Settled, Store

LOG = log.get(__name__)
EVENTS_MAX: Final = 20
"""Events of one run for one claim."""
LEASE_TIMEOUTS: Final = 3
"""A claim lasts as long as so many requests may take; no further one is begun that it would not outlast."""
AGAIN_SECONDS: Final = 1.0
"""After the store did not answer."""
CLOSE_SECONDS: Final = 2.0

Send = Callable[[CloudEvent], Awaitable[Answer]]
MakeRelay = Callable[[Store], AbstractAsyncContextManager["Relay"]]


class Relay:
    """Delivers until it is cancelled.

    Args:
        store: what is emitted.
        send: one request.
        settings: limits.
        clock: for leases and pauses.
        random: for the backoff.
    """

    def __init__(self, store: Store, send: Send, settings: OutboxSettings, *, clock: Clock, random: Random) -> None:
        self._store, self._send, self._settings = store, send, settings
        self._clock, self._random = clock, random
        self._lease_seconds = LEASE_TIMEOUTS * settings.timeout_seconds
        self._fresh = set[asyncio.Task[None]]()
        self._failing = set[asyncio.Task[None]]()
        self._results: list[Settled] = []
        self._rung = asyncio.Event()
        self._is_wanted = True  # something may be due that nobody here has asked for
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = 0.0

    def ring(self, in_seconds: float = 0.0) -> None:
        """An event is due, or will be in so many seconds."""
        if in_seconds <= 0:
            self._is_wanted = True
            self._rung.set()
            return
        loop = asyncio.get_running_loop()
        at = loop.time() + in_seconds
        if self._alarm is None or at < self._alarm_at:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm, self._alarm_at = loop.call_later(in_seconds, self._alarmed), at

    async def run(self) -> None:
        """Deliver, until it is cancelled; what is on its way then is finished, if that is soon."""
        try:
            while True:
                self._rung.clear()
                try:
                    await self._settle()
                    if self._is_wanted:
                        await self._claim()
                except RomancyError as error:  # what is claimed is found again
                    LOG.warning("relay_failed", error=error.message, again_in_seconds=AGAIN_SECONDS)
                    self._is_wanted = True
                    await self._clock.sleep(AGAIN_SECONDS)
                    continue
                except Exception:  # a defect must not end it: nobody would deliver any more
                    LOG.exception("relay_failed", again_in_seconds=AGAIN_SECONDS)
                    await self._clock.sleep(AGAIN_SECONDS)
                if not self._results:
                    await self._rung.wait()
        finally:
            await self._close()

    def _alarmed(self) -> None:
        self._alarm = None
        self.ring()

    async def _claim(self) -> None:
        """Take what is due, as much as there is room for: what has failed before never takes more than half of it."""
        room = self._settings.at_once - len(self._fresh) - len(self._failing)
        if room <= 0:
            return  # the next one that ends rings
        failing_max = min(room, self._settings.at_once // 2 - len(self._failing))
        self._is_wanted = False  # before it is asked: what becomes due meanwhile rings
        claims = await self._store.claim_emitters(
            room=room, failing_max=max(0, failing_max), lease_seconds=self._lease_seconds
        )
        if not claims:
            return
        self._is_wanted = True  # there may be more
        claimed_at = self._clock.monotonic()
        events = await self._store.read_emitted([each.run_id for each in claims], limit=EVENTS_MAX + 1)
        for each in claims:
            tasks = self._failing if each.attempts else self._fresh
            work = self._deliver(each, events.get(each.run_id, []), claimed_at)
            task = asyncio.get_running_loop().create_task(work, name="romancy delivery")
            tasks.add(task)
            task.add_done_callback(partial(self._ended, tasks))

    def _ended(self, tasks: set[asyncio.Task[None]], task: asyncio.Task[None]) -> None:
        tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("delivery_failed", exc_info=error, hint="its events are tried again when the claim is over")

    async def _deliver(self, emitter: Emitter, events: Sequence[EmittedEvent], claimed_at: float) -> None:
        """Send the events of one run, one after the other, until one fails."""
        settled = Settled(emitter.run_id, emitter.claim, emitter.version)
        last_at = claimed_at + self._lease_seconds - self._settings.timeout_seconds
        sent = 0
        for each in events[:EVENTS_MAX]:
            if sent and self._clock.monotonic() > last_at:
                break
            answer = await self._send(each.event)
            sent += 1
            if answer.failure:
                before = (emitter.attempts, emitter.failing_seconds) if sent == 1 else (0, 0.0)
                settled = self._failed(settled, each, answer, *before)
                break
            settled = replace(settled, delivered_to=each.position)
        self._results.append(replace(settled, has_more=len(events) > sent))
        self._is_wanted = True
        self._rung.set()

    def _failed(
        self, settled: Settled, failed: EmittedEvent, answer: Answer, attempts_before: int, failing_seconds: float
    ) -> Settled:
        """Whether the event is tried again, and when."""
        settings, attempts = self._settings, attempts_before + 1
        is_dead = answer.is_final or attempts >= settings.attempts_max or failing_seconds >= settings.give_up_seconds
        metrics.DELIVERIES_FAILED.labels("dead" if is_dead else "retried").inc()
        logger = LOG.bind(
            run_id=str(settled.run_id), event_id=failed.event.id, type=failed.event.type, attempt=attempts
        )
        settled = replace(settled, failure=answer.failure, attempts=attempts)
        if is_dead:
            logger.error(
                "event_dead", error=answer.failure, hint="resend it when the sink takes it; later events go on"
            )
            return replace(settled, dead=failed.position)
        delay = max(answer.retry_after_seconds, self._backoff(attempts))
        logger.warning("event_not_delivered", error=answer.failure, again_in_seconds=round(delay, 3))
        return replace(settled, delay_seconds=delay)

    def _backoff(self, attempts: int) -> float:
        """Doubled with each failure; the half of it at random, so that what failed together is not tried together."""
        settings = self._settings
        longest = min(settings.backoff_seconds * 2.0 ** min(attempts - 1, 60), settings.backoff_max_seconds)
        return longest * (0.5 + self._random.random() / 2)

    async def _settle(self) -> None:
        """Store what has come of what was sent. If that fails it is sent again when its lease is over."""
        if not self._results:
            return
        settled, self._results = self._results, []
        try:
            delivered, _ = await self._store.settle_emitters(settled)
        except RomancyError:
            self._results = settled + self._results
            raise
        metrics.EVENTS_DELIVERED.inc(delivered)
        for each in settled:
            if each.delay_seconds is not None:
                self.ring(each.delay_seconds)  # counted from now on, as the database has begun to

    async def _close(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        if tasks := [*self._fresh, *self._failing]:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await self._settle()
        except RomancyError as error:
            LOG.warning("relay_failed", error=error.message, hint="what it has sent last is sent once more")


def relaying(settings: OutboxSettings, clock: Clock) -> "MakeRelay | None":
    """Makes a relay for each life of a worker; None if there is no sink.

    Raises:
        SettingsError: the sink can't be used as it is given.
    """
    if not settings.sink_url:
        return None
    sink = Sink(settings)

    @asynccontextmanager
    async def make(store: Store) -> AsyncIterator[Relay]:
        async with sink:
            relay = Relay(store, sink.send, settings, clock=clock, random=Random())
            running = asyncio.create_task(relay.run(), name="romancy relay")
            try:
                yield relay
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    return make
