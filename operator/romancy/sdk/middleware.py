"""What may stand around runs and activities in a process: tracing, measures, a context of one's own."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from romancy.sdk.activity import ActivityInfo

if TYPE_CHECKING:
    from romancy.sdk.context import RunInfo


@dataclass(slots=True)
class Leg:
    """A run in the hands of this process: from its claim until it is parked, has ended, or is lost.

    Attributes:
        run: which.
        claim: counted from 1 over all processes.
        replayed: entries of its history that are replayed, and done no second time.
        ended: how, once it has: Parked, Succeeded, Failed, Cancelled, Blocked, Released; Dropped if this process lost it.
        error: what a Failed one failed with, or why it was dropped.
    """

    run: "RunInfo"
    claim: int
    replayed: int
    ended: str = ""
    error: str = ""

    @property
    def is_first(self) -> bool:
        """Nobody had the run before."""
        return self.claim == 1


@runtime_checkable
class Middleware(Protocol):
    """Derive from it, and override what is wanted.

    It sees and decides nothing: an exception of its own is logged (`middleware_failed`) and changes no run. It runs in the event
    loop, so it may not block. Nothing is called while a history is replayed, for nothing is done then.
    """

    def run(self, leg: Leg) -> AbstractContextManager[object]:
        """Around one leg; `leg.ended` is known when it is left. Its context is that of the leg's activities."""
        del leg
        return nullcontext()

    def activity(self, attempt: ActivityInfo) -> AbstractContextManager[object]:
        """Around each attempt of an activity, in its own context (of a plain function, in its thread)."""
        del attempt
        return nullcontext()

    def labels(self) -> Mapping[str, str]:
        """Labels for a run that is started in this process now; those that are given win."""
        return {}
