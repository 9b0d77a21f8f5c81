"""Programs with real workers on one database."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import pytest

from romancy import App, Handle
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.model.run import Phase, Reason, Run
from romancy.sdk.workflow import Workflow
from romancy.store.verify import find_breaches
from tests.chaos.conftest import fleet

__all__ = ["fleet"]

QUICK = WorkerSettings(name="w", lease_seconds=3, poll_seconds=1, park_after_seconds=0.05)
Running = Callable[..., AbstractAsyncContextManager[App]]


@pytest.fixture
def running(database: DatabaseSettings) -> Running:
    """Opens a program with these workflows."""

    def open_app(*workflows: Workflow[..., Any], name: str = "w") -> App:
        return App(database, workflows, worker=QUICK.model_copy(update={"name": name}))

    return open_app


@pytest.fixture
async def verified(database: DatabaseSettings) -> Any:
    """After the test the database says that all holds."""
    yield
    assert await find_breaches(database) == []


async def until(holds: Callable[[], Awaitable[object]], what: str, *, seconds: float = 10) -> None:
    """Ask until it holds."""
    end = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < end, f"never: {what}"
        await asyncio.sleep(0.01)


async def subscribed(app: App, handle: Handle[Any]) -> Run:
    """Wait until a run waits for an event, and whoever sends one finds it at once."""
    connection = await asyncpg.connect(app.store.settings.url.get_secret_value())

    async def is_there() -> bool:
        return bool(
            await connection.fetchval("select exists (select from romancy.subscription where run_id = $1)", handle.id)
        )

    run = await in_phase(handle, Phase.WAITING, Reason.EVENT)
    await until(is_there, "it has subscribed")
    await connection.close()
    return run


async def in_phase(handle: Handle[Any], phase: Phase, reason: str | None = None) -> Run:
    """Wait until a run is there."""

    async def is_there() -> bool:
        run = await handle.info()
        return run.phase is phase and reason in (None, run.reason)

    await until(is_there, f"the run is {phase} {reason or ''}")
    return await handle.info()
