"""Runs that ended long enough ago are deleted, in small transactions, so that nobody waits for them."""

import asyncio
from datetime import datetime
from typing import Final

from romancy.base import log, metrics
from romancy.base.settings import RetentionSettings
from romancy.model.run import Phase
from romancy.store.interface import Purgeable, Purged, Store
from romancy.store.pool import Connected
from romancy.store.queries import SQL

logger = log.get(__name__)

EVERY_SECONDS: Final = 60.0
"""Between two looks of a process for runs that are kept no longer."""
GATE_SECONDS: Final = 50.0
"""Between two looks of all processes together; less than that, so that who is alone is never kept waiting for itself."""
ROUND_SECONDS: Final = 20.0
"""What is left after so long is for the next look."""
EVENTS_MAX: Final = 1000
"""Events of a batch."""
DEAD_LETTERS_MAX: Final = 1000
"""Dead letters of a batch."""
RUNS_MAX: Final = 100
"""Runs of a batch."""
ROWS_MAX: Final = 10_000
"""Entries and messages of a batch, and those of one run more."""


class Purge(Connected):
    """The part of the store that deletes runs."""

    async def may_purge(self, *, every_seconds: float) -> bool:
        """Whether it is time to look for runs that are kept no longer: True to one of all who ask, once in so many seconds."""
        return bool(await self._fetch(SQL.may_purge(every_seconds=every_seconds)))

    async def purge_runs(self, which: Purgeable, *, since: datetime | None = None) -> Purged:
        """Delete a batch of runs with all that is theirs, the oldest first. Twice is once (I6).

        Args:
            since: where the batch before ended; what ended earlier is not looked at again.
        """
        row = await self._fetch_one(
            SQL.purge_runs(
                phase=which.phase,
                older_than_seconds=self._age_seconds(which),
                namespace=which.namespace,
                workflow=which.workflow,
                since=since,
                runs_max=RUNS_MAX,
                rows_max=ROWS_MAX,
            )
        )
        metrics.RUNS_PURGED.labels(which.phase).inc(row["runs"])
        return Purged(row["runs"], row["last_at"])

    async def purge_former(self, which: Purgeable) -> int:
        """Delete a batch of former iterations of such runs, which can't be purged before; how many were deleted."""
        row = await self._fetch_one(
            SQL.purge_former(
                phase=which.phase,
                older_than_seconds=self._age_seconds(which),
                namespace=which.namespace,
                workflow=which.workflow,
                runs_max=RUNS_MAX,
                rows_max=ROWS_MAX,
            )
        )
        return int(row["runs"])

    async def purge_events(self, *, older_than_seconds: float, after: int = 0) -> tuple[int, int | None]:
        """Delete a batch of events, the oldest first; not those that are still to be received.

        Args:
            after: the number of the last event of the batch before.

        Returns:
            How many were deleted, and the number of the last that was looked at; None if none is left that is so old.
        """
        row = await self._fetch_one(
            SQL.purge_events(after=after, older_than_seconds=older_than_seconds, limit=EVENTS_MAX)
        )
        metrics.EVENTS_PURGED.inc(row["events"])
        return row["events"], row["last"]

    async def count_purgeable(self, which: Purgeable) -> int:
        """How many runs there are to purge.

        Raises:
            SearchTooBroadError: there are too many to count in the time that a statement may take.
        """
        [row] = await self._search(
            SQL.count_purgeable(
                phase=which.phase,
                older_than_seconds=self._age_seconds(which),
                namespace=which.namespace,
                workflow=which.workflow,
            )
        )
        return int(row["runs"])

    def _age_seconds(self, which: Purgeable) -> float:
        # A flush may be sent again for so long, and would bring back a run that was deleted meanwhile, or a part of it.
        return max(which.older_than_seconds, 2 * self.settings.give_up_seconds)


async def purge(store: Store, which: Purgeable, *, until: float | None = None) -> int:
    """Delete batch after batch, with a pause after each as long as it took.

    Args:
        until: a time of the event loop's clock at which no further batch is begun; None: until nothing is left.

    Returns:
        How many runs were deleted.
    """
    assert which.phase.is_done
    clock = asyncio.get_running_loop().time
    total, since = 0, None
    while until is None or clock() < until:
        began_at = clock()
        purged = await store.purge_runs(which, since=since)
        if purged.last_at is None:
            if not await store.purge_former(which):
                break
            since = None
            continue
        total, since = total + purged.runs, purged.last_at
        await asyncio.sleep(clock() - began_at)
    if total:
        logger.info("runs_purged", count=total, outcome=which.phase.value)
    return total


async def purge_old_events(store: Store, older_than_seconds: float, *, until: float) -> int:
    """Delete events batch after batch, with a pause after each as long as it took; how many were deleted.

    Args:
        until: a time of the event loop's clock at which no further batch is begun.
    """
    clock = asyncio.get_running_loop().time
    total, last = 0, 0
    while clock() < until:
        began_at = clock()
        events, looked_at = await store.purge_events(older_than_seconds=older_than_seconds, after=last)
        if looked_at is None:
            break
        total, last = total + events, looked_at
        await asyncio.sleep(clock() - began_at)
    if total:
        logger.info("events_purged", count=total)
    return total


async def purge_dead_letters(store: Store, older_than_seconds: float, *, until: float) -> int:
    """Delete dead letters batch after batch, with a pause after each as long as it took; how many were deleted.

    Args:
        until: a time of the event loop's clock at which no further batch is begun.
    """
    clock = asyncio.get_running_loop().time
    total, last = 0, DEAD_LETTERS_MAX
    while last == DEAD_LETTERS_MAX and clock() < until:
        began_at = clock()
        last = await store.purge_dead_letters(older_than_seconds=older_than_seconds, limit=DEAD_LETTERS_MAX)
        total += last
        await asyncio.sleep(clock() - began_at)
    if total:
        logger.info("dead_letters_purged", count=total)
    return total


async def purge_ended(store: Store, retention: RetentionSettings) -> int:
    """Delete what is kept no longer, runs and events, if nobody else has looked for it lately; for at most ROUND_SECONDS.

    Returns:
        How many runs were deleted.
    """
    kept = {
        Phase.SUCCEEDED: retention.succeeded_seconds,
        Phase.FAILED: retention.failed_seconds,
        Phase.CANCELLED: retention.cancelled_seconds,
    }
    if not await store.may_purge(every_seconds=GATE_SECONDS):
        return 0
    until = asyncio.get_running_loop().time() + ROUND_SECONDS
    await purge_old_events(store, retention.events_seconds, until=until)
    if retention.dead_letters_seconds:
        await purge_dead_letters(store, retention.dead_letters_seconds, until=until)
    return sum([await purge(store, Purgeable(phase, age), until=until) for phase, age in kept.items() if age])
