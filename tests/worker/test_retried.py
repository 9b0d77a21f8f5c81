"""A failed run is retried from its last checkpoint: in the simulator, where time jumps and every crash is played."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from romancy import Channel, ChannelMode, ParentClose, RetryPolicy, WorkflowContext, activity, workflow
from romancy.errors import RetryRefusedError, RunTimedOutError
from romancy.model.history import Kind
from romancy.model.run import Phase
from romancy.testing import Simulation, replay
from romancy.testing.histories import export
from romancy.testing.simulation import SimulatedRun

ONCE = RetryPolicy(max_attempts=1)
THRICE = RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=1))


@activity
async def retried_first(text: str) -> str:
    return f"first {text}"


@activity(retry=THRICE)
async def retried_shaky(text: str) -> str:
    return f"shaky {text}"


@activity(retry=ONCE)
async def retried_other(text: str) -> str:
    return f"other {text}"


@activity
async def retried_reserve(text: str) -> str:
    return f"reserved {text}"


@retried_reserve.compensate
async def retried_release(reservation: str) -> None:
    del reservation


@workflow
async def retried_steps(text: str) -> list[str]:
    return [await retried_first(text), await retried_shaky(text), await retried_other(text)]


def failing(sim: Simulation, *, workflow: Any = retried_steps, times: int = 3) -> SimulatedRun[Any]:
    sim.fail(retried_shaky, OSError("away"), times=times)
    run = sim.start(workflow, "x")
    with pytest.raises(Exception, match=r"."):
        run.result()
    assert run.info().phase is Phase.FAILED
    return run


def test_what_failed_is_asked_for_again_and_what_ended_well_is_not(sim: Simulation) -> None:
    run = failing(sim)

    assert run.retry()

    assert run.result() == ["first x", "shaky x", "other x"]
    assert len(sim.calls(retried_first)) == 1
    assert len(sim.calls(retried_shaky)) == 4
    kinds = [entry.kind for entry in run.history]
    assert kinds == [
        Kind.ACTIVITY_COMPLETED,
        Kind.ACTIVITY_FAILED,
        Kind.RETRIED,
        Kind.ACTIVITY_COMPLETED,
        Kind.ACTIVITY_COMPLETED,
    ]
    shown = run.info()
    assert (shown.phase, shown.failure, shown.output) == (Phase.SUCCEEDED, None, '["first x","shaky x","other x"]')


def test_it_has_all_of_its_attempts_again_and_may_fail_again(sim: Simulation) -> None:
    run = failing(sim, times=5)

    run.retry()
    assert run.result() == ["first x", "shaky x", "other x"]

    assert len(sim.calls(retried_shaky)) == 6


def test_a_run_is_retried_as_often_as_it_fails(sim: Simulation) -> None:
    run = failing(sim, times=9)
    for _ in range(2):
        run.retry()
        with pytest.raises(OSError, match="away"):
            run.result()
    run.retry()

    assert run.result() == ["first x", "shaky x", "other x"]
    numbers = [entry.number for entry in run.history if entry.kind is Kind.ACTIVITY_COMPLETED]
    assert numbers == [1, 2, 300_003]  # none is that of a command that stands no more


def test_twice_is_once(sim: Simulation) -> None:
    run = failing(sim)

    assert run.retry()
    assert not run.retry()
    assert run.result() == ["first x", "shaky x", "other x"]
    assert [entry.kind for entry in run.history].count(Kind.RETRIED) == 1
    with pytest.raises(RetryRefusedError, match=r"is Succeeded; only a run that has Failed"):
        run.retry()


@workflow
async def retried_group(text: str) -> list[str]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each(text)) for each in (retried_first, retried_shaky, retried_other)]
    return [task.result() for task in tasks]


def test_of_a_group_only_what_failed_or_was_given_up_is_asked_for_again(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_group)

    run.retry()

    assert run.result() == ["first x", "shaky x", "other x"]
    assert len(sim.calls(retried_first)) == len(sim.calls(retried_other)) == 1


@workflow
async def retried_gathered(text: str) -> list[str]:
    found = await asyncio.gather(retried_shaky(text), retried_first(text), retried_other(text), return_exceptions=True)
    if failed := [each for each in found if isinstance(each, Exception)]:
        raise ExceptionGroup("some failed", failed)
    return [str(each) for each in found]


def test_all_failures_of_a_group_are_asked_for_again(sim: Simulation) -> None:
    sim.fail(retried_other, ValueError("no"), times=1)
    run = failing(sim, workflow=retried_gathered)

    run.retry()

    assert run.result() == ["shaky x", "first x", "other x"]
    assert len(sim.calls(retried_first)) == 1
    assert len(sim.calls(retried_other)) == 2


@workflow
async def retried_with_care(text: str) -> str:
    try:
        return await retried_shaky(text)
    except OSError as error:
        await retried_other(f"could not: {error}")
        raise


def test_what_was_done_because_of_the_failure_is_forgotten(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_with_care)

    run.retry()

    assert run.result() == "shaky x"
    assert len(sim.calls(retried_other)) == 1


decided = {"is_right": False}


@workflow
async def retried_own(ctx: WorkflowContext, text: str) -> str:
    found = await retried_first(text)
    if not decided["is_right"]:
        raise ValueError("a bug")
    ctx.set_value("found", found)
    return await retried_other(found)


def test_code_that_was_corrected_gets_what_came_last_once_more(sim: Simulation) -> None:
    decided["is_right"] = False
    run = sim.start(retried_own, "x")
    with pytest.raises(ValueError, match="a bug"):
        run.result()

    run.retry()
    with pytest.raises(ValueError, match="a bug"):
        run.result()
    decided["is_right"] = True
    run.retry()

    assert run.result() == "other first x"
    assert len(sim.calls(retried_first)) == 1
    assert sim.ask(sim._client.handle(run.id).values()) == {"found": "first x"}


@workflow
async def retried_slow(text: str) -> str:
    await asyncio.sleep(50)
    return await retried_shaky(text)


def test_a_run_that_used_up_its_time_has_it_anew(sim: Simulation) -> None:
    run = sim.start(retried_slow.options(timeout=timedelta(seconds=30)), "x")
    with pytest.raises(RunTimedOutError):
        run.result()

    run.retry()
    assert run.result() == "shaky x"  # the time of its timers went on


@workflow
async def retried_waits(ctx: WorkflowContext, text: str) -> list[str]:
    async with asyncio.TaskGroup() as group:
        event = group.create_task(ctx.wait_event("retried.paid"))
        shaky = group.create_task(retried_shaky(text))
    return [str(event.result().data), shaky.result()]


@pytest.mark.parametrize("when", ["while it had failed", "afterwards"])
def test_it_waits_for_its_events_again(sim: Simulation, when: str) -> None:
    run = failing(sim, workflow=retried_waits)

    if when == "while it had failed":
        sim.send_event("retried.paid", 7)
    run.retry()
    if when == "afterwards":
        sim.advance(1)
        sim.send_event("retried.paid", 7)

    assert run.result() == ["7", "shaky x"]


JOBS = Channel("retried-jobs", str, mode=ChannelMode.COMPETING)


@workflow
async def retried_takes(ctx: WorkflowContext, text: str) -> list[str]:
    ctx.join("retried")
    async with ctx.subscribe(JOBS) as jobs, asyncio.TaskGroup() as group:
        job = group.create_task(jobs.receive())
        shaky = group.create_task(retried_shaky(text))
    return [job.result().data, shaky.result()]


@workflow
async def retried_gives(ctx: WorkflowContext) -> None:
    await ctx.publish(JOBS, "a job")


def test_it_takes_messages_and_is_a_member_again(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_takes)
    assert sim.ask(sim._client.members("retried")) == []

    run.retry()
    sim.advance(1)
    assert sim.ask(sim._client.members("retried")) == [run.id]
    sim.run(retried_gives)

    assert run.result() == ["a job", "shaky x"]


@workflow
async def retried_saga(text: str) -> str:
    await retried_reserve(text)
    return await retried_shaky(text)


def test_what_was_taken_back_is_not_taken_up(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_saga)

    with pytest.raises(RetryRefusedError, match="has taken back what it had done") as refused:
        run.retry()

    assert refused.value.hint == "start a new run"
    assert run.info().phase is Phase.FAILED


@workflow
async def retried_parent(text: str) -> str:
    return await retried_steps.options(id="retried-child")(text)


@workflow
async def retried_parent_beside(ctx: WorkflowContext, text: str) -> str:
    ctx.start_child(retried_slow.options(id="retried-slow"), text)
    return await retried_shaky(text)


@workflow
async def retried_parent_of_abandoned(ctx: WorkflowContext, text: str) -> str:
    ctx.start_child(retried_slow.options(id="retried-slow", parent_close=ParentClose.ABANDON), text)
    return await retried_shaky(text)


def test_children_run_but_once(sim: Simulation) -> None:
    sim.offer(retried_steps)
    run = failing(sim, workflow=retried_parent)
    with pytest.raises(RetryRefusedError, match="its child run of workflow 'retried_steps' has not succeeded"):
        run.retry()
    child = sim.ask(sim._client.store.find_run("default", "retried-child"))
    assert child is not None
    with pytest.raises(RetryRefusedError, match="is a child, and the run that started it knows that it failed"):
        sim.ask(sim._client.handle(child.id).retry())


def test_children_that_were_cancelled_with_it_forbid_a_retry(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_parent_beside)

    with pytest.raises(RetryRefusedError, match="had child runs open"):
        run.retry()


def test_children_that_go_on_by_themselves_do_not(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_parent_of_abandoned)

    run.retry()

    assert run.result() == "shaky x"


@workflow
async def retried_again_and_again(ctx: WorkflowContext, nth: int) -> str:
    if nth < 2:
        await retried_first(str(nth))
        ctx.recur(nth + 1)
    return await retried_shaky(str(nth))


def test_an_iteration_is_retried_and_a_former_one_is_not(sim: Simulation) -> None:
    sim.fail(retried_shaky, OSError("away"), times=3)
    run = sim.start(retried_again_and_again, 0)
    with pytest.raises(OSError, match="away"):
        run.result()

    run.retry()

    assert run.result() == "shaky 2"


def test_a_run_that_goes_on_or_was_cancelled_is_not_retried(sim: Simulation) -> None:
    run = sim.start(retried_slow, "x")
    sim.advance(1)
    with pytest.raises(RetryRefusedError, match="is Waiting; only a run that has Failed is retried"):
        run.retry()
    run.cancel()
    with pytest.raises(Exception, match="cancelled"):
        run.result()
    with pytest.raises(RetryRefusedError, match="is Cancelled"):
        run.retry()


def test_a_cancel_after_a_retry_is_heard_and_one_before_it_is_not(sim: Simulation) -> None:
    run = failing(sim, workflow=retried_slow)
    run.retry()
    run.cancel("not wanted")

    with pytest.raises(Exception, match="not wanted"):
        run.result()
    assert run.info().phase is Phase.CANCELLED


@pytest.mark.parametrize("code", [retried_steps, retried_group, retried_gathered, retried_with_care])
def test_a_crash_at_any_moment_of_a_retry_changes_nothing(sim: Simulation, code: Any) -> None:
    sim.fail(retried_shaky, OSError("away"), times=3)

    def outside(sim: Simulation, run: SimulatedRun[Any]) -> None:
        sim.until_ended(run.id)
        while run.info().phase is Phase.FAILED:
            run.retry()
            sim.until_ended(run.id)

    sim.play(outside)
    assert sim.crash_everywhere(code, "x") >= 8


def test_a_retried_history_replays(sim: Simulation) -> None:
    run = failing(sim)
    run.retry()
    run.result()

    replay(retried_steps, export(run.info(), run.history))


def test_a_failed_run_that_can_not_be_rebuilt_is_retried_as_well(sim: Simulation) -> None:
    class OddError(Exception):
        def __init__(self, one: object, two: object) -> None:
            super().__init__(f"{one} {two}")
            self.one = object()

    sim.fail(retried_shaky, OddError(1, 2), times=3)
    run = sim.start(retried_group, "x")
    with pytest.raises(Exception, match=r"."):
        run.result()

    run.retry()

    assert run.result() == ["first x", "shaky x", "other x"]
