"""Workflows in a test: the engine's own worker on a store in memory, on a clock that jumps. Nothing sleeps.

    def test_a_declined_card_takes_everything_back(sim):
        sim.fail(charge_card, PaymentDeclinedError("no"))
        run = sim.start(order_saga, ORDER)
        with pytest.raises(PaymentDeclinedError):
            run.result()
        assert sim.calls(release_stock) == [{"reservation": RESERVATION}]

All of it are ordinary calls: a test needs no event loop. The simulation turns its own until what is asked for is known.
"""

import asyncio
import inspect
import json
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, Self, overload
from uuid import UUID

from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.client import Client, Handle
from romancy.errors import DefinitionError, WorkerLostError
from romancy.model import failure
from romancy.model.command import RunActivity
from romancy.model.event import CloudEvent, read
from romancy.model.history import Entry, Kind
from romancy.model.outbox import EVENT_KINDS
from romancy.model.retry import RetryPolicy
from romancy.model.run import Run
from romancy.sdk.activity import Activity, ActivityInfo
from romancy.sdk.event import Event, codec_of, type_of
from romancy.sdk.workflow import Workflow
from romancy.store.interface import Receipt
from romancy.store.pool import Statement
from romancy.store.queries import SQL
from romancy.testing.loop import PROCESS, Body, VirtualLoop
from romancy.testing.memory_store import MemoryDatabase, MemoryStore
from romancy.worker.activities import Activities, Ended, Transacts
from romancy.worker.lease import KeptByTask
from romancy.worker.worker import Worker

BEGINS_AT: Final = datetime(2026, 1, 1, tzinfo=UTC)
PERIOD_SECONDS: Final = 3600.0
"""Of the lease and of the slow poll: time jumps from one to the next, and a month has few of them."""
_LOST: Final = WorkerLostError.__name__
_SAVES: Final = frozenset(
    query.text
    for query in (
        *(SQL.flush, SQL.flush_entries, SQL.subscribe, SQL.unsubscribe, SQL.start_runs, SQL.send, SQL.recur),
        *(
            SQL.set_values,
            SQL.unsubscribe_all,
            SQL.delete_sent,
            SQL.store_events,
            SQL.checkpoint,
            SQL.fix_modes,
            SQL.enqueue,
            SQL.demand,
        ),
        *(SQL.undemand, SQL.hand_out, SQL.give_back, SQL.return_untaken, SQL.join_groups, SQL.leave_groups, SQL.emit),
    )
)
"""What a process writes for its runs: it may die before and after each."""


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of an activity: of which command of which run, and with what."""

    activity: str
    run_id: UUID
    number: int
    arguments: dict[str, Any]
    is_compensation: bool


@dataclass(frozen=True, slots=True)
class Crash:
    """The process dies at its save of that number, from 0: before it is applied, or after, with the answer unheard."""

    save: int
    is_applied: bool

    def __str__(self) -> str:
        return f"crash at save {self.save + 1}, {'after' if self.is_applied else 'before'} it was applied"


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, as far as a crash must not change it."""

    phase: str
    output: str | None
    failure: str
    compensations: tuple[str, ...]
    emitted: tuple[tuple[str, str, str], ...]  # source, type and data, in order


class SimulatedRun[R]:
    """A run, from outside. Its methods turn the loop until the answer is known."""

    def __init__(self, simulation: "Simulation", handle: Handle[R], run_id: UUID) -> None:
        self.id = run_id
        self._simulation, self._handle = simulation, handle

    def result(self) -> R:
        """Wait for its end: what the workflow returned. Raises what it failed with, as `Handle.result` does."""
        self._simulation.until_ended(self.id)
        return self._simulation.ask(self._handle.result())

    def info(self) -> Run:
        """The run as it is now."""
        return self._simulation.ask(self._handle.info())

    def cancel(self, message: str = "") -> bool:
        """Ask it to end. False if it had ended, or was asked before."""
        return self._simulation.ask(self._handle.cancel(message))

    def retry(self) -> bool:
        """Have it go on from its last checkpoint, now that it has failed; as `Handle.retry` does it."""
        return self._simulation.ask(self._handle.retry())

    def suspend(self) -> bool:
        """Start no new activities until it is resumed."""
        return self._simulation.ask(self._handle.suspend())

    def resume(self) -> bool:
        """Let it go on."""
        return self._simulation.ask(self._handle.resume())

    @property
    def history(self) -> list[Entry]:
        """What is saved of it, in order."""
        return self._simulation.history(self.id)


class Simulation:
    """Runs of workflows in a test; the pytest fixture `sim` is one. `close` it, or use it in a `with`.

    Args:
        crash: where its process dies.
        tells_lifecycle: runs emit events about themselves, too.
    """

    def __init__(self, *, crash: Crash | None = None, tells_lifecycle: bool = False) -> None:
        self.tells_lifecycle = tells_lifecycle
        self.deaths = self.saves = 0
        self._crash = crash
        self._loop = VirtualLoop(Random(0))
        self._clock = _Clock(self._loop)
        self._database = MemoryDatabase(self._clock)
        self._settings = DatabaseSettings()
        self._client = Client("memory")
        self._client.store = MemoryStore(self._database, self._settings)
        self._client.clock = self._clock
        self._workflows: dict[str, Workflow[..., Any]] = {}
        self._process: _Process | None = None
        self._bodies: list[Body] = []
        self._changed = asyncio.Event()
        self._calls: list[Call] = []
        self._definitions: dict[str, Activity[..., Any]] = {}  # of what was called, by name
        self._fakes: dict[str, Callable[..., Any]] = {}
        self._failures: dict[str, deque[tuple[Exception, int | None]]] = {}
        self._plays: list[Callable[[Simulation, SimulatedRun[Any]], object]] = []
        self._dead_worker: int | None = None
        self._saved: frozenset[tuple[UUID, int]] = frozenset()  # ended activities, when the process died
        self._calls_at_death = 0
        self._is_open = True
        self._run(self._client.store.open())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what activities do ---------------------------------------------------------------------------------------

    def fake[**P, R](self, activity: Activity[P, R], by: Callable[P, R] | Callable[P, Awaitable[R]]) -> None:
        """Call this instead of the activity's function, with the same arguments.

        Raises:
            DefinitionError: the activity is a plain function, and its fake is not.
        """
        if inspect.iscoroutinefunction(by) and not activity.is_async:
            raise DefinitionError(
                f"activity {activity.name!r} is a plain function, and its fake an async one", hint="write a plain `def`"
            )
        self._fakes[activity.name] = by

    def fail(self, activity: Activity[..., Any], error: Exception, *, times: int | None = None) -> None:
        """Let its next attempts fail with this error: so many, or all. After that it is what it was."""
        self._failures.setdefault(activity.name, deque()).append((error, times))

    def play(self, outside: "Callable[[Simulation, SimulatedRun[Any]], object]") -> None:
        """What the outside does once `crash_everywhere` has started its run: sends events, lets time pass, cancels.

        Args:
            outside: called with the simulation and the run; each time with another one.
        """
        self._plays.append(outside)

    def calls(self, activity: Activity[..., Any]) -> list[dict[str, Any]]:
        """The arguments, by name, of each of its attempts so far."""
        return [call.arguments for call in self._calls if call.activity == activity.name]

    # --- runs ---------------------------------------------------------------------------------------------------

    def start[**P, R](self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> SimulatedRun[R]:
        """Start a run. It goes on whenever something is asked of the simulation.

        Raises:
            DefinitionError: another workflow of that name is offered already.
        """
        self.offer(workflow)
        handle = self.ask(self._client.start(workflow, *args, **kwargs))
        assert handle.id is not None
        return SimulatedRun(self, handle, handle.id)

    def offer(self, *workflows: Workflow[..., Any]) -> None:
        """Have workflows executed that are not started here, but by runs or events. `start` offers what it starts.

        Raises:
            DefinitionError: another workflow of that name is offered already.
        """
        new = []
        for workflow in workflows:
            known = self._workflows.get(workflow.name)
            if known is None:
                new.append(workflow)
            elif known.fn is not workflow.fn:
                raise DefinitionError(
                    f"two workflows are named {workflow.name!r}: {known.where} and {workflow.where}", hint="rename one"
                )
        self._workflows |= {workflow.name: workflow for workflow in new}
        if new and self._process is not None:
            self.ask(self._process.worker.drain())  # the next one offers these as well
            self._process = None

    def run[**P, R](self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Start a run; its result, or what it failed with."""
        return self.start(workflow, *args, **kwargs).result()

    def send_event(self, event: Event | str, data: Any = None, **attributes: Any) -> Receipt:
        """Send an event, as `Client.send_event` does; its time is the simulation's."""
        return self.ask(self._client.send_event(event, data, **attributes))

    @overload
    def emitted(self) -> list[CloudEvent]: ...
    @overload
    def emitted[E: Event](self, event: type[E]) -> list[E]: ...
    @overload
    def emitted(self, event: str) -> list[CloudEvent]: ...
    def emitted(self, event: type[Event] | str | None = None) -> list[Any]:
        """What runs have emitted, in the order of each run: all, or those of one type; of a class, as its instances."""
        for run_id in list(self._database.outbox):  # durable as well, and on its way
            self._database.emit(run_ids=[run_id], kinds=EVENT_KINDS)
        found = [read(row.payload) for rows in self._database.emitted.values() for _, row in sorted(rows.items())]
        if event is None:
            return found
        chosen = [each for each in found if each.type == type_of(event)]
        return chosen if isinstance(event, str) else [codec_of(event).decode(json.dumps(each.data)) for each in chosen]

    def advance(self, by: timedelta | float) -> None:
        """Let time pass (a number is seconds), and all happen that it brings."""
        seconds = by.total_seconds() if isinstance(by, timedelta) else by
        until = self._loop.time() + seconds
        self._run(self._wait(lambda: self._loop.time() >= until, until))

    def now(self) -> datetime:
        """The simulation's clock."""
        return self._clock.now()

    def kill(self) -> None:
        """The process that executes the runs is gone, as by SIGKILL. Another one goes on with them."""
        if self._process is not None:
            self._die()

    def history(self, run_id: UUID) -> list[Entry]:
        """What is saved of a run."""
        return self.ask(self._client.store.read_history(run_id))

    def until(self, holds: Callable[[], bool]) -> None:
        """Turn until this holds; asked after each save."""
        self._run(self._wait(holds, None))

    def until_ended(self, run_id: UUID) -> None:
        """Turn until a run has ended.

        Raises:
            AssertionError: it waits for something that only the test can bring: a resume, another build.
        """
        self._run(self._wait(lambda: self._database.run[run_id].phase is not None, None, waits_for=run_id))

    def crash_everywhere[**P, R](self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> int:
        """Run it once undisturbed, then once for each moment at which its process can die: before and after each save.

        Each time another process goes on. The run must end as the first one did, with the same compensations in the same order,
        and no activity whose end was saved may be called again. Where an activity may be tried but once, the run may fail with
        WorkerLostError instead: whether it took effect nobody knows.

        Returns:
            How many crashes were played.

        Raises:
            AssertionError: says at which crash something else came out.
        """
        with self._anew(None) as undisturbed:
            expected, saves = undisturbed._end(workflow, *args, **kwargs), undisturbed.saves
        crashes = [Crash(number, is_applied) for number in range(saves) for is_applied in (False, True)]
        for crash in crashes:
            with self._anew(crash) as disturbed:
                found = disturbed._end(workflow, *args, **kwargs)
                is_lost = found.failure.startswith(_LOST) and disturbed._has_lost_an_only_attempt(
                    undisturbed._definitions
                )
                assert found == expected or is_lost, f"{crash}: it ended as {found}, and undisturbed as {expected}"
                assert disturbed.deaths == 1, f"{crash}: it did not come to it"
                again = [
                    call for call in disturbed._calls[disturbed._calls_at_death :] if _key(call) in disturbed._saved
                ]
                assert not again, f"{crash}: called again, though its end was saved: {again[0]}"
        return len(crashes)

    def close(self) -> None:
        """End what still runs, without an effect that anybody sees."""
        if not self._is_open:
            return
        self._is_open = False
        self._loop.is_ending = True
        for body in self._bodies:
            self._loop.thaw(body)
        for _ in range(50):
            self._run(_some_turns())
            if not (tasks := asyncio.all_tasks(self._loop)):
                break
            for task in tasks:
                task.cancel()
        self._loop.close()

    # --- turning ------------------------------------------------------------------------------------------------------

    def ask[T](self, question: Coroutine[Any, Any, T]) -> T:
        """The answer of something that is awaited."""
        return self._run(question)

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(work)

    async def _wait(self, holds: Callable[[], bool], until: float | None, *, waits_for: UUID | None = None) -> None:
        while not holds():
            if self._process is None:
                await self._begin_process()
                continue
            self._changed.clear()
            seconds = PERIOD_SECONDS if until is None else max(0.0, until - self._loop.time())
            try:
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            except TimeoutError:
                due = None if waits_for is None else self._database.due.get(waits_for)
                if due is not None and due.wake_at is None and due.worker_id is None:
                    raise AssertionError(
                        f"the run does not move by itself: {due.phase} {due.reason} {due.message}"
                    ) from None

    async def _begin_process(self) -> None:
        process = self._process = _Process(self, list(self._workflows.values()))
        self._bodies.append(process.body)
        if self._dead_worker is not None:
            await self._client.store.bury_worker(self._dead_worker, even_if_alive=True)
            self._dead_worker = None
        await process.start()

    def _die(self) -> None:
        process = self._process
        assert process is not None
        self._loop.bury(process.body)
        self._dead_worker, self._process, self._crash = process.worker.id, None, None
        self.deaths += 1
        self._saved = frozenset(
            (run_id, entry.number)
            for run_id, entries in self._database.history.items()
            for entry in entries.values()
            if entry.kind is Kind.ACTIVITY_COMPLETED
        )
        self._calls_at_death = len(self._calls)
        self._changed.set()

    def _has_lost_an_only_attempt(self, definitions: Mapping[str, Activity[..., Any]]) -> bool:
        """An activity that may be tried but once has failed because its process died."""
        return any(
            entry.kind is Kind.ACTIVITY_FAILED
            and _LOST in failure.describe(entry.payload).type
            and (definitions[entry.name].retry or RetryPolicy()).max_attempts == 1
            for entries in self._database.history.values()
            for entry in entries.values()
            if entry.name in definitions
        )

    def _anew(self, crash: Crash | None) -> "Simulation":
        """Another one with the same fakes and failures."""
        made = Simulation(crash=crash, tells_lifecycle=self.tells_lifecycle)
        made._workflows = dict(self._workflows)
        made._fakes = dict(self._fakes)
        made._plays = list(self._plays)
        made._failures = {name: deque(script) for name, script in self._failures.items()}
        return made

    def _end(self, workflow: Workflow[..., Any], *args: Any, **kwargs: Any) -> End:
        given = workflow.start_options
        named = workflow.options(  # the same id each time: what it is made of is
            id=given.id or "simulated",
            namespace=given.namespace,
            labels=given.labels,
            priority=given.priority,
            delay=given.delay,
            timeout=given.timeout,
        )
        run = self.start(named, *args, **kwargs)
        for outside in self._plays:
            outside(self, run)
        self.until_ended(run.id)
        shown = run.info()
        taken_back = {(call.run_id, call.number) for call in self._calls if call.is_compensation}
        compensations = tuple(entry.name for entry in run.history if (run.id, entry.number) in taken_back)
        emitted = tuple((each.source, each.type, json.dumps(each.data)) for each in self.emitted())
        return End(shown.phase, shown.output, shown.message, compensations, emitted)

    # --- what its processes ask -----------------------------------------------------------------------------------

    def saved(self) -> None:
        """Something was saved: somebody may wait for it."""
        self._changed.set()

    def is_to_crash(self) -> Crash | None:
        """The crash that is due at this save."""
        number, self.saves = self.saves, self.saves + 1
        return self._crash if self._crash is not None and self._crash.save == number else None

    def called(self, command: RunActivity, info: ActivityInfo, arguments: dict[str, Any]) -> None:
        assert isinstance(command.definition, Activity)
        self._definitions[command.name] = command.definition
        self._calls.append(Call(command.name, info.run_id, command.number, arguments, command.is_compensation))

    def scripted(self, activity: Activity[..., Any]) -> Callable[..., Any]:
        """The function that is called now."""
        script = self._failures.get(activity.name)
        if script:
            error, times = script.popleft()
            if times is None or times > 1:
                script.appendleft((error, None if times is None else times - 1))

            def fails(*_args: Any, **_kwargs: Any) -> Any:
                raise error

            return fails
        return self._fakes.get(activity.name, activity.fn)


async def _some_turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


def _key(call: Call) -> tuple[UUID, int]:
    return call.run_id, call.number


class _Clock:
    """The loop's time as a date."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def now(self) -> datetime:
        return BEGINS_AT + timedelta(seconds=self._loop.time())

    def monotonic(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class _Process:
    """A process with a worker, that may die."""

    def __init__(self, simulation: Simulation, workflows: list[Workflow[..., Any]]) -> None:
        self.body = Body()
        self._context = copy_context()
        self._context.run(PROCESS.set, self.body)
        settings = WorkerSettings(
            name="simulated", build_id="simulated", lease_seconds=PERIOD_SECONDS, poll_seconds=PERIOD_SECONDS
        )
        clock = _Clock(simulation._loop)
        self.worker = Worker(
            lambda: _Store(simulation, self.body),
            workflows,
            settings,
            clock=clock,
            keep_lease=KeptByTask,
            make_relay=_Kept,
            tells_lifecycle=simulation.tells_lifecycle,
            is_leader_expected=True,  # nothing is purged: time would go from one look to the next
        )
        self.worker.random = Random(0)
        self.worker.activities = _Activities(simulation, settings, self.worker.now)

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.create_task(self.worker.start(), context=self._context)


class _Kept(AbstractAsyncContextManager["_Kept"]):
    """No sink: `Simulation.emitted` tells what would go to one."""

    def __init__(self, store: object) -> None:
        del store

    async def __aexit__(self, *_: object) -> None: ...

    def ring(self, in_seconds: float = 0.0) -> None:
        """Nothing is delivered."""


class _Store(MemoryStore):
    """A door to the database that dies with its process."""

    def __init__(self, simulation: Simulation, body: Body) -> None:
        super().__init__(simulation._database, simulation._settings)
        self._simulation, self._body = simulation, body

    async def execute(self, statement: Statement) -> Any:
        if statement[0] not in _SAVES:
            return await super().execute(statement)
        crash = self._simulation.is_to_crash()
        if crash is not None and not crash.is_applied:
            self._simulation._die()
            await asyncio.Event().wait()
        rows = await super().execute(statement)
        if crash is not None:
            self._simulation._die()
            await asyncio.Event().wait()
        self._simulation.saved()
        return rows


class _Activities(Activities):
    """Attempts that are remembered, and whose functions may be others."""

    def __init__(self, simulation: Simulation, settings: WorkerSettings, now: Callable[[], datetime]) -> None:
        super().__init__(
            async_max=settings.activities_max,
            threads_max=settings.threads_max,
            payload_bytes_max=settings.payload_bytes_max,
            now=now,
        )
        self._simulation = simulation
        self.threads = _InPlace()  # type: ignore[assignment]

    async def attempt(
        self,
        command: RunActivity,
        info: ActivityInfo,
        *,
        may_start: Callable[[], bool],
        was_asked: Callable[[], bool],
        transacts: Transacts,
    ) -> Ended:
        assert isinstance(command.definition, Activity)
        arguments = command.definition.decode_arguments(command.arguments)
        self._simulation.called(command, info, arguments)
        return await super().attempt(command, info, may_start=may_start, was_asked=was_asked, transacts=transacts)

    def call(self, activity: Activity[..., Any], arguments: dict[str, Any]) -> Any:
        function = self._simulation.scripted(activity)
        args, kwargs = activity.signature.unbind(arguments)
        return _awaited(function, args, kwargs) if activity.is_async else function(*args, **kwargs)


async def _awaited(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    found = function(*args, **kwargs)
    return await found if inspect.isawaitable(found) else found


class _InPlace:
    """Plain functions are called here and now: a thread would end when it likes."""

    def run[T](self, call: Callable[[], T]) -> "asyncio.Future[T]":
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        future.set_result(call())
        return future

    def close(self) -> None:
        pass
