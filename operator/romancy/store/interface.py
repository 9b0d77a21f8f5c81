"""What the other floors may ask of the store. `PostgresStore` is it for real.

The numbers (I..) are invariants of docs/architecture.md.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from romancy.errors import RomancyError
from romancy.model.channel import ChannelMode
from romancy.model.dead_letter import DeadLetter
from romancy.model.event import CloudEvent, Where
from romancy.model.history import Attempt, Entry, InboxRow, Message
from romancy.model.outbox import OutboxRow, Outgoing
from romancy.model.record import record
from romancy.model.run import Form, NewRun, Phase, Run, Wishes
from romancy.model.worker import WorkerRow

WorkerId = int


@record
class NewWorker:
    """One life of a process, before it is registered. `workflows` maps each name to the form of its parameters."""

    name: str
    boot_id: UUID
    pod_uid: str
    namespace: str
    workflows: Mapping[str, Form]
    build_id: str
    python: str  # minor, "3.12"


@record
class Claim:
    """A worker's hold on a run. `number` is raised by each claim and named by whoever lets the run go."""

    run_id: UUID
    number: int
    workflow: str
    inbox_version: int
    phase: Phase  # Running, or Compensating if it was
    lost_count: int  # workers lost in a row without an entry since
    lost_noted: int  # of these, how many have been counted as attempts already
    was_suspended: bool = False


@record
class Renewal:
    """The answer to a worker's sign of life; it carries what whoever buries in the leader's absence has to know.

    Attributes:
        is_ours: False: this worker has been buried.
        expired: other workers that have given no sign of life for too long, longest first.
        burial_check_seconds: how long ago `expired_workers` was last asked by anybody: if long, the leader is away.
    """

    is_ours: bool
    expired: tuple[WorkerId, ...]
    burial_check_seconds: float


@record
class Poll:
    """What the slow poll finds, of one moment.

    Attributes:
        now: the database's clock.
        unseen: runs that are this worker's by the row, but not in its hands: the answer of their claim was lost.
        due_at: the earliest time at which a run that it could claim is due; in the past if one is due already.
        has_blocked: `claim_blocked` would find something.
        has_left: something lies in the outbox that whoever wrote it should have sent by now.
        emitted_due_at: when the next emitted event is to be delivered; in the past if one is already.
    """

    now: datetime
    unseen: tuple[Claim, ...]
    due_at: datetime | None
    has_blocked: bool
    has_left: bool = False
    emitted_due_at: datetime | None = None


@record
class ClaimedRun:
    """What a claimed run is replayed from: read by statements of their own, after the claim."""

    run_id: UUID
    namespace: str
    name: str
    workflow: str
    input: str
    form: Form
    labels: dict[str, str]
    started_at: datetime
    timeout_seconds: float | None
    history: tuple[Entry, ...]
    inbox: tuple[InboxRow, ...]
    attempts: tuple[Attempt, ...]
    outbox: tuple[OutboxRow, ...] = ()  # what nobody has sent yet
    is_child: bool = False  # another run waits to hear how it ends
    numbers: Mapping[str, int] = field(default_factory=dict)  # what its iteration counts on from


# --- what a worker writes: at most one RunWrite a run is on its way at a time -----------------------------------------


@record
class Begin:
    """Insert this run as our own (claim 1). Refused without a trace if the id exists."""

    run: NewRun
    started_at: datetime
    python: str


@record
class Keep:
    """Hold on to the run, and change what is shown of it."""

    phase: Phase
    reason: str = ""
    message: str = ""


@record
class Park:
    """Put the waiting run away, unless its inbox version is not `seen` any more: then it stays with this worker."""

    seen: int
    wake_at: datetime | None
    phase: Phase = Phase.WAITING  # or Suspended, Compensating
    reason: str = ""
    message: str = ""


@record
class Release:
    """Give the run back as it is, due at once (a drain)."""


@record
class Block:
    """The run can't go on with this build: nobody with it claims the run again."""

    reason: str
    message: str
    build_id: str


@record
class Finish:
    """The end: the row `due` is deleted."""

    phase: Phase
    reason: str = ""
    message: str = ""
    output: str | None = None
    failure: str | None = None


LetGo = Park | Release | Block | Finish


@record
class RunWrite:
    """Everything that one run has to write, in one transaction: begin, entries, attempts, outbox, then keep or let go.

    Writes of one run that wait for the same flush are merged by the journal. After a `LetGo` nothing more may be
    submitted for this claim until the answer says that the run stays.
    """

    run_id: UUID
    claim: int
    begin: Begin | None = None
    entries: tuple[Entry, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    then: Keep | LetGo | None = None
    losses_noted: bool = False  # the attempts of lost workers are in this write, whatever becomes of the claim
    outbox: tuple[Outgoing, ...] = ()


@record
class Flushed:
    """The answer to a write, when it is durable."""

    began: bool = True  # False: the id exists; nothing of this write was written
    stays: bool = False  # the run was not parked: there is new mail


class Journal(Protocol):
    """Group commit: what gathered while the last flush was on its way goes out as one statement in one transaction.

    It is a task of its own: who waits for it may be cancelled, the flush may not. After a lost connection the same
    flush is sent again, and means the same; it gives up after `give_up_seconds`, and then answers
    StoreUnavailableError: the caller must let its worker be buried, for what was asked may have been done.
    """

    flushes: int  # committed, since it was opened: a count for tests and metrics

    def write(self, write: RunWrite, answered: Callable[[Flushed | RomancyError], object]) -> None:
        """Queue a write.

        Args:
            answered: called once, later, when the write is durable, or can't be: WorkerFencedError (of all that is queued),
                PayloadRefusedError (of this run alone; what it wrote after that is refused as well), HistoryConflictError
                (I3, of this run alone), StoreUnavailableError. What it writes then is in the next flush.
        """
        ...

    def submit(self, write: RunWrite) -> "asyncio.Future[Flushed]":
        """The same for whoever awaits it; cancelling the future stops nothing."""
        ...

    async def close(self) -> None:
        """Flush what is queued, and end."""
        ...


# --- what the outside asks ------------------------------------------------------------------------------------------


@record
class Started:
    """The answer to a start, in order. `existing` is the run that had the id before, if any."""

    run_id: UUID
    existing: Run | None


@record
class Receipt:
    """The answer to an event.

    Attributes:
        runs: how many have got it by this call.
        started: how many it began.
        is_new: nobody had sent it before.
    """

    runs: int
    started: int
    is_new: bool


@record
class Sending:
    """An event on its way: to all that wait for it, or (`to`) to one run."""

    event: CloudEvent
    to: UUID | None = None


@record
class Starter:
    """A workflow that events of a type start, if their attributes are these."""

    workflow: str
    type: str
    where: Where
    form: Form


@record
class Emitter:
    """A claimed run with emitted events.

    Attributes:
        claim: named by whoever settles it.
        version: counts what it has emitted.
        attempts: failed ones of its first event.
        failing_seconds: how long ago the first of these was.
    """

    run_id: UUID
    claim: int
    version: int
    attempts: int
    failing_seconds: float


@record
class EmittedEvent:
    """An event that is to be delivered; positions of a run grow in the order in which it emitted."""

    position: int
    event: CloudEvent


@record
class Settled:
    """What came of a claimed run.

    Attributes:
        delivered_to: the position of the last event that was delivered, if any.
        dead: the position of the one that is not tried any more, if any.
        failure: what the sink said of the event that failed or died.
        attempts: failed ones of that event.
        delay_seconds: after which it is tried again; None: it did not fail, or is dead.
        has_more: there are events after these.
    """

    run_id: UUID
    claim: int
    version: int
    delivered_to: int | None = None
    dead: int | None = None
    failure: str = ""
    attempts: int = 0
    delay_seconds: float | None = None
    has_more: bool = False


@record
class RunFilter:
    """What a list shows; all that is given must hold.

    Attributes:
        after: the keyset of the last run of the page before.
        name_part: stands somewhere in the name, as it is written.
        ids: the first and the last id.
        created_from, finished_from: at that time or later.
        created_before, finished_before: before that time. A run that is open has not finished at any.
        input: JSON text of an object that the input contains, as `model.search` tells it. An input that jsonb refuses
            contains nothing.
    """

    namespace: str | None = None
    workflow: str | None = None
    phases: frozenset[Phase] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict)
    after: tuple[datetime, UUID] | None = None
    name_part: str | None = None
    ids: tuple[UUID, UUID] | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    finished_from: datetime | None = None
    finished_before: datetime | None = None
    input: str | None = None


@record
class Purgeable:
    """Ended runs to be deleted: of this outcome, that long ago; of a namespace and a workflow, or (None) of all.

    A run whose resource is there is not among them. Nor is one that ended less than twice `give_up_seconds` ago: a flush that
    nobody heard the answer of may be sent again for so long.
    """

    phase: Phase
    older_than_seconds: float
    namespace: str | None = None
    workflow: str | None = None


@record
class Purged:
    """One batch: how many runs, and when the last of them ended; None if there was none."""

    runs: int
    last_at: datetime | None


@record
class Unmirrored:
    """A run of a resource whose status has not been written since `version`."""

    run: Run
    version: int
    attempts: int  # failed ones of open activities
    is_gone: bool


@record
class ResourceRow:
    """What control compares with the objects that it lists."""

    run_id: UUID
    namespace: str
    name: str
    phase: Phase
    wishes: Wishes


@record
class Backlog:
    """The counts of the health view. `oldest_due_seconds` is 0 if nothing is due; events are counted up to 100,001."""

    due: int
    held: int
    open: int
    blocked: int
    oldest_due_seconds: float
    emitted: int = 0
    dead_letters: int = 0


class Store(Protocol):
    """The only truth. Every method may raise StoreUnavailableError: no answer came, and it may have been done."""

    # runs
    async def start_runs(self, runs: Sequence[NewRun]) -> list[Started]:
        """Insert runs that nobody holds yet, and wake workers that have their workflows. Twice is once (I6)."""
        ...

    async def read_run(self, run_id: UUID) -> Run | None: ...
    async def find_run(self, namespace: str, name: str) -> Run | None:
        """The newest run of that name."""
        ...

    async def list_runs(self, where: RunFilter, *, limit: int) -> list[Run]:
        """Newest first (created_at, id).

        Raises:
            SearchTooBroadError: it took longer than a statement may: filters without an index let too few through.
        """
        ...

    async def read_history(self, run_id: UUID) -> list[Entry]: ...
    async def read_attempts(self, run_ids: Sequence[UUID]) -> dict[UUID, list[Attempt]]:
        """Every failed attempt of their activities."""
        ...

    async def retry_run(self, run_id: UUID, *, by: str = "") -> bool:
        """Have a failed run go on from its last checkpoint. False if it was retried before, and is open.

        Args:
            by: who asks, kept with the message.

        Raises:
            RunNotFoundError: there is no such run.
            RetryRefusedError: it has not failed, or not in a way that can be taken up; nothing was changed.
        """
        ...

    # inbox
    async def send(self, messages: Sequence[Message]) -> int:
        """Store messages and wake their runs in one transaction (I7); how many were new. Runs that are done get none.

        A waiting run becomes due; a delayed or suspended one keeps its time, but a cancel or a resume wakes it too.
        """
        ...

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]: ...

    # events
    async def send_event(self, event: CloudEvent, *, to: UUID | None = None) -> Receipt:
        """Store an event and bring it to all open runs that wait for it, or to one run. The same source and id is one event."""
        ...

    async def send_events(self, sent: Sequence[Sending]) -> list[Receipt]:
        """The same for many at once, in a constant number of statements."""
        ...

    async def set_starters(self, namespace: str, offered: Sequence[str], starters: Sequence[Starter]) -> None:
        """Say which of the offered workflows events start, and by which."""
        ...

    # outbox
    async def carry_out(self, rows: Sequence[OutboxRow]) -> None:
        """Send what runs have put there; twice is once."""
        ...

    async def read_values(self, run_id: UUID) -> dict[str, str]:
        """What a run shows to outsiders: JSON texts by name."""
        ...

    async def read_left(self, *, limit: int) -> list[OutboxRow]:
        """What runs that nobody holds have put there, and whoever held them has not sent."""
        ...

    # emitted events
    async def emit(self, run_ids: Sequence[UUID]) -> None:
        """Move what these runs have emitted from the outbox to where relays find it; twice is once."""
        ...

    async def claim_emitters(self, *, room: int, failing_max: int, lease_seconds: float) -> list[Emitter]:
        """Take so many runs with events that are due, at most `failing_max` whose first event has failed before."""
        ...

    async def read_emitted(self, run_ids: Sequence[UUID], *, limit: int) -> dict[UUID, list[EmittedEvent]]:
        """The first events of each of these runs, in order. To be asked after the claim."""
        ...

    async def settle_emitters(self, settled: Sequence[Settled]) -> tuple[int, int]:
        """Store what came of claimed runs; how many events were delivered, and how many died."""
        ...

    async def list_dead_letters(
        self, namespace: str | None, *, limit: int, before: int | None = None
    ) -> list[DeadLetter]:
        """Newest first, of a namespace or (None) of all; `before` is the id of the last one of the page before."""
        ...

    async def resend_dead_letter(self, letter_id: int, *, namespace: str | None = None) -> bool:
        """Have one delivered again, behind what its run has emitted since. False if it is not there, in that namespace."""
        ...

    async def delete_dead_letter(self, letter_id: int, *, namespace: str | None = None) -> bool:
        """Give one up. False if it is not there."""
        ...

    async def purge_dead_letters(self, *, older_than_seconds: float, limit: int) -> int:
        """Delete a batch of those that died long enough ago; how many."""
        ...

    # workers
    async def register_worker(self, worker: NewWorker, *, ttl_seconds: float) -> WorkerId: ...
    async def renew_lease(self, worker_id: WorkerId, *, ttl_seconds: float) -> Renewal: ...

    async def drain_worker(self, worker_id: WorkerId) -> None: ...
    async def expired_workers(self) -> list[WorkerId]: ...
    async def workers_of_pod(self, pod_uid: str) -> list[WorkerId]: ...
    async def bury_worker(self, worker_id: WorkerId, *, even_if_alive: bool = False) -> list[UUID]:
        """End its backends, delete its rows, and free its runs (I2). Empty also if its lease was renewed meanwhile.

        Each freed run counts one more loss; from `losses_max` on it is Blocked, reason WorkerLost.
        """
        ...

    async def list_workers(self) -> list[WorkerRow]: ...
    async def offers(self) -> dict[str, list[str]]:
        """The workflows that live workers have, each with the Python minors that it is there for."""
        ...

    # claims
    async def claim_runs(self, worker_id: WorkerId, *, limit: int) -> list[Claim]:
        """Make this worker the one owner of up to `limit` due runs, best priority first, of the workflows it registered."""
        ...

    async def claim_blocked(self, worker_id: WorkerId, *, limit: int) -> list[Claim]:
        """The same for Blocked runs that this worker's build has not been tried on."""
        ...

    async def read_claimed(self, claims: Sequence[Claim]) -> list[ClaimedRun]: ...
    async def poll(self, worker_id: WorkerId, in_hand: Mapping[UUID, int]) -> Poll:
        """All that the slow poll wants to know, in one statement: an idle worker costs nearly nothing."""
        ...

    async def next_due_at(self, worker_id: WorkerId) -> datetime | None:
        """The earliest time at which a run that this worker could claim is due."""
        ...

    async def now(self) -> datetime:
        """The database's clock."""
        ...

    # resources
    async def set_wishes(self, wishes: Mapping[UUID, Wishes]) -> None:
        """Store what their owners want. Messages that follow from it are sent apart."""
        ...

    async def resources(self, namespaces: Sequence[str] | None) -> list[ResourceRow]:
        """Runs of resources that are open, or whose status or deletion is still owed."""
        ...

    async def read_resources(self, run_ids: Sequence[UUID]) -> dict[UUID, ResourceRow]: ...
    async def resources_gone(self, run_ids: Sequence[UUID]) -> None:
        """Their objects are deleted: nothing is mirrored to them any more."""
        ...

    async def take_unmirrored(self, *, hold_seconds: float, limit: int) -> list[Unmirrored]:
        """Runs whose status is owed, final ones first.

        A run's first write waits `hold_seconds` after its start, unless it has ended.
        """
        ...

    async def mark_mirrored(self, versions: Mapping[UUID, int]) -> None:
        """Only where the version is still that one."""
        ...

    async def expired_resources(self, *, limit: int) -> list[ResourceRow]:
        """Finished runs whose ttl_seconds is over and whose object is not gone."""
        ...

    async def mark_stranded(self) -> int:
        """Set, and take back, the reason WorkflowNotRegistered of pending runs, by what live workers offer. How many changed."""
        ...

    async def backlog(self) -> Backlog: ...

    # purge
    async def may_purge(self, *, every_seconds: float) -> bool:
        """Whether it is time to look for runs that are kept no longer: True to one of all who ask, once in so many seconds."""
        ...

    async def purge_runs(self, which: Purgeable, *, since: datetime | None = None) -> Purged:
        """Delete a batch of runs with all that is theirs, the oldest first. Twice is once (I6).

        Their names are free then: whoever starts one again starts another run.
        """
        ...

    async def purge_events(self, *, older_than_seconds: float, after: int = 0) -> tuple[int, int | None]:
        """Delete a batch of old events; how many, and the number of the last that was looked at, None if none is that old."""
        ...

    async def purge_former(self, which: Purgeable) -> int:
        """Delete a batch of former iterations of such runs, which can't be purged before; how many were deleted."""
        ...

    async def count_purgeable(self, which: Purgeable) -> int:
        """How many runs there are to purge.

        Raises:
            SearchTooBroadError: too many to count in the time that a statement may take.
        """
        ...


class ActivityTransaction(Protocol):
    """A transaction of an activity, committed together with the entry that says that it has ended."""

    connection: Any

    async def fix_mode(self, channel: str, mode: ChannelMode) -> None: ...
    async def hold(self, run_id: UUID, claim: int) -> bool:
        """What can be refused of it is refused here, and nobody takes the run from here on. False: it is not ours any more."""
        ...

    async def commit(self, run_id: UUID, claim: int, entries: Sequence[Entry], outbox: Sequence[Outgoing]) -> None:
        """Commit with these entries and outbox rows.

        Raises:
            StoreUnavailableError: it is not known whether it was committed.
        """
        ...

    async def rollback(self) -> None: ...


class Wakeups(Protocol):
    """LISTEN: what somebody else's process did that this one wants to know. The slow poll finds what it misses."""

    def on_due(self, callback: Callable[[Sequence[str]], None]) -> None:
        """Runs of these queues are due now, or will be soon: claim, then ask `next_due_at`.

        Empty after an interruption: runs of any queue may be.
        """
        ...

    def on_inbox(self, callback: Callable[[Sequence[UUID]], None]) -> None:
        """These runs of this worker have new mail."""
        ...

    def on_mirror(self, callback: Callable[[], None]) -> None:
        """A status is owed."""
        ...
