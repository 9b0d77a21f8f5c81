"""Two relays, and kill -9 of the one that has claimed: each event is sent, in the order of its run."""

import asyncio

import pytest

from tests.chaos import flows
from tests.chaos.fleet import Fleet
from tests.outbox.sink import StubSink

pytestmark = pytest.mark.slow


async def test_the_events_of_a_killed_relay_are_sent_by_another(fleet: Fleet) -> None:
    """It dies while its second event is on the way: what it has not settled is sent twice, and nothing out of order."""
    reached, goes_on = asyncio.Event(), asyncio.Event()

    async with StubSink() as stub:

        async def hold(data: object) -> None:
            if data == 1 and not goes_on.is_set():
                reached.set()
                await goes_on.wait()

        stub.before_answer = lambda event: hold(event.data)
        sink = {"ROMANCY_OUTBOX__SINK_URL": stub.url, "ROMANCY_OUTBOX__TIMEOUT_SECONDS": "1"}
        await fleet.start("a", **sink)
        fleet.open("counted")
        handle = await fleet.client.start(flows.emits_five)
        await asyncio.wait_for(reached.wait(), 20)

        fleet.processes["a"].kill()
        goes_on.set()
        await fleet.start("b", **sink)
        await handle.result(timeout=20)

        async def is_empty() -> bool:
            return len(set(stub.ids)) == 5 and (await fleet.client.store.backlog()).emitted == 0

        await fleet.until(is_empty, "nothing is left")

    found = [request.event.data for request in stub.requests]
    assert found[:2] == [0, 1]
    assert found[2] in (0, 1)  # what was sent and not settled
    assert found[2:] == list(range(found[2], 5))
    assert len(set(stub.ids)) == 5
