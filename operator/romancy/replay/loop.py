"""The deterministic event loop of one run: plain asyncio on it replays in the same order, and `asyncio.sleep` is durable.

It is driven from plain code, inside or outside a task of the worker's own loop: `entered` makes it the running loop, and
puts back what was; `run_ready` runs until nothing is ready. Tasks and futures hash and are named by their order of creation, so
that sets of them iterate alike everywhere.
"""

import asyncio
import contextvars
import sys
from asyncio import events, tasks
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Final, Protocol

from romancy.errors import RunDiscarded, StepTooLongError
from romancy.replay.refused import REFUSED, refusal

TURNS_MAX: Final = 100_000
_TURNS_BETWEEN_LOOKS: Final = 64  # at the clock
_CLOSE_TRIES_MAX: Final = 10


class Host(Protocol):
    """What the loop needs of the replay that owns it."""

    def start_timer(self, when: float) -> int:
        """Open a timer that is due at `when` seconds of the run; its number."""
        ...

    def cancel_timer(self, number: int) -> None: ...
    def report(self, message: str, error: BaseException | None) -> None:
        """Something went wrong where nobody awaits."""
        ...


class RunFuture(asyncio.Future[Any]):
    """A future of a run: hashes by its order of creation."""

    _order: int

    def __new__(cls, *, loop: "RunLoop") -> "RunFuture":
        self = super().__new__(cls)
        self._order = loop.next_order()
        return self

    def __hash__(self) -> int:
        return self._order


class RunTask(asyncio.Task[Any]):
    """A task of a run: hashes and is named by its order of creation.

    The order is set before `__init__`, which already puts the task into a set.
    """

    _order: int

    def __new__(cls, coro: Coroutine[Any, Any, Any], *, loop: "RunLoop", **_: Any) -> "RunTask":
        self = super().__new__(cls)
        self._order = loop.next_order()
        return self

    def __hash__(self) -> int:
        return self._order


class _Handle(asyncio.Handle):
    """A callback of a run's loop, made without what asyncio's own looks up for its debug mode: a step makes a few of them."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: "RunLoop", context: contextvars.Context
    ):
        self._callback, self._args, self._loop, self._context = callback, args, loop, context
        self._cancelled, self._repr, self._source_traceback = False, None, None


class _Timer(asyncio.TimerHandle):
    number: int = 0


class RunLoop(asyncio.AbstractEventLoop):
    """One run's loop. `time()` is the run's clock, in seconds since it started."""

    for _name in REFUSED:
        locals()[_name] = refusal(_name)
    del _name

    def __init__(self, host: Host, *, monotonic: Callable[[], float], step_seconds_max: float) -> None:
        self.is_discarded = False
        self.turns = 0  # since the last command
        self.tasks: dict[int, RunTask] = {}  # those that are not done, in order of creation
        self.replay = host
        self._monotonic = monotonic
        self._step_seconds_max = step_seconds_max
        self._time = 0.0
        self._orders = 0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: dict[int, _Timer] = {}
        # Held until they are exhausted or the run ends: a collector that finalizes one in the middle of another run's
        # step would decide what this run does.
        self._generators: dict[int, AsyncGenerator[Any, Any]] = {}
        self._handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None = None
        self.hold = self._hold_generator  # bound once: it is handed over with each step
        # Empty: nothing of the worker (bound log values, decimal precision) leaks into a run.
        self.context = contextvars.Context()

    # --- driven by the replay -----------------------------------------------------------------------------------

    def set_time(self, seconds: float) -> None:
        """Move the run's clock."""
        self._time = seconds

    def next_order(self) -> int:
        """The order of creation: tasks and futures together."""
        self._orders += 1
        return self._orders

    def fire(self, number: int) -> None:
        """Make a timer's callback ready; one that was cancelled is gone already."""
        if (timer := self._timers.pop(number, None)) is not None:
            self._ready.append(timer)

    def run_ready(self) -> None:
        """Run until nothing is ready; this must be the running loop.

        Raises:
            StepTooLongError: more turns than allowed without a command, or too much time.
        """
        started = self._monotonic()
        self.turns = 0
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if handle._cancelled:  # a call less a turn
                continue
            self.turns += 1
            if self.turns > TURNS_MAX:
                raise StepTooLongError(f"{self.turns - 1:,} turns of its loop", limit=f"{TURNS_MAX:,}")
            if self.turns % _TURNS_BETWEEN_LOOKS == 0:
                self._look_at_clock(started)
            # SystemExit is the exception of the task that raised it: the process is not the run's to end.
            try:  # noqa: SIM105 - a context manager a turn is felt here
                handle._run()
            except SystemExit:
                pass
        self._look_at_clock(started)
        if self._generators:
            self._generators = {key: each for key, each in self._generators.items() if not _is_exhausted(each)}

    def open_generators(self) -> list[AsyncGenerator[Any, Any]]:
        """Asynchronous generators that have begun and are not exhausted, in order of their first use."""
        return [generator for generator in self._generators.values() if not _is_exhausted(generator)]

    def entered(self) -> "_Entered":
        """Be the running loop, whatever ran before, and see first uses of asynchronous generators."""
        return _Entered(self)

    def discard(self) -> list[object]:
        """Close every coroutine and asynchronous generator with this loop current; what they try to do raises RunDiscarded.

        Returns:
            What refused to be closed: to be held for ever, since its finalizer may run at any time.
        """
        self.is_discarded = True
        stubborn: list[object] = []
        with self.entered():
            for task in reversed(self.tasks.values()):
                coroutine = task.get_coro()
                assert coroutine is not None
                if not self._closed(lambda coroutine=coroutine: coroutine.close()):  # type: ignore[misc]
                    stubborn.append(task)
            stubborn.extend(
                generator
                for generator in reversed(self.open_generators())
                if not self._closed(lambda generator=generator: generator.aclose().send(None))  # type: ignore[misc]
            )
        self._ready.clear()
        self._timers.clear()
        return stubborn

    def _closed(self, close: Callable[[], object]) -> bool:
        for _ in range(_CLOSE_TRIES_MAX):
            try:
                self.context.run(close)
            except StopIteration:
                return True  # an asynchronous generator that ended
            except RuntimeError as error:
                if "GeneratorExit" in str(error) or "already running" in str(error):
                    continue  # it awaited something in its `finally`: throw once more
                return True
            except BaseException:
                return True
            else:
                return True
        return False

    def _look_at_clock(self, started: float) -> None:
        seconds = self._monotonic() - started
        if seconds > self._step_seconds_max:
            raise StepTooLongError(f"{seconds:.1f} s", limit=f"{self._step_seconds_max:g} s")

    def _hold_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators[self.next_order()] = generator

    # --- what asyncio asks of a loop ------------------------------------------------------------------------------

    def time(self) -> float:
        return self._time

    get_debug = staticmethod(bool)  # False, without a call of Python's: each future and handle asks

    def set_debug(self, enabled: bool) -> None:
        pass

    def is_running(self) -> bool:
        return events._get_running_loop() is self

    def is_closed(self) -> bool:
        return self.is_discarded

    def call_soon(  # type: ignore[override]  # typeshed's form needs the callback's own parameters
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context if context is not None else self._context(None))
        if not self.is_discarded:  # a future that the `finally` of a dropped run resolves wakes nobody
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._time + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, self._context(context))
        if self.is_discarded:
            raise RunDiscarded
        if when <= self._time:
            self._ready.append(timer)  # due now: no timer, no row
        else:
            timer.number = self.replay.start_timer(when)
            self._timers[timer.number] = timer
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, _Timer) and self._timers.pop(handle.number, None) is not None:
            self.replay.cancel_timer(handle.number)

    def create_future(self) -> RunFuture:
        return RunFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, Any] | Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> RunTask:
        if self.is_discarded:
            _close_quietly(coro)
            raise RunDiscarded
        options.pop("eager_start", None)  # eager or not would be another order: always the next turn
        task = RunTask(coro, loop=self, name=name, context=self._context(context), **options)  # type: ignore[arg-type]
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        order = task._order
        if name is None:
            task.set_name(f"task-{order}")
        self.tasks[order] = task
        task.add_done_callback(lambda _: self.tasks.pop(order, None) and None)
        return task

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None:
        return self._handler

    def set_exception_handler(
        self, handler: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object] | None
    ) -> None:
        self._handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.replay.report(str(context.get("message", "")), context.get("exception"))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_discarded or not self.is_running():
            return  # a finalizer, whenever the collector came by: it says nothing about the run
        if self._handler is not None:
            self._handler(self, context)
        else:
            self.default_exception_handler(context)

    def _context(self, given: contextvars.Context | None) -> contextvars.Context:
        if given is not None:
            return given
        return contextvars.copy_context() if self.is_running() else self.context.copy()


class _Entered:
    """While it is entered, a run's loop is the running one. A class, for it is entered with each entry of each run."""

    __slots__ = ("_hooks", "_loop", "_outer", "_task")

    def __init__(self, loop: RunLoop) -> None:
        self._loop = loop

    def __enter__(self) -> None:
        self._outer = outer = events._get_running_loop()
        # On Python 3.14 the current task belongs to the thread, and no other may step while it is set.
        self._task = tasks._swap_current_task(outer, None) if outer is not None else None  # type: ignore[attr-defined]
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._loop.hold, _leave)
        events._set_running_loop(self._loop)

    def __exit__(self, *_: object) -> None:
        events._set_running_loop(self._outer)
        sys.set_asyncgen_hooks(*self._hooks)
        if self._outer is not None:
            tasks._swap_current_task(self._outer, self._task)  # type: ignore[attr-defined]


def new_loop(host: Host, *, monotonic: Callable[[], float], step_seconds_max: float) -> RunLoop:
    """Make a run's loop. Its refused methods are filled in from a table, which no type checker can see."""
    return RunLoop(host, monotonic=monotonic, step_seconds_max=step_seconds_max)  # type: ignore[abstract]


def _leave(generator: AsyncGenerator[Any, Any]) -> None:
    """No finalizer: the loop holds each generator until it is exhausted or the run ends."""


def _is_exhausted(generator: AsyncGenerator[Any, Any]) -> bool:
    return getattr(generator, "ag_frame", None) is None


def _close_quietly(coroutine: Any) -> None:
    coroutine.close()
