"""Processes that are stopped past their lease and go on: they write nothing, drop their runs and register anew (I2)."""

import asyncio
import signal
import time
from typing import Any

import pytest

from romancy import Handle
from tests.chaos import flows
from tests.chaos.fleet import Fleet, Process
from tests.proxy import Mode, proxy_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


async def registers_anew(fleet: Fleet, zombie: Process) -> None:
    """Let the zombie go on, and wait until it has begun another life."""
    lives = zombie.log.read_text().count("worker_registered")
    zombie.signal(signal.SIGCONT)
    await fleet.until(
        lambda: zombie.log.read_text().count("worker_registered") > lives, "the zombie registers anew", zombie
    )


async def positions(fleet: Fleet, handle: Handle[Any]) -> list[int]:
    return [entry.position for entry in await fleet.client.store.read_history((await handle.info()).id)]


async def test_stopped_between_two_statements(fleet: Fleet) -> None:
    """The plain case: nothing is on its way. That its loop has not turned for long says nothing against it."""
    await asyncio.gather(*(fleet.start(name, ROMANCY_WORKER__LOOP_STUCK_SECONDS="2.5") for name in ("a", "b")))
    handle = await fleet.client.start(flows.three_steps)
    await fleet.did("begin one")
    zombie = await fleet.holder(await handle.info())
    [heir] = [process for process in fleet.processes.values() if process is not zombie]
    stopped_at = time.monotonic()
    zombie.signal(signal.SIGSTOP)

    async def is_with_the_heir() -> bool:
        return (await handle.info()).worker == heir.name and time.monotonic() > stopped_at + 3

    await fleet.until(is_with_the_heir, "the other takes the run over")
    await registers_anew(fleet, zombie)
    fleet.open("one", "two", "three")

    assert await handle.result(timeout=20) == ["one", "two", "three"]
    assert await positions(fleet, handle) == [1, 2, 3]
    assert [fleet.log().count(f"end {label}") for label in ("two", "three")] == [1, 1]


async def test_stopped_inside_the_transaction_of_a_flush(fleet: Fleet) -> None:
    """Its entry is written and not committed: the burial ends its backend, which would hold the fence row for ever."""
    async with proxy_to(fleet.database) as (proxy, settings):
        zombie = await fleet.start("a", url=settings.url.get_secret_value())
        handle = await fleet.client.start(flows.three_steps)
        await fleet.did("begin one")
        fault = proxy.fail(Mode.COMMIT_HELD, "flush_entries")
        fleet.open("one")
        await fault.happened.wait()
        zombie.signal(signal.SIGSTOP)
        assert await positions(fleet, handle) == []

        await fleet.start("b")
        fleet.open("two", "three")
        assert await handle.result(timeout=20) == ["one", "two", "three"]

        fault.release.set()
        await registers_anew(fleet, zombie)
        assert await positions(fleet, handle) == [1, 2, 3]
        assert fleet.log().count("begin one") == 2  # whether it was done nobody could know
        assert [fleet.log().count(f"begin {label}") for label in ("two", "three")] == [1, 1]


async def test_stopped_between_the_commit_of_a_claim_and_its_answer(fleet: Fleet) -> None:
    """It hears of a claim that has been taken from it since: it must not begin what is done already."""
    fleet.open("one", "two", "three")
    handle = await fleet.client.start(flows.three_steps)
    async with proxy_to(fleet.database) as (proxy, settings):
        fault = proxy.fail(Mode.ANSWER_HELD, "claim_runs")
        zombie = await fleet.start("a", url=settings.url.get_secret_value())
        await fault.happened.wait()
        assert (await handle.info()).worker == "a"
        zombie.signal(signal.SIGSTOP)

        await fleet.start("b")
        assert await handle.result(timeout=20) == ["one", "two", "three"]

        fault.release.set()
        await registers_anew(fleet, zombie)
        assert await positions(fleet, handle) == [1, 2, 3]
        assert fleet.log() == [f"{what} {label}" for label in ("one", "two", "three") for what in ("begin", "end")]


async def _is_buried(fleet: Fleet, name: str) -> bool:
    return name not in [worker.name for worker in await fleet.workers()]


async def test_stopped_while_it_buries_another(fleet: Fleet) -> None:
    """Its open transaction holds the rows of the dead and their runs, and says nothing of who holds them."""
    await fleet.start("dead")
    handle = await fleet.client.start(flows.three_steps)
    await fleet.did("begin one")
    async with proxy_to(fleet.database) as (proxy, settings):
        fault = proxy.fail(Mode.COMMIT_HELD, "free_runs")
        zombie = await fleet.start("a", url=settings.url.get_secret_value())
        fleet.processes["dead"].kill()
        await fault.happened.wait()
        zombie.signal(signal.SIGSTOP)

        heir = await fleet.start("b")
        fleet.open("one", "two", "three")
        assert await handle.result(timeout=20) == ["one", "two", "three"]
        assert "lease_renewal_failed" not in heir.log.read_text()

        # It holds no run, so the run's end says nothing of it: let go before it is buried, it would just live on.
        await fleet.until(lambda: _is_buried(fleet, "a"), "the zombie is buried")
        fault.release.set()
        await registers_anew(fleet, zombie)
        assert await positions(fleet, handle) == [1, 2, 3]
        assert fleet.log().count("begin one") == 2
