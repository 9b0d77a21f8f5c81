"""A worker: registers, claims, executes, drains; buried, it drops all it holds and registers anew."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from typing import Any, Protocol
from uuid import UUID, uuid4

from romancy.base import log, metrics
from romancy.base.clock import Clock
from romancy.base.settings import RetentionSettings, WorkerSettings, python_minor, worker_name
from romancy.errors import RomancyError, StoreUnavailableError, WorkerFencedError
from romancy.model.command import Outcome
from romancy.model.history import InboxRow
from romancy.model.outbox import OutboxRow
from romancy.model.run import NewRun, Reason
from romancy.sdk.middleware import Middleware
from romancy.sdk.workflow import Workflow
from romancy.store import purge
from romancy.store.interface import (
    ActivityTransaction,
    Begin,
    Claim,
    ClaimedRun,
    Journal,
    NewWorker,
    Park,
    Renewal,
    RunWrite,
    Starter,
    Store,
    WorkerId,
)
from romancy.store.postgres import PostgresStore
from romancy.worker import loader
from romancy.worker.activities import Activities
from romancy.worker.execution import Execution, Left
from romancy.worker.lease import KeepLease, KeptByThread, Lease
from romancy.worker.sender import Sender
from romancy.worker.wakeups import Alarm, Woken

LOG = log.get(__name__)
REGISTER_AGAIN_SECONDS = 1.0
CLAIM_AGAIN_SECONDS = 1.0
CLAIM_MAX = 100  # runs in one statement
LEFT_MAX = 500  # rows of the outbox that others have left, taken over at once
SUSPECT_LOSSES = 2  # workers lost in a row with a run in hand, from which on it may be what kills them
PUT_OFF = timedelta(seconds=2)
CLOCK_STEP = timedelta(milliseconds=50)
LOOK_AGAIN = timedelta(milliseconds=5)


class Relay(Protocol):
    """Delivers what runs have emitted."""

    def ring(self, in_seconds: float = 0.0) -> None:
        """An event is due, or will be in so many seconds."""
        ...


class Worker:
    """One process's part in the execution of runs.

    Args:
        make_store: opens a store; called once in this loop and once in the loop that keeps the lease.
        workflows: what it offers.
        settings: its options.
        is_leader_expected: somebody else looks for dead workers (control on Kubernetes), unless it is away for long.
        keep_lease: how; by default in a thread of its own.
        make_relay: delivers what runs emit; without one this process leaves that to others.
        tells_lifecycle: runs emit events about themselves.
        middleware: stands around runs and activities, the first of them outermost.
    """

    def __init__(
        self,
        make_store: Callable[[], PostgresStore],
        workflows: Sequence[Workflow[..., Any]],
        settings: WorkerSettings,
        *,
        clock: Clock,
        is_leader_expected: bool = False,
        bury_seconds: float = 2.0,
        keep_lease: KeepLease | None = None,
        retention: RetentionSettings | None = None,
        make_relay: Callable[[Store], AbstractAsyncContextManager[Relay]] | None = None,
        tells_lifecycle: bool = False,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self.workflows = {each.name: each for each in workflows}
        self.name = worker_name(settings)
        self.id: WorkerId | None = None
        self.build_id = settings.build_id or loader.build_id(workflows)
        self.park_after_seconds = settings.park_after_seconds
        self.history_entries_max = settings.history_entries_max
        self.step_seconds_max = settings.step_seconds_max
        self.random = Random()
        self.retry = settings.retry
        self.tells_lifecycle = tells_lifecycle
        self.middleware = middleware
        self.is_draining = False
        self.is_out_of_time = False
        self.journal: Journal
        self.activities = Activities(
            async_max=settings.activities_max,
            threads_max=settings.threads_max,
            payload_bytes_max=settings.payload_bytes_max,
            now=self.now,
            middleware=middleware,
        )
        self._make_store, self._settings, self._clock = make_store, settings, clock
        self._is_leader_expected, self._bury_seconds = is_leader_expected, bury_seconds
        self._retention = retention or RetentionSettings()
        self._make_relay = make_relay
        self._relay: Relay | None = None
        self._has_told_of_no_sink = False
        self._keep_lease = keep_lease or partial(KeptByThread, stuck_seconds=settings.loop_stuck_seconds)
        # The database's clock, in seconds since 1970, when ours that nobody sets was at 0: it does not jump with the machine's.
        self._database_at_zero = clock.now().timestamp() - clock.monotonic()
        self._store: PostgresStore
        self._sender: Sender
        self._lease: Lease | None = None
        self._alarm: Alarm
        self._executions: dict[UUID, Execution] = {}
        self._parked: OrderedDict[UUID, Execution] = OrderedDict()
        self._taking: frozenset[UUID] = frozenset()  # claimed, and about to be in hand
        self._mail_of_others: set[UUID] = set()  # came for runs that are not in hand: they may be about to be
        self._watchers: dict[UUID, list[asyncio.Future[Outcome | None]]] = {}
        self._life_ended = asyncio.Event()
        self._is_registered = asyncio.Event()
        self._is_drained = asyncio.Event()
        self._held_lately: set[UUID] = set()  # since the last slow poll began
        self._was_full = False  # runs may be due that nobody here has looked at
        self._main: asyncio.Task[None] | None = None
        self._slots_used = metrics.WORKER_SLOTS.labels(self.name, "used")
        self._slots_free = metrics.WORKER_SLOTS.labels(self.name, "free")
        self._parked_runs = metrics.WORKER_PARKED.labels(self.name)

    # --- what its owner calls --------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to claim; returns when registered.

        Raises:
            StoreUnavailableError, SchemaVersionError: at once, if the database can't be used.
        """
        self._main = asyncio.create_task(self._live(), name="worker")
        registered = asyncio.create_task(self._is_registered.wait())
        try:
            await asyncio.wait({self._main, registered}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._main.cancel()  # else it would live on, and nobody would know of it
            await asyncio.wait({self._main})
            raise
        finally:
            registered.cancel()
        if self._main.done():
            await self._main

    async def drain(self) -> None:
        """Stop claiming, release what only waits at once, let activities end within the grace period, then stop."""
        if self._main is None or self._main.done():
            return
        self.is_draining = True
        LOG.info("drain_started", worker=self.name, runs=self.runs)
        self._look()  # first: what only waits is handed over whether the rest can be announced or not
        try:
            if self.id is not None:
                await self._store.drain_worker(self.id)
        except RomancyError as error:
            LOG.warning("drain_not_announced", error=error.message)
        await self._ended(self._settings.drain_seconds)
        self.is_out_of_time = True
        self._look()
        await self._ended(2.0)
        self._life_ended.set()
        await self._main
        self.activities.close()
        LOG.info("drain_ended", worker=self.name)

    @property
    def is_ready(self) -> bool:
        """Registered, believed alive, and not draining."""
        return self._is_registered.is_set() and not self.is_draining and self.may_start_activities()

    @property
    def runs(self) -> int:
        """Runs in its hands."""
        return len(self._executions)

    async def begin(self, new: NewRun, workflow: Workflow[..., Any]) -> bool:
        """Start a run as our own, if there is a slot: its first flush inserts it.

        Returns:
            False if it was not begun here: no slot, a drain, or a later start; or if the id exists already.
        """
        if self._free_slots() <= 0 or self.is_draining or new.start_at is not None or not self.is_ready:
            return False
        if new.id in self._executions or new.id in self._taking:
            return False  # never two executions of a run: one's refused begin would be taken for that of the other
        started_at = self.now()
        assert new.form is not None
        claimed = ClaimedRun(
            new.id, new.namespace, new.name, new.workflow, new.input, new.form, dict(new.labels), started_at,
            new.timeout_seconds, (), (), (),
        )  # fmt: skip
        begun: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def answer(has_begun: bool) -> None:
            if not begun.done():  # whoever asked may have been cancelled
                begun.set_result(has_begun)

        execution = Execution(self, workflow, claimed, begin=Begin(new, started_at, python_minor()), on_begun=answer)
        self._hold(execution)
        self._start(execution)
        return await begun

    def watch(self, run_id: UUID) -> "asyncio.Future[Outcome | None]":
        """Done when the run leaves this process: its outcome, or None if it has not ended. Give it back by `unwatch`."""
        future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        self._watchers.setdefault(run_id, []).append(future)
        return future

    def unwatch(self, run_id: UUID, left: "asyncio.Future[Outcome | None]") -> None:
        """Nobody waits for it any more."""
        if (futures := self._watchers.get(run_id)) is not None:
            if left in futures:
                futures.remove(left)
            if not futures:
                del self._watchers[run_id]

    def holds(self, run_id: UUID) -> bool:
        """The run is in the hands of this process: its end will be known here first."""
        return run_id in self._executions

    # --- what executions ask -----------------------------------------------------------------------------------------

    def now(self) -> datetime:
        """The database's clock, as it was measured last and has gone on since."""
        return datetime.fromtimestamp(self._database_at_zero + self._clock.monotonic(), UTC)

    def may_start_activities(self) -> bool:
        return self._lease is not None and self._lease.is_certain

    async def read_inbox(self, run_id: UUID, after: int) -> list[InboxRow]:
        return await self._store.read_inbox(run_id, after)

    async def begin_transaction(self) -> ActivityTransaction:
        """For an activity that writes with its checkpoint."""
        assert self.id is not None
        return await self._store.begin_transaction(self.id)

    def send_out(self, rows: Sequence[OutboxRow]) -> None:
        """Carry out what lies in the outbox of runs in hand."""
        self._sender.send(rows)

    def _have_emitted(self) -> None:
        if self._relay is not None:
            self._relay.ring()
        elif not self._has_told_of_no_sink:
            self._has_told_of_no_sink = True
            LOG.warning(
                "emitted_without_sink",
                worker=self.name,
                hint="events are kept until a process delivers them that has a sink: ROMANCY_OUTBOX__SINK_URL",
            )

    # --- its lives ----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """One life after the other, until it drains."""
        was_registered = False

        def registered() -> None:
            nonlocal was_registered
            was_registered = True
            self._is_registered.set()

        while not self.is_draining:
            self._life_ended.clear()
            try:
                await self._life(registered)
            except Exception as error:
                if not was_registered:
                    raise  # the owner hears of it from `start`
                if isinstance(error, RomancyError):
                    LOG.error("worker_life_ended", worker=self.name, reason=error.reason, error=error.message)
                else:
                    LOG.exception("worker_life_ended", worker=self.name)
                await self._clock.sleep(REGISTER_AGAIN_SECONDS)

    async def _life(self, registered: Callable[[], None]) -> None:
        async with self._make_store() as store:
            self._store = store
            asked_at = self._clock.monotonic()
            self._set_clock(await store.now(), asked_at)
            new = NewWorker(
                name=self.name,
                boot_id=uuid4(),
                pod_uid=self._settings.pod_uid,
                namespace=self._settings.namespace,
                workflows={name: each.signature.form for name, each in self.workflows.items()},
                build_id=self.build_id,
                python=python_minor(),
            )
            registered_at = self._clock.monotonic()  # from before the call, as with each renewal
            self.id = await store.register_worker(new, ttl_seconds=self._settings.lease_seconds)
            try:
                starters = [each.starter for each in self.workflows.values() if each.starter is not None]
                await store.set_starters(
                    self._settings.namespace,
                    list(self.workflows),
                    [Starter(each.workflow, each.type, each.where, each.form) for each in starters],
                )
                await self._work(store, self.id, registered_at, registered)
            finally:
                await self._leave(store, self.id)

    async def _work(
        self, store: PostgresStore, worker_id: WorkerId, registered_at: float, registered: Callable[[], None]
    ) -> None:
        """Execute runs until this life ends."""
        self._alarm = Alarm(self.now, poll_seconds=self._settings.poll_seconds)
        self.journal = await store.journal(worker_id)
        self._sender = Sender(store, self._clock, emitted=self._have_emitted)
        wakeups = await store.wakeups(worker_id)
        wakeups.on_due(self._runs_are_due)
        wakeups.on_inbox(self._mail_came)
        self._lease = Lease(
            self._make_store,
            worker_id,
            ttl_seconds=self._settings.lease_seconds,
            since=registered_at,
            clock=self._clock,
            chores=self._bury_expired,
        )
        keeper = self._keep_lease(self._lease, self._life_ended.set)
        LOG.info(
            "worker_registered",
            worker=self.name,
            worker_id=worker_id,
            workflows=sorted(self.workflows),
            pid=os.getpid(),
        )
        relays = AsyncExitStack()
        if self._make_relay is not None:
            self._relay = await relays.enter_async_context(self._make_relay(store))
        registered()
        filling = asyncio.create_task(self._fill(), name="fill")
        purging = asyncio.create_task(self._purge(store), name="purge")
        ended = asyncio.create_task(self._life_ended.wait())
        try:
            await asyncio.wait([filling, ended], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._is_registered.clear()
            for task in (filling, purging, ended):
                task.cancel()
            self._drop_all()
            await keeper.stop()
            await self.journal.close()
            await self._sender.close()
            self._relay = None
            await relays.aclose()  # what it has no time for, others deliver
        if filling.done() and not filling.cancelled() and (error := filling.exception()) is not None:
            raise error

    async def _leave(self, store: PostgresStore, worker_id: WorkerId) -> None:
        """End this life in the store as well: whatever it still holds there is freed at once."""
        try:
            await store.bury_worker(worker_id, even_if_alive=True)
        except RomancyError as error:
            LOG.warning(
                "worker_not_buried", worker_id=worker_id, error=error.message, hint="its lease runs out by itself"
            )
        self.id = None

    async def _fill(self) -> None:
        """Claim whenever there is reason to, as much as there are slots."""
        woken = Woken.POLL  # nobody has told this worker what is due
        while not self.is_draining:
            try:
                await self._claim(woken)
            except StoreUnavailableError as error:
                LOG.warning("claim_failed", error=error.message)
                self._alarm.poll_within(CLAIM_AGAIN_SECONDS)  # what was claimed may be nobody's
            woken = await self._alarm.wait()
        await self._life_ended.wait()  # what runs may end in peace

    async def _claim(self, woken: Woken) -> None:
        assert self.id is not None
        self._mail_of_others.clear()
        if woken is Woken.POLL and not await self._poll(self.id):
            return
        while (free := self._free_slots()) > 0 and not self.is_draining:
            claims = await self._store.claim_runs(self.id, limit=min(free, CLAIM_MAX))
            await self._take(claims)
            if len(claims) < min(free, CLAIM_MAX):
                break
        self._was_full, was_full = self._free_slots() <= 0, self._was_full
        if self._was_full:
            return  # the next run that leaves rings
        if woken is not Woken.RUNG or was_full:
            # Our clock may be a little ahead of the database's: what was due for us may be due for it in a moment.
            due_at = await self._store.next_due_at(self.id)
            self._alarm.set(due_at and max(due_at, self.now() + LOOK_AGAIN))

    async def _poll(self, worker_id: WorkerId) -> bool:
        """The slow poll, the net under all that wakes. True: there may be runs to claim."""
        in_hand = {run_id: each.claim_number for run_id, each in self._executions.items()}
        self._held_lately.clear()
        asked_at = self._clock.monotonic()
        poll = await self._store.poll(worker_id, in_hand)
        self._set_clock(poll.now, asked_at)
        # A run that was begun here meanwhile is not unseen, also if it has been parked by now.
        found = [claim for claim in poll.unseen if claim.run_id not in self._held_lately]
        if poll.has_left:
            self._sender.send(await self._store.read_left(limit=LEFT_MAX))
        if self._relay is not None and poll.emitted_due_at is not None:
            self._relay.ring((poll.emitted_due_at - poll.now).total_seconds())
        if poll.has_blocked and (free := self._free_slots()) > 0:
            found += await self._store.claim_blocked(worker_id, limit=free)
        await self._take([claim for claim in found if claim.run_id not in self._executions])
        if self._was_full or (poll.due_at is not None and poll.due_at <= poll.now):
            return True
        self._alarm.set(poll.due_at)
        return False

    async def _take(self, claims: Sequence[Claim]) -> None:
        """Execute what was claimed: parked runs that are still in memory from there, others from their history."""
        self._taking = frozenset(claim.run_id for claim in claims)
        try:
            await self._take_claimed(claims)
        finally:
            self._taking = frozenset()

    async def _take_claimed(self, claims: Sequence[Claim]) -> None:
        anew: list[Claim] = []
        for claim in claims:
            metrics.RUNS_CLAIMED.labels(claim.workflow).inc()
            if (leaving := self._executions.get(claim.run_id)) is not None:
                # It has just let the run go, or wants to begin it and is about to hear that it exists.
                await leaving.gone()
            parked = self._parked.pop(claim.run_id, None)
            if parked is None:
                anew.append(claim)
            elif parked.claim_number + 1 == claim.number and claim.lost_count == 0:
                parked.resume(claim)  # it reads its mail by itself, if there is any that it has not seen
                self._take_up(parked)
            else:
                parked.drop()
                anew.append(claim)
        if not anew:
            return
        claimed = {each.run_id: each for each in await self._store.read_claimed(anew)}
        for claim in anew:
            run = claimed.get(claim.run_id)
            workflow = self.workflows.get(claim.workflow)
            if run is None or workflow is None:
                LOG.error("claimed_run_unreadable", run_id=str(claim.run_id), workflow=claim.workflow)
                continue
            if claim.lost_count >= SUSPECT_LOSSES and any(each.is_suspect for each in self._executions.values()):
                await self._put_off(claim)
                continue
            self._take_up(Execution(self, workflow, run, claim=claim, is_suspect=claim.lost_count >= SUSPECT_LOSSES))

    async def _put_off(self, claim: Claim) -> None:
        """One suspect at a time: a run that kills its workers must not make others look as if they did."""
        message = (
            f"{claim.lost_count} workers in a row were lost while it ran; it waits until another such run has left, "
            "since only one of them may run in a worker at a time"
        )
        park = Park(claim.inbox_version, self.now() + PUT_OFF, reason=Reason.WORKER_LOST, message=message)
        self._alarm.set(park.wake_at)
        await self.journal.submit(
            RunWrite(claim.run_id, claim.number, then=park)
        )  # if it stays, the slow poll finds it

    def _take_up(self, execution: Execution) -> None:
        """Execute a claimed run, when others have had their turn: there may be a hundred of them, each with a history."""
        self._hold(execution)
        asyncio.get_running_loop().call_soon(self._start, execution)

    def _hold(self, execution: Execution) -> None:
        self._executions[execution.run_id] = execution
        self._held_lately.add(execution.run_id)
        self._show_slots()
        if execution.run_id in self._mail_of_others:
            execution.has_mail()  # it came when nobody here could be told

    def _start(self, execution: Execution) -> None:
        if self._executions.get(execution.run_id) is execution:  # not dropped before its turn
            execution.start(partial(self._left, execution))

    def _left(self, execution: Execution, how: Left | BaseException) -> None:
        """A run has left; what went wrong with it alone ends here."""
        del self._executions[execution.run_id]
        self._show_slots()
        self._tell_watchers(execution.run_id, execution.outcome if how is Left.FINISHED else None)
        match how:
            case Left.PARKED:
                self._remember(execution)
            case Left():
                pass
            case WorkerFencedError() | StoreUnavailableError() as error:
                if not self._life_ended.is_set():  # one line for all: there may be hundreds of them
                    LOG.error("runs_lost", runs=self.runs + 1, reason=error.reason, error=error.message)
                self._life_ended.set()
            case RomancyError() as error:
                LOG.error("run_dropped", run_id=str(execution.run_id), reason=error.reason, error=error.message)
            case error:
                LOG.error("run_dropped", run_id=str(execution.run_id), exc_info=error)
        if self._was_full:
            self._alarm.ring()

    def _tell_watchers(self, run_id: UUID, outcome: Outcome | None) -> None:
        for future in self._watchers.pop(run_id, ()):
            if not future.done():
                future.set_result(outcome)

    def _remember(self, execution: Execution) -> None:
        """Keep a parked run for a while: nothing can have changed if the next claim of it is ours as well."""
        self._alarm.set(execution.parked_until)
        if (older := self._parked.pop(execution.run_id, None)) is not None:
            older.drop()
        self._parked[execution.run_id] = execution
        while len(self._parked) > self._settings.parked_max:
            self._parked.popitem(last=False)[1].drop()
        self._parked_runs.set(len(self._parked))

    def _runs_are_due(self, queues: Sequence[str]) -> None:
        self._alarm.ring()
        if not queues:  # an interruption: there may be mail as well that nobody told of
            for execution in list(self._executions.values()):
                execution.has_mail()

    def _mail_came(self, run_ids: Sequence[UUID]) -> None:
        for run_id in run_ids:
            if (execution := self._executions.get(run_id)) is not None:
                execution.has_mail()
            else:
                self._mail_of_others.add(run_id)

    def _look(self) -> None:
        self._alarm.ring()
        for execution in list(self._executions.values()):
            execution.look()

    def _show_slots(self) -> None:
        self._slots_used.set(len(self._executions))
        self._slots_free.set(self._free_slots())

    def _free_slots(self) -> int:
        return self._settings.slots - len(self._executions)

    async def _ended(self, seconds: float) -> None:
        """Until all executions have left, those as well that come meanwhile; at most so long."""
        end = self._clock.monotonic() + seconds
        while self._executions and (left := end - self._clock.monotonic()) > 0:
            await asyncio.wait([each.gone() for each in self._executions.values()], timeout=left)

    def _drop_all(self) -> None:
        for execution in (*self._executions.values(), *self._parked.values()):
            execution.drop()
            self._tell_watchers(execution.run_id, None)
        self._executions.clear()
        self._parked.clear()
        self._show_slots()

    def _set_clock(self, database: datetime, asked_at: float) -> None:
        """The database's clock was at that at some time since this worker asked."""
        expected = self.now()
        self._database_at_zero = database.timestamp() - (asked_at + self._clock.monotonic()) / 2
        if abs(self.now() - expected) > CLOCK_STEP:
            for execution in list(self._executions.values()):
                execution.look()  # it sleeps until a moment that is another one now

    async def _purge(self, store: PostgresStore) -> None:
        """Delete runs that are kept no longer, where there is no leader to do it: one of all workers does, now and then."""
        if self._is_leader_expected:
            return
        await self._clock.sleep(purge.EVERY_SECONDS * self.random.random())  # many workers may have started at once
        while True:
            try:
                await purge.purge_ended(store, self._retention)
            except RomancyError as error:
                LOG.warning("purge_failed", worker=self.name, error=error.message, hint="the next look tries again")
            await self._clock.sleep(purge.EVERY_SECONDS)

    async def _bury_expired(self, store: Store, renewal: Renewal) -> None:
        """The safety net: in the lease's thread, when nobody has looked for dead workers for long."""
        if self._is_leader_expected and renewal.burial_check_seconds < 3 * self._bury_seconds:
            return
        for worker_id in renewal.expired:
            try:
                freed = await store.bury_worker(worker_id)
            except RomancyError as error:  # something holds its rows: others must not wait for that
                LOG.warning("burial_failed", worker_id=worker_id, error=error.message, hint="the next look tries again")
            else:
                LOG.warning("worker_buried", worker_id=worker_id, runs=len(freed), by=self.name)
