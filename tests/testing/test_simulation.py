"""The fixture `sim`: what its users write, on the workflows that they are shown."""

import asyncio
import time
from datetime import timedelta

import pytest

from romancy import RetryPolicy, WorkflowContext, activity, workflow
from romancy.errors import DefinitionError, RunCancelledError, WorkerLostError
from romancy.testing import Simulation
from romancy.testing.simulation import Crash
from workflows.order_saga import (
    Order,
    PaymentDeclinedError,
    book_parcel,
    cancel_parcel,
    charge_card,
    order_saga,
    release_stock,
    reserve_stock,
)

ORDER = Order(id="o1", sku="s", amount=3, card="visa")


def test_a_result_and_the_calls_that_led_to_it(sim: Simulation) -> None:
    receipt = sim.run(order_saga, ORDER)

    assert receipt.parcel == "parcel-o1"
    assert sim.calls(reserve_stock) == [{"order": ORDER}]
    assert sim.calls(release_stock) == []


def test_a_failure_takes_back_what_was_done(sim: Simulation) -> None:
    sim.fail(charge_card, PaymentDeclinedError("no"))
    run = sim.start(order_saga, ORDER)

    with pytest.raises(PaymentDeclinedError, match="no"):
        run.result()

    assert [entry.name for entry in run.history][-2:] == [cancel_parcel.name, release_stock.name]
    assert run.info().phase == "Failed"


def test_a_fake_is_called_instead(sim: Simulation) -> None:
    sim.fake(charge_card, lambda order: f"fake-{order.id}")

    assert sim.run(order_saga, ORDER).payment == "fake-o1"


@activity(
    retry=RetryPolicy(max_attempts=0, initial_interval=timedelta(hours=1), max_interval=timedelta(days=1), jitter=0)
)
def ask_bank(order: str) -> str:
    return f"{order}: yes"


@workflow(name="sim.patient")
async def patient(ctx: WorkflowContext, order: str) -> str:
    answer = await ask_bank(order)
    await asyncio.sleep(30 * 86400)
    return f"{answer} after {(ctx.now() - ctx.info.started_at).days} days"


def test_a_month_takes_no_time_and_failures_are_scripted(sim: Simulation) -> None:
    sim.fail(ask_bank, ConnectionError("away"), times=3)
    began = time.monotonic()

    assert sim.run(patient, "o1") == "o1: yes after 30 days"

    assert time.monotonic() - began < 5
    assert len(sim.calls(ask_bank)) == 4
    assert sim.now().month == 1


@workflow(name="sim.forever")
async def forever() -> None:
    await asyncio.Event().wait()


def test_what_comes_from_outside(sim: Simulation) -> None:
    run = sim.start(patient, "o1")
    sim.advance(timedelta(days=1))
    run.suspend()
    sim.advance(timedelta(days=99))
    assert run.info().phase == "Suspended"
    run.resume()
    assert run.result() == "o1: yes after 100 days"

    cancelled = sim.start(patient, "o2")
    sim.advance(60)
    assert cancelled.cancel("not wanted")
    with pytest.raises(RunCancelledError, match="not wanted"):
        cancelled.result()


def test_a_run_that_nothing_moves_is_said(sim: Simulation) -> None:
    with pytest.raises(AssertionError, match="does not move by itself"):
        sim.run(forever)


def test_a_process_is_killed_and_another_goes_on(sim: Simulation) -> None:
    run = sim.start(patient, "o1")
    sim.advance(timedelta(days=2))
    sim.kill()

    assert run.result() == "o1: yes after 30 days"
    assert (sim.deaths, len(sim.calls(ask_bank))) == (1, 1)


def test_a_crash_at_every_step_changes_nothing(sim: Simulation) -> None:
    assert sim.crash_everywhere(order_saga, ORDER) == 6
    sim.fail(charge_card, PaymentDeclinedError("no"))
    assert sim.crash_everywhere(order_saga, ORDER) == 10


counted: list[int] = []


@activity
async def counts() -> int:
    counted.append(1)
    return len(counted)


@workflow(name="sim.impure")
async def impure() -> int:
    return await counts() + await counts()


def test_a_crash_that_changes_something_is_found(sim: Simulation) -> None:
    """An activity whose result depends on how often it was called: what ran and was not saved runs again."""
    with pytest.raises(AssertionError, match="crash at save 1, before it was applied: it ended as"):
        sim.crash_everywhere(impure)


def test_an_activity_that_may_be_tried_but_once_may_be_lost() -> None:
    """The card is charged at most once: a run whose process died meanwhile fails, and takes back the rest."""
    with Simulation(crash=Crash(2, is_applied=False)) as disturbed:
        run = disturbed.start(order_saga, ORDER)
        with pytest.raises(WorkerLostError):
            run.result()
        assert [entry.name for entry in run.history][-2:] == [cancel_parcel.name, release_stock.name]
        assert len(disturbed.calls(charge_card)) == 1


def test_two_workflows_of_one_name_are_told_apart(sim: Simulation) -> None:
    @workflow(name="sim.forever")
    async def another() -> int:
        return 1

    sim.start(forever)
    with pytest.raises(DefinitionError, match=r"two workflows are named 'sim\.forever'"):
        sim.start(another)
    sim.start(forever.options(id="the-same-with-options"))


@activity(retry=RetryPolicy(max_attempts=2, initial_interval=timedelta(0)))
async def tried_twice() -> int:
    return 1


@workflow(name="sim.loses")
async def loses() -> int:
    await tried_twice()
    if len(counted) > 1:  # as no workflow should: another process finds it changed
        raise WorkerLostError
    counted.append(1)
    return 1


def test_a_loss_that_has_no_such_activity_is_no_excuse(sim: Simulation) -> None:
    counted.clear()
    with pytest.raises(AssertionError, match="and undisturbed as"):
        sim.crash_everywhere(loses)


def test_a_plain_activity_has_a_plain_fake(sim: Simulation) -> None:
    async def answer(order: str) -> str:
        return order

    with pytest.raises(DefinitionError, match="plain function"):
        sim.fake(ask_bank, answer)


def test_a_thousand_crashes_take_seconds() -> None:
    """A time, in CPU: the machine may be busy with something else."""
    began = time.process_time()
    played = 0
    while played < 100:
        with Simulation() as sim:
            sim.fail(charge_card, PaymentDeclinedError("no"))
            played += sim.crash_everywhere(order_saga, ORDER)
    seconds = (time.process_time() - began) / played * 1000

    print(f"1,000 order sagas with a crash each: {seconds:.1f} s of CPU")
    assert seconds < 20
    assert book_parcel.compensation is cancel_parcel
