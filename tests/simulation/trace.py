"""What happened in a simulation, in order: readable, and as a digest that is the same each time the seed is."""

import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    at: float
    who: str
    what: str
    detail: str

    def __str__(self) -> str:
        return f"{self.at:10.4f}  {self.who:<8} {self.what:<22} {self.detail}"


class Trace:
    """Args:
    time: the virtual one.
    events_max: how many of the last events are kept; None: all.
    """

    def __init__(self, time: Callable[[], float], *, events_max: int | None) -> None:
        self.events: deque[Event] = deque(maxlen=events_max)
        self.count = 0
        self.is_open = True
        self._time, self._digest = time, hashlib.blake2b(digest_size=16)
        self._names: dict[UUID, str] = {}

    def add(self, who: str, what: str, detail: str = "") -> None:
        if self.is_open:
            event = Event(self._time(), who, what, detail)
            self.events.append(event)
            self.count += 1
            self._digest.update(f"{event.at!r} {who} {what} {detail}\n".encode())

    @property
    def digest(self) -> str:
        return self._digest.hexdigest()

    def name(self, run_id: UUID) -> str:
        """A short name of a run: by the order in which they were first spoken of."""
        return self._names.setdefault(run_id, f"r{len(self._names) + 1}")

    def shown(self, value: Any) -> str:
        """A value in a line: runs by their short names."""
        match value:
            case UUID():
                return self.name(value)
            case list() | tuple():
                return "[" + " ".join(self.shown(each) for each in value) + "]"
            case dict():
                return "{" + " ".join(f"{key}={self.shown(each)}" for key, each in value.items()) + "}"
            case None:
                return "-"
            case _:
                text = str(value)
                return text if len(text) <= 40 else text[:37] + "..."
