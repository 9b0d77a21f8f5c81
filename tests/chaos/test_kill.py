"""kill -9 at every kind of moment: afterwards the run ends as if nothing had been."""

import signal
import time

import pytest

from romancy.errors import RunCancelledError
from romancy.model.run import Phase, Reason
from tests.chaos import flows
from tests.chaos.fleet import Fleet
from tests.proxy import Mode, proxy_to

pytestmark = pytest.mark.slow


async def test_killed_during_an_activity(fleet: Fleet) -> None:
    await fleet.start("a")
    fleet.open("one", "three")
    handle = await fleet.client.start(flows.three_steps)
    await fleet.did("begin two")

    fleet.processes["a"].kill()
    await fleet.start("b")
    fleet.open("two")

    assert await handle.result(timeout=20) == ["one", "two", "three"]
    assert fleet.log() == ["begin one", "end one", "begin two", "begin two", "end two", "begin three", "end three"]


async def test_killed_after_the_result_was_committed_but_before_the_answer(fleet: Fleet) -> None:
    """The flush is applied and unheard: the activity must not run again."""
    async with proxy_to(fleet.database) as (proxy, settings):
        await fleet.start("a", url=settings.url.get_secret_value())
        fleet.open("two", "three")
        handle = await fleet.client.start(flows.three_steps)
        await fleet.did("begin one")
        fault = proxy.fail(Mode.ANSWER_HELD, "flush_entries")
        fleet.open("one")
        await fault.happened.wait()
        run_id = (await handle.info()).id

        async def is_committed() -> bool:
            return len(await fleet.client.store.read_history(run_id)) == 1

        await fleet.until(is_committed, "the flush is committed")
        assert fleet.log() == ["begin one", "end one"]  # it goes on only with the answer (I4)
        fleet.processes["a"].kill()
    await fleet.start("b")

    assert await handle.result(timeout=20) == ["one", "two", "three"]
    assert fleet.log().count("begin one") == 1


async def test_killed_between_activities(fleet: Fleet) -> None:
    """The first result is durable, the second activity has not begun: its worker was killed in between."""
    async with proxy_to(fleet.database) as (proxy, settings):
        await fleet.start("a", url=settings.url.get_secret_value())
        handle = await fleet.client.start(flows.three_steps)
        await fleet.did("begin one")
        fault = proxy.fail(Mode.ANSWER_HELD, "flush_entries")
        fleet.open("one", "two", "three")
        await fault.happened.wait()
        fleet.processes["a"].kill()
    await fleet.start("b")

    assert await handle.result(timeout=20) == ["one", "two", "three"]
    assert [fleet.log().count(f"end {label}") for label in ("two", "three")] == [1, 1]


async def test_killed_while_waiting_for_a_timer(fleet: Fleet) -> None:
    await fleet.start("a")
    fleet.open("before", "after")
    started = time.monotonic()
    handle = await fleet.client.start(flows.step_timer_step, 3.0)
    run = await handle.info()

    async def is_parked() -> bool:
        return (await handle.info()).phase is Phase.WAITING

    await fleet.until(is_parked, "the run is parked")
    parked = await handle.info()
    fleet.processes["a"].kill()
    await fleet.start("b")

    assert await handle.result(timeout=20) == ["before", "after"]
    assert time.monotonic() - started >= 3.0  # the deadline was fixed when the timer was set
    assert (parked.reason, parked.worker) == (Reason.TIMER, None)
    assert "waiting for a timer until" in parked.message
    assert fleet.log() == ["begin before", "end before", "begin after", "end after"]
    assert run.id == parked.id


async def test_killed_in_the_middle_of_compensations(fleet: Fleet) -> None:
    await fleet.start("a")
    fleet.open("reserve-a", "reserve-b", "reserve-c", "release-c")
    handle = await fleet.client.start(flows.saga)
    await fleet.did("begin release reserved b")
    assert (await handle.info()).phase is Phase.COMPENSATING

    fleet.processes["a"].kill()
    await fleet.start("b")
    fleet.open("release-b", "release-a")

    with pytest.raises(ValueError, match="payment declined"):
        await handle.result(timeout=20)
    assert [line for line in fleet.log() if line.startswith("end release")] == [
        f"end release reserved {item}" for item in "cba"
    ]
    assert fleet.log().count("decline") == 1
    assert fleet.log().count("begin release reserved c") == 1


async def test_a_run_is_cancelled_while_no_worker_lives(fleet: Fleet) -> None:
    await fleet.start("a")
    fleet.open("reserve-a")
    handle = await fleet.client.start(flows.saga)
    await fleet.did("begin reserve b")
    fleet.processes["a"].kill()
    assert await handle.cancel("not wanted any more")

    await fleet.start("b")
    fleet.open("reserve-b", "release-a", "release-b")

    with pytest.raises(RunCancelledError, match="not wanted any more"):
        await handle.result(timeout=20)
    # b was running when its worker died: it is run again to learn its result, which is then taken back.
    assert [line for line in fleet.log() if line.startswith("end re")] == [
        "end reserve a",
        "end reserve b",
        "end release reserved b",
        "end release reserved a",
    ]


async def test_a_run_that_kills_its_process_is_blocked_and_takes_nobody_with_it(fleet: Fleet) -> None:
    fleet.open("harmless")
    killer = await fleet.client.start(flows.killer)
    innocent = await fleet.client.start(flows.wait_and_report.options(id="innocent"), "y")
    lives = 0

    async def is_blocked() -> bool:
        return (await killer.info()).phase is Phase.BLOCKED

    while not await is_blocked():
        lives += 1
        assert lives <= 8
        if lives == 3:  # it was in the hands of two workers that died: it must not be blamed
            fleet.open(*(f"y-{number}" for number in range(3)))
        process = await fleet.start(f"life-{lives}")
        await fleet.until(
            lambda process=process: process.popen.poll() is not None or is_blocked(), "it dies or the run is blocked"
        )
    if all(process.popen.poll() is not None for process in fleet.processes.values()):
        await fleet.start("last")

    assert await innocent.result(timeout=20) == "y-0,y-1,y-2 in innocent"
    run = await killer.info()
    assert (run.phase, run.reason) == (Phase.BLOCKED, Reason.WORKER_LOST)
    assert fleet.log().count("kill") == 5
    assert fleet.log().count("begin harmless") == 1
    assert "5" in run.message


async def test_sigterm_hands_over_within_a_second(fleet: Fleet) -> None:
    """What only waits is released at once; what runs may end within the grace period."""
    await fleet.start("a")
    fleet.open("before")
    waits = await fleet.client.start(flows.step_timer_step.options(id="waits"), 0.9)
    runs = await fleet.client.start(flows.three_steps)
    await fleet.did("begin one")
    await fleet.did("end before")
    await fleet.start("b")
    fleet.open("after", "two", "three")

    fleet.processes["a"].signal(signal.SIGTERM)
    asked_at = time.monotonic()
    assert await waits.result(timeout=20) == ["before", "after"]
    waited = time.monotonic() - asked_at
    fleet.open("one")

    assert await runs.result(timeout=20) == ["one", "two", "three"]
    assert waited < 2.5, f"handed over after {waited:.2f} s"
    assert fleet.processes["a"].popen.wait(10) == 0
    assert fleet.log().count("begin one") == 1
    assert fleet.log().count("begin two") == 1


async def test_a_process_whose_loop_is_stuck_ends_with_the_stack_that_blocks_it(fleet: Fleet) -> None:
    """It goes on renewing for a while: a blocked loop is no dead process at once."""
    await fleet.start("a", ROMANCY_WORKER__LOOP_STUCK_SECONDS="3")
    handle = await fleet.client.start(flows.blocks_once)
    await fleet.did("block")
    process = fleet.processes["a"]
    await fleet.until(lambda: process.popen.poll() is not None, "the process ends")
    await fleet.start("b")

    assert await handle.result(timeout=20) == "went on"
    assert process.popen.returncode == 70
    text = process.log.read_text()
    assert "loop_stuck" in text
    assert "in block_the_loop" in text
