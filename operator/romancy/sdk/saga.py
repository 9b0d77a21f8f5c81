"""Compensations: registered when a result is delivered, run last-in first-out when the workflow failed or was cancelled."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from romancy.errors import CompensationFailedError, NotDeterministicError, RunDiscarded
from romancy.model import failure
from romancy.model.command import End, Outcome
from romancy.model.history import Entry
from romancy.model.run import Reason
from romancy.replay.replay import Replay

if TYPE_CHECKING:
    from romancy.sdk.activity import Activity

_SAGAS: "WeakKeyDictionary[Replay, Saga]" = WeakKeyDictionary()


def of(replay: Replay) -> "Saga":
    """The saga of a run."""
    if (found := _SAGAS.get(replay)) is None:
        found = _SAGAS[replay] = Saga()
    return found


class Saga:
    """What a run would have to take back."""

    # It holds no replay: the value of a weak dictionary that holds its key keeps both for ever.
    def __init__(self) -> None:
        self._stack: list[tuple[Activity[..., Any], str]] = []

    def push_result(self, undo: "Activity[..., Any]", entry: Entry) -> None:
        """An activity with a compensation has ended well, whatever the code awaits by now."""
        parameter = next(iter(undo.signature.parameters.parameters))
        self._stack.append((undo, f"{{{json.dumps(parameter)}:{entry.payload}}}"))

    def push(self, undo: "Activity[..., Any]", arguments: dict[str, Any]) -> None:
        """One that the code registers itself."""
        self._stack.append((undo, undo.signature.arguments.encode(arguments)))

    async def roll_back(self, replay: Replay) -> None:
        """Run what is registered, last-in first-out; nothing interrupts it.

        One that uses up its retries is recorded, and the others run.

        Raises:
            CompensationFailedError: at least one failed, when all have run.
            asyncio.CancelledError: the caller was cancelled meanwhile; raised when all have run.
        """
        if not self._stack:
            return
        work = asyncio.create_task(self._undo_all(replay))
        was_cancelled = await _wait_uninterrupted([work])
        failed = work.result()
        if was_cancelled is not None:
            raise was_cancelled
        if failed:
            raise _compensation_failed(failed)

    async def _undo_all(self, replay: Replay) -> list[tuple[str, Exception]]:
        failed = []
        while self._stack:
            undo, arguments = self._stack.pop()
            # Nobody who cancels the task that this runs in cancels the compensation, or loses the ones after it.
            compensation = undo.issue_encoded(replay, arguments, is_compensation=True)
            await _wait_uninterrupted([compensation])
            if isinstance(error := compensation.exception(), Exception):
                failed.append((undo.name, error))
        return failed


class Recurs(BaseException):
    """Leaves the workflow function: the run goes on with another input. No `except Exception` stops it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


async def run_to_end(replay: Replay, body: Callable[[], Coroutine[Any, Any, str]]) -> Outcome:
    """Run a workflow's body, then its remaining tasks, then what must be taken back; how it ended.

    Args:
        body: runs the workflow function and returns its encoded result.
    """
    outcome = await _outcome(replay, body)
    with suppress(asyncio.CancelledError):
        await _meet_cancel()
    return outcome


async def _outcome(replay: Replay, body: Callable[[], Coroutine[Any, Any, str]]) -> Outcome:
    payload: str | None = None
    error: BaseException | None = None
    try:
        payload = await body()
        replay.check_calls()
        await _meet_cancel()
    except (RunDiscarded, GeneratorExit, KeyboardInterrupt):
        raise
    except Recurs as recurs:
        replay.is_closing = True
        await _end_tasks(replay)
        return Outcome(End.RECURRED, payload=recurs.text)
    except (
        BaseException
    ) as raised:  # also SystemExit, or one of the code's own: it is the run that fails, not its worker
        error = replay.failure or raised
    replay.is_closing = True
    await _end_tasks(replay)
    if error is None:
        return Outcome(End.SUCCEEDED, payload=payload)
    try:
        await of(replay).roll_back(replay)
    except CompensationFailedError as failed:
        failed.__cause__ = error if isinstance(error, Exception) else None
        return _failed(failed, Reason.COMPENSATION_FAILED)
    except asyncio.CancelledError:
        # A TaskGroup that was left open cancels the task that it was opened in: that is over, and all is taken back.
        pass
    return _end_of(replay, error)


async def _meet_cancel() -> None:
    """Have a cancel that is still on its way arrive here.

    A TaskGroup that fails while its task is cancelled cancels it once more; if the task returned with that, it would be
    cancelled, and what it returned would be lost.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await asyncio.sleep(0)


async def _end_tasks(replay: Replay) -> None:
    """Cancel and await every task that is left, and what they start while they end; then close generators."""
    me = asyncio.current_task()
    while left := [task for task in replay.loop.tasks.values() if task is not me and not task.done()]:
        for task in left:
            task.cancel()
        await _wait_uninterrupted(left)
    for generator in replay.loop.open_generators():
        closing = asyncio.create_task(_close(generator))
        await _wait_uninterrupted([closing])
        if not closing.cancelled() and (error := closing.exception()) is not None:
            replay.report("an asynchronous generator failed while it was closed", error)  # as asyncio does


async def _close(generator: AsyncGenerator[Any, Any]) -> None:
    await generator.aclose()


async def _wait_uninterrupted(tasks: Sequence["asyncio.Future[Any]"]) -> asyncio.CancelledError | None:
    """Wait until all are done; a cancellation of the waiting task meanwhile is returned, and interrupts nothing."""
    was_cancelled: asyncio.CancelledError | None = None
    while any(not task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError as cancelled:
            was_cancelled = cancelled
    return was_cancelled


def _end_of(replay: Replay, error: BaseException) -> Outcome:
    if isinstance(error, asyncio.CancelledError):
        if replay.cancel_reason is None:
            error = RuntimeError("the workflow raised CancelledError, but nobody has cancelled the run")
        else:
            asked = json.loads(replay.cancel_reason or "{}")
            reason, message = asked.get("reason", Reason.CANCELLED), asked.get("message", "")
            end = End.FAILED if reason == Reason.TIMED_OUT else End.CANCELLED
            return Outcome(end, reason=reason, message=message)
    return _failed(_named(error), Reason.WORKFLOW_FAILED)


def _named(error: BaseException) -> BaseException:
    """Name what asyncio only says in its own words: something that is not of this run was awaited."""
    text = str(error)
    if isinstance(error, RuntimeError) and (
        "attached to a different loop" in text or text.startswith("Task got bad yield")
    ):
        named = NotDeterministicError(f"awaiting {text.partition(' got ')[2] or 'a foreign object'}")
        named.__cause__ = error
        return named
    return error


def _failed(error: BaseException, reason: Reason) -> Outcome:
    text = failure.encode(error)
    shown = failure.describe(text)
    message = f"{shown.type.rpartition('.')[2]}: {shown.message}" if shown.message else shown.type
    return Outcome(End.FAILED, failure=text, reason=reason, message=message)


def _compensation_failed(failed: list[tuple[str, Exception]]) -> CompensationFailedError:
    shown = "; ".join(f"{name}: {error!r}" for name, error in failed)
    return CompensationFailedError(
        f"{len(failed)} compensation(s) used up their retries: {shown}",
        hint="take these effects back by hand; the others have been taken back",
    )
