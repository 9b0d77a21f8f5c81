"""A worker's lives, claims and mail on a real PostgreSQL, with a store that does what a test says at one place."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from romancy import NO_RETRY, App, Client, activity, workflow
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import RunCancelledError, RunExistsError, StoreUnavailableError
from romancy.model.history import Message, MessageKind
from romancy.model.run import Phase
from romancy.store.interface import Claim, ClaimedRun, NewWorker, Renewal, WorkerId
from romancy.store.postgres import PostgresStore
from romancy.worker.worker import Worker
from tests.worker.doubles import Engine, settle, until

SETTINGS = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1, park_after_seconds=0.2)


@activity(name="worker.endless", retry=NO_RETRY)
async def endless() -> None:
    await asyncio.Event().wait()


@workflow(name="worker.waits")
async def waits() -> None:
    await endless()


@workflow(name="worker.sleeps")
async def sleeps(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@workflow(name="worker.ends")
async def ends() -> str:
    return "ended"


ALL = (waits, sleeps, ends)


@asynccontextmanager
async def working(
    database: DatabaseSettings, kind: type[PostgresStore] = PostgresStore, settings: WorkerSettings = SETTINGS
) -> AsyncIterator[tuple[Worker, Client]]:
    async with Client(database) as client:
        worker = Worker(lambda: kind(database), ALL, settings, clock=SystemClock())
        await worker.start()
        try:
            yield worker, client
        finally:
            await worker.drain()


async def test_one_that_learns_by_a_claim_that_it_was_buried_registers_anew(database: DatabaseSettings) -> None:
    """In its first life as in any other, whether the lease's thread learns of it before or not."""

    class Unaware(PostgresStore):
        async def renew_lease(self, worker_id: WorkerId, *, ttl_seconds: float) -> Renewal:
            return replace(await super().renew_lease(worker_id, ttl_seconds=ttl_seconds), is_ours=True)

    async with working(database, Unaware) as (worker, client):
        for _ in range(2):
            buried = worker.id
            assert buried is not None
            await client.store.bury_worker(buried, even_if_alive=True)
            await until(lambda buried=buried: worker.is_ready and worker.id != buried, "it is registered anew")
        handle = await client.start(ends)

        assert await handle.result(timeout=5) == "ended"


async def test_a_full_worker_does_not_ask_again_and_again_what_is_due(database: DatabaseSettings) -> None:
    asked = 0

    class Counting(PostgresStore):
        async def next_due_at(self, worker_id: WorkerId) -> datetime | None:
            nonlocal asked
            asked += 1
            return await super().next_due_at(worker_id)

    settings = SETTINGS.model_copy(update={"slots": 1, "poll_seconds": 30})
    async with working(database, Counting, settings) as (worker, client):
        first = await client.start(waits)
        await until(lambda: worker.runs == 1, "it is full")
        await client.start(ends)
        worker._alarm.set(worker.now())
        before = asked
        await asyncio.sleep(0.3)

        assert asked - before <= 2
        await first.cancel()
        await until(lambda: worker.runs == 0, "both have ended")


async def test_mail_that_comes_while_a_run_is_taken_is_not_missed(database: DatabaseSettings) -> None:
    """After its inbox was read, and before it is in hand."""
    worker: Worker

    class Slow(PostgresStore):
        async def read_claimed(self, claims: Sequence[Claim]) -> list[ClaimedRun]:
            found = await super().read_claimed(claims)
            for claim in claims:
                await self.send([Message(claim.run_id, MessageKind.CANCEL, "test", '{"reason":"Cancelled"}')])
                await until(lambda claim=claim: claim.run_id in worker._mail_of_others, "it was told")
            return found

    async with working(database, Slow) as (worker, client):
        handle = await client.start(waits)
        with pytest.raises(RunCancelledError):
            await handle.result(timeout=5)


async def test_mail_that_was_notified_to_nobody_is_read_after_an_interruption(database: DatabaseSettings) -> None:
    async with working(database) as (worker, client):
        handle = await client.start(waits)
        await until(lambda: worker.runs == 1, "it runs")
        heard: list[UUID] = []
        worker._mail_came = heard.extend  # type: ignore[method-assign]
        [wakeups] = worker._store._wakeups
        wakeups._inbox[:] = [heard.extend]
        await handle.cancel()
        await until(lambda: heard, "the notification is lost")
        assert wakeups._connection is not None
        wakeups._connection.terminate()

        with pytest.raises(RunCancelledError):
            await handle.result(timeout=5)


async def test_a_take_that_fails_half_way_leaves_no_run_behind(database: DatabaseSettings) -> None:
    """Neither in memory, where its code would be closed by the collector, nor in the database until the slow poll."""
    failures = 1

    class Failing(PostgresStore):
        async def read_claimed(self, claims: Sequence[Claim]) -> list[ClaimedRun]:
            nonlocal failures
            if failures:
                failures -= 1
                raise StoreUnavailableError("by the test")
            return await super().read_claimed(claims)

    settings = SETTINGS.model_copy(update={"poll_seconds": 60})
    async with working(database, Failing, settings) as (_, client):
        handle = await client.start(ends)

        assert await handle.result(timeout=5) == "ended"
    assert failures == 0


async def test_a_parked_run_that_was_cached_hears_of_mail(database: DatabaseSettings) -> None:
    settings = SETTINGS.model_copy(update={"park_after_seconds": 0})
    async with working(database, settings=settings) as (worker, client):
        handle = await client.start(sleeps, 0.4)
        await until(lambda: worker._parked, "it is parked")
        await handle.suspend()
        await until(lambda: worker._parked and worker.runs == 0, "it is parked again")

        async def phase() -> Phase:
            return (await handle.info()).phase

        while await phase() is not Phase.SUSPENDED:  # noqa: ASYNC110 - another connection decides it
            await asyncio.sleep(0.01)
        await handle.resume()
        assert await handle.result(timeout=5) == "slept"


async def test_a_start_that_is_cancelled_leaves_nothing_running(database: DatabaseSettings) -> None:
    class Hanging(PostgresStore):
        async def register_worker(self, worker: NewWorker, *, ttl_seconds: float) -> WorkerId:
            await asyncio.Event().wait()
            raise AssertionError

    before = asyncio.all_tasks()
    worker = Worker(lambda: Hanging(database), ALL, SETTINGS, clock=SystemClock())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await worker.start()
    await settle()

    assert asyncio.all_tasks() == before


async def test_a_run_that_is_dropped_before_its_first_step_keeps_no_slot() -> None:
    worker = Worker(lambda: PostgresStore(DatabaseSettings()), ALL, SETTINGS, clock=SystemClock())
    worker._hold(Engine().claim(ends))

    worker._drop_all()

    assert (worker.runs, worker._free_slots(), worker._executions) == (0, SETTINGS.slots, {})


async def test_time_does_not_jump_with_the_clock_of_the_machine() -> None:
    class Set(SystemClock):
        moved = timedelta(0)

        def now(self) -> datetime:
            return datetime.now(UTC) + self.moved

    clock = Set()
    worker = Worker(lambda: PostgresStore(DatabaseSettings()), ALL, SETTINGS, clock=clock)
    before = worker.now()
    clock.moved = timedelta(hours=-1)

    assert timedelta(0) <= worker.now() - before < timedelta(seconds=5)


counted: list[int] = []


@activity(name="worker.count", retry=NO_RETRY)
async def count(number: int) -> int:
    counted.append(number)
    return number


@workflow(name="worker.counts")
async def counts(number: int) -> int:
    return await count(number)


async def test_starts_of_one_id_at_once_are_one_run(database: DatabaseSettings) -> None:
    """In one process, in two, and by a client that runs none; whoever wants another input is told so."""
    counted.clear()
    one = counts.options(id="one")
    async with (
        App(database, [counts], worker=SETTINGS) as first,
        App(database, [counts], worker=SETTINGS) as second,
        Client(database) as third,
    ):
        starters = [first, second, third, first, second] * 4
        started = await asyncio.gather(*(each.start(one, 1) for each in starters))
        others = await asyncio.gather(*(each.start(one, 2) for each in starters), return_exceptions=True)

        assert [await handle.result(timeout=5) for handle in started] == [1] * len(starters)
    assert {type(other) for other in others} == {RunExistsError}
    assert len({handle.id for handle in started}) == 1
    assert counted == [1]


async def test_a_start_while_it_drains_is_handed_to_the_database(database: DatabaseSettings) -> None:
    async with App(database, [waits, ends], worker=SETTINGS) as app:
        await app.start(waits)
        await until(lambda: app.worker.runs == 1, "it runs")
        draining = asyncio.create_task(app.worker.drain())
        await settle()
        handle = await app.start(ends)
        await handle.cancel()
        app.worker.is_out_of_time = True
        app.worker._look()
        await draining

        with pytest.raises(RunCancelledError):
            await handle.result(timeout=5)
