"""Former iterations are a part of their run: they go with it, and by their own age while it goes on."""

from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from romancy import App, WorkflowContext, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import RomancyError
from romancy.model.run import Phase
from romancy.store.purge import RUNS_MAX
from romancy.store.verify import find_breaches
from romancy.testing import Simulation
from tests.client.test_purge import Age, age

__all__ = ["age"]

SETTINGS = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1)
MONTH = timedelta(days=30)


@workflow
async def fails_in_the_end(ctx: WorkflowContext, number: int, last: int) -> int:
    await ctx.wait_event("com.shop.go")
    if number < last:
        ctx.recur(number + 1, last)
    raise ValueError("the end")


async def rows(database: DatabaseSettings, table: str) -> int:
    connection: Any = await asyncpg.connect(database.url.get_secret_value())
    found: int = await connection.fetchval(f"select count(*) from romancy.{table}")
    await connection.close()
    return found


async def iterated(app: App, *, last: int, events: int) -> Any:
    """A run that has had so many events, one in each iteration."""
    handle = await app.start(fails_in_the_end.options(id="again"), 0, last)
    for nth in range(events):
        await app.send_event("com.shop.go", {"nth": nth}, to=handle.id)
    return handle


async def test_a_run_is_purged_with_its_former_iterations(database: DatabaseSettings, age: Age) -> None:
    """Though they count as Succeeded, and it has failed; for their messages are those of the run."""
    async with App(database, [fails_in_the_end], worker=SETTINGS) as app:
        handle = await iterated(app, last=3, events=4)
        with pytest.raises(ValueError, match="the end"):
            await handle.result(timeout=20)
        await age(MONTH * 2)
        assert await rows(database, "run") == 4

        assert await app.purge(older_than=MONTH, phases=["Succeeded"]) == 0
        assert await app.purge(older_than=MONTH, dry_run=True) == 1
        assert await rows(database, "run") == 4
        assert await find_breaches(database) == []

        assert await app.purge(older_than=MONTH, phases=["Failed"]) == 1
        assert await rows(database, "run") == await rows(database, "history") == await rows(database, "inbox") == 0
    assert await find_breaches(database) == []


async def test_of_a_run_that_goes_on_former_iterations_are_purged_by_their_age(
    database: DatabaseSettings, age: Age
) -> None:
    async with App(database, [fails_in_the_end], worker=SETTINGS) as app:
        handle = await iterated(app, last=3, events=2)
        while await rows(database, "run") < 3 or (await handle.info()).phase is not Phase.WAITING:
            pass
        await age(MONTH * 2)

        assert await app.purge(older_than=MONTH, phases=["Failed"]) == 0
        assert await app.purge(older_than=MONTH, phases=["Succeeded"]) == 2
        assert await find_breaches(database) == []
        for nth in range(2):
            await app.send_event("com.shop.go", {"nth": nth}, to=handle.id)
        with pytest.raises((ValueError, RomancyError), match="the end"):
            await handle.result(timeout=20)
    assert await find_breaches(database) == []


@workflow
async def counts_up(ctx: WorkflowContext, number: int, last: int) -> int:
    if number < last:
        ctx.recur(number + 1, last)
    return number


def test_in_memory_as_well(sim: Simulation) -> None:
    """More iterations than a batch has, and a run beside it that has none."""
    handle, other = sim.start(counts_up, 0, RUNS_MAX + 20), sim.start(counts_up.options(id="other"), 0, 0)
    assert (handle.result(), other.result()) == (RUNS_MAX + 20, 0)
    sim.advance(MONTH * 2)
    client = sim._client

    assert sim.ask(client.purge(older_than=MONTH, phases=["Failed"])) == 0
    assert sim.ask(client.purge(older_than=MONTH)) == 2
    assert sim._database.run == sim._database.history == {}
