"""Correctness never hangs on Kubernetes: where nobody has looked for dead workers for long, a worker's own lease does."""

import asyncio
import time
from uuid import uuid4

from romancy import workflow
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.model.run import Form
from romancy.store.interface import NewWorker
from romancy.store.postgres import PostgresStore
from romancy.worker.worker import Worker


@workflow(name="buried_elsewhere")
async def buried_elsewhere() -> None:
    pass


async def test_a_worker_buries_the_dead_when_the_leader_is_away(database: DatabaseSettings) -> None:
    async with PostgresStore(database) as store:
        dead = await store.register_worker(
            NewWorker("dead", uuid4(), "", "default", {"w": Form.WHOLE}, "1", "3.13"), ttl_seconds=0.1
        )
        settings = WorkerSettings(name="alive", lease_seconds=0.6)
        worker = Worker(
            lambda: PostgresStore(database),
            [buried_elsewhere],
            settings,
            clock=SystemClock(),
            is_leader_expected=True,
            bury_seconds=0.2,
        )
        await worker.start()
        end = time.monotonic() + 10
        while dead in [each.id for each in await store.list_workers()]:
            assert time.monotonic() < end
            await asyncio.sleep(0.02)
        await worker.drain()


async def test_while_the_leader_looks_no_worker_does(database: DatabaseSettings) -> None:
    async with PostgresStore(database) as store:
        dead = await store.register_worker(
            NewWorker("dead", uuid4(), "", "default", {"w": Form.WHOLE}, "1", "3.13"), ttl_seconds=0.1
        )
        worker = Worker(
            lambda: PostgresStore(database),
            [buried_elsewhere],
            WorkerSettings(name="alive", lease_seconds=0.6),
            clock=SystemClock(),
            is_leader_expected=True,
            bury_seconds=60,
        )
        await store.expired_workers()  # what the leader does
        await worker.start()
        assert worker._lease is not None
        renewals = worker._lease._trusted_until
        while worker._lease._trusted_until < renewals + 0.6:  # noqa: ASYNC110 - three renewals, in another thread
            await asyncio.sleep(0.02)
        still_there = dead in [each.id for each in await store.list_workers()]
        await worker.drain()

    assert still_there
