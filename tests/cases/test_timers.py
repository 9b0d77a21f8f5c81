"""Case 34: a timer is a row, fires once, and when it fires was decided when it was set."""

import asyncio
from datetime import timedelta

import pytest

from romancy import WorkflowContext, activity, workflow
from romancy.model.history import Kind
from romancy.model.run import Phase, Reason
from romancy.testing import Simulation
from tests.cases.conftest import Running, in_phase

pytestmark = pytest.mark.usefixtures("verified")

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


@activity(name="timers.ring")
async def ring(what: str) -> str:
    calls.append(what)
    return what


@workflow(name="timers.naps")
async def naps(ctx: WorkflowContext, name: str, seconds: float) -> str:
    await ring(f"{name} sleeps")
    await ctx.sleep(seconds)
    return await ring(f"{name} wakes")


async def test_34_a_sleep_ends_once_though_two_look(running: Running) -> None:
    """Given sleep(1), then waiting_for_timer, and after expiry it resumes once even with two pollers."""
    async with running(naps, name="one") as one, running(naps, name="two") as two:
        handles = [await (one, two)[nth % 2].start(naps, str(nth), 1.0) for nth in range(20)]
        waiting = [await in_phase(handle, Phase.WAITING, Reason.TIMER) for handle in handles[:2]]
        results = await asyncio.gather(*(handle.result(timeout=20) for handle in handles))
        histories = [await one.store.read_history(run.id) for run in waiting]

    assert results == [f"{nth} wakes" for nth in range(20)]
    assert sorted(calls) == sorted(f"{nth} {what}" for nth in range(20) for what in ("sleeps", "wakes"))
    for run, history in zip(waiting, histories, strict=True):
        first, fired, last = history
        assert (first.kind, fired.kind, last.kind) == (
            Kind.ACTIVITY_COMPLETED,
            Kind.TIMER_FIRED,
            Kind.ACTIVITY_COMPLETED,
        )
        assert run.wake_at == first.at + timedelta(seconds=1)
        assert run.message.startswith("waiting for a timer until ")
        assert fired.at >= run.wake_at
        assert run.worker is None  # nobody holds it meanwhile


async def test_34_its_time_is_that_of_the_first_run(running: Running) -> None:
    """Given the same, then the expiry time is fixed at the first run: another worker replays it and changes nothing."""
    async with running(naps, name="first") as first:
        handle = await first.start(naps.options(id="run"), "a", 3600.0)
        before = await in_phase(handle, Phase.WAITING, Reason.TIMER)
    async with running(naps, name="second") as second:
        again = second.handle("run")
        await again.suspend()
        await in_phase(again, Phase.SUSPENDED)
        await again.resume()
        after = await in_phase(again, Phase.WAITING, Reason.TIMER)
        await again.cancel()
        await in_phase(again, Phase.CANCELLED)

    assert before.wake_at is not None
    assert after.wake_at == before.wake_at
    assert calls == ["a sleeps"]


def test_34_crashes_and_waits_do_not_put_it_off(sim: Simulation) -> None:
    run = sim.start(naps, "a", 3600.0)
    began_at = sim.now()
    for _ in range(5):
        sim.advance(600)
        sim.kill()
    assert run.result() == "a wakes"

    assert (sim.now() - began_at).total_seconds() == pytest.approx(3600, abs=1)
    assert sim.calls(ring) == [{"what": "a sleeps"}, {"what": "a wakes"}]


def test_34_whatever_crashes(sim: Simulation) -> None:
    assert sim.crash_everywhere(naps, "a", 60.0) >= 6
