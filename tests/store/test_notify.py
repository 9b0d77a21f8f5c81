"""Who is woken by what, and what happens when the line is cut."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase
from romancy.store.interface import Finish, Keep, Park, Release
from romancy.store.notify import Notifier, channel
from romancy.store.postgres import PostgresStore
from tests.builders import SOME_TIME, a_message, a_new_run, an_entry
from tests.store.hands import Hands

Heard = asyncio.Queue[tuple[str, Any]]


async def listen(store: PostgresStore, worker_id: int | None) -> Heard:
    """Everything that this worker (or the leader) hears, in order."""
    heard: Heard = asyncio.Queue()
    wakeups = await store.wakeups(worker_id)
    wakeups.on_due(lambda queues: heard.put_nowait(("due", tuple(queues))))
    wakeups.on_inbox(lambda run_ids: heard.put_nowait(("inbox", sorted(run_ids))))
    wakeups.on_mirror(lambda: heard.put_nowait(("mirror", None)))
    return heard


async def next_of(heard: Heard) -> tuple[str, Any]:
    async with asyncio.timeout(5):
        return await heard.get()


@pytest.fixture
async def other(database: DatabaseSettings) -> AsyncIterator[PostgresStore]:
    """Another process's store."""
    async with PostgresStore(database) as store:
        yield store


async def test_a_start_wakes_those_who_listen(store: PostgresStore, other: PostgresStore) -> None:
    heard = await listen(other, None)

    await store.start_runs(
        [a_new_run(workflow="a"), a_new_run(workflow="a"), a_new_run(workflow="b", is_resource=True)]
    )

    assert sorted([await next_of(heard) for _ in range(3)]) == [("due", ("a",)), ("due", ("b",)), ("mirror", None)]
    assert heard.empty()


async def test_a_start_of_what_exists_wakes_nobody(store: PostgresStore, other: PostgresStore) -> None:
    run, marker = a_new_run(workflow="a", is_resource=True), a_new_run(workflow="marker")
    await store.start_runs([run])
    heard = await listen(other, None)

    await store.start_runs([run])
    await store.start_runs([marker])

    assert await next_of(heard) == ("due", ("marker",))


async def test_mail_is_told_to_who_holds_the_run(store: PostgresStore, other: PostgresStore) -> None:
    holder, stranger = await Hands.of(other), await Hands.of(other)
    claims = [await holder.started() for _ in range(3)]
    held, strange = await listen(other, holder.id), await listen(other, stranger.id)

    await store.send([a_message(claim.run_id) for claim in claims])
    await store.start_runs([a_new_run(workflow="marker")])

    assert await next_of(held) == ("inbox", sorted(claim.run_id for claim in claims))
    assert await next_of(strange) == ("due", ("marker",))


async def test_mail_to_very_many_runs_fits(store: PostgresStore, other: PostgresStore) -> None:
    """A payload has room for 8,000 bytes."""
    holder = await Hands.of(other)
    runs = [a_new_run() for _ in range(400)]
    await store.start_runs(runs)
    await holder.claim(limit=400)
    heard = await listen(other, holder.id)

    assert await store.send([a_message(run.id) for run in runs]) == 400

    told = []
    while len(told) < 400:
        told += (await next_of(heard))[1]
    assert sorted(told) == sorted(run.id for run in runs)


async def test_mail_that_wakes_a_run_is_told_to_all(store: PostgresStore, other: PostgresStore) -> None:
    holder = await Hands.of(other)
    claim = await holder.started()
    await holder.write(claim, then=Park(0, None))
    heard = await listen(other, holder.id)

    await store.send([a_message(claim.run_id)])

    assert await next_of(heard) == ("due", ("flow/3.13",))


async def test_a_flush_wakes_only_who_must_be_woken(store: PostgresStore, other: PostgresStore) -> None:
    worker = await Hands.of(store)
    claim, resource = await worker.started(), await worker.started(is_resource=True)
    await store._notifier.close()
    heard = await listen(other, None)

    await worker.write(claim, an_entry(1), then=Keep(Phase.RUNNING, "reason"))
    await worker.write(resource, an_entry(1))
    await worker.write(claim, then=Release())
    assert await next_of(heard) == ("due", ("flow/3.13",))
    await worker.write(resource, then=Finish(Phase.SUCCEEDED))
    assert await next_of(heard) == ("mirror", None)
    assert heard.empty()


async def test_a_burial_wakes_the_heirs(store: PostgresStore, other: PostgresStore) -> None:
    worker = await Hands.of(store)
    await worker.started(is_resource=True)
    await worker.begin(workflow="flow")
    await store._notifier.close()
    heard = await listen(other, None)

    await other.bury_worker(worker.id, even_if_alive=True)

    assert sorted([await next_of(heard) for _ in range(2)]) == [("due", ("flow/3.13",)), ("mirror", None)]


async def test_what_is_told_in_a_moment_goes_out_together(store: PostgresStore, other: PostgresStore) -> None:
    """A burst costs two statements: the first at once, the rest when its time has come."""
    heard = await listen(other, None)
    sent: list[int] = []
    has_sent = asyncio.Event()

    class Counting(Notifier):
        async def notify(self, told: Any) -> None:
            sent.append(len(told))
            has_sent.set()
            await super().notify(told)

    notifier = Counting(store.settings, store._pool)
    notifier.queues_due(["a", "b", "a"])
    await has_sent.wait()
    for _ in range(50):
        notifier.queues_due(["c"])
        notifier.status_owed()
    await notifier.close()

    assert sent == [2, 2]
    told = [await next_of(heard) for _ in range(4)]
    assert told == [("due", ("a",)), ("due", ("b",)), ("due", ("c",)), ("mirror", None)]


async def test_a_cut_line_is_laid_anew(store: PostgresStore, other: PostgresStore, connect: Callable[..., Any]) -> None:
    """And says that anything may have happened meanwhile."""
    worker = await Hands.of(other)
    heard = await listen(other, worker.id)
    connection = await connect()

    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = $1", f"romancy {worker.id}"
    )

    assert [await next_of(heard), await next_of(heard)] == [("due", ()), ("mirror", None)]
    await store.start_runs([a_new_run(workflow="a")])
    assert await next_of(heard) == ("due", ("a",))


def test_channels_are_those_of_the_schema(database_url_free: DatabaseSettings) -> None:
    """And fit into the 63 bytes of a name, with the id of a worker behind."""
    long = database_url_free.model_copy(update={"schema_name": "x" * 63})

    assert channel(database_url_free, "due") == "romancy_due"
    assert len(channel(long, "inbox_")) <= 43
    assert channel(long, "due") != channel(database_url_free, "due")


@pytest.fixture
def database_url_free() -> DatabaseSettings:
    return DatabaseSettings()


async def test_a_run_due_in_the_past_needs_no_wakeup(store: PostgresStore) -> None:
    worker = await Hands.of(store)
    claim = await worker.started()
    await worker.write(claim, then=Park(0, SOME_TIME))

    assert await worker.store.next_due_at(worker.id) == SOME_TIME
