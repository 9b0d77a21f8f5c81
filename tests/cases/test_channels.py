"""Cases 35 to 43: channels and groups."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from romancy import Channel, ChannelMode, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import ChannelInvalidError, ChannelModeError, PayloadError, RunNotFoundError
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from romancy.testing.simulation import SimulatedRun
from tests.cases.conftest import Running, in_phase, until

pytestmark = pytest.mark.usefixtures("verified")

NEWS = Channel("news", str)
JOBS = Channel("jobs", int, mode=ChannelMode.COMPETING)
MAIL = Channel("mail", dict[str, Any], mode=ChannelMode.DIRECT)
BYTES = Channel("bytes", bytes, mode=ChannelMode.COMPETING)


@activity
async def do_job(number: int) -> int:
    return number


@workflow
async def hears(ctx: WorkflowContext, count: int) -> list[str]:
    async with ctx.subscribe(NEWS) as news:
        return [(await news.receive(timeout=60)).data for _ in range(count)]


@workflow
async def works(ctx: WorkflowContext, patience: float) -> list[int]:
    done = []
    async with ctx.subscribe(JOBS) as jobs:
        try:
            while True:
                done.append(await do_job((await jobs.receive(timeout=patience)).data))
        except TimeoutError:
            return done


@workflow
async def publishes(ctx: WorkflowContext, count: int) -> int:
    for number in range(count):
        await ctx.publish(JOBS, number, metadata={"nth": number})
    return count


# --- 35: broadcast ------------------------------------------------------------------------------------------------------


async def test_35_each_subscriber_of_a_broadcast_gets_each_message_once_and_in_order(
    running: Running, database: DatabaseSettings
) -> None:
    """Given broadcast with 3 subscribers, each gets each message once and in order; older messages are not seen."""
    async with running(hears) as app:
        await app.publish(NEWS, "too early")
        handles = [await app.start(hears, 20) for _ in range(3)]
        await until(lambda: _count(database, "subscription", 3), "all have subscribed")
        for number in range(20):
            await app.publish(NEWS, f"news {number}", id=str(number))
            await app.publish(NEWS, f"news {number}", id=str(number))  # the same message

        assert [await handle.result() for handle in handles] == [[f"news {number}" for number in range(20)]] * 3


async def _count(database: DatabaseSettings, table: str, wanted: int) -> bool:
    connection = await asyncpg.connect(database.url.get_secret_value())
    try:
        return bool(await connection.fetchval(f"select count(*) = $1 from romancy.{table}", wanted))
    finally:
        await connection.close()


def test_35_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        sim.advance(1)
        for text in ("a", "b"):
            sim.ask(sim._client.publish(NEWS, text, id=text))

    sim.play(outside)

    assert sim.crash_everywhere(hears, 2) >= 12


# --- 36: competing ------------------------------------------------------------------------------------------------------


async def test_36_a_message_of_a_competing_channel_is_for_one(running: Running, database: DatabaseSettings) -> None:
    """Given competing with 2 subscribers and 10 messages, then 10 receipts in all, none twice; what is claimed is not pending."""
    async with running(works, publishes) as app:
        for number in (100, 101):
            await app.publish(JOBS, number)  # nobody is there yet: they wait
        handles = [await app.start(works, 3.0) for _ in range(2)]
        await (await app.start(publishes, 8)).result()
        found = [await handle.result(timeout=20) for handle in handles]

    assert sorted(found[0] + found[1]) == [*range(8), 100, 101]
    assert await _count(database, "pending", 0)
    assert await _count(database, "demand", 0)


def test_36_no_message_is_worked_on_twice_or_lost_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.advance(1)
        for number in range(3):
            sim.ask(sim._client.publish(JOBS, number, id=str(number)))

    sim.play(outside)

    assert sim.crash_everywhere(works, 5.0) >= 20  # it returns what it has had


def test_a_message_that_comes_too_late_is_given_back(sim: Simulation) -> None:
    """It is handed out after the deadline of who wanted it, and before his process has seen that."""
    late = sim.start(works.options(id="late"), 10.0)
    sim.until(lambda: bool(sim._database.demands))
    process = sim._process
    assert process is not None
    process.body.is_frozen = True
    sim.advance(11)
    sim.ask(sim._client.publish(JOBS, 7))
    assert sim._database.pending["jobs"] == set()  # it is in the inbox of who has stopped waiting
    sim._loop.thaw(process.body)

    assert late.result() == []
    assert sim.run(works, 10.0) == [7]


@workflow
async def takes_and_recurs(ctx: WorkflowContext, had: list[int]) -> list[int]:
    """An iteration for each message."""
    async with ctx.subscribe(JOBS) as jobs:
        try:
            now = [*had, (await jobs.receive(timeout=10)).data]
        except TimeoutError:
            now = had
    if now != had:
        ctx.recur(now)
    return had


def test_no_message_is_lost_between_iterations_whatever_crashes(sim: Simulation) -> None:
    def outside(sim: Simulation, _run: SimulatedRun[Any]) -> None:
        for number in range(3):
            sim.ask(sim._client.publish(JOBS, number, id=str(number)))
            sim.advance(number % 2)

    sim.play(outside)

    assert sim.crash_everywhere(takes_and_recurs, []) >= 20


async def test_who_is_cancelled_while_it_waits_takes_nothing_with_it(
    running: Running, database: DatabaseSettings
) -> None:
    async with running(works) as app:
        leaving = await app.start(works, 60.0)
        await until(lambda: _count(database, "demand", 1), "it wants one")
        await leaving.cancel()
        await in_phase(leaving, Phase.CANCELLED)
        await app.publish(JOBS, 1)
        await until(lambda: _count(database, "demand", 0), "it wants none")
        staying = await app.start(works, 3.0)

        assert await staying.result(timeout=10) == [1]


# --- 37: direct ---------------------------------------------------------------------------------------------------------


@workflow
async def reads_mail(ctx: WorkflowContext, until: str) -> list[str]:
    found = []
    async with ctx.subscribe(MAIL) as mail:
        while not found or found[-1] != until:
            found.append((await mail.receive()).data["text"])
    await ctx.wait_event("subscribe-again")
    async with ctx.subscribe(MAIL) as mail:
        found.append((await mail.receive()).data["text"])
    return found


@workflow
async def writes_mail(ctx: WorkflowContext, to: str, texts: list[str]) -> None:
    for text in texts:
        await ctx.send_to(to, MAIL, {"text": text})


async def test_37_direct_messages_reach_their_target_alone(running: Running) -> None:
    """Given direct mode, send_to reaches only the target; unsubscribe in direct mode stops it."""
    async with running(reads_mail, writes_mail) as app:
        one = await app.start(reads_mail.options(id="one"), "end")
        other = await app.start(reads_mail.options(id="other"), "end")
        for handle in (one, other):
            await in_phase(handle, Phase.WAITING, Reason.EVENT)
        await (await app.start(writes_mail, "one", ["a", "b"])).result()
        assert await app.send_to("one", MAIL, {"text": "end"})
        assert await app.send_to("other", MAIL, {"text": "end"})
        for handle in (one, other):
            await until(lambda handle=handle: _awaits(handle, "subscribe-again"), "it has unsubscribed")
        assert await app.send_to("one", MAIL, {"text": "while nobody reads"})
        await asyncio.sleep(1.1)  # more than the clocks of a worker and of the database may differ
        await app.send_event("subscribe-again")
        for handle in (one, other):
            await until(lambda handle=handle: _awaits(handle, "romancy.channel/mail"), "it reads again")
            await app.send_to(handle.id, MAIL, {"text": "again"})

        assert await one.result() == ["a", "b", "end", "again"]
        assert await other.result() == ["end", "again"]
        assert not await app.send_to("one", MAIL, {"text": "it is done"})


async def _awaits(handle: Any, type: str) -> bool:
    return (await handle.info()).message == f"waiting for event {type}"


async def test_an_unknown_target_is_an_error(running: Running) -> None:
    async with running(writes_mail) as app:
        with pytest.raises(RunNotFoundError, match="there is no run nobody"):
            await app.send_to("nobody", MAIL, {})
        with pytest.raises(RunNotFoundError, match="there is no run"):
            await app.send_to(uuid4(), MAIL, {})
        with pytest.raises(RunNotFoundError, match="there is no run default/nobody"):
            await (await app.start(writes_mail, "nobody", ["a"])).result()


# --- 38: modes ----------------------------------------------------------------------------------------------------------


@workflow
async def confuses(ctx: WorkflowContext, how: str) -> str:
    try:
        if how == "subscribe":
            async with ctx.subscribe(Channel("news", str, mode=ChannelMode.COMPETING)):
                pass
        elif how == "publish":
            await ctx.publish(Channel("news", int, mode=ChannelMode.COMPETING), 1)
        else:
            async with ctx.subscribe(Channel("other", str, mode=ChannelMode.COMPETING)):
                return "free"
    except ChannelModeError as error:
        return error.message
    return "?"


async def test_38_a_channel_has_one_mode(running: Running) -> None:
    """Given a channel with broadcast subscribers, subscribing competing raises a mode conflict; other channels are free."""
    said = "channel 'news' is Broadcast, and is used here as Competing"
    async with running(hears, confuses) as app:
        await app.publish(NEWS, "first")
        for how, says in [("subscribe", said), ("publish", said), ("other", "free")]:
            assert await (await app.start(confuses, how)).result() == says
        with pytest.raises(ChannelModeError, match="is Broadcast"):
            await app.publish(Channel("news", str, mode=ChannelMode.COMPETING), "x")


# --- 40: publish and replay -----------------------------------------------------------------------------------------------


@workflow
async def publishes_and_goes_on(ctx: WorkflowContext) -> str:
    await ctx.publish(NEWS, "once")
    await do_job(1)
    await asyncio.sleep(10)
    return "done"


def test_40_a_publish_at_workflow_level_and_a_replay_make_one_message(sim: Simulation) -> None:
    """(+) Given publish at workflow level and a later replay, then exactly one message."""
    assert sim.crash_everywhere(publishes_and_goes_on) >= 10
    run = sim.start(publishes_and_goes_on)
    sim.advance(1)
    sim.kill()
    run.result()

    assert len(sim._database.event) == 1


async def test_40_on_postgres(running: Running, database: DatabaseSettings) -> None:
    async with running(publishes_and_goes_on) as first:
        handle = await first.start(publishes_and_goes_on.options(id="run"))
        await in_phase(handle, Phase.WAITING, Reason.TIMER)
    async with running(publishes_and_goes_on, name="second") as second:
        await second.handle("run").cancel()  # it is replayed for that
        await in_phase(second.handle("run"), Phase.CANCELLED)

    assert await _count(database, "event", 1)


# --- 41: bytes ------------------------------------------------------------------------------------------------------------


@workflow
async def passes_bytes_on(ctx: WorkflowContext, size: int) -> int:
    async with ctx.subscribe(BYTES) as messages:
        data = (await messages.receive()).data
    return await count_right_bytes(len(data), data[:1000].hex(), data[-1000:].hex())


@workflow
async def publishes_quotes(ctx: WorkflowContext, size: int) -> int:
    """Each is escaped in the JSON of the data, and once more in that of the message."""
    await ctx.publish(Channel("quotes", str), '"' * size)
    return size


@activity
async def count_right_bytes(size: int, first: str, last: str) -> int:
    data = bytes(range(256)) * 4000
    return size if (first, last) == (data[:1000].hex(), data[size - 1000 : size].hex()) else -1


async def test_41_a_megabyte_of_bytes_comes_as_it_was_sent(running: Running) -> None:
    """Given binary data of 1 MB, then history, outbox and messages return the same bytes."""
    data = (bytes(range(256)) * 4000)[:1_000_000]
    async with running(passes_bytes_on, publishes_quotes) as app:
        await app.publish(BYTES, data)
        assert await (await app.start(passes_bytes_on, len(data))).result() == len(data)
        with pytest.raises(PayloadError, match="the limit is"):
            await app.publish(BYTES, b"x" * 1_200_000)
        with pytest.raises(PayloadError, match="a message to channel 'quotes' has"):
            await (await app.start(publishes_quotes, 700_000)).result()
        assert await (await app.start(publishes_quotes, 1)).result() == 1  # nobody waits for what was refused


# --- 43: groups -----------------------------------------------------------------------------------------------------------


@workflow
async def joins(ctx: WorkflowContext, group: str) -> None:
    ctx.join(group)
    ctx.join(group)
    ctx.join("everybody")
    await ctx.wait_event("leave")
    ctx.leave()
    await ctx.wait_event("end")


async def test_43_members_of_a_group_are_listed_once(running: Running) -> None:
    """Given a group, joined members are listed once; leave_all removes only this run."""
    async with running(joins) as app:
        one, other = [await app.start(joins, "room") for _ in range(2)]

        async def are(*handles: Any) -> bool:
            members = [await app.members(group) for group in ("room", "everybody")]
            return members == [sorted(handle.id for handle in handles)] * 2

        await until(lambda: are(one, other), "both have joined")
        await app.send_event("leave", to=one.id)
        await until(lambda: are(other), "one has left")
        await other.cancel()
        await until(are, "who has ended is no member")


@workflow
async def comes_back(ctx: WorkflowContext) -> None:
    ctx.join("a")
    ctx.leave("a")
    ctx.join("a")
    ctx.join("b")
    ctx.leave("b")
    await ctx.wait_event("end")


def test_who_leaves_and_joins_again_in_one_step_is_a_member(sim: Simulation) -> None:
    run = sim.start(comes_back)
    sim.advance(1)

    assert [sim.ask(sim._client.members(group)) for group in ("a", "b")] == [[run.id], []]


# --- what is received -------------------------------------------------------------------------------------------------------


@workflow
async def tells(ctx: WorkflowContext) -> list[Any]:
    async with ctx.subscribe(JOBS) as jobs:
        message = await jobs.receive()
    return [message.data, message.metadata, message.id, message.publisher]


async def test_a_message_has_its_metadata_and_its_publisher(running: Running) -> None:
    async with running(tells, publishes) as app:
        publisher = await app.start(publishes, 1)
        await publisher.result()
        taken = await (await app.start(tells)).result()
        await app.publish(JOBS, 5, id="e5", source="/cron", metadata={"a": 1.5, "b": None})
        outside = await (await app.start(tells)).result()

    assert taken[:2] == [0, {"nth": 0}]
    assert taken[3] == f"run/{publisher.id}"
    assert outside == [5, {"a": 1.5, "b": None}, "e5", "/cron"]


@workflow
async def misuses(ctx: WorkflowContext, how: str) -> None:
    match how:
        case "direct":
            await ctx.publish(MAIL, {})
        case "metadata":
            await ctx.publish(NEWS, "a", metadata={"a": ["b"]})
        case "type":
            await ctx.publish(NEWS, 7)  # type: ignore[arg-type]
        case "closed":
            subscription = ctx.subscribe(NEWS)
            await subscription.receive()
        case "name":
            Channel("")
        case _:
            async with ctx.subscribe(NEWS) as news:
                await news.receive(timeout=timedelta(0))


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("direct", ChannelInvalidError, "is Direct"),
        ("metadata", ChannelInvalidError, "metadata maps names to"),
        ("type", PayloadError, "message to channel 'news'"),
        ("closed", ChannelInvalidError, "is not open"),
        ("name", ChannelInvalidError, "has a name of 1 to 200"),
        ("timeout", Exception, "more than 0 s"),
    ],
)
def test_misuse_says_what_is_wrong(sim: Simulation, how: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        sim.run(misuses, how)
