"""A worker without a database: a journal whose flushes come when the test says so, and one run at a time upon it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

from romancy.errors import HistoryConflictError, RomancyError, StoreUnavailableError
from romancy.model.history import Attempt, Entry, InboxRow, MessageKind
from romancy.model.outbox import OutboxRow
from romancy.model.retry import RetryPolicy
from romancy.model.run import NewRun, Phase
from romancy.sdk.workflow import Workflow
from romancy.store.flush import Answered
from romancy.store.interface import Begin, Claim, ClaimedRun, Flushed, Keep, LetGo, Park, RunWrite
from romancy.worker.activities import Activities
from romancy.worker.execution import Execution, Left

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Row:
    """What a database would hold of the run."""

    history: list[Entry] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    inbox: list[InboxRow] = field(default_factory=list)
    claim: int = 1
    held: bool = True
    then: Keep | LetGo | None = None
    lost_count: int = 0
    lost_noted: int = 0
    begun: bool = True


class MemoryJournal:
    """The contract of `interface.Journal` for one run: each write waits until `flush` or `fail`."""

    def __init__(self, row: Row) -> None:
        self.flushes = 0
        self.row = row
        self.queue: list[tuple[RunWrite, Answered]] = []
        self.is_open = True
        self.submitted = asyncio.Event()
        self.is_automatic = False

    def write(self, write: RunWrite, answered: Answered) -> None:
        loop = asyncio.get_running_loop()
        if not self.is_open:
            loop.call_soon(answered, StoreUnavailableError("closed"))
            return
        if self.queue and isinstance(self.queue[-1][0].then, LetGo):
            raise AssertionError("written to after the run was let go")
        self.queue.append((write, answered))
        self.submitted.set()
        if self.is_automatic:
            loop.call_soon(self.flush)

    def submit(self, write: RunWrite) -> "asyncio.Future[Flushed]":
        raise AssertionError("an execution has no task that could wait")

    async def close(self) -> None:
        self.is_open = False

    def flush(self) -> None:
        """Make all that waits durable."""
        self.flushes += bool(self.queue)
        queue, self.queue = self.queue, []
        for write, answered in queue:
            answered(self._write(write))

    def fail(self, error: RomancyError) -> None:
        """Refuse all that waits."""
        queue, self.queue = self.queue, []
        for _, answered in queue:
            answered(error)

    def _write(self, write: RunWrite) -> Flushed | RomancyError:
        row = self.row
        if write.begin is not None and row.begun:
            return Flushed(began=False)
        if write.claim != row.claim or not row.held:
            return HistoryConflictError(f"claim {write.claim} does not hold it")
        row.begun = True
        for entry in write.entries:
            assert entry.position == len(row.history) + 1, "a gap in the history"
            assert not row.history or entry.at >= row.history[-1].at, "the run's clock went back"
            row.history.append(entry)
        for attempt in write.attempts:
            if all((each.number, each.attempt) != (attempt.number, attempt.attempt) for each in row.attempts):
                row.attempts.append(attempt)
        if write.entries:
            row.lost_count = row.lost_noted = 0
        elif write.losses_noted:
            row.lost_noted = row.lost_count
        if write.then is None:
            return Flushed()
        row.then = write.then
        if isinstance(write.then, Park) and write.then.seen != len(row.inbox):
            return Flushed(stays=True)
        row.held = isinstance(write.then, Keep)
        return Flushed()


class Engine:
    """What an execution needs of a worker; time is set by hand."""

    def __init__(self, row: Row | None = None, *, threads_max: int = 4) -> None:
        self.row = row or Row()
        self.time = STARTED_AT
        self.journal = MemoryJournal(self.row)
        self.build_id = "build"
        self.park_after_seconds = 1.0
        self.history_entries_max = 50_000
        self.step_seconds_max = 10.0
        self.tells_lifecycle = False
        self.middleware = ()
        self.is_draining = False
        self.retry = RetryPolicy()
        self.is_out_of_time = False
        self.is_certain = True
        self.inbox_failures = 0
        self.sent_out: list[OutboxRow] = []
        self.random = Random(1)
        self.activities = Activities(
            async_max=1000, threads_max=threads_max, payload_bytes_max=1024 * 1024, now=lambda: self.time
        )

    def now(self) -> datetime:
        return self.time

    def may_start_activities(self) -> bool:
        return self.is_certain

    def send_out(self, rows: Sequence[OutboxRow]) -> None:
        self.sent_out.extend(rows)

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]:
        await asyncio.sleep(0)
        if self.inbox_failures:
            self.inbox_failures -= 1
            raise StoreUnavailableError("no answer")
        return [row for row in self.row.inbox if row.number > after]

    # --- what a test does ---------------------------------------------------------------------------------------

    def send(self, execution: Execution | None, kind: MessageKind) -> None:
        """Put a message into the inbox, and tell the execution."""
        number = len(self.row.inbox) + 1
        self.row.inbox.append(InboxRow(number, kind, f"test/{number}", '{"reason":"Cancelled"}', self.time))
        if execution is not None:
            execution.has_mail()

    def claim(self, workflow: Workflow[..., Any], text: str = "{}", *, run_id: UUID | None = None) -> Execution:
        """Claim the run as it is in the database, and make an execution of it."""
        row = self.row
        row.claim, row.held = row.claim + 1, True
        ended = {entry.number for entry in row.history if entry.kind.startswith("Activity")}
        claimed = ClaimedRun(
            run_id or uuid4(), "default", "run", workflow.name, text, workflow.signature.form, {}, STARTED_AT, None,
            tuple(row.history), tuple(row.inbox), tuple(each for each in row.attempts if each.number not in ended),
        )  # fmt: skip
        return Execution(self, workflow, claimed, claim=self.claim_of(workflow, claimed.run_id))

    def claim_of(self, workflow: Workflow[..., Any], run_id: UUID) -> Claim:
        """The hold on the run as it is in the database."""
        row = self.row
        return Claim(run_id, row.claim, workflow.name, len(row.inbox), Phase.RUNNING, row.lost_count, row.lost_noted)

    def begin(self, workflow: Workflow[..., Any], text: str = "{}") -> tuple[Execution, list[bool]]:
        """Begin a run as this worker's own; the list tells what it was told."""
        self.row.begun = False
        new = NewRun(uuid4(), "default", "run", workflow.name, text, workflow.signature.form)
        claimed = ClaimedRun(
            new.id, "default", "run", workflow.name, text, workflow.signature.form, {}, STARTED_AT, None, (), (), ()
        )
        told: list[bool] = []
        begin = Begin(new, STARTED_AT, "3.13")
        return Execution(self, workflow, claimed, begin=begin, on_begun=told.append), told


async def settle(turns: int = 30) -> None:
    """Let everything that is ready run."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def until(holds: Callable[[], object], what: str) -> None:
    """Let the loop turn until something holds that other threads do not decide alone."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - a thread may decide it
            await asyncio.sleep(0.001)
    assert holds(), what


async def run(execution: Execution) -> Left:
    """How it leaves; cancelled, it is dropped. Raises what it was dropped for."""
    left: asyncio.Future[Left] = asyncio.get_running_loop().create_future()

    def on_left(how: Left | BaseException) -> None:
        if isinstance(how, Left):
            left.set_result(how)
        else:
            left.set_exception(how)

    execution.start(on_left)
    try:
        return await left
    except asyncio.CancelledError:
        execution.drop()
        raise


@contextmanager
def running(execution: Execution) -> "Iterator[asyncio.Task[Left]]":
    """The task that runs it, cancelled at the end if it still runs."""
    task = asyncio.ensure_future(run(execution))
    try:
        yield task
    finally:
        task.cancel()


def later(moment: datetime, seconds: float) -> datetime:
    return moment + timedelta(seconds=seconds)
