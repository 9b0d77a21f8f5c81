"""What the simulated processes execute: random programs, activities that fail and take their time, and a service that they call.

The programs are those of tests/replay/programs.py; what their leaves call is here, for it must have effects that can be counted.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, Protocol
from uuid import UUID

from romancy import (
    Channel,
    ChannelMode,
    Event,
    ParentClose,
    RetryPolicy,
    TerminalError,
    WorkflowContext,
    activity,
    workflow,
)
from romancy.model import failure
from romancy.model.channel import type_of
from romancy.model.command import End, RunActivity
from romancy.model.history import Entry, InboxRow, Kind, MessageKind
from romancy.model.outbox import OutboxKind
from romancy.model.retried import standing
from romancy.model.run import Form
from romancy.replay.replay import Replay
from romancy.sdk.activity import ActivityInfo
from romancy.sdk.context import RunInfo
from romancy.testing import MemoryDatabase
from romancy.worker.delivery import Delivery
from tests.replay.programs import Coverage, Interpreter, Node, PlannedError, program
from tests.simulation.invariants import BreachError, told

TRIES: Final = RetryPolicy(max_attempts=3)
STUBBORN: Final = RetryPolicy(max_attempts=0)


class Host(Protocol):
    """The process that an attempt runs in."""

    name: str

    @property
    def worker_id(self) -> int | None: ...


HOST: Final[ContextVar[Host]] = ContextVar("host")
SERVICE: Final[ContextVar["Service"]] = ContextVar("service")


@dataclass
class Service:
    """What the activities call: it knows idempotency keys, is slow, and fails. It also checks that it should be called.

    Args:
        tell: a line for the trace.
    """

    db: MemoryDatabase
    random: Random
    tell: Callable[[str, str], None]
    slowness: float
    failures: float
    durable: dict[UUID, int]  # how many entries of each run its holder knows to be durable
    ended: set[UUID]  # runs whose holder knows that they have ended
    has_clock_jumped: bool = False  # the database's: then nobody can know whether its lease is certain
    is_calm: bool = False
    booked: dict[str, tuple[UUID, str]] = field(default_factory=dict)  # by key
    by_zombie: set[str] = field(default_factory=set)
    unbooked: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    breaches: list[str] = field(default_factory=list)

    async def attempt(self, *, may_fail: bool = True, may_refuse: bool = True) -> ActivityInfo:
        """One attempt: it starts only if it was asked for, takes a while, and fails now and then."""
        info, host = activity.info(), HOST.get()
        self.starts += 1
        self.tell("attempt", f"{info.run} {info.activity}#{info.number} attempt {info.attempt}")
        self._check_start(info, host)
        seconds = self.random.choice((0.0, 0.01, 0.2, 1.0, 4.0, 15.0)) * self.slowness
        fails = may_fail and self.random.random() < self.failures and not self.is_calm
        if seconds:
            await asyncio.sleep(seconds)
        if fails:
            is_final = may_refuse and self.random.random() < 0.2
            raise TerminalError("refused") if is_final else PlannedError(info.number)
        return info

    def effect(self, info: ActivityInfo, booking: str) -> str:
        """Have the effect, unless it was had before."""
        key = info.idempotency_key
        if key not in self.booked:
            self.booked[key] = (info.run_id, booking)
            self.tell("booked", f"{info.run} {booking}")
            if self._is_zombie(HOST.get()):
                self.by_zombie.add(booking)
        return self.booked[key][1]

    def take_back(self, booking: str) -> None:
        """Take an effect back."""
        if all(booking != each for _run, each in self.booked.values()):
            self._breach(f"{booking} is taken back, and was never done")
        self.unbooked[booking] += 1
        self.tell("unbooked", booking)

    def _is_zombie(self, host: Host) -> bool:
        return host.worker_id is None or host.worker_id not in self.db.worker

    def _check_start(self, info: ActivityInfo, host: Host) -> None:
        """I4: by what is durable, the code waits for it; and only who holds the run starts anything of it."""
        what = f"{info.run} {info.activity}#{info.number} attempt {info.attempt} starts in {host.name}"
        due = self.db.due.get(info.run_id)
        is_holder = due is not None and due.worker_id is not None and due.worker_id == host.worker_id
        is_ending = due is None and info.run_id not in self.ended  # its last flush was not heard yet
        if not (is_holder or is_ending or self.has_clock_jumped):
            self._breach(f"{what}, whose worker {host.worker_id} does not hold the run: {due}")
        run = self.db.run.get(info.run_id)
        if run is None:
            self._breach(f"I4: {what}, and the run is not durable")
            return
        history = history_of(self.db, info.run_id)
        # What was written and is not heard yet may have given it up; so may somebody who has gone on since.
        known = self.durable.get(info.run_id, 0) - run.history_from if is_holder else 0
        asked: set[int] = set()
        for cut in range(max(0, min(known, len(history))), len(history) + 1):
            asked |= asked_by(self.db, info.run_id, history[:cut])
        if info.number not in asked:
            self._breach(f"I4: {what}, but what is durable asks for {sorted(asked)}")

    def _breach(self, text: str) -> None:
        self.breaches.append(text)
        self.tell("BREACH", text)


def history_of(db: MemoryDatabase, run_id: UUID) -> list[Entry]:
    """The stored history."""
    return [
        Entry(position, Kind(row.kind), row.at, row.number, row.name, row.digest, row.payload, row.inbox)
        for position, row in sorted(told(db, run_id).items())
    ]


def fresh_replay(db: MemoryDatabase, run_id: UUID) -> Replay:
    """A replay of a run as its next owner would make it."""
    run, due = db.run[run_id], db.due.get(run_id)
    started_at = due.started_at if due else run.started_at
    form = due.form if due else run.form
    assert started_at is not None
    assert form is not None
    info = RunInfo(
        id=run.recurred_into or run_id,
        namespace=run.namespace,
        name=run.name,
        workflow=run.workflow,
        labels={},
        started_at=started_at,
    )
    flow = WORKFLOWS[run.workflow]
    arguments = flow.decode_input(run.input, Form(form))
    return Replay(
        flow.program(arguments, info),
        started_at=started_at,
        monotonic=lambda: 0.0,
        numbers=json.loads(run.numbers),
    )


def asked_by(db: MemoryDatabase, run_id: UUID, history: list[Entry]) -> set[int]:
    """The activities that are open after this history."""
    replay = fresh_replay(db, run_id)
    replay.advance(standing(history), replaying=True)
    asked = {each.number for each in replay.open_commands() if isinstance(each, RunActivity)}
    replay.discard()
    return asked


# --- activities -------------------------------------------------------------------------------------------------------


@activity(name="sim.step", retry=TRIES)
async def step(label: str) -> int:
    info = await SERVICE.get().attempt()
    return info.number


@activity(name="sim.slow", retry=TRIES, timeout=3)
async def slow(label: str) -> int:
    """Often slower than it may be."""
    info = await SERVICE.get().attempt()
    return info.number


@activity(name="sim.book", retry=TRIES)
async def book(label: str) -> str:
    service = SERVICE.get()
    key = activity.info().idempotency_key
    info = await service.attempt(may_fail=key not in service.booked)
    return service.effect(
        info, f"{info.run}/{info.number} {info.run_id.hex[:6]}"
    )  # the name may be that of an earlier run


@book.compensate(name="sim.unbook", retry=STUBBORN)
async def unbook(booking: str) -> None:
    service = SERVICE.get()
    await service.attempt(may_refuse=False)
    service.take_back(booking)


@activity(name="sim.tidy", retry=STUBBORN)
async def tidy(label: str) -> int:
    info = await SERVICE.get().attempt(may_refuse=False)
    return info.number


@activity(name="sim.offer", retry=TRIES, transactional=True)
async def offer(label: str) -> int:
    """Publish jobs in the transaction of its own checkpoint: if it has ended they are there, and else they are not."""
    info = await SERVICE.get().attempt()
    for nth in range(1 + info.number % 3):
        await activity.transaction().publish(JOBS, f"{label}.{nth}")
    await asyncio.sleep(SERVICE.get().random.choice((0.0, 0.1, 5.0)))
    return 1 + info.number % 3


# --- workflows --------------------------------------------------------------------------------------------------------


class _Interpreter(Interpreter):
    """Runs a program with the activities of this module."""

    def note(self, what: object) -> None:
        pass

    async def _run(self, node: Node) -> object:
        match node.kind:
            case "step":
                return await step(node.label)
            case "other":
                return await slow(node.label)
            case "book":
                return await book(node.label)
            case "compensate":
                self.ctx.compensate(tidy, f"undo {node.label}")
            case "finally":
                try:
                    await self.run(node.parts[0])
                finally:
                    await tidy(node.label)
            case _:
                return await super()._run(node)
        return None

    async def _generate(self, node: Node) -> AsyncIterator[object]:
        try:
            yield await self.run(node.parts[0])
            yield await tidy(node.label)
        finally:
            await tidy(f"close {node.label}")


_COVERAGE: Final = Coverage()


@workflow(name="sim.program")
async def run_program(ctx: WorkflowContext, seed: int, depth: int) -> str:
    """A random program, by its seed."""
    return repr(await _Interpreter(ctx, _COVERAGE).run(program(Random(seed), depth=depth)))


@workflow(name="sim.saga")
async def run_saga(seed: int) -> str:
    """Bookings one after the other and side by side, with pauses; it fails at the end now and then."""
    random = Random(seed)
    for number in range(random.randint(1, 4)):
        if random.random() < 0.4:
            await asyncio.sleep(random.choice((0.3, 2, 9, 40)))
        if random.random() < 0.4:
            async with asyncio.TaskGroup() as group:
                for nth in range(random.randint(2, 3)):
                    group.create_task(book(f"{number}.{nth}"))
        elif random.random() < 0.2:
            try:
                async with asyncio.timeout(random.choice((0.1, 1, 5))):
                    await book(f"{number} in time")
            except TimeoutError:
                await step(f"{number} too late")
        else:
            await book(f"{number}")
    if random.random() < 0.3:
        raise PlannedError("planned")
    return "done"


@workflow(name="sim.steps")
async def run_steps(seed: int) -> int:
    """Activities in a row, and little else."""
    random = Random(seed)
    total = 0
    for number in range(random.randint(1, 8)):
        total += await step(str(number))
        if random.random() < 0.1:
            await asyncio.sleep(random.choice((0.05, 1.5, 20)))
    return total


class Told(Event, type="sim.told"):
    """What users tell the runs."""

    key: int


JOBS: Final = Channel("sim jobs", str, mode=ChannelMode.COMPETING)
KEYS: Final = 3
"""What a `Told` may be about."""


@workflow(name="sim.talk")
async def run_talk(ctx: WorkflowContext, seed: int) -> list[str]:
    """Events, children and messages; it tells which jobs it has taken."""
    random = Random(seed)
    jobs: list[str] = []
    for number in range(random.randint(1, 4)):
        seconds = random.choice((0.5, 3, 20, 60))
        match random.choice(("event", "stream", "child", "children", "publish", "take", "take")):
            case "event":
                with suppress(TimeoutError):
                    await ctx.wait_event(Told, where={"key": random.randrange(KEYS)}, timeout=seconds)
            case "stream":
                async with ctx.subscribe(Told) as told:
                    await step(f"{number} subscribed")
                    with suppress(TimeoutError):
                        await told.receive(timeout=seconds)
            case "child":
                with suppress(TimeoutError, PlannedError, TerminalError):
                    async with asyncio.timeout(seconds):
                        await run_saga(random.randrange(1_000_000))
            case "children":
                left = ctx.start_child(run_steps.options(parent_close=ParentClose.ABANDON), random.randrange(1_000_000))
                taken = ctx.start_child(run_saga, random.randrange(1_000_000))
                await step(f"{number} started")
                ctx.set_value("children", [left.name, taken.name])
            case "publish":
                await ctx.publish(JOBS, f"{ctx.info.name} {number}")
            case _:
                async with ctx.subscribe(JOBS) as offered:
                    with suppress(TimeoutError):
                        jobs.append((await offered.receive(timeout=seconds)).id)
    return jobs


@workflow(name="sim.rounds")
async def run_rounds(ctx: WorkflowContext, seed: int, rest: int = 3, jobs: list[str] | None = None) -> list[str]:
    """Iterations, each with something open when it ends."""
    random = Random(seed)
    jobs = jobs or []
    await step(f"round {rest}")
    if random.random() < 0.5:
        ctx.start_child(run_saga, random.randrange(1_000_000))
    if random.random() < 0.5:
        with suppress(TimeoutError):
            await ctx.wait_event(Told, timeout=random.choice((0.5, 5)))
    if random.random() < 0.5:
        async with ctx.subscribe(JOBS) as offered:
            with suppress(TimeoutError):
                jobs = [*jobs, (await offered.receive(timeout=random.choice((0.5, 5)))).id]
    if random.random() < 0.3:
        await ctx.publish(JOBS, f"{ctx.info.name} {rest}")
    if rest > 0:
        ctx.recur(random.randrange(1_000_000), rest - 1, jobs)
    return jobs


@workflow(name="sim.ledger")
async def run_ledger(ctx: WorkflowContext, seed: int) -> int:
    """Transactional activities beside others, in a row and given up; it tells how many jobs it has offered."""
    random = Random(seed)
    offered = 0
    for number in range(random.randint(1, 4)):
        match random.choice(("row", "beside", "given up")):
            case "row":
                offered += await offer(f"{ctx.info.name} {number}")
                ctx.set_value("offered", offered)
            case "beside":
                async with asyncio.TaskGroup() as group:
                    offers = [group.create_task(offer(f"{ctx.info.name} {number}/{nth}")) for nth in range(2)]
                    group.create_task(book(f"{number} beside"))
                    group.create_task(asyncio.sleep(random.choice((0.01, 1))))
                offered += sum(each.result() for each in offers)
            case _:
                with suppress(TimeoutError):
                    async with asyncio.timeout(random.choice((0.1, 2, 20))):
                        offered += await offer(f"{ctx.info.name} {number}")
    return offered


WORKFLOWS: Final[dict[str, Any]] = {
    each.name: each for each in (run_program, run_saga, run_steps, run_talk, run_rounds, run_ledger)
}


def check_messages(db: MemoryDatabase) -> None:
    """I8: a job is pending, or somebody has had it; nobody else has.

    Raises:
        BreachError: it is not so.
    """
    pending = db.pending.get(JOBS.name, set())
    taken = {
        json.loads(row.payload)["taken"]
        for run_id in db.history
        for row in told(db, run_id).values()
        if row.kind == Kind.ANSWERED and "taken" in json.loads(row.payload)
    }
    jobs = {number: event for number, event in db.event.items() if event.type == type_of(JOBS.name)}
    if lost := set(jobs) - pending - taken:
        raise BreachError(f"I8: jobs that nobody has, and that are not pending: {[jobs[each] for each in lost]}")
    # The publisher's id alone is no name: a run's messages are numbered.
    said = [
        (run.name, job)
        for run in db.run.values()
        if run.workflow in {run_talk.name, run_rounds.name} and run.phase == "Succeeded" and not run.recurred_into
        for job in json.loads(run.output or "[]")
    ]
    for run in db.run.values():
        if run.workflow == run_ledger.name and run.phase == "Succeeded":
            mine = [event for event in jobs.values() if event.source == f"run/{run.id}"]
            left = [row for row in db.outbox.get(run.id, {}).values() if row.kind == OutboxKind.ANNOUNCE]
            if len(mine) + len(left) < int(run.output or 0):  # one that it gave up may have been in time all the same
                raise BreachError(
                    f"I8: {run.name} has offered {run.output} jobs; {len(mine)} are there, {len(left)} to come"
                )
    if len(said) > len(jobs) - len(pending):
        raise BreachError(f"I8: {len(jobs)} jobs, of which {len(pending)} are pending, and these were taken: {said}")
    for name in ("outbox", "subscription", "demands"):
        if left := {key: rows for key, rows in getattr(db, name).items() if rows}:
            raise BreachError(f"I8: all runs are done, and {name} has {left}")


def has_rollback(db: MemoryDatabase, run_id: UUID) -> bool:
    """The program of this run takes back what it did in the middle."""
    return "rollback" in str(_program_of(db, run_id))


def _program_of(db: MemoryDatabase, run_id: UUID) -> object:
    run = db.run[run_id]
    if run.workflow != run_program.name:
        return run.workflow
    arguments = run_program.decode_input(run.input, Form.BY_NAME)
    return program(Random(arguments["seed"]), depth=arguments["depth"])


def is_suspended(db: MemoryDatabase, run_id: UUID) -> bool:
    """By the orders that it has been sent."""
    rows = [
        InboxRow(number, MessageKind(row.kind), row.source, row.payload, row.at)
        for number, row in sorted(db.inbox.get(run_id, {}).items())
        if not row.is_had
    ]
    delivery = Delivery(rows, delivered=frozenset(), seen=len(rows), timeout_at=None, timeout_seconds=0)
    while delivery.next(db.clock.now(), may_hold=False, is_cancelled=False) is not None:
        pass
    return delivery.is_suspended


def check_end(db: MemoryDatabase, service: Service, run_id: UUID) -> None:
    """I1: the end is what code and history decide; and what was done is taken back, or is not, as it ended.

    Raises:
        BreachError: it is not so.
    """
    run = db.run[run_id]
    booked = {booking for owner, booking in service.booked.values() if owner == run_id}
    unbooked = {booking for booking in booked if service.unbooked[booking]}
    if run.started_at is None:  # cancelled before anybody took it
        if booked or db.history.get(run_id):
            raise BreachError(f"run {run.name} never began, and has done {booked}")
        return
    if run.phase is None or run.reason == "PayloadRefused":
        raise BreachError(f"run {run.name} ended as {run.phase} {run.reason} {run.message}")
    history = history_of(db, run_id)
    replay = fresh_replay(db, run_id)
    replay.advance(standing(history), replaying=True)
    outcome = replay.outcome
    replay.discard()
    if outcome is None:
        raise BreachError(f"I1: run {run.name} ended as {run.phase}, but by its history it goes on")
    if run.recurred_into is not None:
        if outcome.end is not End.RECURRED:
            raise BreachError(f"I1: run {run.name} began anew; its history says {outcome}")
        return
    ended = {End.SUCCEEDED: "Succeeded", End.FAILED: "Failed", End.CANCELLED: "Cancelled"}[outcome.end]
    failed_by = outcome.failure and failure.describe(outcome.failure).type
    stored_by = run.failure and failure.describe(run.failure).type
    if (ended, outcome.payload, failed_by, outcome.reason) != (run.phase, run.output, stored_by, run.reason):
        raise BreachError(
            f"I1: run {run.name} ended as {run.phase} {run.reason} {run.output}; its history says {outcome}"
        )
    left = booked - unbooked
    if run.phase == "Succeeded":
        if unbooked and not has_rollback(db, run_id):
            raise BreachError(f"run {run.name} succeeded, and has taken back {sorted(unbooked)}")
    elif left - service.by_zombie:
        raise BreachError(f"run {run.name} is {run.phase} ({run.reason}), and has not taken back {sorted(left)}")
