"""One seed: some processes with real workers, users, and whatever befalls them, in virtual time on one database in memory.

First faults, then calm: then every run must end, as its history says, with nothing left undone and nothing held by the dead.
"""

import asyncio
import gc
import logging
import random as chance
import sys
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any, Final
from uuid import UUID

import structlog

from romancy import Client
from romancy.base.settings import ControlSettings, DatabaseSettings, Settings
from romancy.control.kube import Json, path_of
from romancy.control.resources import RUNS
from romancy.errors import StoreUnavailableError
from romancy.model.run import run_id_of
from romancy.testing import MemoryDatabase
from romancy.testing import loop as loops
from romancy.testing.loop import PROCESS, VirtualLoop
from tests.simulation.invariants import BreachError, Checker
from tests.simulation.kube import ApiServer
from tests.simulation.network import Network, Weather
from tests.simulation.processes import Body, DatabaseClock, Process
from tests.simulation.trace import Trace
from tests.simulation.users import Users
from tests.simulation.workload import HOST, Service, check_end, check_messages, is_suspended

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
        self.has_told = False
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
        users = Users(self)
        runs = range(random.randint(1, 7))
        self.run_ids = [run_id_of("default", f"run-{number}") for number in runs]
        for number in runs:
            self.users.spawn(users.own(number, random.uniform(0, foul_seconds * 0.8)))
        if self.api is not None:
            self.objects_owned = random.randint(1, 4)
            for number in range(self.objects_owned):
                self.users.spawn(users.own_object(self.api, number, random.uniform(0, foul_seconds * 0.8)))
        self.users.spawn(users.tell(foul_seconds * 0.8))
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
                    f"it does not end: {self._objects_owe()} {list(self.db.due.values())} {len(self.settled)} settled, "
                    f"told {self.has_told}, outbox {self.db.outbox}"
                )
                return
            if self.network.statements > STATEMENTS_MAX or self.loop.turns > TURNS_MAX:
                self.breach(f"it spins: {self.network.statements} statements, {self.loop.turns} turns")
                return
        await self._until(lambda: not self._dead_workers(), 3 * self.lease_seconds + 5, "nobody has buried the dead")
        self.has_ended = True
        # Whoever was told before the calm may have said good-bye to a database that was away: that is for others to bury.
        drained = {each.worker_id for each in self.processes if not each.is_dead and not each.stopping.is_set()}
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
                self.users.spawn(Users(self).ask(f"resume {name} again", self.client.handle(run_id).resume))

    def _is_over(self) -> bool:
        are_settled = len(self.settled) == len(self.run_ids) and self.objects_settled == self.objects_owned
        are_settled &= self.has_told and not self.db.outbox
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
            own = {run.id for run in self.db.run.values() if run.parent_id is None and run.recurred_into is None}
            if extra := own - set(self.run_ids) - set(self.created):
                raise BreachError(f"runs that nobody has started: {extra}")
            for run_id in self.db.run:
                check_end(self.db, self.service, run_id)
            check_messages(self.db)
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
    given = event["exc_info"]
    error = given if isinstance(given, BaseException) else sys.exception()
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
