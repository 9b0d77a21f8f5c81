"""The tables of store/migrations as dicts of frozen rows, and who listens to what."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any
from uuid import UUID

from romancy.base.clock import Clock

Row = dict[str, Any]
"""What a statement answers with: columns by name."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One life of a process."""

    id: int
    name: str
    pod_uid: str
    namespace: str
    workflows: tuple[str, ...]
    forms: tuple[str, ...]
    build_id: str
    python: str
    started_at: datetime
    expires_at: datetime
    is_draining: bool = False

    @property
    def queues(self) -> list[str]:
        """What it offers, in the order of its workflows: runs that have begun on its Python, and new ones."""
        return [queue for workflow in self.workflows for queue in (f"{workflow}/{self.python}", workflow)]


@dataclass(frozen=True, slots=True)
class RunRow:
    """Written at the start and at the end of a run; the fields from `phase` on at its end."""

    id: UUID
    namespace: str
    name: str
    workflow: str
    priority: int
    labels: str
    input: str
    timeout_seconds: float | None
    created_at: datetime
    is_resource: bool = False
    resource_gone_at: datetime | None = None
    wish_suspend: bool = False
    wish_cancel: bool = False
    deletion_policy: str = "Cancel"
    ttl_seconds: int | None = None
    begun_by: int | None = None
    begun_number: int | None = None
    form: str | None = None
    python: str | None = None
    started_at: datetime | None = None
    phase: str | None = None
    reason: str | None = None
    message: str | None = None
    output: str | None = None
    failure: str | None = None
    finished_at: datetime | None = None
    resource_due_at: datetime | None = None
    parent_id: UUID | None = None
    parent_number: int | None = None
    parent_close: str | None = None
    numbers: str = "{}"
    recurred_into: UUID | None = None
    first_input: str | None = None
    history_from: int = 0
    outbox_from: int = 0
    claim: int | None = None
    is_compensated: bool | None = None

    def resource_due(self, finished_at: datetime | None, ttl_seconds: int | None) -> datetime | None:
        """When its resource is to be deleted."""
        if finished_at is None or ttl_seconds is None:
            return None
        return finished_at + timedelta(seconds=ttl_seconds)


@dataclass(frozen=True, slots=True)
class DueRow:
    """The hot row of an open run; gone at its end."""

    id: UUID
    queue: str
    workflow: str
    priority: int
    phase: str
    reason: str = ""
    message: str = ""
    worker_id: int | None = None
    claim: int = 0
    wake_at: datetime | None = None
    inbox_version: int = 0
    started_at: datetime | None = None
    python: str | None = None
    form: str | None = None
    lost_count: int = 0
    lost_noted: int = 0
    blocked_builds: tuple[str, ...] = ()
    is_resource: bool = False
    is_compensated: bool = False

    def is_due(self, now: datetime) -> bool:
        """Somebody may claim it."""
        return self.wake_at is not None and self.wake_at <= now

    def blocked_with(self, build_id: str) -> tuple[str, ...]:
        """The builds that can't take it, with this one."""
        return self.blocked_builds if build_id in self.blocked_builds else (*self.blocked_builds, build_id)


@dataclass(frozen=True, slots=True)
class EntryRow:
    """One position of a history."""

    kind: str
    at: datetime
    number: int
    name: str
    digest: str
    payload: str
    inbox: int | None


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One failed attempt."""

    failure: str
    failed_at: datetime
    next_at: datetime


@dataclass(frozen=True, slots=True)
class InboxRow:
    """One message."""

    kind: str
    at: datetime
    source: str
    payload: str
    event_id: int | None = None
    is_had: bool = False


@dataclass(frozen=True, slots=True)
class OutgoingRow:
    """What a run sends out."""

    kind: str
    payload: str
    worker_id: int | None
    at: datetime


@dataclass(frozen=True, slots=True)
class EmittedRow:
    """An event that is to be delivered."""

    namespace: str
    at: datetime
    payload: str


@dataclass(frozen=True, slots=True)
class EmitterRow:
    """A run that has some."""

    due_at: datetime
    version: int = 1
    claim: int = 0
    attempts: int = 0
    failing_since: datetime | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetterRow:
    """One that no sink took."""

    run_id: UUID
    namespace: str
    at: datetime
    died_at: datetime
    attempts: int
    failure: str
    payload: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """An event, for all who receive it."""

    source: str
    event_id: str
    type: str
    target: UUID | None
    at: datetime
    payload: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class MirrorRow:
    """What is owed to the status of a run's resource."""

    version: int = 1
    mirrored: int = 0
    mirror_at: datetime | None = None
    is_final: bool = False


@dataclass
class Tables:
    """All rows, by their keys. A row is replaced, never changed: who holds one holds what was there.

    Args:
        clock: the database's time.
    """

    clock: Clock
    worker: dict[int, WorkerRow] = field(default_factory=dict)
    fence: set[tuple[int, int]] = field(default_factory=set)
    run: dict[UUID, RunRow] = field(default_factory=dict)
    due: dict[UUID, DueRow] = field(default_factory=dict)
    history: dict[UUID, dict[int, EntryRow]] = field(default_factory=dict)
    attempt: dict[UUID, dict[tuple[int, int], AttemptRow]] = field(default_factory=dict)
    inbox: dict[UUID, dict[int, InboxRow]] = field(default_factory=dict)
    mirror: dict[UUID, MirrorRow] = field(default_factory=dict)
    outbox: dict[UUID, dict[int, OutgoingRow]] = field(default_factory=dict)
    emitted: dict[UUID, dict[int, EmittedRow]] = field(default_factory=dict)
    emitted_ever: int = 0
    emitter: dict[UUID, EmitterRow] = field(default_factory=dict)
    dead_letter: dict[int, DeadLetterRow] = field(default_factory=dict)
    dead_letters_ever: int = 0
    event: dict[int, EventRow] = field(default_factory=dict)
    events_ever: int = 0
    channel: dict[str, str] = field(default_factory=dict)
    pending: dict[str, set[int]] = field(default_factory=dict)
    demands: dict[tuple[UUID, int], tuple[str, datetime]] = field(default_factory=dict)
    member: set[tuple[str, UUID]] = field(default_factory=set)
    starter: dict[tuple[str, str], tuple[str, str, str]] = field(default_factory=dict)
    shape: set[tuple[str, str]] = field(default_factory=set)
    value: dict[UUID, dict[str, tuple[int, str]]] = field(default_factory=dict)
    subscription: dict[UUID, dict[int, UUID]] = field(default_factory=dict)
    burial_checked_at: datetime = field(init=False)
    purge_checked_at: datetime | None = None
    workers_ever: int = 0
    _listeners: dict[str, list[Callable[[str, str], None]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.burial_checked_at = self.clock.now()

    # --- what several statements share ----------------------------------------------------------------------------

    def is_fit(self, worker_id: int, slot: int) -> bool:
        """Its fence row is there: it may write (I2)."""
        return (worker_id, slot) in self.fence

    def owe(self, run_ids: Iterable[UUID], *, is_final: bool = False) -> bool:
        """The status of these runs has changed; whether any of them has one."""
        has_some = False
        for run_id in run_ids:
            if (row := self.mirror.get(run_id)) is not None:
                has_some = True
                self.mirror[run_id] = replace(
                    row,
                    version=row.version + 1,
                    mirror_at=row.mirror_at or self.clock.now(),
                    is_final=row.is_final or is_final,
                )
        return has_some

    def of_queues(self, queues: Iterable[str], *, build_id: str) -> Iterator[DueRow]:
        """Runs of these queues that have a time and were not blocked with this build, in any order."""
        offered = set(queues)
        for row in self.due.values():
            if row.wake_at is not None and row.queue in offered and build_id not in row.blocked_builds:
                yield row

    # --- LISTEN and NOTIFY ----------------------------------------------------------------------------------------

    def listen(self, channel: str, callback: Callable[[str, str], None]) -> None:
        """Have this called with channel and payload whenever somebody notifies."""
        self._listeners.setdefault(channel, []).append(callback)

    def unlisten(self, callback: Callable[[str, str], None]) -> None:
        """Call it no more."""
        for channel, callbacks in list(self._listeners.items()):
            self._listeners[channel] = [each for each in callbacks if each != callback]

    def tell(self, channel: str, payloads: Sequence[str]) -> int:
        """Notify, of the same payload once."""
        told = list(dict.fromkeys(payloads))
        for payload in told:
            for callback in self._listeners.get(channel, ()):
                callback(channel, payload)
        return len(told)


def unnest(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Columns as rows; a column that is too short is filled up with nulls."""
    return [dict(zip(columns, values, strict=True)) for values in zip_longest(*columns.values())]
