"""A worker as the store sees it: it claims and writes, and executes nothing."""

from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from romancy.model.history import Entry
from romancy.store.interface import ActivityTransaction, Begin, Claim, Flushed, Journal, RunWrite, Store, WorkerId
from tests.builders import SOME_TIME, a_new_run, a_new_worker

TTL_SECONDS = 600.0


class StoreWithJournal(Store, Protocol):
    """What the suite needs beside the interface: a worker's way to write."""

    async def journal(self, worker_id: WorkerId) -> Journal: ...
    async def begin_transaction(self, worker_id: WorkerId) -> ActivityTransaction: ...


@dataclass
class Hands:
    """A registered worker with its journal."""

    store: StoreWithJournal
    id: WorkerId
    journal: Journal
    python: str

    @classmethod
    async def of(cls, store: StoreWithJournal, *, ttl_seconds: float = TTL_SECONDS, **changes: Any) -> "Hands":
        new = a_new_worker(**changes)
        worker_id = await store.register_worker(new, ttl_seconds=ttl_seconds)
        return cls(store, worker_id, await store.journal(worker_id), new.python)

    async def claim(self, limit: int = 100) -> list[Claim]:
        return await self.store.claim_runs(self.id, limit=limit)

    async def claim_ids(self, limit: int = 100) -> list[UUID]:
        return [claim.run_id for claim in await self.claim(limit)]

    async def started(self, **changes: Any) -> Claim:
        """A new run, claimed by this worker."""
        run = a_new_run(**changes)
        await self.store.start_runs([run])
        [claim] = [claim for claim in await self.claim() if claim.run_id == run.id]
        return claim

    async def write(self, claim: Claim, *entries: Entry, **rest: Any) -> Flushed:
        return await self.journal.submit(RunWrite(claim.run_id, claim.number, entries=entries, **rest))

    async def begin(self, *entries: Entry, then: Any = None, **changes: Any) -> tuple[UUID, Flushed]:
        """A run that this worker inserts as its own."""
        run = a_new_run(**changes)
        begin = Begin(run, SOME_TIME, self.python)
        return run.id, await self.journal.submit(RunWrite(run.id, 1, begin=begin, entries=entries, then=then))
