"""One seed: some processes with real workers, users, and whatever befalls them, in virtual time on one database in memory.

First faults, then calm: then every run must end, as its history says, with nothing left undone and nothing held by the dead.
"""

import asyncio
import gc
import logging
import random as chance
import sys
import traceback
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

import structlog

from romancy import App, Client
from romancy.base.settings import ControlSettings, DatabaseSettings, Settings, WorkerSettings
from romancy.control.kube import Json, path_of
from romancy.control.resources import RUNS
from romancy.errors import RomancyError, RunCancelledError, StoreUnavailableError
from romancy.model.run import run_id_of
from romancy.testing import MemoryDatabase
from romancy.worker.lease import KeptByTask
from romancy.worker.worker import Worker
from tests.simulation import loop as loops
from tests.simulation.invariants import BreachError, Checker
from tests.simulation.kube import ApiServer, SimulatedKube, control
from tests.simulation.loop import PROCESS, VirtualLoop
from tests.simulation.network import Network, SimulatedStore, Weather
from tests.simulation.trace import Trace
from tests.simulation.workload import HOST, SERVICE, WORKFLOWS, Service, check_end, is_suspended

BASE: Final = datetime(2026, 1, 1, tzinfo=UTC)
NO_SERVER: Final = "postgresql://nobody@127.0.0.1:1/simulated"
CALM_SECONDS_MAX: Final = 1800.0
STATEMENTS_MAX: Final = 60_000
TURNS_MAX: Final = 600_000
CONTROL: Final = ControlSettings(
    relist_seconds=40, lease_seconds=12, renew_deadline_seconds=8, retry_seconds=1, bury_seconds=3
)
DEFECTS: Final = frozenset({"journal_failed", "run_conflicts", "run_dropped"})
"""Log lines that only a defect of ours writes."""

MakeDatabase = Callable[["DatabaseClock"], MemoryDatabase]
MakeWeather = Callable[[Random], Weather]


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


@dataclass
class Report:
    """How a seed went."""

    seed: int
    trace: Trace
    breaches: list[str]
    statements: int = 0
    faults: int = 0
    deaths: int = 0
    runs: int = 0
    attempts: int = 0
    seconds: float = 0.0

    @property
    def digest(self) -> str:
        return self.trace.digest


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
        await control(self.sim.settings, kube, self.store, self.name, self.stopping)

    async def _open(self, store: SimulatedStore) -> None:
        while True:
            try:
                await store.open()
            except RomancyError:
                await asyncio.sleep(0.5)
            else:
                return


class Simulation:
    """Args:
    seed: decides everything.
    make_database: another one than MemoryDatabase, to see whether its defects are found.
    weather: another one than that of the seed.
    events_max: of the trace that are kept.
    """

    def __init__(
        self,
        seed: int,
        *,
        make_database: MakeDatabase = MemoryDatabase,
        weather: MakeWeather | None = None,
        events_max: int | None = 400,
    ) -> None:
        self.seed = seed
        self.random = random = Random(f"life {seed}")  # a string: its hash does not matter
        self.loop = VirtualLoop(Random(f"order {seed}"))
        self.trace = Trace(self.loop.time, events_max=events_max)
        self.clock = DatabaseClock(self.loop)
        self.db = make_database(self.clock)
        self.checker = Checker(self.db)
        self.weather = (weather or Weather.of)(Random(f"weather {seed}"))
        self.network = Network(self.loop, self.db, self.weather, self.checker, self.trace)
        self.lease_seconds = random.choice((3.0, 6.0, 9.0, 9.0))
        self.poll_seconds = random.choice((2.0, 5.0, 10.0, 10.0))
        self.api = ApiServer(Random(f"uids {seed}")) if random.random() < 0.25 else None
        self.is_leader_expected = self.api is not None
        self.database_settings = DatabaseSettings.model_validate(
            {
                "url": NO_SERVER,
                "journal_connections": random.choice((1, 1, 2, 3)),
                "flush_rows_max": random.choice((1, 2, 1000)),
                "give_up_seconds": random.choice((3, 20, 60)),
            }
        )
        self.settings = Settings(database=self.database_settings, control=CONTROL)
        self.service = Service(
            self.db,
            Random(f"service {seed}"),
            lambda what, detail: self.trace.add(HOST.get().name, what, detail),
            slowness=random.choice((0.1, 1.0, 1.0, 3.0)),
            failures=random.choice((0.0, 0.1, 0.3)),
            durable=self.network.durable,
            ended=self.network.ended,
        )
        self.processes: list[Process] = []
        self.made = self.deaths = 0
        self.wanted = random.choice((1, 2, 2, 3, 3, 4))
        self.is_calm = self.has_ended = False
        self.breaches: list[str] = []
        self.run_ids: list[UUID] = []
        self.settled: set[UUID] = set()
        self.objects_owned = self.objects_settled = 0
        self._resumed_after: dict[UUID, int] = {}  # so many messages
        self.created: dict[UUID, Json] = {}  # objects, by uid
        self.users = Body(sim=self, name="users")
        self.client = Client(self.database_settings)
        self.client.store = self.users.store()

    # --- what happens ---------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """The whole story."""
        random = self.random
        for _ in range(self.wanted):
            self.start_process()
        foul_seconds = random.uniform(3, 60)
        self.users.spawn(self._open_client())
        runs = range(random.randint(1, 7))
        self.run_ids = [run_id_of("default", f"run-{number}") for number in runs]
        for number in runs:
            self.users.spawn(self._own(number, random.uniform(0, foul_seconds * 0.8)))
        if self.api is not None:
            self.objects_owned = random.randint(1, 4)
            for number in range(self.objects_owned):
                self.users.spawn(self._own_object(self.api, number, random.uniform(0, foul_seconds * 0.8)))
        self.users.spawn(self._disturb(foul_seconds))
        await asyncio.sleep(foul_seconds)
        await self._be_calm()
        self._check_end()

    async def _open_client(self) -> None:
        while True:
            try:
                await self.client.store.open()
            except StoreUnavailableError:
                await asyncio.sleep(0.2)
            else:
                return

    async def _disturb(self, seconds: float) -> None:
        """What befalls processes and the database, beside what befalls statements."""
        random = Random(f"disturb {self.seed}")
        badness = random.choice((0.0, 0.5, 1.0, 3.0))
        kinds = {
            "kill": 3, "stop": 3, "drain": 2, "away": 1, "long away": 0.5, "wall clock": 1, "database clock": 0.3, "more": 1
        }  # fmt: skip
        while badness:
            await asyncio.sleep(random.expovariate(badness / 10))
            if self.is_calm:
                return
            [kind] = random.choices(list(kinds), weights=list(kinds.values()))
            live = [each for each in self.processes if not each.is_dead]
            process = random.choice(live) if live else None
            match kind:
                case "away" | "long away":
                    away = random.uniform(0.2, 8) if kind == "away" else random.uniform(10, 80)
                    self.trace.add("database", "GOES AWAY", f"for {away:.1f} s")
                    self.weather.away_until = self.loop.time() + min(away, seconds)
                case "database clock":
                    by = random.choice((-30, -2, -0.5, 0.5, 3, 60))
                    self.trace.add("database", "CLOCK SET", f"by {by} s")
                    self.clock.set_by += timedelta(seconds=by)
                    self.service.has_clock_jumped = True
                case "more":
                    self.start_process(build=random.choice(("build-1", "build-2")))
                case _ if process is None:
                    continue
                case "kill":
                    process.die("killed")
                case "stop":
                    process.stand_still(random.choice((0.5, 3, 8, 30)) * random.uniform(0.5, 1.5))
                case "drain":
                    self.trace.add(process.name, "IS TO DRAIN")
                    process.stopping.set()
                case "wall clock":
                    process.clock.set_by += timedelta(seconds=random.choice((-3600, -1, 1, 86400)))

    def start_process(self, build: str = "build-1") -> None:
        """Another process."""
        self.made += 1
        self.trace.add(f"p{self.made}", "STARTS", build)
        self.processes.append(Process(sim=self, name=f"p{self.made}", may_die=True, build=build))

    def died(self, process: Body) -> None:
        """Somebody starts another one, soon."""
        del process
        if not self.has_ended:
            self.later(self.random.uniform(0.2, 6), self._replace)

    def _replace(self) -> None:
        if not self.has_ended and sum(not each.is_dead for each in self.processes) < self.wanted:
            self.start_process()

    def later(self, seconds: float, call: Callable[[], object]) -> None:
        """In the world outside."""
        self.loop.call_later(seconds, call, context=self._outside)

    # --- users ----------------------------------------------------------------------------------------------------

    async def _own(self, number: int, after_seconds: float) -> None:
        """What one user does with one run: starts it, plays with it, and wants it to end."""
        random = Random(f"user {self.seed}/{number}")
        name = f"run-{number}"
        run_id = self.run_ids[number]
        flow, arguments = self._flow(random)
        options = {
            "id": name,
            "priority": random.choice((0, 0, 5)),
            "timeout": timedelta(seconds=random.choice((1, 20, 60))) if random.random() < 0.2 else None,
        }
        await asyncio.sleep(after_seconds)
        if random.random() < 0.5:
            await self._start_in_process(random, flow.options(**options), arguments)
        await self._ask(f"start {name}", lambda: self.client.start(flow.options(**options), **arguments))
        if run_id not in self.db.run:
            self.breach(f"I4: {name} was started, and is not durable")
        await self._play(random, name, run_id)
        self.settled.add(run_id)

    def _flow(self, random: Random) -> tuple[Any, dict[str, Any]]:
        seed = random.randrange(1_000_000)
        flow = random.choice(list(WORKFLOWS.values()))
        return flow, {"seed": seed, "depth": random.randint(1, 4)} if flow.name == "sim.program" else {"seed": seed}

    async def _start_in_process(self, random: Random, flow: Any, arguments: dict[str, Any]) -> None:
        """As a program does that executes runs itself: it may die with it, and somebody starts the same run again."""
        ready = [each for each in self.processes if each.app is not None and each.is_started and not each.is_dead]
        if not ready:
            return
        process = random.choice(ready)
        assert process.app is not None
        app, is_waiting = process.app, random.random() < 0.3

        async def start() -> None:
            try:
                handle = await app.start(flow, **arguments)
                self.trace.add(process.name, "started", flow.start_options.id)
                if handle.id not in self.db.run:
                    self.breach(f"I4: {flow.start_options.id} was started in {process.name}, and is not durable")
                if is_waiting:
                    await self._result(handle, process.name)
            except StoreUnavailableError:
                self.trace.add(process.name, "start failed", flow.start_options.id)

        task = process.spawn(start())
        await asyncio.wait([task], timeout=random.choice((0.5, 5)))

    async def _result(self, handle: Any, where: str) -> None:
        try:
            await handle.result()
        except StoreUnavailableError:
            return
        except Exception as error:
            found = repr(error) if not isinstance(error, RunCancelledError) else "cancelled"
        else:
            found = "a result"
        self.trace.add(where, "result", f"{handle.id and self.trace.name(handle.id)} {found[:60]}")
        if self.db.run[handle.id].phase is None:
            self.breach(f"I4: {where} was told that run {handle.id} has ended, and it is not durable")

    async def _play(self, random: Random, name: str, run_id: UUID) -> None:
        handle = self.client.handle(run_id)
        is_suspended = False
        for _ in range(random.choice((0, 0, 1, 3))):
            await asyncio.sleep(random.expovariate(0.2))
            match random.choice(("cancel", "suspend", "resume", "suspend")):
                case "cancel":
                    await self._ask(f"cancel {name}", handle.cancel)
                    messages = self.db.inbox.get(run_id, {}).values()
                    if self.db.run[run_id].phase is None and all(row.kind != "Cancel" for row in messages):
                        self.breach(f"I4: {name} was cancelled, and the message is not durable")
                case "suspend":
                    await self._ask(f"suspend {name}", handle.suspend)
                    is_suspended = True
                case "resume":
                    await self._ask(f"resume {name}", handle.resume)
                    is_suspended = False
        if is_suspended:
            await asyncio.sleep(random.expovariate(0.1))
            await self._ask(f"resume {name}", handle.resume)

    async def _own_object(self, api: ApiServer, number: int, after_seconds: float) -> None:
        """What one user does with one WorkflowRun: kubectl, and nothing else."""
        random = Random(f"kubectl {self.seed}/{number}")
        collection = path_of(RUNS, namespace="default")
        path = f"{collection}/object-{number}"
        await asyncio.sleep(after_seconds)
        self._create_object(api, random, collection, f"object-{number}")
        for _ in range(random.choice((0, 1, 2, 4))):
            await asyncio.sleep(random.expovariate(0.15))
            kind = random.choice(("cancel", "suspend", "suspend", "resume", "delete", "recreate", "ttl"))
            if path not in api.objects:
                break
            self.trace.add("kubectl", kind, path.rpartition("/")[2])
            match kind:
                case "cancel":
                    api.change(path, cancel=True)
                case "suspend" | "resume":
                    api.change(path, suspend=kind == "suspend")
                case "ttl":
                    api.change(path, ttlSecondsAfterFinished=random.choice((0, 5, 3600)))
                case "delete":
                    api.delete(path)
                case "recreate":
                    api.delete(path)
                    await asyncio.sleep(random.choice((0, 0, 0.5, 5)))
                    self._create_object(api, random, collection, f"object-{number}")
        if path in api.objects and api.objects[path]["spec"].get("suspend"):
            await asyncio.sleep(random.expovariate(0.1))
            if path in api.objects:
                api.change(path, suspend=False)
        self.objects_settled += 1

    def _create_object(self, api: ApiServer, random: Random, collection: str, name: str) -> None:
        flow, arguments = self._flow(random)
        spec: Json = {"workflow": flow.name, "input": arguments}
        if random.random() < 0.2:
            spec["suspend"] = True
        if random.random() < 0.2:
            spec["timeout"] = random.choice(("1s", "20s"))
        if random.random() < 0.3:
            spec["ttlSecondsAfterFinished"] = random.choice((0, 10))
        if random.random() < 0.3:
            spec["deletionPolicy"] = "Orphan"
        made = api.create(collection, {"metadata": {"name": name}, "spec": spec})
        self.trace.add("kubectl", "create", f"{name} {self.trace.name(UUID(made['metadata']['uid']))} {spec}")
        self.created[UUID(made["metadata"]["uid"])] = made

    async def _ask(self, what: str, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        """As a user does: again, until there is an answer."""
        while True:
            try:
                await ask()
            except StoreUnavailableError:
                await asyncio.sleep(0.7)
            except AttributeError:  # the client is not open yet
                await asyncio.sleep(0.1)
            else:
                self.trace.add("users", what)
                return

    # --- the end --------------------------------------------------------------------------------------------------

    async def _be_calm(self) -> None:
        """No more faults, and enough processes, one with another build: everything must come to its end."""
        self.trace.add("world", "CALM")
        self.is_calm = self.weather.is_calm = self.service.is_calm = True
        self.weather.away_until = 0.0
        for process in [*self.processes, self.users]:
            process.go_on()
        has_others = False
        while sum(not each.is_dead for each in self.processes) < self.wanted:
            self.start_process()
        ends_at = self.loop.time() + CALM_SECONDS_MAX
        while not self._is_over():
            await asyncio.sleep(1.0)
            self._resume_what_was_suspended_late()
            if not has_others and any(row.phase == "Blocked" for row in self.db.due.values()):
                has_others = True
                self.start_process(build="build-3")
            if self.breaches or self.network.breaches or self.service.breaches:
                return
            if self.loop.time() > ends_at:
                self.breach(
                    f"it does not end: {self._objects_owe()} {list(self.db.due.values())} {len(self.settled)} settled"
                )
                return
            if self.network.statements > STATEMENTS_MAX or self.loop.turns > TURNS_MAX:
                self.breach(f"it spins: {self.network.statements} statements, {self.loop.turns} turns")
                return
        await self._until(lambda: not self._dead_workers(), 3 * self.lease_seconds + 5, "nobody has buried the dead")
        self.has_ended = True
        drained = {each.worker_id for each in self.processes if not each.is_dead}
        for process in self.processes:
            process.stopping.set()
        await self._until(lambda: all(each.is_dead for each in self.processes), 60, "processes do not drain")
        if left := [row for row in self.db.worker.values() if row.id in drained]:
            self.breach(f"workers have drained, and are still registered: {left}")

    async def _until(self, holds: Callable[[], bool], seconds: float, otherwise: str) -> None:
        # Whoever was alive by a clock that was then set back is believed for so much longer.
        ends_at = self.loop.time() + seconds + (300 if self.service.has_clock_jumped else 0)
        while not holds():
            if self.loop.time() > ends_at:
                self.breach(f"{otherwise}: {list(self.db.worker.values())}")
                return
            await asyncio.sleep(0.5)

    def _dead_workers(self) -> set[int]:
        return set(self.db.worker) - {each.worker_id or 0 for each in self.processes if not each.is_dead}

    def _resume_what_was_suspended_late(self) -> None:
        """A suspend whose answer never came may be done after a resume that was sent later: then its user asks again.

        So does who has deleted the object of a suspended run, which went on without it.
        """
        there = {UUID(each["metadata"]["uid"]) for each in self.api.objects.values()} if self.api else set()
        orphans = {run_id for run_id in self.created if run_id not in there}
        for run_id in [run_id for run_id in self.db.due if run_id in self.settled or run_id in orphans]:
            count = len(self.db.inbox.get(run_id, {}))
            was_suspended = is_suspended(self.db, run_id) if count else self.db.due[run_id].phase == "Suspended"
            if was_suspended and self._resumed_after.get(run_id) != count:
                self._resumed_after[run_id] = count
                name = self.db.run[run_id].name
                self.users.spawn(self._ask(f"resume {name} again", self.client.handle(run_id).resume))

    def _is_over(self) -> bool:
        are_settled = len(self.settled) == len(self.run_ids) and self.objects_settled == self.objects_owned
        return are_settled and not self.db.due and not self.network.late and not self._objects_owe()

    def _objects_owe(self) -> str:
        """What control has not done yet: by the objects, and by the rows."""
        if self.api is None:
            return ""
        for thing in self.api.listed(path_of(RUNS, namespace=None), ""):
            run, status = self.db.run.get(UUID(thing["metadata"]["uid"])), thing.get("status") or {}
            name = thing["metadata"]["name"]
            if run is None:
                return f"{name} has no run"
            if status.get("phase") != run.phase or status.get("reason", "") != (run.reason or ""):
                return f"{name} shows {status.get('phase')} {status.get('reason')}, and is {run.phase} {run.reason}"
            if status.get("observedGeneration") != thing["metadata"]["generation"]:
                return f"{name} has generation {thing['metadata']['generation']}, and shows {status}"
            if (run.ttl_seconds or 0) < 60 and run.ttl_seconds is not None:
                return f"{name} has outlived its ttl of {run.ttl_seconds} s"
        there = {thing["metadata"]["uid"] for thing in self.api.listed(path_of(RUNS, namespace=None), "")}
        for run in self.db.run.values():
            if run.is_resource and str(run.id) not in there and run.resource_gone_at is None:
                return f"the object of {run.name} ({run.id}) is gone, and its row does not say so"
        owed = [run_id for run_id, row in self.db.mirror.items() if row.mirror_at is not None]
        return f"statuses are owed: {owed}" if owed else ""

    def _check_end(self) -> None:
        if self.breaches or self.network.breaches or self.service.breaches:
            return
        try:
            self.checker.look()
            if extra := set(self.db.run) - set(self.run_ids) - set(self.created):
                raise BreachError(f"runs that nobody has started: {extra}")
            for run_id in self.db.run:
                check_end(self.db, self.service, run_id)
        except BreachError as breach:
            self.breach(str(breach))

    def breach(self, text: str) -> None:
        """Something that may never be."""
        self.breaches.append(text)
        self.trace.add("checker", "BREACH", text)

    # --- how it is run --------------------------------------------------------------------------------------------

    def play(self) -> Report:
        """Run it all."""
        chance.seed(self.seed)  # what control draws by itself
        self._outside = copy_context()
        self.loop.set_exception_handler(self._unhandled)
        asyncio.set_event_loop(None)
        gc.disable()  # else it decides when what nobody holds any more is cleaned up
        with _logging_to(self):
            try:
                main = self.loop.create_task(self.run())
                self.loop.run_until_complete(main)
            except BreachError as error:
                self.breach(str(error))
            except loops.StuckError as error:
                self.breach(f"stuck: {error}")
            finally:
                self.trace.is_open = False
                self._tear_down()
                gc.enable()
        breaches = [*self.breaches, *self.service.breaches, *map(str, self.network.breaches)]
        return Report(
            self.seed,
            self.trace,
            breaches,
            statements=self.network.statements,
            faults=self.network.faults,
            deaths=self.deaths,
            runs=len(self.run_ids),
            attempts=self.service.starts,
            seconds=self.loop.time(),
        )

    def _tear_down(self) -> None:
        """End what is left, without any effect: nobody reaches the database any more."""
        self.network.is_closed = self.has_ended = self.loop.is_ending = True
        for process in [*self.processes, self.users]:
            self.loop.thaw(process)
        for _ in range(50):
            self.loop.run_until_complete(_some_turns())
            tasks = asyncio.all_tasks(self.loop)
            if not tasks:
                break
            for task in tasks:
                task.cancel()
        else:
            self.breaches.append(f"tasks that do not end when they are cancelled: {tasks}")
        self.loop.close()

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if not self.has_ended:
            error = context.get("exception")
            self.breach(f"unhandled: {context.get('message')}: {error!r}")

    def logged(self, method: str, event: dict[str, Any]) -> None:
        """A line of the engine's log."""
        body = PROCESS.get()
        name = body.name if isinstance(body, Body) else "world"
        hidden = {"event", "module", "pid", "hint", "worker", "workflow", "run_id", "workflows"}
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in hidden and key != "exc_info")
        self.trace.add(name, f"log {event['event']}", fields[:300])
        if event["event"] in DEFECTS or (method == "error" and event.get("exc_info")):
            self.breach(f"{name} logged {event['event']}: {fields[:300]} {_traceback(event)}")


async def _some_turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def _traceback(event: dict[str, Any]) -> str:
    if not event.get("exc_info"):
        return ""
    error = sys.exception()
    return "".join(traceback.format_exception(error)) if error else ""


@contextmanager
def _logging_to(sim: Simulation) -> Iterator[None]:
    """Have the engine's log lines in the trace."""

    def capture(_logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        sim.logged(method, dict(event))
        raise structlog.DropEvent

    before = structlog.get_config() if structlog.is_configured() else None
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        if before is None:
            structlog.reset_defaults()
        else:
            structlog.configure(**before)


def play(
    seed: int,
    *,
    make_database: MakeDatabase = MemoryDatabase,
    weather: MakeWeather | None = None,
    events_max: int | None = 400,
) -> Report:
    """Simulate one seed."""
    return Simulation(seed, make_database=make_database, weather=weather, events_max=events_max).play()
