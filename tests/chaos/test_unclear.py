"""Each kind of statement x {not applied, applied but unheard, arrives when it has been repeated}: nothing lost, nothing doubled.

Workers in this process, each behind a proxy that lets one statement fail; what they did is asked past the proxy.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from romancy import App, Client, RetryPolicy, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings, python_minor
from romancy.errors import RunCancelledError, StoreUnavailableError
from romancy.model.run import Phase
from romancy.store.interface import Block
from tests import postgres
from tests.chaos.fleet import all_holds
from tests.proxy import Mode, proxy_to
from tests.store.hands import Hands

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60), pytest.mark.filterwarnings("ignore::ResourceWarning")]

SETTINGS = WorkerSettings(name="w", lease_seconds=1.5, poll_seconds=0.2, park_after_seconds=0, drain_seconds=5)
QUICK = RetryPolicy(max_attempts=5, initial_interval=timedelta(milliseconds=20))

done: Counter[str] = Counter()


@activity(retry=QUICK, name="unclear.step")
async def step(label: str) -> str:
    done[label] += 1
    return label


@activity(retry=QUICK, name="unclear.flaky")
async def flaky(label: str) -> None:
    done[label] += 1
    if done[label] == 1:
        raise ConnectionError("not yet")


@activity(retry=QUICK, name="unclear.reserve")
async def reserve(label: str) -> str:
    done[label] += 1
    return label


@reserve.compensate(retry=QUICK, name="unclear.release")
async def release(label: str) -> None:
    done[f"un{label}"] += 1


@workflow(name="unclear.ship")
async def ship(label: str) -> str:
    await step(f"{label} first")
    await flaky(f"{label} flaky")
    await asyncio.sleep(0.05)
    await step(f"{label} last")
    return label


@workflow(name="unclear.hold")
async def hold(label: str) -> None:
    await reserve(f"{label} reserved")
    await asyncio.sleep(3600)


# Statement, and a word that its arguments hold: the act of a flush, or what only that kind of flush carries.
WORKER = {
    "register": ("register_worker", ""),
    "clock": ("now", ""),
    "claim": ("claim_runs", ""),
    "claim blocked": ("claim_blocked", ""),
    "poll": ("poll", ""),
    "next due": ("next_due_at", ""),
    "read claimed": ("read_begun", ""),
    "read history": ("read_histories", ""),
    "read inbox": ("read_inboxes", ""),
    "read attempts": ("read_attempts", ""),
    "begin": ("flush", "hold"),
    "append": ("flush_entries", ""),
    "attempt": ("flush", "not yet"),
    "park": ("flush", "Park"),
    "keep": ("flush", "Keep"),
    "finish": ("flush", "Finish"),
    "start": ("start_runs", ""),
    "deliver": ("send", ""),
    "renew": ("renew_lease", ""),
    "may bury": ("may_bury", ""),
    "end backends": ("end_backends", ""),
    "bury": ("delete_worker", ""),
    "free": ("free_runs", ""),
    "commit of a burial": ("COMMIT;", ""),
}
MODES = [Mode.NOT_APPLIED, Mode.UNHEARD, Mode.LATE]


async def again[T](ask: Callable[[], Awaitable[T]]) -> T:
    """What a caller does who was told that it may have been done."""
    for _ in range(3):
        try:
            return await ask()
        except StoreUnavailableError:
            continue
    return await ask()


@asynccontextmanager
async def working(database: DatabaseSettings) -> AsyncIterator[App]:
    """An app that has come up, if not at the first try."""

    async def enter() -> App:
        return await App(database, [ship, hold], worker=SETTINGS).__aenter__()

    app = await again(enter)
    try:
        yield app
    finally:
        await app.__aexit__(None, None, None)


async def a_dead_worker_with(client: Client, label: str) -> Hands:
    """It has claimed a run, and gives no sign of life."""
    await client.start(ship.options(id=label), label)
    dead = await Hands.of(
        client.store, ttl_seconds=0.1, workflows={ship.name: ship.signature.form}, python=python_minor(), name="dead"
    )
    assert len(await dead.claim()) == 1
    await dead.journal.close()
    return dead


async def a_run_that_another_build_could_not_go_on_with(client: Client, label: str) -> None:
    """It is Blocked, and waits for a build that can."""
    await client.start(ship.options(id=label), label)
    old = await Hands.of(
        client.store, workflows={ship.name: ship.signature.form}, python=python_minor(), build_id="old"
    )
    [claim] = await old.claim()
    await old.write(claim, then=Block("NonDeterminism", "", "old"))
    await old.journal.close()
    await client.store.bury_worker(old.id, even_if_alive=True)


@pytest.mark.parametrize("kind", WORKER)
async def test_one_statement_fails(postgres_server: postgres.Server, kind: str) -> None:
    """In each way, side by side in databases of their own."""
    async with asyncio.TaskGroup() as group:
        for mode in MODES:
            group.create_task(fails(postgres_server, kind, mode))


async def fails(server: postgres.Server, kind: str, mode: Mode) -> None:
    database = await server.migrated_database()
    await some_runs_and_one_fault(database, kind, mode)
    await server.give_back(database)


async def some_runs_and_one_fault(database: DatabaseSettings, kind: str, mode: Mode) -> None:
    statement, word = WORKER[kind]
    labels = [f"{kind}, {mode.value}: {what}" for what in ("blocked", "orphaned", "begun", "started", "cancelled")]
    blocked, orphaned, begun, started, cancelled = labels
    async with Client(database) as client, proxy_to(database) as (proxy, far):
        await a_run_that_another_build_could_not_go_on_with(client, blocked)
        await a_dead_worker_with(client, orphaned)
        fault = proxy.fail(mode, statement, word=word)

        async with working(far) as app, Client(far) as far_client:
            await again(lambda: app.start(hold.options(id=cancelled), cancelled))
            await again(lambda: app.start(ship.options(id=begun), begun))
            await again(lambda: far_client.start(ship.options(id=started), started))
            async with asyncio.timeout(15):
                while (await client.handle(cancelled).info()).phase is not Phase.WAITING:  # noqa: ASYNC110 - the database's to say
                    await asyncio.sleep(0.01)
            await again(lambda: far_client.handle(cancelled).cancel("enough"))

            for label in (blocked, orphaned, begun, started):
                assert await client.handle(label).result(timeout=15) == label, fault
            with pytest.raises(RunCancelledError, match="enough"):
                await client.handle(cancelled).result(timeout=15)
            async with asyncio.timeout(5):
                await fault.happened.wait()
            fault.release.set()
            if mode is Mode.LATE:
                await fault.landed.wait()
            await all_holds(database)

        expected = {f"{label} {what}": 1 for label in (blocked, orphaned, begun, started) for what in ("first", "last")}
        expected |= {f"{label} flaky": 2 for label in (blocked, orphaned, begun, started)}
        expected |= {f"{cancelled} reserved": 1, f"un{cancelled} reserved": 1}
        mine = (f"{kind}, {mode.value}:", f"un{kind}, {mode.value}:")
        assert {what: times for what, times in done.items() if what.startswith(mine)} == expected
        runs = await client.list(namespace="*", limit=100)
        assert sorted(run.name for run in runs) == sorted(labels)
        for run in runs:
            history = await client.store.read_history(run.id)
            assert [entry.position for entry in history] == list(range(1, len(history) + 1))
            assert len(history) == (3 if run.name == cancelled else 4)
    await all_holds(database)
