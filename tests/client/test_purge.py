"""Ended runs are deleted by hand and by their age, and their names are free then."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from romancy import App, Client, activity, workflow
from romancy.base import metrics
from romancy.base.settings import DatabaseSettings, RetentionSettings, WorkerSettings
from romancy.errors import FilterError, RunFailedError, RunNotFoundError
from romancy.store import purge
from romancy.store.verify import find_breaches

SETTINGS = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1)
MONTH = timedelta(days=30)
Age = Callable[[timedelta], Awaitable[None]]


@activity
async def doubled(number: int) -> int:
    if number < 0:
        raise RunFailedError("no", reason="No")
    return 2 * number


@workflow
async def doubles_and_goes(number: int) -> int:
    return await doubled(number)


@pytest.fixture
def age(database: DatabaseSettings) -> Age:
    """Lets the ended runs grow older."""

    async def grow(by: timedelta) -> None:
        connection = await asyncpg.connect(database.url.get_secret_value())
        await connection.execute("update romancy.run set finished_at = finished_at - $1::interval", by)
        await connection.close()

    return grow


async def test_old_runs_are_purged_and_their_names_are_free(database: DatabaseSettings, age: Age) -> None:
    async with App(database, [doubles_and_goes], worker=SETTINGS) as app:
        first = await app.start(doubles_and_goes.options(id="one"), 1)
        assert await first.result() == 2
        await age(timedelta(days=31))
        await (await app.start(doubles_and_goes.options(id="young"), 2)).result()
        await (await app.start(doubles_and_goes.options(id="elsewhere", namespace="shop"), 2)).result()
        assert (await app.start(doubles_and_goes.options(id="one"), 1)).id == first.id  # kept: the same run

        assert await app.purge(older_than=MONTH, dry_run=True) == 1
        assert await first.result() == 2
        before = _purged("Succeeded")
        assert await app.purge(older_than=MONTH) == 1
        assert await app.purge(older_than=MONTH) == 0
        assert _purged("Succeeded") == before + 1

        with pytest.raises(RunNotFoundError):
            await app.handle("one").info()
        assert [run.name async for run in app.list(namespace="*")] == ["elsewhere", "young"]
        again = await app.start(
            doubles_and_goes.options(id="one"), 21
        )  # another input would be refused of the run that was
        assert await again.result() == 42
        assert again.id == first.id
    assert await find_breaches(database) == []


async def test_purged_by_namespace_workflow_and_outcome(database: DatabaseSettings, age: Age) -> None:
    async with App(database, [doubles_and_goes], worker=SETTINGS) as app:
        for name, namespace, number in (("good", "default", 1), ("bad", "default", -1), ("good", "shop", 1)):
            handle = await app.start(doubles_and_goes.options(id=name, namespace=namespace), number)
            await asyncio.gather(handle.result(), return_exceptions=True)
        await age(MONTH * 2)

        assert await app.purge(older_than=MONTH, workflow="other", namespace="*") == 0
        assert await app.purge(older_than=MONTH, phases=["Cancelled"]) == 0
        assert await app.purge(older_than=MONTH, phases=["Failed"]) == 1
        assert await app.purge(older_than=MONTH, dry_run=True) == 1
        assert await app.purge(older_than=MONTH, namespace="*") == 2
        assert await app.list(namespace="*") == []


async def test_what_can_t_be_purged_is_said(database: DatabaseSettings) -> None:
    async with Client(database) as client:
        with pytest.raises(FilterError, match="Running: only ended runs are purged"):
            await client.purge(older_than=MONTH, phases=["Running", "Failed"])
        with pytest.raises(FilterError, match="no phase: only ended runs"):
            await client.purge(older_than=MONTH, phases=[])
        with pytest.raises(FilterError, match="10 minutes to 100 years"):
            await client.purge(older_than=timedelta(seconds=599))
        with pytest.raises(FilterError, match="10 minutes to 100 years"):
            await client.purge(older_than=timedelta.max)


async def test_workers_purge_where_there_is_no_leader(
    database: DatabaseSettings, age: Age, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(purge, "EVERY_SECONDS", 0.2)
    monkeypatch.setattr(purge, "GATE_SECONDS", 0.1)
    kept = RetentionSettings(succeeded_seconds=86_400)
    async with App(database, [doubles_and_goes], worker=SETTINGS, retention=kept) as app:
        await (await app.start(doubles_and_goes.options(id="old"), 1)).result()
        with pytest.raises(RunFailedError):
            await (await app.start(doubles_and_goes.options(id="failed"), -1)).result()
        await age(timedelta(days=2))
        await (await app.start(doubles_and_goes.options(id="young"), 2)).result()
        async with asyncio.timeout(10):
            while "old" in {run.name for run in await app.list()}:  # noqa: ASYNC110 - another process could do it
                await asyncio.sleep(0.05)

        assert [run.name for run in await app.list()] == ["young", "failed"]


def _purged(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("romancy_runs_purged_total", {"outcome": outcome}) or 0.0


def test_a_retention_too_short_is_refused() -> None:
    bad: Any = {"succeeded_seconds": 599}
    with pytest.raises(ValueError, match=r"must be 0 \(for ever\) or at least 600, not 599"):
        RetentionSettings.model_validate(bad)
