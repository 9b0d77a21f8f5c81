"""Runs tell of themselves, if that is switched on: in the write of the change of their phase, through the same relay."""

from typing import Any

import pytest

from romancy import App, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase
from romancy.testing import Simulation
from tests.cases.conftest import QUICK, in_phase, until
from tests.outbox.sink import StubSink

pytestmark = pytest.mark.usefixtures("verified")


@activity
async def step_of_life(word: str) -> str:
    return word


@workflow
async def lives(ctx: WorkflowContext, how: str) -> dict[str, str]:
    ctx.emit("com.example.first", how)
    await step_of_life(how)
    if how == "waits":
        await ctx.wait_event("com.example.go")
    if how == "fails":
        raise ValueError("it has failed")
    ctx.emit("com.example.last", how)
    return {"how": how}


@workflow
async def lives_again(ctx: WorkflowContext, round_: int) -> int:
    await step_of_life("x")
    if round_ < 2:
        ctx.recur(round_ + 1)
    return round_


def words(sim: Simulation) -> list[str]:
    return [
        each.type.removeprefix("io.serverlessworkflow.workflow.").removeprefix("com.example.") for each in sim.emitted()
    ]


def test_a_run_tells_of_its_start_and_end_around_what_it_emits() -> None:
    with Simulation(tells_lifecycle=True) as sim:
        run = sim.start(lives, "ends")
        assert run.result() == {"how": "ends"}

        assert words(sim) == ["started.v1", "first", "last", "completed.v1"]
        info = run.info()
        started, *_, completed = sim.emitted()
        assert started.source == f"/romancy/default/lives/{info.name}"
        assert started.id == f"{run.id}-started"
        assert info.started_at is not None
        assert started.data == {
            "name": f"{info.name}.default",
            "startedAt": info.started_at.isoformat(),
            "definition": {"name": "lives", "namespace": "default", "version": "1.0.0"},
        }
        assert completed.data["output"] == {"how": "ends"}


def test_a_run_that_fails_is_faulted() -> None:
    with Simulation(tells_lifecycle=True) as sim:
        with pytest.raises(ValueError, match="it has failed"):
            sim.run(lives, "fails")

        assert words(sim) == ["started.v1", "first", "faulted.v1"]
        error = sim.emitted()[-1].data["error"]
        assert error["type"].startswith("https://serverlessworkflow.io/spec/1.0.0/errors/")
        assert "it has failed" in error["detail"]


def test_suspended_and_resumed_are_told_once_each() -> None:
    with Simulation(tells_lifecycle=True) as sim:
        run = sim.start(lives, "waits")
        sim.advance(1)
        for _ in range(2):
            run.suspend()
            sim.advance(1)
            assert run.info().phase is Phase.SUSPENDED
            sim.advance(5000)  # polls
            run.resume()
            sim.advance(1)
        run.suspend()
        sim.advance(1)
        run.cancel()
        sim.until_ended(run.id)

        twice = ["suspended.v1", "resumed.v1"] * 2
        assert words(sim) == ["started.v1", "first", *twice, "suspended.v1", "cancelled.v1"]
        assert len({each.id for each in sim.emitted()}) == 8


def test_an_iteration_is_no_new_run() -> None:
    with Simulation(tells_lifecycle=True) as sim:
        sim.run(lives_again, 1)

        assert words(sim) == ["started.v1", "completed.v1"]


@pytest.mark.parametrize("how", ["ends", "fails"])
def test_it_is_told_wherever_its_process_dies(how: str) -> None:
    with Simulation(tells_lifecycle=True) as sim:
        assert sim.crash_everywhere(lives, how) > 4


def test_without_the_setting_nothing_is_told() -> None:
    with Simulation() as sim:
        sim.run(lives, "ends")

        assert words(sim) == ["first", "last"]


async def test_the_sink_gets_them_in_order(database: DatabaseSettings) -> None:
    async with (
        StubSink() as stub,
        App(database, [lives], worker=QUICK, outbox=stub.settings(lifecycle=True)) as app,
    ):
        handle = await app.start(lives, "waits")
        await in_phase(handle, Phase.WAITING)
        await handle.suspend()
        await in_phase(handle, Phase.SUSPENDED)
        await handle.resume()
        await in_phase(handle, Phase.WAITING)
        await app.send_event("com.example.go")
        await handle.result(timeout=10)

        async def have_come() -> bool:
            return len(stub.requests) == 6

        await until(have_come, "six events")

    types: list[Any] = [request.event.type.rsplit(".", 2)[-2] for request in stub.requests]
    assert types == ["started", "example", "suspended", "resumed", "example", "completed"]
