"""Random workers, burials and mail on few runs, by a seed: what must hold afterwards whatever came in between.

The forced races are in test_races.py: a stale history, for one, never turned up here by chance.
"""

import asyncio
import os
from collections import Counter
from random import Random
from typing import Any
from uuid import UUID

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.errors import StoreUnavailableError, WorkerFencedError
from romancy.model.run import Phase
from romancy.store.interface import Claim, Finish, Flushed, Keep, Park, Release, RunWrite
from romancy.store.postgres import PostgresStore
from tests.builders import a_message, a_new_run, a_new_worker, an_entry

ON_EVERY_POSTGRES = True

RUNS = 25
SECONDS = float(os.environ.get("HAMMER_SECONDS", "2"))


class Hammer:
    """What all tasks share: the runs, who is alive, and everything that was claimed, read and answered."""

    def __init__(self, store: PostgresStore, runs: list[UUID], random: Random) -> None:
        self.store, self.runs, self.random = store, runs, random
        self.until = asyncio.get_running_loop().time() + SECONDS
        self.living: list[int] = []
        self.claimed: list[tuple[UUID, int, list[str]]] = []  # run, claim, payloads that it read
        self.durable: dict[UUID, dict[int, str]] = {run: {} for run in runs}  # what was answered as written
        self.parked: dict[UUID, tuple[int, int]] = {}  # claim and inbox version of the last park that was answered
        self.burials = self.writes = 0

    @property
    def is_on(self) -> bool:
        return asyncio.get_running_loop().time() < self.until

    async def lives(self, settings: DatabaseSettings) -> None:
        """One life after the other, each with connections of its own."""
        while self.is_on:
            async with PostgresStore(settings) as store:
                worker_id = await store.register_worker(a_new_worker(), ttl_seconds=600)
                self.living.append(worker_id)
                try:
                    await self.live(store, worker_id)
                except (WorkerFencedError, StoreUnavailableError):
                    pass  # buried: the connection is ended, and whatever comes then finds no fence row
                finally:
                    if worker_id in self.living:
                        self.living.remove(worker_id)

    async def live(self, store: PostgresStore, worker_id: int) -> None:
        journal = await store.journal(worker_id)
        while self.is_on:
            claims = await store.claim_runs(worker_id, limit=self.random.randint(1, 5))
            if not claims:
                await asyncio.sleep(0.002)
                continue
            claimed = {each.run_id: each for each in await store.read_claimed(claims)}
            held = []
            for claim in claims:
                if (run := claimed.get(claim.run_id)) is not None:  # else buried meanwhile, and ended by its heir
                    self.claimed.append((claim.run_id, claim.number, [entry.payload for entry in run.history]))
                    seen = max([claim.inbox_version, *(mail.number for mail in run.inbox)])
                    held.append(self.execute(store, journal, claim, len(run.history), seen, worker_id))
            await asyncio.gather(*held)

    async def execute(self, store: Any, journal: Any, claim: Claim, position: int, seen: int, worker_id: int) -> None:
        """Write some entries, many of them ahead of what is durable, then let the run go."""
        answers = []
        for _ in range(self.random.randint(0, 4)):
            position += 1
            payload = f"{worker_id}/{claim.number}/{position}"
            then = Keep(Phase.RUNNING) if self.random.random() < 0.1 else None
            write = RunWrite(claim.run_id, claim.number, entries=(an_entry(position, payload=payload),), then=then)
            answers.append((position, payload, journal.submit(write)))
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
        if self.random.random() < 0.1:
            await journal.submit(RunWrite(claim.run_id, claim.number, then=Release()))
        else:
            while (await self.park(journal, claim, seen)).stays:  # a wait without end: only mail wakes it
                seen = max(mail.number for mail in await store.read_inbox(claim.run_id, seen))
        for at, payload, answer in answers:
            await answer
            self.durable[claim.run_id][at] = payload
        self.writes += len(answers)

    async def park(self, journal: Any, claim: Claim, seen: int) -> Flushed:
        flushed: Flushed = await journal.submit(RunWrite(claim.run_id, claim.number, then=Park(seen, None)))
        if not flushed.stays:
            self.parked[claim.run_id] = max(self.parked.get(claim.run_id, (0, 0)), (claim.number, seen))
        return flushed

    async def bury(self) -> None:
        while self.is_on:
            await asyncio.sleep(self.random.random() * 0.5)
            if self.living:
                self.burials += 1
                await self.store.bury_worker(self.random.choice(self.living), even_if_alive=True)

    async def send(self) -> None:
        while self.is_on:
            some = self.random.sample(self.runs, self.random.randint(1, 8))
            await self.store.send([a_message(run) for run in some])
            await asyncio.sleep(self.random.random() * 0.005)


@pytest.mark.parametrize("connections", [1, 2])
async def test_whatever_comes_in_between(database: DatabaseSettings, connect: Any, connections: int) -> None:
    settings = database.model_copy(
        update={"journal_connections": connections, "losses_max": 1_000_000, "flush_rows_max": 4, "pool_max": 6}
    )
    runs = [a_new_run(is_resource=nth % 2 == 0) for nth in range(RUNS)]
    async with PostgresStore(settings) as store:
        await store.start_runs(runs)
        hammer = Hammer(store, [run.id for run in runs], Random(connections))

        async with asyncio.TaskGroup() as tasks:
            for _ in range(4):
                tasks.create_task(hammer.lives(settings))
            tasks.create_task(hammer.bury())
            for _ in range(2):
                tasks.create_task(hammer.send())

        for row in await store.list_workers():
            await store.bury_worker(row.id, even_if_alive=True)
        histories = {run: await store.read_histories([run]) for run in hammer.runs}
        connection = await connect()

        assert hammer.burials >= 3
        assert hammer.writes > 100
        numbers = Counter((run, number) for run, number, _ in hammer.claimed)
        assert max(numbers.values()) == 1, "a run was claimed twice by the same number"
        for run, by_run in histories.items():
            entries = by_run[run]
            assert [entry.position for entry in entries] == list(range(1, len(entries) + 1)), "a history has a gap"
            stored = [entry.payload for entry in entries]
            for position, payload in hammer.durable[run].items():
                assert stored[position - 1] == payload, "what was answered as durable is not there"
            owners = [int(payload.split("/")[1]) for payload in stored]
            assert owners == sorted(owners), "a former owner wrote after its heir"
            for other, number, read in hammer.claimed:
                if other == run and number in owners:  # one that wrote nothing may have been fenced while it read
                    assert read == stored[: owners.index(number)], "a claim did not read all that was written before"
        # With nobody alive, each run is due, or waits and has seen all of its mail.
        rows = await connection.fetch(
            "select due.id, due.worker_id, due.claim, due.phase, due.wake_at, due.inbox_version, "
            "(select count(*) from inbox where run_id = due.id) as mails, "
            "(select max(number) from inbox where run_id = due.id) as newest from due"
        )
        assert len(rows) == RUNS
        assert all(row["worker_id"] is None for row in rows), "a run is owned by nobody alive"
        assert all(row["inbox_version"] == row["mails"] == (row["newest"] or 0) for row in rows), (
            "inbox numbers have gaps"
        )
        waiting = [row for row in rows if row["wake_at"] is None]
        assert all(row["phase"] == "Waiting" for row in waiting), "a run is neither due nor waits"
        for row in waiting:
            claim, seen = hammer.parked.get(row["id"], (0, 0))
            assert claim != row["claim"] or seen == row["inbox_version"], "a run sleeps with unread mail"

        worker_id = await store.register_worker(a_new_worker(), ttl_seconds=600)
        await store.send([a_message(run) for run in hammer.runs])
        last = await store.claim_runs(worker_id, limit=RUNS * 2)
        assert sorted(claim.run_id for claim in last) == sorted(hammer.runs)
        journal = await store.journal(worker_id)
        for claim in last:
            await journal.submit(RunWrite(claim.run_id, claim.number, then=Finish(Phase.SUCCEEDED)))
        assert (await store.backlog()).open == 0
