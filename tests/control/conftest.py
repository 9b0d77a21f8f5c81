"""Control for real: the API server of tests/controlplane, a PostgreSQL, and `run_control` between them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest

from romancy.base.settings import ControlSettings, DatabaseSettings, Settings, WorkerSettings
from romancy.control.control import run_control
from romancy.model.run import Form, Phase
from romancy.store.interface import Claim, Finish, Park, RunWrite
from romancy.store.postgres import PostgresStore
from tests.control.objects import read
from tests.controlplane.plane import ApiError, ControlPlane
from tests.store.hands import Hands


@dataclass
class Controlled:
    """One candidate for leadership, running beside the test in threads of its own."""

    settings: Settings
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    leads: asyncio.Event = field(default_factory=asyncio.Event)
    lives: int = 0
    task: "asyncio.Task[None] | None" = None

    def start(self, store_of: Callable[[], PostgresStore] | None = None) -> "asyncio.Task[None]":
        loop = asyncio.get_running_loop()

        def led(leads: bool) -> None:
            loop.call_soon_threadsafe(self._led, leads)

        self.task = asyncio.create_task(run_control(self.settings, self.stop, store_of, led=led))
        return self.task

    def _led(self, leads: bool) -> None:
        if leads:
            self.lives += 1
            self.leads.set()
        else:
            self.leads.clear()

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            await self.task


@pytest.fixture
def settings(cluster: ControlPlane, namespace: str, database: DatabaseSettings) -> Settings:
    """Control of one namespace, with short times."""
    return Settings(
        database=database,
        worker=WorkerSettings(name="pod-1", namespace=namespace),
        control=ControlSettings(
            kubeconfig=str(cluster.kubeconfig),
            namespace=namespace,
            watch_namespaces=(namespace,),
            lease_seconds=2,
            renew_deadline_seconds=1.4,
            retry_seconds=0.2,
            bury_seconds=0.3,
            status_hold_seconds=0.3,
        ),
    )


@pytest.fixture
async def store(database: DatabaseSettings) -> AsyncIterator[PostgresStore]:
    """The test's own view of the database."""
    async with PostgresStore(database) as store:
        yield store


@pytest.fixture
async def hands(store: PostgresStore) -> AsyncIterator[Hands]:
    """A registered worker that has workflow w, and executes nothing: the test says what becomes of runs."""
    worker = await Hands.of(store, name="worker-1", workflows={"w": Form.WHOLE})
    yield worker
    await worker.journal.close()


@pytest.fixture
async def start_control(settings: Settings) -> AsyncIterator[Callable[..., Awaitable[Controlled]]]:
    """Starts candidates, and ends them all."""
    async with AsyncExitStack() as stack:

        async def start(*, waits: bool = True, **changes: Any) -> Controlled:
            control = settings.control.model_copy(update=changes)
            one = Controlled(settings.model_copy(update={"control": control}))
            one.start()
            stack.push_async_callback(one.end)
            if waits:
                await asyncio.wait_for(one.leads.wait(), 10)
            return one

        yield start


@pytest.fixture
async def control(start_control: Callable[..., Awaitable[Controlled]]) -> Controlled:
    """The leader."""
    return await start_control()


async def eventually(ask: Callable[[], Any], what: str, *, seconds: float = 10) -> Any:
    """The first true answer. Control's work is in other threads and processes, so it can only be asked for."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = ask()
        if isinstance(answer, Awaitable):
            answer = await answer
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.02)


async def status_where(
    plane: ControlPlane, namespace: str, name: str, is_so: Callable[[dict[str, Any]], bool], what: str, **how: Any
) -> dict[str, Any]:
    """The object, once its status is so."""

    def ask() -> dict[str, Any]:
        thing = read(plane, namespace, name)
        is_shown = set(thing.get("status", {})) - {"observedGeneration"}  # which alone every new object has
        return thing if is_shown and is_so(thing["status"]) else {}

    found: dict[str, Any] = await eventually(ask, what, **how)
    return found


def is_gone(plane: ControlPlane, path: str) -> bool:
    """Whether a GET answers 404."""
    try:
        plane.call("GET", path)
    except ApiError as error:
        if error.code == 404:
            return True
        raise
    return False


async def claimed(hands: Hands) -> Claim:
    """The one run that is due, taken by the worker."""
    claims: list[Claim] = await eventually(hands.claim, "a run is due")
    assert len(claims) == 1
    return claims[0]


async def finish(hands: Hands, claim: Claim, phase: Phase = Phase.SUCCEEDED, **how: Any) -> None:
    """End a run as its worker would."""
    how.setdefault("reason", phase.value)
    await hands.journal.submit(RunWrite(claim.run_id, claim.number, then=Finish(phase, **how)))


async def park(hands: Hands, claim: Claim, **how: Any) -> None:
    """Put a waiting run away."""
    how.setdefault("seen", claim.inbox_version)
    how.setdefault("wake_at", None)
    await hands.journal.submit(RunWrite(claim.run_id, claim.number, then=Park(**how)))
