"""Case 58: middleware hears of each leg and each attempt once, with the names filled, and of nothing that is replayed."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from romancy import NO_RETRY, App, Leg, Middleware, RetryPolicy, WorkflowContext, activity, workflow
from romancy.base.settings import DatabaseSettings, load
from romancy.errors import DefinitionError, RunCancelledError
from romancy.model.run import Phase
from romancy.sdk.activity import ActivityInfo
from romancy.worker.loader import load_middleware
from tests.cases.conftest import QUICK, in_phase

pytestmark = pytest.mark.usefixtures("verified")

CONTEXT: ContextVar[str] = ContextVar("middleware_context", default="none")
SOON = RetryPolicy(max_attempts=3, initial_interval=timedelta(milliseconds=5))


class Heard(Middleware):
    """Writes down what it is called with."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.legs: list[Leg] = []

    @contextmanager
    def run(self, leg: Leg) -> Iterator[None]:
        self.legs.append(leg)
        self.lines.append(f"leg {leg.claim} of {leg.run.workflow}")
        CONTEXT.set(f"leg {leg.claim}")
        yield
        self.lines.append(f"{leg.run.workflow} {leg.ended}")

    @contextmanager
    def activity(self, attempt: ActivityInfo) -> Iterator[None]:
        line = f"{attempt.activity}#{attempt.number} attempt {attempt.attempt} in {CONTEXT.get()}"
        try:
            yield
        except BaseException as error:
            self.lines.append(f"{line}: {type(error).__name__}")
            raise
        self.lines.append(line)

    def labels(self) -> Mapping[str, str]:
        return {"team": "middle", "shift": "late"}


class Broken(Middleware):
    """Raises wherever it can, and would swallow exceptions."""

    def run(self, leg: Leg) -> AbstractContextManager[object]:
        raise RuntimeError("run")

    @contextmanager
    def activity(self, attempt: ActivityInfo) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise RuntimeError("another") from error
        raise RuntimeError("at the end")

    def labels(self) -> Mapping[str, str]:
        raise RuntimeError("labels")


class Swallows(Middleware):
    @contextmanager
    def activity(self, attempt: ActivityInfo) -> Iterator[None]:
        with suppress(Exception):
            yield


@activity(retry=SOON)
async def fails_once_in_the_middle() -> str:
    if activity_info().attempt == 1:
        raise ValueError("once")
    return CONTEXT.get()


def activity_info() -> Any:
    return activity.info()


@activity(retry=NO_RETRY)
def in_a_thread_in_the_middle() -> str:
    return CONTEXT.get()


@activity(retry=NO_RETRY)
async def fails_in_the_middle() -> None:
    raise ValueError("always")


@workflow
async def stands_in_the_middle(ctx: WorkflowContext, how: str) -> list[str]:
    found = [await fails_once_in_the_middle()]
    await ctx.wait_event("com.example.on")
    found.append(await in_a_thread_in_the_middle())
    if how == "fails":
        await fails_in_the_middle()
    if how == "waits":
        await asyncio.sleep(1000)
    return found


async def test_each_leg_and_each_attempt_is_heard_of_once(database: DatabaseSettings) -> None:
    heard = Heard()
    async with App(database, [stands_in_the_middle], worker=QUICK, middleware=[heard]) as app:
        handle = await app.start(stands_in_the_middle.options(labels={"shift": "early"}), "ends")
        await in_phase(handle, Phase.WAITING)
        await app.send_event("com.example.on")

        assert await handle.result(timeout=10) == ["leg 1", "leg 2"]
        assert dict((await handle.info()).labels) == {"team": "middle", "shift": "early"}

    assert heard.lines == [
        "leg 1 of stands_in_the_middle",
        "fails_once_in_the_middle#1 attempt 1 in leg 1: ValueError",
        "fails_once_in_the_middle#1 attempt 2 in leg 1",
        "stands_in_the_middle Parked",
        "leg 2 of stands_in_the_middle",
        "in_a_thread_in_the_middle#2 attempt 1 in leg 2",
        "stands_in_the_middle Succeeded",
    ]
    first = heard.legs[0]
    assert (first.run.id, first.run.namespace, first.run.labels["team"]) == (handle.id, "default", "middle")
    assert first.is_first
    assert not heard.legs[1].is_first


async def test_another_process_hears_of_its_own_leg_and_of_nothing_that_it_replays(database: DatabaseSettings) -> None:
    async with App(database, [stands_in_the_middle], worker=QUICK) as app:
        handle = await app.start(stands_in_the_middle, "ends")
        await in_phase(handle, Phase.WAITING)
    heard = Heard()
    async with App(database, [stands_in_the_middle], worker=QUICK, middleware=[heard]) as app:
        await app.send_event("com.example.on")
        await app.handle(str(handle.id)).result(timeout=10)

    assert heard.lines[1:] == ["in_a_thread_in_the_middle#2 attempt 1 in leg 2", "stands_in_the_middle Succeeded"]
    assert heard.legs[0].replayed == 1


@pytest.mark.parametrize(("how", "ended"), [("fails", "Failed"), ("waits", "Cancelled")])
async def test_how_a_run_ended_is_told(how: str, ended: str, database: DatabaseSettings) -> None:
    heard = Heard()
    async with App(database, [stands_in_the_middle], worker=QUICK, middleware=[heard]) as app:
        handle = await app.start(stands_in_the_middle, how)
        await app.send_event("com.example.on")
        if how == "waits":
            await in_phase(handle, Phase.WAITING, "WaitingForTimer")
            await handle.cancel()
        with pytest.raises((ValueError, RunCancelledError)):
            await handle.result(timeout=10)

    assert heard.lines[-1] == f"stands_in_the_middle {ended}"


async def test_middleware_that_is_broken_changes_nothing(database: DatabaseSettings) -> None:
    with capture_logs() as lines:
        async with App(
            database, [stands_in_the_middle], worker=QUICK, middleware=[Broken(), Swallows(), Middleware_()]
        ) as app:
            handle = await app.start(stands_in_the_middle, "fails")
            await app.send_event("com.example.on")
            with pytest.raises(ValueError, match="always"):
                await handle.result(timeout=10)

    assert "middleware_failed" in {line["event"] for line in lines}


class Middleware_(Middleware):  # noqa: N801 - it overrides nothing
    pass


def test_middleware_is_named_by_the_operator_s_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMANCY_MIDDLEWARE", "tests.cases.test_middleware:Heard,romancy.otel:Tracing")

    found = load_middleware(load().middleware)

    assert [type(each).__name__ for each in found] == ["Heard", "Tracing"]


@pytest.mark.parametrize(
    "name", ["tests.cases.test_middleware", "nowhere:X", "tests.cases.test_middleware:SOON", "json:loads"]
)
def test_what_is_no_middleware_is_said_at_start(name: str) -> None:
    with pytest.raises(DefinitionError, match="middleware"):
        load_middleware([name])
