"""Middleware is called here, and can do no harm: whatever it raises is logged, and nothing depends on it."""

import contextvars
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from romancy.base import log
from romancy.sdk.activity import ActivityInfo
from romancy.sdk.middleware import Leg, Middleware

LOG = log.get(__name__)

Manager = AbstractContextManager[object]


@contextmanager
def activity(middleware: Sequence[Middleware], attempt: ActivityInfo) -> Iterator[None]:
    """Around one attempt, the first of them outermost; an exception passes as it is."""
    entered = _entered([partial(each.activity, attempt) for each in middleware])
    try:
        yield
    except BaseException as error:
        _exit(entered, error)
        raise
    _exit(entered, None)


class OpenLeg:
    """The middleware around one leg of a run, entered and left in a context of its own."""

    def __init__(self, middleware: Sequence[Middleware], leg: Leg) -> None:
        self.context = contextvars.copy_context()
        self._leg = leg
        self._entered = self.context.run(_entered, [partial(each.run, leg) for each in middleware])

    def end(self, how: str, error: str = "") -> None:
        """The run is not in this worker's hands any more; the first one who says so is right."""
        entered, self._entered = self._entered, []
        if entered:
            self._leg.ended, self._leg.error = how, error
            self.context.run(_exit, entered, None)


def labels_of_start(middleware: Sequence[Middleware]) -> dict[str, str]:
    """The labels that they want on a run that is started now; the first of them wins."""
    found: dict[str, str] = {}
    for each in reversed(middleware):
        try:
            found |= each.labels()
        except Exception:
            LOG.exception("middleware_failed")
    return found


def _entered(makers: Sequence[Callable[[], Manager]]) -> list[Manager]:
    found: list[Manager] = []
    for make in makers:
        try:
            manager = make()
            manager.__enter__()
            found.append(manager)
        except Exception:
            LOG.exception("middleware_failed")
    return found


def _exit(entered: Sequence[Manager], error: BaseException | None) -> None:
    for each in reversed(entered):
        try:
            each.__exit__(None if error is None else type(error), error, error.__traceback__ if error else None)
        except Exception as raised:
            if raised is not error:
                LOG.exception("middleware_failed")
