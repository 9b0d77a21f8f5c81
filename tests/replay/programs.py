"""Random workflow programs, and a player that is their world: it answers commands in a random order, and keeps the history."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from romancy import WorkflowContext, activity, workflow
from romancy.model import failure
from romancy.model.command import RunActivity, StartTimer
from romancy.model.history import Entry, Kind
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


class PlannedError(Exception):
    """What activities of programs fail with."""


@activity
async def step(label: str) -> int:
    raise NotImplementedError


@activity
def other(label: str) -> int:
    raise NotImplementedError


@activity
async def book(label: str) -> str:
    raise NotImplementedError


@book.compensate
async def unbook(booking: str) -> None:
    raise NotImplementedError


@activity
async def tidy(label: str) -> int:
    raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Node:
    """One construct, with its parts."""

    kind: str
    parts: tuple["Node", ...] = ()
    seconds: float = 0.0
    label: str = ""

    def __str__(self) -> str:
        inner = ", ".join(map(str, self.parts))
        return f"{self.kind}{f' {self.seconds:g}s' if self.seconds else ''}({inner or self.label})"


LEAVES = ("step", "other", "book", "sleep", "raise", "chance", "compensate", "rollback")
BRANCHES = (
    "sequence", "gather", "gather_all", "group", "race", "completed", "timeout", "wait_for", "shield", "try", "finally",
    "generator", "background", "queue", "lock",
)  # fmt: skip
KINDS = LEAVES + BRANCHES


def program(random: Random, *, depth: int = 4) -> Node:
    """A random program of bounded depth."""
    label = f"{random.randrange(1_000_000)}"
    if depth == 0 or random.random() < 0.25:
        kind = random.choices(LEAVES, weights=(6, 3, 5, 3, 2, 1, 1, 1))[0]
        return Node(kind, seconds=random.choice((1, 5, 60)) if kind == "sleep" else 0, label=label)
    kind = random.choice(BRANCHES)
    count = 1 if kind in {"timeout", "wait_for", "shield", "background", "generator", "lock"} else random.randint(2, 3)
    parts = tuple(program(random, depth=depth - 1) for _ in range(count))
    seconds = random.choice((1, 2, 10, 100)) if kind in {"timeout", "wait_for"} else 0
    return Node(kind, parts, seconds, label)


@dataclass
class Coverage:
    """How often each construct was cancelled by its run, timed out, and lost a race."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, kinds: list[str], how: str) -> None:
        self.seen.update((kind, how) for kind in kinds)


class Interpreter:
    """Runs a program as workflow code, and writes down what it sees."""

    def __init__(self, ctx: WorkflowContext, coverage: Coverage) -> None:
        self.ctx, self.coverage = ctx, coverage
        self.trace: list[str] = []
        self._cancelled: list[str] = []

    def note(self, what: object) -> None:
        self.trace.append(f"{self.ctx.now():%H:%M:%S.%f} {what}")

    async def run(self, node: Node) -> object:
        """Run one node, and remember if it was cancelled."""
        try:
            return await self._run(node)
        except asyncio.CancelledError:
            self._cancelled.append(node.kind)
            raise
        except Exception as error:
            self.note(f"{node.kind} {node.label} raised {error!r}")
            raise

    def attribute(self, how: str) -> None:
        """Say why the nodes that were cancelled since had been."""
        self.coverage.add(self._cancelled, how)
        self._cancelled.clear()

    async def _run(self, node: Node) -> object:
        match node.kind:
            case "step" | "other" | "book":
                value = await {"step": step, "other": other, "book": book}[node.kind](node.label)
                self.note(f"{node.kind} {node.label} gave {value}")
                return value
            case "sleep":
                await asyncio.sleep(node.seconds)
                self.note(f"slept {node.seconds}")
            case "raise":
                raise PlannedError(node.label)
            case "chance":
                self.note((self.ctx.random.random(), self.ctx.uuid4(), len({asyncio.current_task()})))
            case "compensate":
                self.ctx.compensate(tidy, f"undo {node.label}")
            case "rollback":
                await self.ctx.rollback()
                self.note("rolled back")
            case "sequence":
                for part in node.parts:
                    await self.run(part)
            case "gather":
                return await asyncio.gather(*map(self.run, node.parts))
            case "gather_all":
                found = await asyncio.gather(*map(self.run, node.parts), return_exceptions=True)
                self.note([repr(each) for each in found])
            case "group":
                async with asyncio.TaskGroup() as group:
                    for part in node.parts:
                        group.create_task(self.run(part))
            case "race":
                await self._race(node)
            case "completed":
                tasks = [asyncio.create_task(self.run(part)) for part in node.parts]
                for each in asyncio.as_completed(tasks):
                    self.note(f"completed {await each!r}")
            case "timeout":
                try:
                    async with asyncio.timeout(node.seconds):
                        await self.run(node.parts[0])
                except TimeoutError:
                    self.attribute("timed out")
                    self.note(f"timed out after {node.seconds}")
            case "wait_for":
                try:
                    await asyncio.wait_for(self.run(node.parts[0]), node.seconds)
                except TimeoutError:
                    self.attribute("timed out")
                    self.note(f"waited {node.seconds} in vain")
            case "shield":
                await asyncio.shield(self.run(node.parts[0]))
            case "try":
                try:
                    await self.run(node.parts[0])
                except PlannedError as error:
                    self.note(f"caught {error.args}")
                    await self.run(node.parts[1])
            case "finally":
                try:
                    await self.run(node.parts[0])
                finally:
                    self.note("finally")
                    await tidy(node.label)
            case "generator":
                async for value in self._generate(node):
                    self.note(f"generated {value}")
                    break
            case "background":
                task = asyncio.create_task(self.run(node.parts[0]))
                task.add_done_callback(lambda done: done.cancelled() or done.exception())
            case "queue":
                await self._queue(node)
            case "lock":
                await self._lock(node)
            case _:
                raise AssertionError(node.kind)
        return None

    async def _race(self, node: Node) -> None:
        tasks = {asyncio.create_task(self.run(part)) for part in node.parts}
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
            self.attribute("raced")
        # Iterating over sets: tasks hash by their order of creation.
        self.note([task.get_name() for task in done] + [repr(task.cancelled() or task.exception()) for task in pending])
        for task in done:
            task.result()

    async def _generate(self, node: Node) -> AsyncIterator[object]:
        try:
            yield await self.run(node.parts[0])
            yield await tidy(node.label)
        finally:
            self.note("generator closed")
            await tidy(f"close {node.label}")

    async def _queue(self, node: Node) -> None:
        queue: asyncio.Queue[object] = asyncio.Queue(1)

        async def produce() -> None:
            for part in node.parts:
                await queue.put(await self.run(part))

        async def consume() -> None:
            for _ in node.parts:
                self.note(f"consumed {await queue.get()}")

        async with asyncio.TaskGroup() as group:
            group.create_task(produce())
            group.create_task(consume())

    async def _lock(self, node: Node) -> None:
        lock, gate = asyncio.Lock(), asyncio.Event()

        async def inside(part: Node | None) -> None:
            async with lock:
                if part is None:
                    gate.set()
                else:
                    await self.run(part)

        await asyncio.gather(inside(node.parts[0]), inside(None), gate.wait())


@dataclass
class Recorder:
    """What the interpreters of one program wrote down: the last one's trace is the run's."""

    coverage: Coverage = field(default_factory=Coverage)
    interpreter: Interpreter | None = None

    @property
    def trace(self) -> list[str]:
        return self.interpreter.trace if self.interpreter else []


def workflow_of(node: Node, recorder: Recorder) -> Workflow[[], str]:
    """A program as a workflow."""

    @workflow(name="program")
    async def run(ctx: WorkflowContext) -> str:
        interpreter = recorder.interpreter = Interpreter(ctx, recorder.coverage)
        try:
            return repr(await interpreter.run(node))
        finally:
            if ctx._replay.cancel_reason is not None:
                interpreter.attribute("cancelled")

    return run


def new_replay(run: Workflow[..., object], *, seed: int = 0, started_at: datetime = STARTED_AT) -> Replay:
    """A replay of a workflow without input."""
    info = RunInfo(id=UUID(int=seed), namespace="n", name="r", workflow=run.name, labels={}, started_at=started_at)
    return Replay(run.program({}, info), started_at=started_at, monotonic=time.monotonic)


@dataclass
class Play:
    """A run as it happened: its history, and after each entry what was open."""

    history: list[Entry]
    opened: list[list[str]]
    trace: list[str]
    outcome: str


def state_of(replay: Replay) -> list[str]:
    """All that is open, as text: with what is asked to be cancelled."""
    found = []
    for command in replay.open_commands():
        asked = isinstance(command, RunActivity) and replay.is_cancel_asked(command.number)
        found.append(f"{command!r}{' cancel asked' if asked else ''}")
    return found


def outcome_of(replay: Replay) -> str:
    """The outcome as text, without line numbers."""
    assert replay.outcome is not None
    shown = failure.describe(replay.outcome.failure) if replay.outcome.failure else None
    error = (shown.type, shown.message) if shown else None
    return repr((replay.outcome.end, replay.outcome.payload, replay.outcome.reason, replay.outcome.message, error))


class World:
    """Answers commands at random: results, failures, ends of what is cancelled, timers, late answers, one cancel."""

    def __init__(self, random: Random, *, cancels: bool) -> None:
        self.random = random
        self.now = STARTED_AT
        self.may_cancel = cancels
        self.given_up: dict[int, RunActivity] = {}
        self.seen: dict[int, RunActivity] = {}

    def next_entry(self, replay: Replay) -> Entry:
        """What happens next to a run that is open."""
        random = self.random
        self._look(replay)
        activities = [command for command in replay.open_commands() if isinstance(command, RunActivity)]
        timers = sorted(
            (command for command in replay.open_commands() if isinstance(command, StartTimer)),
            key=lambda timer: (timer.due_at, timer.number),
        )
        choices: list[Callable[[], Entry]] = [*(lambda c=c: self._end(replay, c) for c in activities)]
        if timers:
            choices.append(lambda: self._fire(replay, timers[0]))
        if self.given_up and random.random() < 0.2:
            late = self.given_up.pop(random.choice(list(self.given_up)))
            return self._entry(replay, Kind.ACTIVITY_COMPLETED, late, "7" if late.name != "book" else '"late"')
        if self.may_cancel and (not choices or random.random() < 0.1):
            self.may_cancel = False
            return self._entry(replay, Kind.CANCEL_REQUESTED, None, '{"reason":"Cancelled","message":"by test"}')
        assert choices, "the program waits for nothing"
        return random.choice(choices)()

    def _look(self, replay: Replay) -> None:
        open_now = {command.number for command in replay.open_commands() if isinstance(command, RunActivity)}
        for number, command in list(self.seen.items()):
            if number not in open_now:
                del self.seen[number]
                self.given_up[number] = command
        for command in replay.open_commands():
            if isinstance(command, RunActivity):
                self.seen[command.number] = command

    def _end(self, replay: Replay, command: RunActivity) -> Entry:
        self.seen.pop(command.number, None)
        roll = self.random.random()
        if replay.is_cancel_asked(command.number) and roll < 0.5:
            return self._entry(replay, Kind.ACTIVITY_CANCELLED, command, "")
        if roll > 0.8:
            return self._entry(replay, Kind.ACTIVITY_FAILED, command, failure.encode(PlannedError(command.number)))
        value = {"book": f'"booking {command.number}"', "unbook": "null"}.get(command.name, str(command.number * 100))
        return self._entry(replay, Kind.ACTIVITY_COMPLETED, command, value)

    def _fire(self, replay: Replay, timer: StartTimer) -> Entry:
        self.now = max(self.now, timer.due_at)
        return self._entry(replay, Kind.TIMER_FIRED, timer, "")

    def _entry(self, replay: Replay, kind: Kind, command: RunActivity | StartTimer | None, payload: str) -> Entry:
        self.now += timedelta(milliseconds=self.random.randrange(0, 900))
        number, name, digest = (command.number, command.name, command.digest) if command else (0, "", "")
        return Entry(replay.position + 1, kind, self.now, number, name, digest, payload)


def play(node: Node, seed: int, recorder: Recorder, *, entries_max: int = 200) -> Play:
    """Run a program to its end, live."""
    random = Random(seed)
    world = World(random, cancels=random.random() < 0.4)
    replay = new_replay(workflow_of(node, recorder), seed=seed)
    replay.advance()
    history: list[Entry] = []
    opened = [state_of(replay)]
    while replay.outcome is None:
        assert len(history) < entries_max, "the program does not end"
        entry = world.next_entry(replay)
        history.append(entry)
        replay.advance([entry])
        opened.append(state_of(replay))
    found = Play(history, opened, list(recorder.trace), outcome_of(replay))
    replay.discard()
    return found
