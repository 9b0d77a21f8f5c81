"""Random lives of one run: suspended, cancelled, drained, killed, cut off and taken up again, by a seed.

Whatever happens: what starts was asked for by entries that are durable, no effect is left that should be taken back, nothing
spins, and at the end every run ends.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from uuid import UUID

import pytest

from romancy import RetryPolicy, activity, workflow
from romancy.errors import StoreUnavailableError
from romancy.model.command import RunActivity
from romancy.model.history import MessageKind
from romancy.model.run import Phase
from romancy.replay.replay import Replay
from romancy.sdk.activity import ActivityInfo
from romancy.sdk.context import RunInfo
from romancy.store.interface import Finish, Park
from romancy.worker.execution import Execution, Left
from tests.worker.doubles import STARTED_AT, Engine, Row, later, run, settle

TRIES = RetryPolicy(max_attempts=3, initial_interval=timedelta(seconds=7), jitter=0)
STUBBORN = RetryPolicy(max_attempts=0, initial_interval=timedelta(seconds=3), jitter=0)
STEPS_MAX = 400
RUN_ID = UUID(int=7)


class WeatherError(Exception):
    pass


@dataclass
class World:
    """What the activities meet: attempts that wait for what becomes of them, and effects that stay."""

    engine: Engine
    seed: int
    open: list[tuple[ActivityInfo, "asyncio.Future[str]"]] = field(default_factory=list)
    booked: dict[str, str] = field(default_factory=dict)  # by idempotency key
    unbooked: set[str] = field(default_factory=set)

    async def attempt(self) -> ActivityInfo:
        """One attempt: its end is decided by the test."""
        info = activity.info()
        self.check_start(info)
        decided: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.open.append((info, decided))
        try:
            if await decided == "fail":
                raise WeatherError
        finally:
            self.open.remove((info, decided))
        return info

    def check_start(self, info: ActivityInfo) -> None:
        """I4: by what is durable, the code waits for it."""
        replay = new_replay(self.seed)
        replay.advance(self.engine.row.history, replaying=True)
        asked = {each.number for each in replay.open_commands() if isinstance(each, RunActivity)}
        replay.discard()
        if info.number not in asked:
            BREACHES.append(f"{info.activity}#{info.number} started, but {sorted(asked)} are asked for")


BREACHES: list[str] = []
worlds: list[World] = []


@activity(name="faults.step", retry=TRIES)
async def step(label: str) -> str:
    await worlds[-1].attempt()
    return label


@activity(name="faults.book", retry=TRIES)
async def book(label: str) -> str:
    world = worlds[-1]
    key = activity.info().idempotency_key
    if key not in world.booked:  # a service that knows such keys
        await world.attempt()
        world.booked[key] = f"{label} {key}"
    return world.booked[key]


@book.compensate(name="faults.unbook", retry=STUBBORN)
async def unbook(booking: str) -> None:
    world = worlds[-1]
    await world.attempt()
    world.unbooked.add(booking)


@workflow(name="faults.mixed")
async def mixed(seed: int) -> str:
    """A program by its seed: sequence, parallel, racing, timing out, shielded, catching, failing."""
    random = Random(seed)
    for number in range(random.randint(1, 4)):
        await part(random, f"{number}")
    if random.random() < 0.3:
        raise ValueError("planned")
    return "done"


async def part(random: Random, label: str, depth: int = 2) -> None:
    kind = random.choice(("step", "book", "book", "sleep") if depth == 0 else ("step", "book", "gather", "timeout", "race", "try", "shield"))  # fmt: skip # noqa: E501
    inner = [part(Random(random.random()), f"{label}.{n}", depth - 1) for n in range(2)] if depth else []
    used = {"gather": 2, "race": 2, "timeout": 1, "try": 1, "shield": 1}.get(kind, 0)
    for unused in inner[used:]:
        unused.close()
    seconds = random.choice((0.5, 5, 20, 100))
    match kind:
        case "step":
            await step(label)
        case "book":
            await book(label)
        case "sleep":
            await asyncio.sleep(seconds)
        case "gather":
            async with asyncio.TaskGroup() as group:
                for each in inner[:used]:
                    group.create_task(each)
        case "race":
            tasks = [asyncio.create_task(each) for each in inner[:used]]
            _, late = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        case "timeout":
            try:
                async with asyncio.timeout(seconds):
                    await inner[0]
            except TimeoutError:
                pass
        case "try":
            try:
                await inner[0]
            except* WeatherError:
                await step(f"{label} caught")
        case "shield":
            await asyncio.shield(inner[0])


def new_replay(seed: int) -> Replay:
    info = RunInfo(id=RUN_ID, namespace="default", name="run", workflow=mixed.name, labels={}, started_at=STARTED_AT)
    return Replay(mixed.program({"seed": seed}, info), started_at=STARTED_AT, monotonic=time.monotonic)


class Life:
    """One run from its first claim to its end, with all that befalls it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.seed = seed
        self.row = Row()
        self.engine = Engine(self.row)
        self.world = World(self.engine, seed)
        worlds.append(self.world)
        self.execution: Execution | None = None
        self.task: asyncio.Task[Left] | None = None
        self.cached: Execution | None = None
        self.asked_now = 0
        self.steps: list[str] = []
        self._watch_engine()

    def _watch_engine(self) -> None:
        now = self.engine.now

        def counted() -> object:
            self.asked_now += 1
            return now()

        self.engine.now = counted  # type: ignore[method-assign, assignment]

    # --- what may happen ----------------------------------------------------------------------------------------

    def claim(self) -> None:
        """Some worker takes the run: this one from its cache, if it still has it, or another."""
        if self.cached is not None and self.random.random() < 0.5 and self.row.lost_count == 0:
            execution, self.cached = self.cached, None
            self.row.claim, self.row.held = self.row.claim + 1, True
            execution.resume(self.engine.claim_of(mixed, RUN_ID))
        else:
            if self.cached is not None:
                self.cached.drop()
                self.cached = None
            self.engine.is_draining = self.engine.is_out_of_time = False
            execution = self.engine.claim(mixed, f'{{"seed":{self.seed}}}', run_id=RUN_ID)
        self.execution, self.task = execution, asyncio.ensure_future(run(execution))

    def decide(self, how: str) -> None:
        waiting = [decided for _, decided in self.world.open if not decided.done()]
        if waiting:
            self.random.choice(waiting).set_result(how)

    def kill(self) -> None:
        """The worker is gone with all that it has not written; whoever buries it counts the loss."""
        assert self.task is not None
        self.task.cancel()
        self.engine.journal.fail(StoreUnavailableError("killed"))
        self.row.lost_count += 1
        self.task = self.execution = None

    def cut_off(self) -> None:
        """The journal gives up: what was on its way may have been written."""
        if self.random.random() < 0.5:
            self.engine.journal.flush()
        if self.row.held:
            self.kill()

    def drain(self) -> None:
        self.engine.is_draining = True
        assert self.execution is not None
        self.execution.look()

    def out_of_time(self) -> None:
        if self.engine.is_draining:
            assert self.execution is not None
            self.engine.is_out_of_time = True
            self.execution.look()

    def lease(self) -> None:
        self.engine.is_certain = not self.engine.is_certain

    def pass_time(self, seconds: float) -> None:
        self.engine.time = later(self.engine.time, seconds)
        if self.execution is not None:
            self.execution.look()

    def choose(self) -> tuple[str, Callable[[], object]]:
        """What happens next."""
        if self.task is None:
            return "claim", self.claim
        choices: list[tuple[int, str, Callable[[], object]]] = [
            (12, "flush", self.engine.journal.flush),
            (8, "ok", lambda: self.decide("ok")),
            (2, "fail", lambda: self.decide("fail")),
            (4, "time", lambda: self.pass_time(self.random.choice((0.2, 1, 4, 30)))),
            (1, "back", lambda: self.pass_time(-3)),
            (1, "suspend", lambda: self.engine.send(self.execution, MessageKind.SUSPEND)),
            (2, "resume", lambda: self.engine.send(self.execution, MessageKind.RESUME)),
            (1, "kill", self.kill),
            (1, "cut off", self.cut_off),
            (1, "drain", self.drain),
            (2, "out of time", self.out_of_time),
            (1, "lease", self.lease),
            (2, "nothing", lambda: None),
        ]
        if self.random.random() < 0.02:
            return "cancel", lambda: self.engine.send(self.execution, MessageKind.CANCEL)
        [(_, name, act)] = self.random.choices(choices, weights=[each[0] for each in choices])
        return name, act

    # --- how it goes --------------------------------------------------------------------------------------------

    async def live(self) -> None:
        """Until it has ended, or long enough."""
        for _ in range(STEPS_MAX):
            if await self.turn(*self.choose()):
                return
        self.engine.is_certain = True
        for _ in range(STEPS_MAX):
            if self.task is None:
                act: Callable[[], object] = self.claim
            else:
                act = self.help
            if await self.turn("help", act):
                return
        raise AssertionError(f"it does not end: {self.row.then} {self.engine.journal.queue}")

    def help(self) -> None:
        """Nothing stands in its way any more."""
        self.engine.send(self.execution, MessageKind.RESUME)
        self.engine.journal.flush()
        self.decide("ok")
        self.pass_time(10)

    async def turn(self, name: str, act: Callable[[], object]) -> bool:
        """One thing happens; true if the run has ended."""
        self.steps.append(name)
        act()
        await settle(40)
        before = self.asked_now
        await settle(40)
        assert self.asked_now - before < 40, "it spins"
        assert BREACHES == []
        if self.task is not None and self.task.done():
            left, execution = self.task.result(), self.execution
            self.task = self.execution = None
            if left is Left.PARKED:
                assert isinstance(self.row.then, Park)
                self.cached = execution
            assert not self.row.held or left is Left.FINISHED
            return left is Left.FINISHED
        return False

    def check_end(self) -> None:
        """All that was done is taken back, or nothing of it."""
        assert isinstance(self.row.then, Finish)
        booked = set(self.world.booked.values())
        if self.row.then.phase is Phase.SUCCEEDED:
            assert self.world.unbooked == set()
        else:
            assert booked == self.world.unbooked


@pytest.mark.parametrize("first", range(0, 120, 20))
async def test_whatever_befalls_a_run_it_ends_with_nothing_left_undone(first: int) -> None:
    for seed in range(first, first + 20):
        before = asyncio.all_tasks()
        life = Life(seed)
        try:
            async with asyncio.timeout(20):
                await life.live()
            life.check_end()
        except BaseException as error:
            error.add_note(f"seed {seed}: {' '.join(life.steps)}")
            raise
        await settle(40)
        assert asyncio.all_tasks() == before, f"seed {seed}"
