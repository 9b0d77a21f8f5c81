"""Relays beside each other: at least once, in the order of each run, and what fails holds up nobody else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from aiohttp import web

from romancy.base.clock import SystemClock
from romancy.base.settings import OutboxSettings
from romancy.errors import StoreUnavailableError
from romancy.model.event import CloudEvent
from romancy.outbox.delivery import Answer, Sink
from romancy.outbox.relay import Relay, relaying
from romancy.store.interface import Emitter
from romancy.store.postgres import PostgresStore
from tests.outbox.sink import StubSink

Emit = Callable[..., Awaitable[Any]]
Rewind = Callable[[float], Awaitable[None]]


@asynccontextmanager
async def relay(store: Any, settings: OutboxSettings) -> AsyncIterator[Relay]:
    make = relaying(settings, SystemClock())
    assert make is not None
    async with make(store) as made:
        yield made


async def until(holds: Callable[[], object], what: str) -> None:
    try:
        async with asyncio.timeout(10):
            while not holds():  # noqa: ASYNC110 - a server of its own decides it
                await asyncio.sleep(0.002)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


async def is_empty(store: PostgresStore) -> None:
    async with asyncio.timeout(10):
        while (await store.backlog()).emitted:  # noqa: ASYNC110 - the database decides it
            await asyncio.sleep(0.005)


async def test_events_of_a_run_arrive_in_order_and_then_nothing_is_left(store: PostgresStore, emit: Emit) -> None:
    async with StubSink() as sink, relay(store, sink.settings()) as ringing:
        for nth in range(45):  # more than one claim takes
            await emit("a", f"a{nth}")
            await emit("b", f"b{nth}")
            if nth % 7 == 0:
                ringing.ring()
        ringing.ring()
        await until(lambda: len(sink.requests) == 90, "all have come")
        await is_empty(store)

    for run in "ab":
        assert [each for each in sink.ids if each.startswith(run)] == [f"{run}{nth}" for nth in range(45)]
    assert await store.claim_emitters(room=9, failing_max=9, lease_seconds=1) == []


async def test_an_event_that_fails_holds_up_its_run_and_no_other(store: PostgresStore, emit: Emit) -> None:
    failures = {"a1": 3}

    def answer(event: CloudEvent) -> int:
        if failures.get(event.id):
            failures[event.id] -= 1
            return 503
        return 202

    async with StubSink(answer) as sink, relay(store, sink.settings()) as ringing:
        await emit("a", "a1", "a2")
        await emit("b", "b1", "b2")
        ringing.ring()
        await until(lambda: len(sink.requests) == 7, "all have come")
        await is_empty(store)

    assert [each for each in sink.ids if each[0] == "a"] == ["a1", "a1", "a1", "a1", "a2"]
    assert [each for each in sink.ids if each[0] == "b"] == ["b1", "b2"]
    assert {request.event.source for request in sink.requests} == {"/a", "/b"}


async def test_what_is_refused_is_dead_at_once_and_later_events_go_on(store: PostgresStore, emit: Emit) -> None:
    async with (
        StubSink(lambda event: 410 if event.id == "a1" else 202) as sink,
        relay(store, sink.settings()) as ringing,
    ):
        run_id = await emit("a", "a1", "a2")
        ringing.ring()
        await is_empty(store)
        [letter] = await store.list_dead_letters("default", limit=9)
        assert (letter.run_id, letter.event.id, letter.attempts) == (run_id, "a1", 1)
        assert letter.failure.startswith("410 Gone")

        sink.answer = lambda _: 202
        assert await store.resend_dead_letter(letter.id)
        ringing.ring()
        await is_empty(store)

    assert sink.ids == ["a1", "a2", "a1"]
    assert await store.list_dead_letters(None, limit=9) == []


@pytest.mark.parametrize(
    ("changes", "passed_seconds"), [({"attempts_max": 3}, 0.0), ({"give_up_seconds": 100.0}, 100.0)]
)
async def test_an_event_is_dead_after_so_many_attempts_or_so_long(
    changes: dict[str, Any], passed_seconds: float, store: PostgresStore, emit: Emit, rewind: Rewind
) -> None:
    async with StubSink(lambda _: 500) as sink, relay(store, sink.settings(**changes)) as ringing:
        await emit("a", "a1")
        ringing.ring()
        await until(lambda: len(sink.requests) == 2, "it was tried twice")
        await rewind(passed_seconds)
        ringing.ring()
        await is_empty(store)

    [letter] = await store.list_dead_letters(None, limit=9)
    assert letter.attempts == len(sink.requests)
    assert letter.attempts == changes.get("attempts_max", letter.attempts)


async def test_a_hundred_that_are_dead_or_fail_delay_a_fresh_one_by_less_than_a_second(
    store: PostgresStore, emit: Emit
) -> None:
    """The issue's own words. What fails is tried again all the time here."""

    def answer(event: CloudEvent) -> int:
        return {"dead": 410, "fail": 500}.get(event.id[:4], 202)

    async with StubSink(answer) as sink, relay(store, sink.settings(backoff_max_seconds=0.01)) as ringing:
        for nth in range(100):
            await emit(f"run{nth}", f"{'dead' if nth % 2 else 'fail'}{nth}", f"after{nth}")
        ringing.ring()
        await until(lambda: len(sink.requests) >= 400, "they have failed, many of them again and again")
        begun_at = asyncio.get_running_loop().time()
        await emit("fresh", "fresh")
        ringing.ring()
        await until(lambda: "fresh" in sink.ids, "the fresh one has come")
        took = next(each.at for each in sink.requests if each.event.id == "fresh") - begun_at

    assert took < 1, f"it took {took:.3f} s"
    assert {each for each in sink.ids if each.startswith("after")} == {f"after{nth}" for nth in range(1, 100, 2)}
    print(f"a fresh event came after {took * 1000:.0f} ms")


async def test_requests_at_once_are_limited_and_those_that_fail_take_half(store: PostgresStore, emit: Emit) -> None:
    now, most = dict.fromkeys(("fail", "good"), 0), dict.fromkeys(("fail", "good", "all"), 0)
    has_failed = set[str]()

    async def send(event: CloudEvent) -> Answer:
        kind = "fail" if event.id in has_failed else "good"
        now[kind] += 1
        most[kind], most["all"] = max(most[kind], now[kind]), max(most["all"], sum(now.values()))
        await asyncio.sleep(0.005)
        now[kind] -= 1
        if event.id.startswith("fail"):
            has_failed.add(event.id)
            return Answer("500")
        return Answer()

    settings = OutboxSettings(at_once=6, backoff_seconds=0.001, backoff_max_seconds=0.001, attempts_max=10)
    made = Relay(store, send, settings, clock=SystemClock(), random=Random(0))
    for nth in range(12):
        await emit(f"f{nth}", f"fail{nth}")
        await emit(f"g{nth}", f"good{nth}")
    running = asyncio.create_task(made.run())
    await is_empty(store)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert most["all"] == 6
    assert most["fail"] == 3
    assert len(await store.list_dead_letters(None, limit=100)) == 12


async def test_the_wish_to_be_left_alone_is_heeded(store: PostgresStore, emit: Emit) -> None:
    def answer(_: CloudEvent) -> web.Response:
        return web.Response(status=429 if len(sink.requests) == 1 else 202, headers={"Retry-After": "1"})

    async with StubSink(answer) as sink, relay(store, sink.settings()) as ringing:
        await emit("a", "a1")
        ringing.ring()
        await is_empty(store)

    first, second = sink.requests
    assert 0.9 < second.at - first.at < 3


async def test_two_relays_share_the_work_and_send_nothing_twice(store: PostgresStore, emit: Emit) -> None:
    async with (
        StubSink() as sink,
        relay(store, sink.settings(at_once=4)) as one,
        relay(store, sink.settings(at_once=4)) as other,
    ):
        for nth in range(40):
            await emit(f"run{nth % 10}", f"{nth}")
            one.ring()
            other.ring()
        await until(lambda: len(sink.requests) >= 40, "all have come")
        await is_empty(store)

    assert sorted(map(int, sink.ids)) == list(range(40))
    for run in range(10):
        assert [int(each) for each in sink.ids if int(each) % 10 == run] == list(range(run, 40, 10))


async def test_what_a_lost_relay_has_claimed_is_sent_by_another_when_its_lease_is_over(
    store: PostgresStore, emit: Emit, rewind: Rewind
) -> None:
    await emit("a", "a1", "a2")
    assert len(await store.claim_emitters(room=1, failing_max=0, lease_seconds=30)) == 1  # and dies

    async with StubSink() as sink, relay(store, sink.settings()) as ringing:
        ringing.ring()
        await emit("b", "b1")
        ringing.ring()
        await until(lambda: sink.ids == ["b1"], "another run's event has come")
        await rewind(31)
        ringing.ring()
        await is_empty(store)

    assert sink.ids == ["b1", "a1", "a2"]


async def test_a_relay_whose_lease_is_over_stops_and_the_answer_it_had_is_of_no_use(
    store: PostgresStore, emit: Emit, rewind: Rewind
) -> None:
    """It may have sent an event that another one sends again: at least once."""
    reached, goes_on = asyncio.Event(), asyncio.Event()

    async def send(event: CloudEvent) -> Answer:
        reached.set()
        await goes_on.wait()
        return Answer()

    await emit("a", "a1", "a2")
    settings = OutboxSettings(timeout_seconds=100)
    slow = Relay(store, send, settings, clock=SystemClock(), random=Random(0))
    running = asyncio.create_task(slow.run())
    await reached.wait()
    await rewind(301)
    async with StubSink() as sink, relay(store, sink.settings()) as ringing:
        ringing.ring()
        await is_empty(store)
        goes_on.set()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert sink.ids == ["a1", "a2"]
    assert (await store.backlog()).emitted == 0


class Away(PostgresStore):
    """Has no answer for so many calls of a kind."""

    settles_away = claims_away = 1

    async def settle_emitters(self, settled: Any) -> tuple[int, int]:
        if self.settles_away:
            self.settles_away -= 1
            raise StoreUnavailableError("away")
        return await super().settle_emitters(settled)

    async def claim_emitters(self, **limits: Any) -> list[Emitter]:
        if self.claims_away:
            self.claims_away -= 1
            raise StoreUnavailableError("away")
        return await super().claim_emitters(**limits)


class NoWait(SystemClock):
    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


async def test_a_store_that_is_away_for_a_moment_costs_no_event(store: PostgresStore, emit: Emit) -> None:
    await emit("a", "a1", "a2")
    async with Away(store.settings) as away, StubSink() as stub, Sink(stub.settings()) as sink:
        made = Relay(away, sink.send, stub.settings(), clock=NoWait(), random=Random(0))
        running = asyncio.create_task(made.run())
        await is_empty(store)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert stub.ids == ["a1", "a2"]


def test_without_a_sink_there_is_no_relay() -> None:
    assert relaying(OutboxSettings(), SystemClock()) is None
