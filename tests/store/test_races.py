"""Races, forced: a statement is held by an open transaction, or between its snapshot and its locks, while others commit."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from romancy.base.settings import DatabaseSettings
from romancy.errors import PayloadRefusedError, RunNotFoundError, StoreUnavailableError, WorkerFencedError
from romancy.model.history import MessageKind
from romancy.model.run import Phase
from romancy.store.flush import Write, flush
from romancy.store.interface import Begin, Finish, Keep, Park, Purgeable, Release, RunWrite
from romancy.store.notify import IDS_MAX, due_channel, inbox_channel
from romancy.store.pool import application_name
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL
from romancy.store.verify import find_breaches
from tests.builders import SOME_TIME, a_message, a_new_run, an_attempt, an_entry
from tests.proxy import Proxy, proxy_to
from tests.store.hands import Hands

ON_EVERY_POSTGRES = True

Connect = Callable[..., Awaitable[asyncpg.Connection]]
Register = Callable[..., Awaitable[Hands]]


class Watcher:
    """Sees who waits for whom in the database."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def until_waits(self, *, pid: int | None = None, name: str = "%", what: str = "%") -> None:
        """Until a backend waits for a lock: told by its pid, or by its application's name and its statement."""
        async with asyncio.timeout(5):
            while not await self._connection.fetchval(
                "select exists (select from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0 "
                "and ($1::int is null or pid = $1) and application_name like $2 and query like $3)",
                pid,
                name,
                what,
            ):
                pass

    async def until(self, condition: str, *arguments: Any) -> None:
        """Until this holds in the database."""
        async with asyncio.timeout(5):
            while not await self._connection.fetchval(f"select {condition}", *arguments):
                pass


@pytest.fixture
async def watcher(connect: Connect) -> Watcher:
    return Watcher(await connect())


def flush_of(worker: Hands, *writes: RunWrite, slot: int = 0) -> tuple[Any, ...]:
    """The statement that a journal would send for these, for a connection of the test's own."""
    rows = [Write.of(write, 0) for write in writes]
    for number, row in enumerate(rows):
        row.number = 1000 + number
    return flush(worker.id, slot, rows)


def send_of(store: PostgresStore, *messages: Any) -> tuple[Any, ...]:
    return SQL.send(
        run_ids=[message.run_id for message in messages],
        kinds=[message.kind for message in messages],
        sources=[message.source for message in messages],
        payloads=[message.payload for message in messages],
        event_ids=[message.event_id for message in messages],
        ids_max=IDS_MAX,
        due_channel=due_channel(store.settings),
        inbox_channel=inbox_channel(store.settings),
    )


GATE = "(select pg_advisory_lock_shared(7), pg_advisory_unlock_shared(7) offset 0) as gate"


def gated(statement: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same statement, which waits at a gate between its snapshot and its first row lock."""
    text, *arguments = statement
    changed = text.replace("from fence where", f"from fence, {GATE} where").replace(
        "from fence join worker on", f"from {GATE}, fence join worker on"
    )
    changed = changed.replace(":: smallint for key share", "::smallint for key share")
    assert changed != text
    return (changed.replace("for key share\n)", "for key share of fence\n)"), *arguments)


# --- burial ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["entry", "claim", "begin", "finish"])
async def test_a_burial_waits_for_what_is_on_its_way(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher, what: str
) -> None:
    """I2. What commits while it waits is seen by its second statement: as one statement it would miss it for ever."""
    worker = await hands()
    claim = await worker.started()
    new = a_new_run()
    if what == "claim":
        await store.start_runs([new])
    statement = {
        "entry": flush_of(worker, RunWrite(claim.run_id, 1, entries=(an_entry(1),))),
        "claim": SQL.claim_runs(worker_id=worker.id, slot=1, turn=0, limit=9),
        "begin": flush_of(worker, RunWrite(new.id, 1, begin=Begin(new, SOME_TIME, "3.13"))),
        "finish": flush_of(worker, RunWrite(claim.run_id, 1, then=Finish(Phase.SUCCEEDED))),
    }[what]
    other = await connect()  # not by the worker's name: the burial would end it
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*statement)

    burial = asyncio.create_task(store.bury_worker(worker.id, even_if_alive=True))
    await watcher.until_waits(what="with dead as%")
    await transaction.commit()
    freed = await burial

    expected = {"entry": [claim.run_id], "finish": []}.get(what, [claim.run_id, new.id])
    assert sorted(freed) == sorted(expected)
    assert len(await store.read_history(claim.run_id)) == (1 if what == "entry" else 0)
    assert sorted(await (await hands()).claim_ids()) == sorted(expected)


@pytest.mark.parametrize("ends_by", ["commit", "rollback"])
async def test_a_flush_waits_for_a_burial_on_its_way(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher, ends_by: str
) -> None:
    """I2: it then writes nothing; if the burial came to nothing, it goes on."""
    worker = await hands()
    claim = await worker.started()
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*SQL.delete_worker(worker_id=worker.id, even_if_alive=True))

    flushing = worker.journal.submit(RunWrite(claim.run_id, 1, entries=(an_entry(1),), then=Release()))
    claiming = asyncio.create_task(worker.claim())
    await watcher.until_waits(what="with me as%")
    await watcher.until_waits(what="with recursive me%")
    await (transaction.commit() if ends_by == "commit" else transaction.rollback())

    if ends_by == "commit":
        with pytest.raises(WorkerFencedError):
            await flushing
        with pytest.raises(WorkerFencedError):
            await claiming
        assert await store.read_history(claim.run_id) == []
    else:
        await flushing
        await claiming
        assert await store.read_history(claim.run_id) == [an_entry(1)]


async def test_a_flush_whose_snapshot_is_older_than_the_burial_writes_nothing(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    """I2: a row lock looks at the newest version, whatever the snapshot holds."""
    worker = await hands()
    claim = await worker.started()
    other, gatekeeper = await connect(), await connect()
    await gatekeeper.execute("select pg_advisory_lock(7)")
    write = RunWrite(claim.run_id, 1, entries=(an_entry(1),), then=Finish(Phase.FAILED))
    flushing = asyncio.create_task(other.fetchrow(*gated(flush_of(worker, write))))
    await watcher.until_waits(pid=other.get_server_pid())

    await store.bury_worker(worker.id, even_if_alive=True)
    await gatekeeper.execute("select pg_advisory_unlock(7)")

    assert not (await flushing)["is_alive"]
    assert await store.read_history(claim.run_id) == []
    run = await store.read_run(claim.run_id)
    assert run is not None
    assert not run.is_done


async def test_a_frozen_process_does_not_hold_up_its_burial(
    store: PostgresStore, hands: Register, connect: Connect, database: DatabaseSettings
) -> None:
    """Its open transaction holds the fence row; its backends are ended first, told by their name."""
    worker = await hands()
    claim = await worker.started()
    frozen = await connect(application_name=application_name(database, worker.id))
    ended = asyncio.Event()
    frozen.add_termination_listener(lambda _: ended.set())
    await frozen.transaction().start()
    await frozen.fetch(*flush_of(worker, RunWrite(claim.run_id, 1, entries=(an_entry(1),))))

    assert await store.bury_worker(worker.id, even_if_alive=True) == [claim.run_id]

    assert await store.read_history(claim.run_id) == []
    async with asyncio.timeout(10):
        await ended.wait()  # the server ends it at once, the end of the socket comes when it comes


async def test_a_renewal_on_its_way_spares_the_worker(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher, rewind: Any
) -> None:
    worker = await hands(ttl_seconds=5)
    claim = await worker.started()
    await rewind(10)
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*SQL.renew_lease(worker_id=worker.id, ttl_seconds=60.0))

    burial = asyncio.create_task(store.bury_worker(worker.id))
    await watcher.until_waits(what="with dead as%")
    await transaction.commit()

    assert await burial == []
    await worker.write(claim, an_entry(1))  # its backends were ended: the flush goes out on a new connection
    assert await store.read_history(claim.run_id) == [an_entry(1)]


# --- claims ------------------------------------------------------------------------------------------------------------


async def test_a_claim_with_an_old_snapshot_reads_all_that_was_written(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    """Its row lock follows to the newest version, its snapshot does not: so history and inbox are read after it."""
    worker, heir = await hands(), await hands()
    run = a_new_run()
    await store.start_runs([run])
    other, gatekeeper = await connect(), await connect()
    await gatekeeper.execute("select pg_advisory_lock(7)")
    statement = SQL.claim_runs(worker_id=heir.id, slot=1, turn=0, limit=9)
    claiming = asyncio.create_task(other.fetch(*gated(statement)))
    await watcher.until_waits(pid=other.get_server_pid())

    [claim] = await worker.claim()
    await store.send([a_message(run.id)])
    # Due for long already: a wake_at after the claim's now() would only make it look elsewhere. And in the same queue.
    await worker.write(claim, an_entry(1), then=Park(seen=1, wake_at=SOME_TIME))
    await connect_and(connect, "update due set queue = 'flow'")
    await gatekeeper.execute("select pg_advisory_unlock(7)")
    [row] = await claiming
    await watcher.until("worker_id = $1 from due where id = $2", heir.id, run.id)

    [again] = store._claims_of(heir.id, [row])
    [claimed] = await store.read_claimed([again])
    assert again.number == 2
    assert list(claimed.history) == [an_entry(1)]
    assert [mail.number for mail in claimed.inbox] == [1]


async def connect_and(connect: Connect, statement: str) -> None:
    await (await connect()).execute(statement)


async def test_claims_do_not_wait_for_each_other(store: PostgresStore, hands: Register, connect: Connect) -> None:
    worker, other_worker = await hands(), await hands()
    runs = [a_new_run() for _ in range(4)]
    for run in runs:
        await store.start_runs([run])
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*SQL.claim_runs(worker_id=other_worker.id, slot=1, turn=0, limit=2))

    taken = await worker.claim_ids()
    await transaction.commit()

    assert taken == [run.id for run in runs[2:]]


# --- park and send -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["send", "park"])
async def test_no_wake_up_is_lost(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher, first: str
) -> None:
    """I7: both touch the run's row, so the one that waits sees what the other did."""
    worker = await hands()
    claim = await worker.started()
    message = a_message(claim.run_id)
    park = RunWrite(claim.run_id, 1, then=Park(seen=0, wake_at=None))
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*(send_of(store, message) if first == "send" else flush_of(worker, park)))

    if first == "send":
        flushing = worker.journal.submit(park)
        await watcher.until_waits(name="romancy %")
        await transaction.commit()
        assert (await flushing).stays
        assert await worker.claim() == []
    else:
        sending = asyncio.create_task(store.send([message]))
        await watcher.until_waits(what="with mail as%")
        await transaction.commit()
        assert await sending == 1
        [again] = await worker.claim()
        assert (again.run_id, again.number, again.inbox_version) == (claim.run_id, 2, 1)
    assert [row.number for row in await store.read_inbox(claim.run_id, 0)] == [1]


async def test_the_same_message_sent_at_once_is_there_once(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    """The second meets the first at a unique key (23505), and finds it when it is sent again."""
    claim = await (await hands()).started()
    message, another = a_message(claim.run_id), a_message(claim.run_id)
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*send_of(store, message))

    sending = asyncio.create_task(store.send([message, another]))
    await watcher.until_waits(what="with mail as%")
    await transaction.commit()

    assert await sending == 1
    sources = [row.source for row in await store.read_inbox(claim.run_id, 0)]
    assert sources == [message.source, another.source]


# --- the journal ---------------------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_cancel_its_flush(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    worker = await hands()
    claim = await worker.started()
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.execute("select 1 from due where id = $1 for update", claim.run_id)

    async def caller() -> None:
        await worker.journal.submit(RunWrite(claim.run_id, 1, entries=(an_entry(1),), then=Release()))

    task = asyncio.create_task(caller())
    await watcher.until_waits(name="romancy %")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await transaction.rollback()

    await watcher.until("exists (select from history where run_id = $1)", claim.run_id)
    assert await worker.claim_ids() == [claim.run_id]


async def test_a_flush_that_is_refused_by_the_server_is_told_apart(store: PostgresStore, hands: Register) -> None:
    """SQLSTATE 54: a name that no index can hold. The begins, changes and entries of all others are written."""
    worker = await hands()
    claims = [await worker.started() for _ in range(5)]
    long_name = "".join(f"{n:08x}" for n in range(0, 2**32, 2**32 // 3000))  # 24 KB that don't compress well
    bad, good = a_new_run(name=long_name), a_new_run()

    futures = [worker.journal.submit(RunWrite(claim.run_id, 1, entries=(an_entry(1),))) for claim in claims]
    begins = [
        worker.journal.submit(RunWrite(run.id, 1, begin=Begin(run, SOME_TIME, "3.13"), then=Release()))
        for run in (bad, good)
    ]
    results = await asyncio.gather(*futures, *begins, return_exceptions=True)

    assert [type(result).__name__ for result in results] == ["Flushed"] * 5 + ["PayloadRefusedError", "Flushed"]
    assert await store.read_run(bad.id) is None
    assert await worker.claim_ids() == [good.id]


async def test_two_begins_of_one_run_at_once_are_one(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    first, second = await hands(), await hands()
    run = a_new_run()
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(
        *flush_of(first, RunWrite(run.id, 1, begin=Begin(run, SOME_TIME, "3.13"), entries=(an_entry(1),)))
    )

    begin = asyncio.create_task(second.begin(an_entry(1, payload="other"), id=run.id))
    await watcher.until_waits(name="romancy %")
    await transaction.commit()

    _, answer = await begin
    assert not answer.began
    assert await store.read_history(run.id) == [an_entry(1)]
    assert [claim.run_id for claim in (await store.poll(first.id, {})).unseen] == [run.id]


class TestLostAnswers:
    """The connection breaks after the commit and before the answer: the same flush is sent again, and means the same."""

    @pytest.fixture
    async def through(self, database: DatabaseSettings, store: PostgresStore) -> AsyncIterator[tuple[Proxy, Hands]]:
        """A worker whose network fails, beside a store whose network does not."""
        async with proxy_to(database) as (proxy, settings), PostgresStore(settings) as far_store:
            worker = await Hands.of(far_store)
            # Each statement has been sent once: else the answer that gets lost is that to its preparation.
            run_id, _ = await worker.begin(an_entry(1))
            await worker.journal.submit(RunWrite(run_id, 1, entries=(an_entry(2),)))
            await worker.journal.submit(RunWrite(run_id, 1, then=Finish(Phase.SUCCEEDED)))
            yield proxy, worker
            proxy.is_open.set()

    async def lost(self, proxy: Proxy, worker: Hands, write: RunWrite) -> "asyncio.Future[Any]":
        proxy.lose_next_answer()
        future = worker.journal.submit(write)
        await proxy.lost.wait()
        return future

    @pytest.mark.parametrize(
        "then", [None, Keep(Phase.COMPENSATING), Park(0, None), Park(5, None), Release(), Finish(Phase.SUCCEEDED)]
    )
    async def test_a_repeated_flush_means_the_same(
        self, store: PostgresStore, through: tuple[Proxy, Hands], then: Any
    ) -> None:
        proxy, worker = through
        claim = await worker.started()
        write = RunWrite(claim.run_id, 1, entries=(an_entry(1),), attempts=(an_attempt(2, 1),), then=then)

        future = await self.lost(proxy, worker, write)
        before = await store.read_run(claim.run_id)
        proxy.is_open.set()
        answer = await future

        assert answer.stays == (then == Park(5, None))
        assert await store.read_history(claim.run_id) == [an_entry(1)]
        assert await store.read_run(claim.run_id) == before

    @pytest.mark.parametrize("then", [None, Release(), Finish(Phase.SUCCEEDED)])
    async def test_a_repeated_begin_is_the_same_begin(
        self, store: PostgresStore, through: tuple[Proxy, Hands], then: Any
    ) -> None:
        proxy, worker = through
        run, other = a_new_run(), a_new_run()
        await store.start_runs([other])
        proxy.lose_next_answer()

        futures = [
            worker.journal.submit(
                RunWrite(each.id, 1, begin=Begin(each, SOME_TIME, "3.13"), entries=(an_entry(1),), then=then)
            )
            for each in (run, other)
        ]
        await proxy.lost.wait()
        proxy.is_open.set()

        assert [(await future).began for future in futures] == [True, False]
        assert await store.read_history(run.id) == [an_entry(1)]
        assert await store.read_history(other.id) == []

    async def test_a_late_copy_takes_nothing_from_under_a_new_owner(
        self, store: PostgresStore, through: tuple[Proxy, Hands], hands: Register
    ) -> None:
        """The same worker holds the run again by another claim when the copy of its old park arrives."""
        proxy, worker = through
        claim = await worker.started()
        future = await self.lost(proxy, worker, RunWrite(claim.run_id, 1, entries=(an_entry(1),), then=Park(0, None)))

        await store.send([a_message(claim.run_id, kind=MessageKind.CANCEL)])
        [again] = await store.claim_runs(worker.id, limit=1)
        proxy.is_open.set()
        answer = await future

        assert not answer.stays
        assert [each.number for each in (await store.poll(worker.id, {})).unseen] == [again.number] == [2]

    async def test_a_lost_claim_is_found(self, store: PostgresStore, through: tuple[Proxy, Hands]) -> None:
        proxy, worker = through
        await worker.claim()
        run = a_new_run()
        await store.start_runs([run])
        proxy.lose_next_answer()

        claiming = asyncio.create_task(worker.claim())
        await proxy.lost.wait()
        proxy.is_open.set()

        with pytest.raises(StoreUnavailableError):
            await claiming
        [unseen] = (await worker.store.poll(worker.id, {})).unseen
        assert (unseen.run_id, unseen.number) == (run.id, 1)

    async def test_an_idle_worker_says_nothing(self, through: tuple[Proxy, Hands]) -> None:
        """What listens waits; what writes or claims speaks when there is something to say."""
        proxy, worker = through
        assert isinstance(worker.store, PostgresStore)
        await worker.store.wakeups(worker.id)
        await worker.started()
        await worker.store._notifier.close()
        before = proxy.sent_by_clients

        await asyncio.sleep(0.3)  # nothing is awaited here: nothing is what must happen

        assert proxy.sent_by_clients == before

    async def test_a_journal_gives_up_and_ends(self, database: DatabaseSettings, store: PostgresStore) -> None:
        """What was asked may have been done: its worker lets itself be buried."""
        async with proxy_to(database) as (proxy, settings):
            impatient = settings.model_copy(update={"give_up_seconds": 0.2, "connect_timeout_seconds": 0.1})
            async with PostgresStore(impatient) as far_store:
                worker = await Hands.of(far_store)
                claim, other = await worker.started(), await worker.started()
                await worker.write(other, an_entry(1))
                future = await self.lost(proxy, worker, RunWrite(claim.run_id, 1, entries=(an_entry(1),)))
                queued = worker.journal.submit(RunWrite(other.run_id, 1, entries=(an_entry(2),)))

                for each in (future, queued, worker.journal.submit(RunWrite(other.run_id, 1, then=Release()))):
                    with pytest.raises(StoreUnavailableError):
                        await each
                proxy.is_open.set()

                assert await store.read_history(claim.run_id) == [an_entry(1)]
                assert await store.read_history(other.run_id) == [an_entry(1)]


class TestSeveralConnections:
    async def test_flushes_of_one_run_keep_their_order(
        self, database: DatabaseSettings, connect: Connect, watcher: Watcher
    ) -> None:
        """While one of its flushes is on its way, what the run writes next waits; other runs don't."""
        settings = database.model_copy(update={"journal_connections": 3})
        async with PostgresStore(settings) as store:
            worker = await Hands.of(store)
            slow, quick = await worker.started(), await worker.started()
            other = await connect()
            transaction = other.transaction()
            await transaction.start()
            await other.execute("select 1 from due where id = $1 for update", slow.run_id)

            first = worker.journal.submit(
                RunWrite(slow.run_id, 1, entries=(an_entry(1),), then=Keep(Phase.RUNNING, "reason"))
            )
            await watcher.until_waits(name="romancy %")
            second = worker.journal.submit(RunWrite(slow.run_id, 1, entries=(an_entry(2),)))
            third = worker.journal.submit(RunWrite(slow.run_id, 1, entries=(an_entry(3),), then=Park(0, None)))
            await worker.write(quick, an_entry(1), then=Finish(Phase.SUCCEEDED))
            assert await store.read_history(slow.run_id) == []
            assert not first.done()
            assert not second.done()
            await transaction.rollback()
            await asyncio.gather(first, second, third)

            assert await store.read_history(slow.run_id) == [an_entry(1), an_entry(2), an_entry(3)]
            assert worker.journal.flushes == 3

    async def test_side_by_side_they_leave_no_gaps(self, database: DatabaseSettings) -> None:
        settings = database.model_copy(update={"journal_connections": 4, "flush_rows_max": 3})
        async with PostgresStore(settings) as store:
            worker = await Hands.of(store)
            runs: list[UUID] = [(await worker.begin())[0] for _ in range(10)]

            async def work(run_id: UUID) -> None:
                for position in range(1, 21):
                    await worker.journal.submit(RunWrite(run_id, 1, entries=(an_entry(position),)))
                await worker.journal.submit(RunWrite(run_id, 1, then=Finish(Phase.SUCCEEDED)))

            await asyncio.gather(*map(work, runs))

            for run_id in runs:
                assert [entry.position for entry in await store.read_history(run_id)] == list(range(1, 21))


async def test_a_flush_is_bounded(database: DatabaseSettings, connect: Connect, watcher: Watcher) -> None:
    """By rows and by bytes, one row at least; what is too large for any flush is refused before."""
    settings = database.model_copy(update={"flush_rows_max": 10, "flush_bytes_max": 50_000})
    async with PostgresStore(settings) as store:
        worker = await Hands.of(store)
        runs = [(await worker.begin())[0] for _ in range(40)]
        before = worker.journal.flushes
        await asyncio.gather(*[worker.journal.submit(RunWrite(run_id, 1, entries=(an_entry(1),))) for run_id in runs])
        assert worker.journal.flushes == before + 4

        big = an_entry(2, payload="x" * 20_000)
        await asyncio.gather(*[worker.journal.submit(RunWrite(run_id, 1, entries=(big,))) for run_id in runs[:6]])
        assert worker.journal.flushes == before + 7

        with pytest.raises(PayloadRefusedError, match="FLUSH_BYTES_MAX"):
            await worker.journal.submit(RunWrite(runs[0], 1, entries=(an_entry(3, payload="x" * 50_000),)))


async def test_what_waits_for_a_lock_is_sent_again(
    database: DatabaseSettings, connect: Connect, watcher: Watcher
) -> None:
    """A lock time-out (55P03) writes nothing and proves nothing: the flush is whole, and goes out again."""
    settings = database.model_copy(update={"lock_timeout_seconds": 0.05})
    async with PostgresStore(settings) as store:
        worker = await Hands.of(store)
        claim = await worker.started()
        other = await connect()
        transaction = other.transaction()
        await transaction.start()
        await other.execute("select 1 from due where id = $1 for update", claim.run_id)

        flushing = worker.journal.submit(RunWrite(claim.run_id, 1, entries=(an_entry(1),), then=Park(0, None)))
        await watcher.until_waits(name="romancy %")
        await watcher.until("not exists (select from pg_stat_activity where cardinality(pg_blocking_pids(pid)) > 0)")
        await watcher.until_waits(name="romancy %")
        await transaction.rollback()

        assert not (await flushing).stays
        assert await store.read_history(claim.run_id) == [an_entry(1)]


async def test_a_due_time_a_moment_ago_is_due(store: PostgresStore, hands: Register) -> None:
    worker = await hands()
    claim = await worker.started()
    at = await store.now() + timedelta(milliseconds=1)
    await worker.write(claim, then=Park(0, at))

    assert await store.next_due_at(worker.id) == at
    while (await store.now()) < at:
        pass
    assert await worker.claim_ids() == [claim.run_id]


@pytest.mark.parametrize("what", ["flush", "claim", "burial"])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
async def test_a_change_is_owed_though_what_was_before_is_marked_at_once(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher, what: str, count: int
) -> None:
    """What waits for the rows of a mark on its way: each of its runs owes its newest state."""
    worker = await hands()
    await store.start_runs([a_new_run(is_resource=True) for _ in range(count)])
    claims = [] if what == "claim" else await worker.claim()
    before = {each.run.id: each.version for each in await store.take_unmirrored(hold_seconds=0, limit=99)}
    other = await connect()
    transaction = other.transaction()
    await transaction.start()
    await other.fetch(*SQL.mark_mirrored(run_ids=list(before), versions=list(before.values())))

    acts = [Finish(Phase.SUCCEEDED, output="1"), Keep(Phase.COMPENSATING), Finish(Phase.FAILED)]

    async def change() -> None:
        if what == "claim":
            await worker.claim()
        elif what == "burial":
            await store.bury_worker(worker.id, even_if_alive=True)
        else:
            writes = [RunWrite(claim.run_id, 1, then=acts[number % 3]) for number, claim in enumerate(claims)]
            await asyncio.gather(*(worker.journal.submit(write) for write in writes))

    changing = asyncio.create_task(change())
    await watcher.until_waits(what="with %")
    await transaction.commit()
    await changing

    owed = await store.take_unmirrored(hold_seconds=0, limit=99)
    assert {each.run.id: each.version for each in owed} == {run_id: version + 1 for run_id, version in before.items()}
    if what == "flush":
        assert sorted(each.run.phase for each in owed) == sorted((acts * 2)[number].phase for number in range(count))
    assert await find_breaches(store.settings) == []


# --- a retry against others -------------------------------------------------------------------------------------------


async def a_failed_run(store: PostgresStore, worker: Hands) -> UUID:
    claim = await worker.started()
    await worker.write(claim, an_entry(1), then=Finish(Phase.FAILED, "WorkflowFailed", "it broke"))
    return claim.run_id


async def test_a_retry_waits_for_a_purge_and_finds_no_run_then(
    store: PostgresStore, hands: Register, connect: Connect, watcher: Watcher
) -> None:
    run_id = await a_failed_run(store, await hands())
    purger = await connect()
    purging = purger.transaction()
    await purging.start()
    await purger.execute("delete from run where id = $1", run_id)

    retrying = asyncio.create_task(store.retry_run(run_id))
    await watcher.until_waits()
    await purging.commit()

    with pytest.raises(RunNotFoundError):
        await retrying


async def test_each_of_many_runs_is_purged_or_retried(
    store: PostgresStore, hands: Register, connect: Connect, database: DatabaseSettings
) -> None:
    """Never both, and never half of one: whatever is open has its history and its message."""
    worker = await hands()
    run_ids = [await a_failed_run(store, worker) for _ in range(60)]
    await (await connect()).execute("update run set finished_at = finished_at - interval '1 day'")

    async def retry(run_id: UUID) -> bool:
        try:
            return await store.retry_run(run_id)
        except RunNotFoundError:
            return False

    async def purge() -> int:
        which, total = Purgeable(Phase.FAILED, 3600), 0
        while (purged := await store.purge_runs(which)).runs:
            total += purged.runs
        return total

    retried, *purged = await asyncio.gather(
        asyncio.gather(*[retry(run_id) for run_id in reversed(run_ids)]), *[purge() for _ in range(3)]
    )

    assert sum(retried) + sum(purged) == 60
    assert len(await worker.claim(limit=100)) == sum(retried)
    assert await find_breaches(database) == []
