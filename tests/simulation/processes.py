"""What runs in a simulation: processes with a worker and, where there are objects, with control; and their clocks."""

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, Final

from romancy import App
from romancy.base.settings import WorkerSettings
from romancy.errors import RomancyError
from romancy.testing import loop as loops
from romancy.testing.loop import PROCESS, VirtualLoop
from romancy.worker.lease import KeptByTask
from romancy.worker.worker import Worker
from tests.simulation.kube import ApiServer, SimulatedKube, control
from tests.simulation.network import SimulatedStore
from tests.simulation.workload import HOST, SERVICE, WORKFLOWS

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

BASE: Final = datetime(2026, 1, 1, tzinfo=UTC)


class DatabaseClock:
    """The server's wall clock: it may be set."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.set_by = timedelta(0)

    def now(self) -> datetime:
        return BASE + timedelta(seconds=self._loop.time()) + self.set_by

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ProcessClock(DatabaseClock):
    """A process's clocks: the wall clock may be wrong by any amount, the other one goes on while the process stands still."""


@dataclass(eq=False)
class Body(loops.Body):
    """Something that runs: a process, or the users' program, which never dies."""

    sim: "Simulation" = field(kw_only=True)
    name: str = field(kw_only=True)
    may_die: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        self.context = copy_context()
        self.context.run(self._enter)

    def _enter(self) -> None:
        PROCESS.set(self)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run something in it."""
        return self.sim.loop.create_task(coroutine, context=self.context.copy())

    def store(self) -> SimulatedStore:
        """A door to the database, not open yet."""
        return SimulatedStore(self.sim.network, self, self.sim.database_settings)

    def die(self, why: str) -> None:
        """Be gone at once, as by SIGKILL."""
        if not self.is_dead and self.may_die:
            self.sim.loop.bury(self)
            self.sim.deaths += 1
            self.sim.trace.add(self.name, "DIES", why)
            self.sim.died(self)

    def stand_still(self, seconds: float) -> None:
        """As by SIGSTOP, and go on later."""
        if self.is_dead or self.is_frozen:
            return
        self.is_frozen = True
        self.sim.trace.add(self.name, "STANDS STILL", f"for {seconds:.1f} s")
        self.sim.later(seconds, self.go_on)

    def go_on(self) -> None:
        if self.is_frozen and not self.is_dead:
            self.sim.trace.add(self.name, "GOES ON")
            self.sim.loop.thaw(self)


@dataclass(eq=False)
class Process(Body):
    """A process with a worker."""

    build: str = field(default="build-1", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.clock = ProcessClock(self.sim.loop)
        self.stopping = asyncio.Event()
        self.is_started = False
        random = self.sim.random
        settings = WorkerSettings(
            name=self.name,
            build_id=self.build,
            slots=random.choice((1, 3, 10, 50)),
            activities_max=random.choice((2, 50)),
            lease_seconds=self.sim.lease_seconds,
            poll_seconds=self.sim.poll_seconds,
            park_after_seconds=random.choice((0, 1, 3)),
            parked_max=random.choice((0, 2, 50)),
            drain_seconds=random.choice((0, 1, 20)),
        )
        self.worker = self.context.run(self._make_worker, settings)
        self.app: App | None = None
        self.spawn(self._live())
        if self.sim.api is not None:
            self.spawn(self._control(self.sim.api))

    @property
    def worker_id(self) -> int | None:
        """Of its present life."""
        return self.worker.id

    def _make_worker(self, settings: WorkerSettings) -> Worker:
        HOST.set(self)
        SERVICE.set(self.sim.service)
        worker = Worker(
            self.store,
            list(WORKFLOWS.values()),
            settings,
            clock=self.clock,
            is_leader_expected=self.sim.is_leader_expected,
            keep_lease=KeptByTask,
        )
        worker.random = Random(self.sim.random.random())
        return worker

    async def _live(self) -> None:
        try:
            await self.worker.start()
        except RomancyError as error:
            self.sim.trace.add(self.name, "EXITS", error.reason)
        else:
            self.app = App(self.sim.database_settings, [])
            self.app.worker, self.app.store = self.worker, self.store()
            await self._open(self.app.store)
            self.is_started = True
            await self.stopping.wait()
            await self.worker.drain()
            self.sim.trace.add(self.name, "DRAINED", f"holds {self.worker.runs}")
        self.sim.loop.bury(self)
        self.sim.died(self)

    async def _control(self, api: ApiServer) -> None:
        kube = SimulatedKube(None, None, api=api, network=self.sim.network, body=self)  # type: ignore[arg-type]
        await control(self.sim.settings, kube, self.store, self.name, self.stopping, self.clock)

    async def _open(self, store: SimulatedStore) -> None:
        while True:
            try:
                await store.open()
            except RomancyError:
                await asyncio.sleep(0.5)
            else:
                return
