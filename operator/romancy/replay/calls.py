"""Calls of activities that are made and not yet awaited: one that is dropped would never run, and nobody would know."""

import sys
from collections import OrderedDict
from collections.abc import Coroutine
from itertools import islice
from typing import Any, Final

LOOKS_A_STEP_MAX: Final = 256  # else a step would cost more the more calls are kept


class Call:
    """One call; `started()` is the first thing that its coroutine does."""

    __slots__ = ("_calls", "_key")

    def __init__(self, calls: "Calls", key: int) -> None:
        self._calls, self._key = calls, key

    def started(self) -> None:
        self._calls.waiting.pop(self._key, None)


class Calls:
    """The calls of one run that have not begun."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[int, tuple[str, Coroutine[Any, Any, Any]]] = OrderedDict()
        self._made = 0

    def track(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> Call:
        self._made += 1
        self.waiting[self._made] = (name, coroutine)
        return Call(self, self._made)

    def dropped(self, *, looks_max: int | None = None) -> str | None:
        """The name of a call whose coroutine nobody holds but this list, so that nobody can await it any more.

        Args:
            looks_max: look at so many, and at others the next time; None for all.
        """
        for key in list(islice(self.waiting, looks_max)):
            name, coroutine = self.waiting[key]
            self.waiting.move_to_end(key)
            if coroutine.cr_frame is None:  # type: ignore[attr-defined]  # closed by whoever held it
                del self.waiting[key]
            elif _references(coroutine) <= _OURS:
                del self.waiting[key]
                coroutine.close()
                return name
        return None

    def close(self) -> None:
        for _, coroutine in self.waiting.values():
            coroutine.close()
        self.waiting.clear()


def _references(coroutine: Coroutine[Any, Any, Any]) -> int:
    return sys.getrefcount(coroutine)


def _measure() -> int:
    """How many references a coroutine has that only `waiting` holds: it differs by Python version."""

    async def sample() -> None:
        pass

    calls = Calls()
    calls.track("sample", sample())
    for _, (_name, coroutine) in list(calls.waiting.items()):
        count = _references(coroutine)
        coroutine.close()
        return count
    raise AssertionError


_OURS: Final = _measure()
