"""The replay that is running now: told by the running loop, so that threads and other tasks of the worker never see it."""

from asyncio import events
from typing import TYPE_CHECKING, cast

from romancy.errors import OutsideWorkflowError
from romancy.replay.loop import RunLoop

if TYPE_CHECKING:
    from romancy.replay.replay import Replay


def current() -> "Replay | None":
    """The replay whose workflow code calls this, or None outside of workflow code."""
    loop = events._get_running_loop()
    return cast("Replay", loop.replay) if isinstance(loop, RunLoop) else None


def required(what: str) -> "Replay":
    """The same, where there must be one.

    Raises:
        OutsideWorkflowError: there is none.
    """
    if (replay := current()) is None:
        raise OutsideWorkflowError(f"{what} was used outside of a running workflow", hint="call it from workflow code")
    return replay
