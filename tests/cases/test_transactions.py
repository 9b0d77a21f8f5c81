"""Cases 15 to 17 and 39: an activity whose rows, messages and checkpoint are committed together, or none of them."""

import asyncio
import os
import signal
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from romancy import NO_RETRY, Channel, RetryPolicy, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import ChannelInvalidError, ChannelModeError, DefinitionError, OutsideWorkflowError
from romancy.model.channel import ChannelMode
from romancy.model.history import Kind
from romancy.model.run import Phase
from romancy.testing import Simulation
from tests.cases.conftest import Running, until
from tests.chaos.fleet import Fleet

pytestmark = pytest.mark.usefixtures("verified")

BOOKED = Channel("booked", str)
STOCK = Channel("stock", str, mode=ChannelMode.COMPETING)
TWICE = RetryPolicy(max_attempts=2, initial_interval=timedelta(milliseconds=10), jitter=0)
CALLED: list[str] = []


class SoldOutError(Exception):
    """There is none left."""


@pytest.fixture
async def books(database: DatabaseSettings) -> Any:
    """A table of the user's own, and the names in it."""
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("create table public.booked (name text)")
    CALLED.clear()

    async def names() -> list[str]:
        return [row["name"] for row in await connection.fetch("select name from public.booked order by name")]

    yield names
    await connection.execute(
        "drop table public.booked; drop table if exists public.promised; drop table if exists public.known"
    )
    await connection.close()


@activity(name="tx.book", transactional=True, retry=NO_RETRY)
async def book(name: str, fails: bool = False) -> str:
    transaction = activity.transaction()
    await transaction.connection.execute("insert into booked values ($1)", name)
    await transaction.publish(BOOKED, name)
    transaction.after_commit(lambda: CALLED.append(f"first {name}"))
    transaction.after_commit(lambda: 1 / 0)

    async def last() -> None:
        CALLED.append(f"last {name}")

    transaction.after_commit(last)
    if fails:
        raise SoldOutError(name)
    return f"booked {name}"


@workflow
async def tx_books(name: str, fails: bool) -> str:
    return await book(name, fails)


@workflow
async def tx_hears(ctx: WorkflowContext) -> list[str]:
    heard = []
    async with ctx.subscribe(BOOKED) as booked:
        ctx.set_value("ready", True)
        while True:
            try:
                heard.append((await booked.receive(timeout=1)).data)
            except TimeoutError:
                return heard


async def test_15_rows_history_and_message_exist_together_or_not_at_all(running: Running, books: Any) -> None:
    async with running(tx_books, tx_hears) as app:
        listener = await app.start(tx_hears.options(id="listener"))

        async def is_ready() -> bool:
            return bool(await listener.values())

        await until(is_ready, "it has subscribed")
        good = await app.start(tx_books.options(id="good"), "a", False)
        assert await good.result(timeout=10) == "booked a"
        bad = await app.start(tx_books.options(id="bad"), "b", True)
        with pytest.raises(SoldOutError):
            await bad.result(timeout=10)

        assert await books() == ["a"]
        [entry] = await app.store.read_history(good.id)
        assert (entry.kind, entry.payload) == (Kind.ACTIVITY_COMPLETED, '"booked a"')
        [failed] = await app.store.read_history(bad.id)
        assert failed.kind is Kind.ACTIVITY_FAILED
        assert await listener.result(timeout=20) == ["a"]


@activity(name="tx.book_nested", transactional=True, retry=NO_RETRY)
async def book_nested(inner_fails: bool) -> None:
    connection = activity.transaction().connection
    await connection.execute("insert into booked values ('outer')")
    try:
        async with connection.transaction():
            await connection.execute("insert into booked values ('inner')")
            if inner_fails:
                raise SoldOutError
    except SoldOutError:
        await connection.execute("insert into booked values ('instead')")


@activity(name="tx.asks_for_none", retry=NO_RETRY)
async def asks_for_none() -> None:
    activity.transaction()


@workflow
async def tx_nested(inner_fails: bool) -> None:
    await book_nested(inner_fails)


@workflow
async def tx_outside() -> None:
    await asks_for_none()


async def test_16_an_inner_transaction_rolls_back_alone_and_outside_there_is_none(running: Running, books: Any) -> None:
    async with running(tx_nested, tx_outside) as app:
        await (await app.start(tx_nested.options(id="inner"), True)).result(timeout=10)
        assert await books() == ["instead", "outer"]
        with pytest.raises(OutsideWorkflowError, match="transactional=True"):
            await (await app.start(tx_outside.options(id="outside"))).result(timeout=10)
    with pytest.raises(OutsideWorkflowError):
        activity.transaction()


async def test_17_what_waits_for_the_commit_is_called_in_order_and_never_after_a_rollback(
    running: Running, books: Any
) -> None:
    async with running(tx_books) as app:
        await (await app.start(tx_books.options(id="good"), "a", False)).result(timeout=10)
        with pytest.raises(SoldOutError):
            await (await app.start(tx_books.options(id="bad"), "b", True)).result(timeout=10)

    assert CALLED == ["first a", "last a"]  # what raises between them stops neither
    assert await books() == ["a"]


@activity(name="tx.offer", transactional=True, retry=NO_RETRY)
async def offer(names: list[str], fails: bool) -> None:
    for name in names:
        await activity.transaction().publish(STOCK, name)
    if fails:
        raise SoldOutError


@workflow
async def tx_offers(names: list[str], fails: bool) -> None:
    await offer(names, fails)


@workflow
async def tx_takes(ctx: WorkflowContext, count: int) -> list[str]:
    async with ctx.subscribe(STOCK) as stock:
        return [(await stock.receive(timeout=60)).data for _ in range(count)]


async def test_39_waiters_wake_after_the_commit_and_never_on_a_rollback(
    running: Running, books: Any, database: DatabaseSettings
) -> None:
    async with running(tx_offers, tx_takes) as app:
        with pytest.raises(SoldOutError):
            await (await app.start(tx_offers.options(id="bad"), ["never"], True)).result(timeout=10)
        takes = await app.start(tx_takes.options(id="takes"), 2)
        await (await app.start(tx_offers.options(id="good"), ["a", "b"], False)).result(timeout=10)

        assert await takes.result(timeout=10) == ["a", "b"]


@activity(name="tx.offer_again", transactional=True)
async def offer_again(names: list[str]) -> int:
    for name in names:
        await activity.transaction().publish(STOCK, name)
    return len(names)


@workflow
async def tx_both(ctx: WorkflowContext, names: list[str]) -> list[str]:
    count = await offer_again(names)
    async with ctx.subscribe(STOCK) as stock:
        return [(await stock.receive(timeout=60)).data for _ in range(count)]


def test_39_in_a_simulation_with_a_crash_at_every_save(sim: Simulation) -> None:
    assert sim.start(tx_both, ["a", "b"]).result() == ["a", "b"]
    assert sim.crash_everywhere(tx_both, ["a", "b"]) >= 12


# --- beside what else the run does ------------------------------------------------------------------------------------------


@activity(name="tx.plain")
async def plain(nth: int) -> int:
    return nth


@workflow
async def tx_beside(count: int) -> list[int]:
    """Transactional and plain ones side by side: each entry has its own position, whoever is first."""

    async def pair(nth: int) -> int:
        await plain(nth)
        await count_up(nth)
        return await plain(nth)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(pair(nth)) for nth in range(count)]
    return [task.result() for task in tasks]


@activity(name="tx.count_up", transactional=True)
async def count_up(nth: int) -> None:
    await activity.transaction().connection.execute("insert into booked values ($1)", f"{nth:03}")


async def test_many_side_by_side_with_others_of_the_same_run(running: Running, books: Any) -> None:
    async with running(tx_beside) as app:
        handle = await app.start(tx_beside.options(id="beside"), 40)
        assert await handle.result(timeout=30) == list(range(40))

        history = await app.store.read_history(handle.id)
    assert [entry.position for entry in history] == list(range(1, 121))
    assert await books() == [f"{nth:03}" for nth in range(40)]


@activity(name="tx.dies_at", transactional=True, retry=TWICE)
async def dies_at(where: str, name: str) -> None:
    transaction = activity.transaction()
    await transaction.connection.execute("insert into public.booked values ($1)", name)
    if activity.info().attempt == 1 and where == "in it":
        os.kill(os.getpid(), signal.SIGKILL)
    if where == "after it":
        marker = os.environ["TEST_EFFECTS"] + "/died"

        def die() -> None:
            if not os.path.exists(marker):
                open(marker, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

        transaction.after_commit(die)


@workflow
async def tx_dies(where: str) -> str:
    await dies_at(where, where)
    return where


@pytest.mark.parametrize("where", ["in it", "after it"])
async def test_a_process_killed_in_it_or_just_after_it_has_booked_once(
    database: DatabaseSettings, books: Any, tmp_path: Any, where: str
) -> None:
    async with Fleet(database, tmp_path, workflows="tests.cases.test_transactions") as fleet:
        await fleet.start("first")
        await fleet.start("second")
        handle = await fleet.client.start(tx_dies.options(id="dies"), where)
        assert await handle.result(timeout=30) == where

        assert await books() == [where]
        assert len(await fleet.client.store.read_history(handle.id)) == 1
        assert sum(process.popen.poll() is not None for process in fleet.processes.values()) == 1


@activity(name="tx.breaks_a_promise", transactional=True, retry=NO_RETRY)
async def breaks_a_promise(name: str) -> None:
    await activity.transaction().connection.execute("insert into promised values ($1)", name)


@workflow
async def tx_promises(name: str) -> None:
    await breaks_a_promise(name)


async def test_a_constraint_that_is_looked_at_at_the_commit_fails_the_activity(
    running: Running, database: DatabaseSettings, books: Any
) -> None:
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute(
        "create table public.known (name text primary key); "
        "create table public.promised (name text references known deferrable initially deferred)"
    )
    await connection.close()
    async with running(tx_promises) as app:
        handle = await app.start(tx_promises.options(id="promises"), "nobody")
        with pytest.raises(Exception, match="promised"):
            await handle.result(timeout=10)
        assert (await handle.info()).phase is Phase.FAILED


@activity(name="tx.misuses", transactional=True, retry=NO_RETRY)
async def misuses(how: str) -> None:
    transaction = activity.transaction()
    match how:
        case "direct":
            await transaction.publish(Channel("mail-of-tx", str, mode=ChannelMode.DIRECT), "x")
        case "mode":
            await transaction.publish(STOCK, "x")
            await transaction.publish(Channel("stock", str), "x")
        case "too many":
            for _ in range(65):
                await transaction.publish(BOOKED, "x")
        case _:
            LEFT.append(transaction)


LEFT: list[Any] = []


@workflow
async def tx_misuses(how: str) -> None:
    await misuses(how)


async def test_misuse_is_a_typed_error(running: Running, books: Any) -> None:
    async with running(tx_misuses) as app:
        for how, kind in (
            ("direct", ChannelInvalidError),
            ("mode", ChannelModeError),
            ("too many", ChannelInvalidError),
        ):
            with pytest.raises(kind):
                await (await app.start(tx_misuses.options(id=how), how)).result(timeout=10)
        await (await app.start(tx_misuses.options(id="kept"), "kept")).result(timeout=10)
        with pytest.raises(OutsideWorkflowError, match="is over"):
            LEFT[0].after_commit(print)
    with pytest.raises(DefinitionError, match="no `async def`"):

        @activity(transactional=True)  # type: ignore[arg-type]
        def plain_def() -> None:
            pass


@activity(name="tx.emits", transactional=True, retry=NO_RETRY)
async def emits(fails: bool) -> str:
    made = activity.transaction().emit("shop.booked", {"order": "o1"}, subject="o1")
    if fails:
        raise SoldOutError
    return made.id


@workflow
async def tx_emits(fails: bool) -> str:
    return await emits(fails)


def test_15_an_event_goes_to_the_sink_with_the_commit_and_not_without(sim: Simulation) -> None:
    with pytest.raises(SoldOutError):
        sim.start(tx_emits.options(id="bad"), True).result()
    run = sim.start(tx_emits.options(id="good"), False)

    assert run.result() == f"{run.id}-1.0"
    [event] = sim.emitted("shop.booked")
    assert (event.subject, event.data, event.source) == ("o1", {"order": "o1"}, "/romancy/default/tx_emits/good")
    assert sim.crash_everywhere(tx_emits, False) >= 4
