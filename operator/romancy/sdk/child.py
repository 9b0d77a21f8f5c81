"""Child runs: a workflow that another one awaits, or starts and holds by a handle."""

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import WeakKeyDictionary

from romancy.errors import RunCancelledError, RunFailedError, RunTimedOutError
from romancy.model import failure, trace
from romancy.model.codec import digest
from romancy.model.command import StartChild
from romancy.model.history import Entry, Kind
from romancy.model.run import NAME_MAX, Reason, child_id_of, run_id_of
from romancy.replay.replay import ChildFuture, Replay

if TYPE_CHECKING:
    from romancy.sdk.context import RunInfo
    from romancy.sdk.workflow import Workflow

_PARENTS: "WeakKeyDictionary[Replay, RunInfo]" = WeakKeyDictionary()


class ChildHandle[R]:
    """A run that this one has started. It goes on whether anybody waits for it or not."""

    def __init__(self, future: ChildFuture, command: StartChild) -> None:
        self._future, self._command = future, command

    @property
    def id(self) -> UUID:
        """The child's id."""
        return self._command.run_id

    @property
    def name(self) -> str:
        """The child's name."""
        return self._command.run_name

    @property
    def is_done(self) -> bool:
        """It has ended, and this run has heard of it."""
        return self._future.done()

    async def result(self) -> R:
        """Wait for its end; what it returned. Whoever is cancelled while he waits leaves the child alone.

        Raises:
            RunCancelledError: it was cancelled; RunTimedOutError: it used up its timeout.
            RunExistsError: its id belongs to another run.
            RunFailedError: it failed in a way that can't be rebuilt here; else the exception that failed it, by its type.
        """
        found: R = await asyncio.shield(self._future)
        return found

    def cancel(self) -> None:
        """Ask it to end, and `result` to raise CancelledError when it has."""
        self._future.cancel()


def belongs(replay: Replay, info: "RunInfo") -> None:
    """Whose children this replay's are."""
    _PARENTS[replay] = info


def start[R](
    replay: Replay, workflow: "Workflow[..., R]", arguments: tuple[Any, ...], named: dict[str, Any]
) -> ChildHandle[R]:
    """Ask for a run of a workflow, as a child of this one.

    Raises:
        PayloadError: an argument can't be stored.
        TypeError: the arguments don't fit, as in any Python call.
    """
    parent, options = _PARENTS[replay], workflow.start_options
    text = workflow.encode_input(arguments, named)
    number = replay.next_child()
    namespace = options.namespace or parent.namespace
    name = options.id or f"{parent.name[: NAME_MAX - 12]}.{number}"
    run_id = run_id_of(namespace, name) if options.id else child_id_of(parent.id, number)
    command = StartChild(number, workflow.name, digest(text), run_id, name)
    payload = {
        "id": str(run_id),
        "namespace": namespace,
        "name": name,
        "workflow": workflow.name,
        "input": text,
        "form": workflow.signature.form,
        "priority": options.priority,
        "timeout_seconds": options.timeout.total_seconds() if options.timeout else None,
        "labels": {**trace.handed_on(parent.id, parent.labels), **options.labels},
        "start_at": (replay.now + options.delay).isoformat() if options.delay else None,
        "number": number,
        "close": options.parent_close,
    }

    def decode(entry: Entry) -> object:
        return _value(workflow, name, entry)

    future = replay.start_child(command, json.dumps(payload), decode=decode)
    future._log_traceback = False  # a child that nobody waits for may fail in peace
    return ChildHandle(future, command)


def _value(workflow: "Workflow[..., Any]", name: str, entry: Entry) -> object:
    if entry.kind is not Kind.CHILD_COMPLETED:
        return error_of(name, json.loads(entry.payload))
    return workflow.signature.decode_result(entry)


def error_of(name: str, told: dict[str, Any]) -> Exception:
    """The exception that says how a run ended that did not succeed.

    Args:
        told: its reason, message, and failure as JSON text or None.
    """
    reason, message = told["reason"], told["message"]
    if told["failure"] is not None:
        error = failure.decode(told["failure"])
        return error if isinstance(error, Exception) else RunFailedError(f"run {name} failed: {message}", reason=reason)
    if reason == Reason.TIMED_OUT:
        return RunTimedOutError(f"run {name}: {message}")
    if told["phase"] == "Cancelled":
        return RunCancelledError(f"run {name} was cancelled: {message or reason}")
    return RunFailedError(f"run {name} failed: {message}", reason=reason)
