"""What lies between a process and the database: statements are delayed, lost, unheard or late; processes die and stand still.

Every statement of every process passes here, by its name in store/sql/. Its effect belongs to nobody: it takes place whether the
process that sent it lives or not, as with bytes that are in a socket already.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import zip_longest
from random import Random
from typing import Any, Final, Protocol
from uuid import UUID

from romancy.base.settings import DatabaseSettings
from romancy.control.kube import KubeError
from romancy.store.interface import WorkerId
from romancy.store.notify import PostgresWakeups
from romancy.store.pool import Statement, unavailable_as_ours
from romancy.store.queries import SQL
from romancy.testing import MemoryDatabase, MemoryStore
from romancy.testing.loop import VirtualLoop
from romancy.testing.memory_store import MemoryWakeups
from tests.simulation.invariants import Checker
from tests.simulation.trace import Trace

COMMAND_SECONDS: Final = 15.0
"""asyncpg's command_timeout with the defaults: so long somebody waits for an answer."""
_QUERIES: Final = {query.text: query for query in SQL.by_name.values()}
_QUIET: Final = frozenset(
    {
        *("poll", "next_due_at", "renew_lease", "now", "read_runs", "open"),
        *("expired_workers", "take_unmirrored", "list_workers", "backlog", "stranded_queues", "offers", "unstrand"),
        *("expired_resources", "resources", "GET default/leases/romancy", "PUT default/leases/romancy"),
    }
)
"""Statements that are shown in the trace only if something happens to them."""


class Fate(Enum):
    """What becomes of a statement."""

    FINE = "fine"
    NOT_APPLIED = "not applied"  # the connection breaks before it
    UNHEARD = "unheard"  # it is done, and the connection breaks
    LATE = "late"  # the connection breaks; the statement is done long after
    MET = "met"  # refused because its like was on its way (23505): sent again it is fine
    DIES_BEFORE = "dies before"
    DIES_AFTER = "dies after"
    DIES_LATE = "dies, it comes late"
    STOPS_BEFORE = "stands still before"
    STOPS_AFTER = "stands still after"
    STOPS_LATE = "stands still, it comes late"


_UNLESS_IT_DIES: Final = {
    Fate.DIES_BEFORE: Fate.NOT_APPLIED,
    Fate.DIES_AFTER: Fate.UNHEARD,
    Fate.DIES_LATE: Fate.LATE,
}


_LATE: Final = frozenset({Fate.LATE, Fate.DIES_LATE, Fate.STOPS_LATE})


class MetError(OSError):
    """Two copies of a statement met at a unique key."""

    sqlstate = "23505"


class Body(Protocol):
    """A process, as the network knows it."""

    name: str
    context: Context
    may_die: bool

    def die(self, why: str) -> None: ...
    def stand_still(self, seconds: float) -> None: ...


@dataclass
class Weather:
    """How bad it is. `rates` are chances of each statement; one statement may be struck more often than others."""

    random: Random
    rates: dict[Fate, float] = field(default_factory=dict)
    struck: frozenset[str] = frozenset()
    latency_seconds: float = 0.002
    slow_rate: float = 0.0
    notify_loss: float = 0.0
    notify_latency_seconds: float = 0.002
    is_calm: bool = False
    away_until: float = 0.0  # PostgreSQL, by the loop's clock

    @classmethod
    def of(cls, random: Random) -> "Weather":
        """Drawn by lot: from fair to foul, all over the place or at one statement."""
        severity = random.choice((0.0, 0.002, 0.005, 0.01, 0.02, 0.04))
        rates: dict[Fate, float] = {
            fate: severity * random.choice((0.0, 0.3, 1.0, 2.0)) for fate in Fate if fate not in {Fate.FINE, Fate.MET}
        }
        rates[Fate.MET] = random.choice((0.0, 0.0, 0.02))
        for fate in (Fate.DIES_BEFORE, Fate.DIES_AFTER, Fate.DIES_LATE):
            rates[fate] *= 0.5
        struck: frozenset[str] = frozenset()
        if random.random() < 0.5:
            choices = (
                {"flush", "flush_entries", "flush_begun"},
                {"claim_runs", "claim_blocked", "read_begun", "read_histories", "read_inboxes"},
                {"register_worker", "renew_lease", "bury_worker", "now"},
                {"send", "start_runs", "end_unbegun", "read_inboxes"},
                {"poll", "next_due_at", "notify"},
            )
            struck = frozenset(random.choice(choices))
        return cls(
            random,
            rates,
            struck,
            latency_seconds=random.choice((0.0005, 0.002, 0.02, 0.2)),
            slow_rate=random.choice((0.0, 0.0, 0.01, 0.05)),
            notify_loss=random.choice((0.0, 0.0, 0.1, 0.5, 1.0)),
            notify_latency_seconds=random.choice((0.001, 0.02, 0.5)),
        )

    def fate(self, name: str) -> Fate:
        """What becomes of the next statement of this name."""
        if self.is_calm:
            return Fate.FINE
        factor = (6.0 if name in self.struck else 0.3) if self.struck else 1.0
        roll = self.random.random()
        for fate, rate in self.rates.items():
            if fate is Fate.MET and name not in {"flush", "flush_entries", "send"}:
                continue
            roll -= rate if fate is Fate.MET else rate * factor
            if roll < 0:
                return fate
        return Fate.FINE

    def breaks_a_watch(self) -> bool:
        """A stream of the API server ends in the middle."""
        return not self.is_calm and self.random.random() < self.notify_loss * 0.2

    def seconds(self) -> float:
        """One way through the network."""
        if not self.is_calm and self.random.random() < self.slow_rate:
            return self.random.uniform(0.5, 12)
        return self.random.uniform(0.1, 1.0) * self.latency_seconds


class Network:
    """Between all processes and the one database."""

    def __init__(self, loop: VirtualLoop, db: MemoryDatabase, weather: Weather, checker: Checker, trace: Trace) -> None:
        self.loop, self.db, self.weather, self.checker, self.trace = loop, db, weather, checker, trace
        self.breaches: list[BaseException] = []
        self.is_closed = False
        self.durable: dict[UUID, int] = {}  # entries of each run that its holder knows to be durable
        self.ended: set[UUID] = set()  # runs whose holder knows that their end is durable
        self._met: dict[int, object] = {}
        self.late = 0  # statements that are still to come, though nobody waits for them
        self.statements = 0
        self.faults = 0

    async def ask[T](
        self, body: Body, name: str, arguments: Mapping[str, Any], act: Callable[[], T], *, is_database: bool = True
    ) -> T:
        """Send a statement and wait for its answer.

        Raises:
            OSError: no answer came; what was asked may have been done, or may be done yet.
        """
        if self.is_closed:
            raise ConnectionResetError("the simulation has ended")
        future: asyncio.Future[T] = self.loop.create_future()
        fate = self.weather.fate(name)
        if not body.may_die:
            fate = _UNLESS_IT_DIES.get(fate, fate)
        if fate is Fate.MET and not self._may_meet(arguments):
            fate = Fate.FINE
        if fate is not Fate.FINE:
            self.faults += 1
            self.trace.add(body.name, f"{name}: {fate.value}", self._shown(name, arguments))
        if is_database and (away := self.weather.away_until - self.loop.time()) > 0:
            self._refuse_later(future, min(away, COMMAND_SECONDS) if self.weather.random.random() < 0.3 else 0.01)
            return await future
        send = partial(_Sent, self, body, name, arguments, act, future, fate, self.loop.time(), is_database)
        match fate:
            case Fate.DIES_BEFORE:
                body.die(f"before {name}")
            case Fate.STOPS_BEFORE:
                body.stand_still(self.weather.random.uniform(1, 40))
                self._call_later(self.weather.seconds(), send().land, body.context)  # sent when it goes on
            case Fate.NOT_APPLIED:
                self._refuse_later(future, self.weather.seconds())
            case Fate.MET:
                self._call_later(self.weather.seconds(), partial(_fail, future, MetError("met its like")))
            case Fate.LATE | Fate.DIES_LATE | Fate.STOPS_LATE:
                self.late += 1
                send().land_in(self.weather.random.choice((0.5, 3, 10, 30)) * self.weather.random.uniform(0.5, 1.5))
                if fate is Fate.DIES_LATE:
                    body.die(f"after {name} was sent")
                elif fate is Fate.STOPS_LATE:
                    body.stand_still(self.weather.random.uniform(1, 40))
                else:
                    self._refuse_later(future, self.weather.seconds())
            case _:
                send().land_in(self.weather.seconds())
        return await future

    def heard(self, name: str, arguments: Mapping[str, Any], answer: Any) -> None:
        """A worker knows now what is durable of its runs."""
        if name in {"flush", "flush_entries"} and answer[0]["is_alive"]:
            for run_id, position in zip(arguments["e_run_ids"], arguments["e_positions"], strict=True):
                self.durable[run_id] = max(position, self.durable.get(run_id, 0))
            ids, acts = arguments.get("c_ids", ()), arguments.get("c_acts", ())
            self.ended.update(run_id for run_id, act in zip(ids, acts, strict=True) if act == "Finish")
        elif name in {"claim_runs", "claim_blocked", "poll"}:
            for row in answer:
                if row["id"] is not None:
                    self.durable[row["id"]] = max(self.db.history.get(row["id"], ()), default=0)

    def _may_meet(self, arguments: Mapping[str, Any]) -> bool:
        """A statement meets its like once: after that the other one is there, and is found."""
        first = next((value for value in arguments.values() if isinstance(value, list)), None)
        is_new = id(first) not in self._met
        self._met[id(first)] = first
        return is_new

    def tell(self, body: Body, call: Callable[[], None], *, may_be_lost: bool = True) -> None:
        """A notification on its way."""
        weather = self.weather
        if may_be_lost and not weather.is_calm and weather.random.random() < weather.notify_loss:
            return
        if may_be_lost:
            seconds = weather.random.uniform(0.1, 1.0) * weather.notify_latency_seconds
        else:  # a stream: one after the other
            seconds = weather.notify_latency_seconds
        self._call_later(seconds, call, body.context)

    def _refuse_later(self, future: "asyncio.Future[Any]", seconds: float) -> None:
        self._call_later(seconds, partial(_fail, future, ConnectionResetError("no answer")))

    def _call_later(self, seconds: float, call: Callable[[], object], context: Context | None = None) -> None:
        self.loop.call_later(seconds, call, context=context or _NOBODY)

    def _shown(self, name: str, arguments: Mapping[str, Any]) -> str:
        trace = self.trace
        match name:
            case "flush" | "flush_entries":
                parts = [f"of {arguments['worker_id']}"]
                for run_id, act in zip_longest(arguments.get("b_ids", ()), arguments.get("b_acts", ())):
                    parts.append(f"begin {trace.name(run_id)} {act}")
                for run_id, claim, act in zip_longest(
                    arguments.get("c_ids", ()), arguments.get("c_claims", ()), arguments.get("c_acts", ())
                ):
                    parts.append(f"{act} {trace.name(run_id)}/{claim}")
                for run_id, position, kind, number in zip_longest(
                    *(arguments[f"e_{column}"] for column in ("run_ids", "positions", "kinds", "numbers"))
                ):
                    parts.append(f"{trace.name(run_id)}[{position}]={kind}#{number}")
                for run_id, number, attempt in zip_longest(
                    *(arguments.get(f"a_{column}", ()) for column in ("run_ids", "numbers", "attempts"))
                ):
                    parts.append(f"{trace.name(run_id)} failed #{number} attempt {attempt}")
                return ", ".join(parts)
            case "start_runs":
                return trace.shown(arguments["ids"])
            case "send" | "end_unbegun":
                kinds = arguments.get("kinds", ())
                return f"{trace.shown(arguments['run_ids'])} {' '.join(map(str, kinds))}"
            case _:
                hidden = {"boot_id", "due_channel", "mirror_channel", "inbox_channel", "forms", "workflows"}
                return trace.shown({key: value for key, value in arguments.items() if key not in hidden})


@dataclass
class _Sent:
    """A statement on its way to the database, and its answer on the way back."""

    network: Network
    body: Body
    name: str
    arguments: Mapping[str, Any]
    act: Callable[[], Any]
    future: "asyncio.Future[Any]"
    fate: Fate
    sent_at: float
    is_database: bool

    def land_in(self, seconds: float) -> None:
        self.network._call_later(seconds, self.land)

    def land(self) -> None:
        """It is done, whole, whoever may have sent it."""
        network = self.network
        network.late -= self.fate in _LATE
        if network.is_closed:
            return
        if self.is_database and network.weather.away_until > network.loop.time():
            network._call_later(0, partial(_fail, self.future, ConnectionResetError("it went away")))
            return
        network.statements += 1
        snapshot = network.checker.before(self.name, self.arguments)
        try:
            answer = self.act()
        except (OSError, KubeError) as error:  # as the database and the API server refuse
            network._call_later(network.weather.seconds(), partial(_fail, self.future, error))
            return
        if self.name not in _QUIET or self.fate is not Fate.FINE:
            network.trace.add(
                self.body.name,
                self.name,
                f"{network._shown(self.name, self.arguments)} -> {_brief(network.trace, answer)}",
            )
        try:
            network.checker.after(self.name, self.arguments, snapshot)
        except AssertionError as breach:
            network.breaches.append(breach)
            network.trace.add("checker", "BREACH", str(breach))
        match self.fate:
            case Fate.UNHEARD:
                network._refuse_later(self.future, network.weather.seconds())
            case Fate.DIES_AFTER:
                self.body.die(f"after {self.name}")
            case Fate.STOPS_AFTER:
                self.body.stand_still(network.weather.random.uniform(1, 40))
                network._call_later(network.weather.seconds(), partial(self.answer, answer))
            case _:
                back = network.weather.seconds()
                if network.loop.time() - self.sent_at + back > COMMAND_SECONDS:
                    network._refuse_later(self.future, 0)
                else:
                    network._call_later(back, partial(self.answer, answer))

    def answer(self, answer: Any) -> None:
        """Whoever still waits hears it."""
        if not self.future.done():
            self.network.heard(self.name, self.arguments, answer)
            self.future.set_result(answer)


_NOBODY: Final = Context()


def _fail(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # who waits for it may have been dropped


def _brief(trace: Trace, answer: Any) -> str:
    if isinstance(answer, dict):
        return "answered"
    if not isinstance(answer, list):
        return str(answer)
    if answer and isinstance(answer[0], dict) and "is_alive" in answer[0]:
        first = answer[0]
        if not first["is_alive"]:
            return "fenced"
        if "claim" in first:
            rows = [f"{trace.name(row['id'])}/{row['claim']}" for row in answer if row["id"] is not None]
            return " ".join(rows) or "nothing"
        told = {key: first[key] for key in ("began", "appended_of", "changed_of", "stays", "woken") if first.get(key)}
        return trace.shown(told) if told else "written"
    if answer and not isinstance(answer[0], dict):
        return trace.shown(answer)
    return f"{len(answer)} rows"


def _run_at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it waits for something")


class SimulatedStore(MemoryStore):
    """A process's door to the database, through the network."""

    def __init__(self, network: Network, body: Body, settings: DatabaseSettings) -> None:
        super().__init__(network.db, settings)
        self._network, self._body = network, body

    async def perform[T](self, what: str, act: Callable[[], Awaitable[T]]) -> T:
        coroutine: Any = act

        def at_once() -> Any:
            return _run_at_once(coroutine())

        found: T = await self._network.ask(self._body, what, {}, at_once)
        return found

    async def execute(self, statement: Statement) -> Any:
        query = _QUERIES[statement[0]]
        arguments = dict(zip(query.parameters, statement[1:], strict=True))
        return await self._network.ask(self._body, query.name, arguments, lambda: self.database.execute(statement))

    async def open(self, *, is_migrating: bool = True) -> None:
        await super().open(is_migrating=is_migrating)
        with unavailable_as_ours():
            await self._network.ask(self._body, "open", {}, lambda: None)

    async def wakeups(self, worker_id: WorkerId | None) -> PostgresWakeups:
        wakeups = _Wakeups(self, worker_id, self._network, self._body)
        with unavailable_as_ours():
            await wakeups.open()
        self._wakeups.append(wakeups)
        return wakeups


class _Wakeups(MemoryWakeups):
    """What is told comes later, or not at all."""

    def __init__(self, store: SimulatedStore, worker_id: WorkerId | None, network: Network, body: Body) -> None:
        super().__init__(store, worker_id)
        self._network, self._body = network, body

    def hear(self, channel: str, payload: str) -> None:
        self._network.tell(self._body, partial(self._heard_if_open, channel, payload))

    async def _listen(self) -> None:
        await self._network.ask(self._body, "listen", {}, lambda: None)
        await super()._listen()
