"""What the simulator has found, each as the shortest life that shows it."""

import asyncio
from random import Random
from typing import Any

import pytest

from romancy import activity, workflow
from romancy.base.clock import SystemClock
from romancy.base.settings import WorkerSettings
from romancy.errors import StoreUnavailableError
from romancy.model.history import InboxRow, MessageKind
from romancy.model.run import Phase
from romancy.store.interface import Park
from romancy.testing import MemoryDatabase, MemoryStore
from romancy.testing.loop import VirtualLoop
from romancy.worker.delivery import Delivery
from romancy.worker.execution import Left
from romancy.worker.lease import KeptByTask
from romancy.worker.worker import Worker
from tests.simulation.processes import DatabaseClock
from tests.worker.doubles import STARTED_AT, Engine, run, settle


@activity(name="findings.never")
async def never(label: str) -> None:
    raise AssertionError("it was given up before it could start")


@workflow(name="findings.gives_up")
async def gives_up() -> None:
    task = asyncio.create_task(never("a"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(3600)


async def test_a_run_that_gave_a_call_up_at_once_is_parked() -> None:
    """What it gave up held it back, and nothing told it that this was done: it stayed in memory, deaf to what was sent to
    it while nobody was listening."""
    for is_suspended in (False, True):
        engine = Engine()
        if is_suspended:
            engine.send(None, MessageKind.SUSPEND)
        task = asyncio.create_task(run(engine.claim(gives_up)))

        for _ in range(3):
            await settle()
            engine.journal.flush()
        await settle()

        assert isinstance(engine.row.then, Park)
        assert engine.row.then.phase is (Phase.SUSPENDED if is_suspended else Phase.WAITING)
        assert task.done()


@workflow(name="findings.sleeps")
async def sleeps() -> None:
    await asyncio.sleep(3600)


async def test_mail_that_comes_before_a_run_is_there_is_another_run_s() -> None:
    """Its id was taken: what was sent to the run that has it was read by the one that was about to be refused, and parked it
    as if that had been told something (seed 12377)."""
    engine = Engine()
    execution, told = engine.begin(sleeps)
    engine.row.begun = True  # by somebody else
    task = asyncio.create_task(run(execution))
    engine.send(execution, MessageKind.SUSPEND)
    await settle()
    [(write, _)] = engine.journal.queue

    engine.journal.flush()
    await settle()

    assert write.begin is not None
    assert write.then is None, "it has not been told anything that it could be put away for"
    assert task.result() is Left.EXISTS
    assert told == [False]
    assert engine.row.then is None


async def test_mail_that_comes_while_a_run_is_begun_is_read_when_it_is_there() -> None:
    engine = Engine()
    execution, told = engine.begin(sleeps)
    task = asyncio.create_task(run(execution))
    engine.send(execution, MessageKind.SUSPEND)
    for _ in range(3):
        await settle()
        engine.journal.flush()
    await settle()

    assert told == [True]
    assert isinstance(engine.row.then, Park)
    assert engine.row.then.phase is Phase.SUSPENDED
    assert task.result() is Left.PARKED


@workflow(name="findings.asks")
async def asks() -> None:
    await never("a")


async def test_nothing_is_written_to_a_run_whose_begin_was_refused() -> None:
    """The answer had come and was not looked at yet, and the worker was to drain: it released a run that was another's."""
    engine = Engine()
    execution, told = engine.begin(asks)
    engine.row.begun = True  # somebody else was faster
    task = asyncio.create_task(run(execution))
    await settle()

    engine.is_draining = True
    execution.look()
    engine.journal.flush()
    await settle()

    assert engine.journal.queue == []
    assert await task is Left.EXISTS
    assert told == [False]


@pytest.mark.parametrize("source", ["resource:suspend:1", "client:suspend:1"])
def test_an_order_that_a_newer_one_has_overtaken_is_not_followed(source: str) -> None:
    """A leader stood still between asking whether it leads and sending: its suspend came after the resume of the next one, and
    nothing would ever have resumed the run."""
    rows = [
        InboxRow(1, MessageKind.RESUME, "resource:resume:2", "", STARTED_AT),
        InboxRow(2, MessageKind.SUSPEND, source, "", STARTED_AT),
    ]
    delivery = Delivery(rows, delivered=frozenset(), seen=2, timeout_at=None, timeout_seconds=0)

    assert delivery.next(STARTED_AT, may_hold=True, is_cancelled=False) is None

    assert delivery.is_suspended == source.startswith("client")  # orders of users have no other order


class SlowToListen(MemoryStore):
    """LISTEN takes longer than a lease lasts, and no renewal is answered."""

    async def wakeups(self, worker_id: int | None) -> Any:
        await asyncio.sleep(5)
        return await super().wakeups(worker_id)

    async def renew_lease(self, worker_id: int, *, ttl_seconds: float) -> Any:
        raise StoreUnavailableError("no answer")


class CannotListen(MemoryStore):
    """Its LISTEN is never answered."""

    async def wakeups(self, worker_id: int | None) -> Any:
        raise StoreUnavailableError("no answer")


async def test_a_worker_that_can_not_begin_takes_its_registration_back() -> None:
    """It was left to the others, and the last worker of all left a row behind."""
    database = MemoryDatabase(SystemClock())
    worker = Worker(lambda: CannotListen(database), [gives_up], WorkerSettings(build_id="1"), clock=SystemClock())

    with pytest.raises(StoreUnavailableError):
        await worker.start()

    assert database.worker == {}


def test_a_lease_lasts_from_its_registration() -> None:
    """It was counted from when the worker was ready: whoever had been buried by then took itself for alive, and started
    activities of runs that were free for others."""
    loop = VirtualLoop(Random(0))

    async def live() -> None:
        clock = DatabaseClock(loop)
        database = MemoryDatabase(clock)
        settings = WorkerSettings(lease_seconds=3, build_id="1")
        worker = Worker(lambda: SlowToListen(database), [gives_up], settings, clock=clock, keep_lease=KeptByTask)

        await worker.start()

        [row] = database.worker.values()
        assert row.expires_at < clock.now()
        assert not worker.may_start_activities()
        await worker.drain()

    loop.run_until_complete(live())
    loop.close()
