"""Cases 48 to 52: workers that die, are taken for dead, begin together, and look after each other without a leader."""

import asyncio
import threading
from typing import Any

import asyncpg
import pytest

from romancy import App, activity, workflow
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings
from romancy.errors import StoreUnavailableError, WorkerFencedError
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason
from romancy.store.interface import Begin, Block, Finish, Keep, Park, Release, RunWrite, WorkerId
from romancy.store.migrate import migrations
from romancy.store.postgres import PostgresStore
from romancy.store.verify import find_breaches
from romancy.worker.worker import Worker
from tests import postgres
from tests.builders import SOME_TIME, a_new_run, a_new_worker, an_attempt, an_entry
from tests.cases.conftest import QUICK, Running, in_phase, until
from tests.chaos.fleet import Fleet
from tests.chaos.flows import step_timer_step, three_steps
from tests.store.hands import Hands

pytestmark = pytest.mark.usefixtures("verified")

calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@activity(name="recovery.note")
async def note(number: int) -> int:
    calls.append(number)
    await asyncio.sleep(0)
    return number


@workflow(name="recovery.notes")
async def notes(number: int) -> list[int]:
    return [await note(number), await note(-number)]


# --- 48 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_48_what_a_killed_worker_ran_goes_on_elsewhere(fleet: Fleet, database: DatabaseSettings) -> None:
    """Given a killed worker, running runs resume elsewhere; waiting ones are untouched; one failing to resume stops nobody."""
    doomed = await fleet.start("doomed")
    fleet.open("before", "one")
    waits = await fleet.client.start(step_timer_step, 3600.0)
    waiting = await in_phase(waits, Phase.WAITING, Reason.TIMER)
    broken, *others = [await fleet.client.start(three_steps) for _ in range(4)]
    await fleet.until(lambda: fleet.log().count("begin two") == 4, "all are in their second step")
    doomed.kill()
    await _execute(database, "update romancy.history set name = 'another' where run_id = $1", broken.id)
    fleet.open("two", "three")
    await fleet.start("heir")

    assert [await each.result(timeout=20) for each in others] == [["one", "two", "three"]] * 3
    blocked = await in_phase(broken, Phase.BLOCKED)
    assert blocked.reason == Reason.NON_DETERMINISM
    assert await waits.info() == waiting
    assert fleet.log().count("begin one") == 4  # what was done is not done again


async def _execute(database: DatabaseSettings, statement: str, *arguments: Any) -> None:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        await connection.execute(statement, *arguments)
    finally:
        await connection.close()


# --- 49 -----------------------------------------------------------------------------------------------------------------


async def test_49_who_has_lost_its_lease_writes_nothing(database: DatabaseSettings) -> None:
    """(+) Given a lease lost in mid-activity, then the old holder's result, status and history writes are refused.

    With real processes that were stopped meanwhile: tests/chaos/test_zombies.py.
    """
    new = a_new_run()
    async with PostgresStore(database) as store:
        zombie, heir = await Hands.of(store, name="zombie"), await Hands.of(store, name="heir")
        old = await zombie.started()
        assert await store.bury_worker(zombie.id, even_if_alive=True) == [old.run_id]
        [claim] = await heir.claim()
        before = await store.read_run(old.run_id)
        writes = {
            "result": {"entries": (an_entry(1),)},
            "attempt": {"attempts": (an_attempt(),)},
            "status": {"then": Keep(Phase.COMPENSATING)},
            "parked": {"then": Park(seen=old.inbox_version, wake_at=None)},
            "released": {"then": Release()},
            "blocked": {"then": Block("NonDeterminism", "", "b")},
            "ended": {"then": Finish(Phase.SUCCEEDED, output="1")},
        }
        for what, write in writes.items():
            for number in (old.number, claim.number):  # even if it guessed the heir's
                journal = await store.journal(zombie.id)
                with pytest.raises(WorkerFencedError):
                    await journal.submit(RunWrite(old.run_id, number, **write))  # type: ignore[arg-type]
                await journal.close()
                assert await store.read_run(old.run_id) == before, what
        journal = await store.journal(zombie.id)
        with pytest.raises(WorkerFencedError):
            await journal.submit(RunWrite(new.id, 1, begin=Begin(new, SOME_TIME, "3.13")))
        await journal.close()

        assert await store.read_run(new.id) is None
        assert await store.read_history(old.run_id) == []
        assert await store.read_attempts([old.run_id]) == {old.run_id: []}
        await heir.write(claim, an_entry(1, at=await store.now()), then=Finish(Phase.SUCCEEDED, output="2"))
        assert [entry.position for entry in await store.read_history(old.run_id)] == [1]
        await zombie.journal.close()
        await heir.journal.close()


let_go = threading.Event()


@activity(name="recovery.holds")
def holds() -> str:
    """A thread can't be stopped: the first attempt ends after it was given to another."""
    attempt = activity.info().attempt
    calls.append(f"begin {attempt}")
    if attempt == 1:
        assert let_go.wait(30)
    calls.append(f"end {attempt}")
    return f"attempt {attempt}"


@workflow(name="recovery.held")
async def held() -> str:
    return await holds()


async def test_49_the_result_of_the_old_holder_is_not_the_run_s(running: Running) -> None:
    let_go.clear()
    async with running(held, name="old") as old, running(held, name="new") as new:
        handle = await old.start(held)
        await until(lambda: _true("begin 1" in calls), "its activity runs")
        run_id, buried = (await handle.info()).id, old.worker.id
        assert buried is not None
        freed = await new.store.bury_worker(buried, even_if_alive=True)
        assert freed == [run_id]
        assert await new.handle(run_id).result(timeout=20) == "attempt 2"
        let_go.set()
        await until(lambda: _true("end 1" in calls), "the first attempt ends")
        history = await new.store.read_history(run_id)
        assert (await new.handle(run_id).info()).output == '"attempt 2"'

    assert [(entry.kind, entry.payload) for entry in history] == [(Kind.ACTIVITY_COMPLETED, '"attempt 2"')]


async def _true(value: bool) -> bool:
    return value


# --- 50 -----------------------------------------------------------------------------------------------------------------


async def test_50_five_hundred_starts_at_once_run_each_activity_once(running: Running) -> None:
    """(+) Given 500 concurrent starts with the pollers on, then all complete and each activity ran once."""
    async with running(notes, name="one") as one, running(notes, name="two") as two:
        handles = await asyncio.gather(*((one, two)[nth % 2].start(notes, nth) for nth in range(1, 501)))
        results = await asyncio.gather(*(handle.result(timeout=40) for handle in handles))

    assert results == [[nth, -nth] for nth in range(1, 501)]
    assert sorted(calls) == sorted([*range(1, 501), *range(-500, 0)])


# --- 51 -----------------------------------------------------------------------------------------------------------------


async def test_51_what_the_leader_does_is_done_without_it_and_errors_do_not_end_that(
    database: DatabaseSettings,
) -> None:
    """Given leader death, another leads within the lease; storage errors in the loop do not end it; crashed tasks restart.

    Here the workers' part: where no leader looks for the dead, they do, and go on when the database refuses. The leader's on
    a real API server: tests/control/test_leader.py (`test_a_crashed_leader_is_replaced_after_its_lease`,
    `test_a_body_that_fails_gives_the_lease_away_and_is_tried_again`), tests/control/test_control.py
    (`test_a_database_that_is_away_is_said_and_nothing_is_lost`), tests/e2e/test_leader.py (`test_the_leader_is_killed`).
    """
    refusals = 3

    class Refusing(PostgresStore):
        async def bury_worker(self, worker_id: WorkerId, *, even_if_alive: bool = False) -> list[Any]:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise StoreUnavailableError("by the test")
            return await super().bury_worker(worker_id, even_if_alive=even_if_alive)

    async with PostgresStore(database) as store:
        dead = await store.register_worker(a_new_worker(name="dead", workflows={}), ttl_seconds=0.2)
        settings = QUICK.model_copy(update={"lease_seconds": 0.9})
        worker = Worker(
            lambda: Refusing(database),
            [notes],
            settings,
            clock=SystemClock(),
            is_leader_expected=True,
            bury_seconds=0.2,
        )
        await worker.start()
        life = worker.id
        await until(lambda: _is_gone(store, dead), "the dead one is buried")
        assert (worker.id, refusals) == (life, 0)  # it is the same life that was refused
        await worker.drain()


async def _is_gone(store: PostgresStore, worker_id: WorkerId) -> bool:
    return worker_id not in [each.id for each in await store.list_workers()]


# --- 52 -----------------------------------------------------------------------------------------------------------------


async def test_52_four_workers_begin_on_an_empty_database(postgres_server: postgres.Server) -> None:
    """Given 4 workers starting on an empty DB, then migrations are applied once and all start."""
    empty = postgres_server.settings(await postgres_server.create_database())
    apps = [App(empty, [notes], worker=QUICK.model_copy(update={"name": f"w{nth}"})) for nth in range(4)]
    await asyncio.gather(*(app.__aenter__() for app in apps))
    try:
        names = sorted(worker.name for worker in await apps[0].store.list_workers())
        results = [await (await app.start(notes, nth)).result(timeout=20) for nth, app in enumerate(apps)]
        connection = await asyncpg.connect(empty.url.get_secret_value())
        applied = [row[0] for row in await connection.fetch("select number from romancy.migration order by number")]
        await connection.close()
    finally:
        await asyncio.gather(*(app.__aexit__(None, None, None) for app in apps))

    assert names == ["w0", "w1", "w2", "w3"]
    assert results == [[nth, -nth] for nth in range(4)]
    assert applied == [migration.number for migration in migrations()]
    assert await find_breaches(empty) == []
