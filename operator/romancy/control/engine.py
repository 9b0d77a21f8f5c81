"""The WorkflowEngine: one object that shows the engine's health, and on which the one kopf timer ticks.

Made by the leader, and made again when somebody deletes it. It is not Helm's: an object whose definition is in the same
chart can't be installed with it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

import kopf

from romancy.base import log, metrics
from romancy.base.clock import Clock
from romancy.base.settings import ControlSettings
from romancy.base.version import engine_version
from romancy.control import jobs, news
from romancy.control.kube import Json, Kube, KubeError, Target, path_of
from romancy.control.resources import API_VERSION, ENGINES, GROUP, RUNS, VERSION, duration_of, time_of
from romancy.errors import StoreError
from romancy.model.run import Phase, Run
from romancy.model.worker import WorkerRow
from romancy.store.interface import Backlog, RunFilter, Store, WorkerId
from romancy.store.migrate import schema_version

logger = log.get(__name__)

EVERY_SECONDS: Final = 10.0
"""Between two looks at workers and backlog."""
NOT_READY_SECONDS: Final = 2.0
"""The same while no worker lives or the store is away: people wait to see that it is over."""
NEWS_SECONDS: Final = 0.3
"""How long after new runs or a burial it is looked again, so that many together are one look. Shorter than the first status
of a run is held back: so that says already that nobody has its workflow, and another write is saved."""
COUNTS_SECONDS: Final = 15.0
"""A status in which only counts have changed is written so often: each write goes to etcd."""
WORKFLOWS_MAX: Final = 200
VERSIONS_MAX: Final = 20
BLOCKED_NAMED_MAX: Final = 10
"""Runs that the condition CodeFits names."""
NO_BACKLOG: Final = Backlog(due=0, held=0, open=0, blocked=0, oldest_due_seconds=0)


class Reason(StrEnum):
    """Why a condition of the WorkflowEngine is as it is, or what an Event tells of it. Each has a page in docs/errors."""

    READY = "Ready"
    AVAILABLE = "Available"
    WATCHING = "Watching"
    MIRRORING = "Mirroring"
    FITS = "Fits"
    BLOCKED = "Blocked"
    NONE = "None"
    LEADING = "Leading"
    MIGRATED = "Migrated"
    STORE_UNAVAILABLE = "StoreUnavailable"
    NO_WORKERS = "NoWorkers"
    NOT_WATCHING = "NotWatching"
    NOT_MIRRORING = "NotMirroring"
    OTHER_ENGINE = "OtherEngine"


@dataclass(frozen=True, slots=True)
class Health:
    """What the status is made of. `store_error` says why the rest is unknown."""

    leader: str
    workers: tuple[WorkerRow, ...] = ()
    backlog: Backlog = NO_BACKLOG
    blocked: tuple[Run, ...] = ()  # some of them
    foreign: Mapping[UUID, str] = field(default_factory=dict)
    store_error: str = ""
    unwatched: Mapping[str, str] = field(default_factory=dict)  # kind -> why
    unwritten: Mapping[str, str] = field(default_factory=dict)  # namespace -> why


def status_of(health: Health, before: Json, *, generation: int, now: datetime) -> Json:
    """The whole status. `before` gives the times of the conditions that have not changed. Pure."""
    live = [worker for worker in health.workers if not worker.is_expired]
    workflows = sorted({name for worker in live for name in worker.workflows})
    old = {each["type"]: each for each in before.get("conditions") or []}

    def condition(kind: str, status: str, reason: Reason, message: str) -> Json:
        is_same = old.get(kind, {}).get("status") == status
        return {
            "type": kind,
            "status": status,
            "reason": reason.value,
            "message": message[:1024],
            "lastTransitionTime": old[kind]["lastTransitionTime"] if is_same else time_of(now),
            "observedGeneration": generation,
        }

    status: Json = {
        "observedGeneration": generation,
        "version": engine_version(),
        "schemaVersion": schema_version(),
        "leader": health.leader,
        "conditions": [condition(*each) for each in _conditions(health, len(live), len(workflows))],
    }
    if health.store_error:  # the counts are those of before: nothing newer is known
        kept = ("workers", "versions", "workflowCount", "workflows", "backlog")
        return {**status, **{name: before[name] for name in kept if name in before}}
    return {
        **status,
        "workers": len(live),
        "versions": versions_of(live)[:VERSIONS_MAX],
        "workflowCount": len(workflows),
        "workflows": workflows[:WORKFLOWS_MAX],
        "backlog": {
            "due": health.backlog.due,
            "held": health.backlog.held,
            "open": health.backlog.open,
            "blocked": health.backlog.blocked,
            "oldestDue": duration_of(health.backlog.oldest_due_seconds),
        },
    }


def versions_of(live: Iterable[WorkerRow]) -> list[Json]:
    """The builds of the workflows' code that live workers run, the one that came last first. Pure."""
    by_build: dict[tuple[str, str], list[WorkerRow]] = {}
    for worker in live:
        by_build.setdefault((worker.build_id, worker.python), []).append(worker)
    newest = sorted(by_build.items(), key=lambda each: max(worker.started_at for worker in each[1]), reverse=True)
    return [
        {
            "build": build[:64],
            "python": python[:16],
            "workers": len(workers),
            "draining": sum(worker.is_draining for worker in workers),
        }
        for (build, python), workers in newest
    ]


def _fit(health: Health) -> tuple[str, str, Reason, str]:
    """Whether the code that is there can go on with all runs: whoever rolls new code out waits for this one."""
    if health.store_error:
        return ("CodeFits", "Unknown", Reason.STORE_UNAVAILABLE, health.store_error)
    if not (count := max(health.backlog.blocked, len(health.blocked))):
        return ("CodeFits", "True", Reason.FITS, "no run is Blocked")
    names = ", ".join(f"{run.namespace}/{run.name} ({run.reason})" for run in health.blocked[:BLOCKED_NAMED_MAX])
    more = f" and {count - len(health.blocked)} more" if count > len(health.blocked) else ""
    text = (
        f"{count} {'run is' if count == 1 else 'runs are'} Blocked: no live build can go on with {names}{more}. Nothing is "
        "lost; each goes on by itself when a worker with a build that fits it appears"
    )
    return ("CodeFits", "False", Reason.BLOCKED, text)


def _conditions(health: Health, live: int, workflows: int) -> list[tuple[str, str, Reason, str]]:
    away, unwatched = health.store_error, health.unwatched
    blind = "; ".join(f"{kind}: {why}" for kind, why in sorted(unwatched.items()))
    unwritten = "; ".join(f"in namespace {each}: {why}" for each, why in sorted(health.unwritten.items()))
    if away:
        ready = ("Ready", "False", Reason.STORE_UNAVAILABLE, away)
    elif not live:
        ready = ("Ready", "False", Reason.NO_WORKERS, "no worker has a valid lease; start one, or see its logs")
    elif RUNS in unwatched:
        ready = ("Ready", "False", Reason.NOT_WATCHING, blind)
    elif unwritten:
        ready = ("Ready", "False", Reason.NOT_MIRRORING, f"runs go on, but their statuses are old: {unwritten}")
    else:
        ready = ("Ready", "True", Reason.READY, f"{live} workers with {workflows} workflows")
    if away:
        store = ("StoreAvailable", "False", Reason.STORE_UNAVAILABLE, away)
    else:
        store = ("StoreAvailable", "True", Reason.AVAILABLE, "PostgreSQL answers")
    if unwatched:
        watching = ("Watching", "False", Reason.NOT_WATCHING, blind)
    else:
        watching = ("Watching", "True", Reason.WATCHING, "all kinds are watched")
    if unwritten:
        mirroring = ("Mirroring", "False", Reason.NOT_MIRRORING, unwritten)
    else:
        mirroring = ("Mirroring", "True", Reason.MIRRORING, "statuses of runs are written")
    if others := sorted(set(health.foreign.values())):
        text = f"{len(health.foreign)} runs name another engine ({', '.join(others)[:200]}) and are left alone"
        shared = ("RunsOfOthers", "True", Reason.OTHER_ENGINE, text)
    else:
        shared = ("RunsOfOthers", "False", Reason.NONE, "no run names another engine")
    # What kstatus (Flux, Argo CD) looks for: what mends itself is on its way, what needs somebody has failed.
    is_stuck = ready[2] in {Reason.NOT_WATCHING, Reason.NOT_MIRRORING}
    reconciling = ("Reconciling", str(ready[1] == "False" and not is_stuck), *ready[2:])
    stalled = ("Stalled", str(is_stuck), *ready[2:])
    return [ready, store, watching, mirroring, _fit(health), shared, reconciling, stalled]


class Engine:
    """Keeps the object there and its status true. Belongs to control's loop."""

    def __init__(
        self,
        kube: Kube,
        settings: ControlSettings,
        *,
        leader: str,
        clock: Clock,
        tell: Callable[..., None],
        lost: Callable[[Store, WorkerId, Sequence[UUID]], Awaitable[None]],
        tries: jobs.Tries,
    ) -> None:
        self._clock, self._tell, self._lost, self._tries = clock, tell, lost, tries
        self._kube, self._settings, self._leader = kube, settings, leader
        self._path = path_of(ENGINES, namespace=settings.namespace, name=settings.engine)
        self._target: Target | None = None
        self._generation = 1
        self._written: Json = {}
        self._written_at = 0.0
        self._missed = asyncio.Event()
        self._misses = 0
        self._looking_soon: asyncio.TimerHandle | None = None
        self._workers: tuple[WorkerRow, ...] = ()
        self._backlog, self._blocked = NO_BACKLOG, tuple[Run, ...]()
        self._must_count = True
        self._count_at = 0.0  # at the latest
        self.store_error = ""
        self.unwatched: dict[str, str] = {}
        self.unwritten: Mapping[str, str] = {}

    def missed(self) -> None:
        """The object was deleted, or may have been: look, and make it again."""
        self._target = None
        self._misses += 1
        self._missed.set()

    def look_again(self) -> None:
        """Do not wait for the next look: there is news."""
        self._missed.set()

    def look_soon(self, *, counts: bool) -> None:
        """There may be runs that nobody can take; with `counts` workers and backlog are not what they were either."""
        self._must_count = self._must_count or counts
        if self._looking_soon is None:
            self._looking_soon = asyncio.get_running_loop().call_later(NEWS_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._looking_soon = None
        self._missed.set()

    def say_unwatched(self, kind: str, why: str) -> None:
        """Show at once why a kind is not watched; "": it is."""
        if why:
            self.unwatched[kind] = why
        else:
            self.unwatched.pop(kind, None)
        self.look_again()

    async def pause(self) -> None:
        """Wait for the next look; news is shown, and a deleted object made again, at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._count_at):
                await self._missed.wait()
        self._missed.clear()

    async def ensure(self) -> Target:
        """The object, made if it is not there.

        Raises:
            KubeError: also 404 where the kind is not served.
        """
        if self._target is not None:
            return self._target
        misses = self._misses
        try:
            found = await self._kube.call("GET", self._path)
        except KubeError as error:
            if error.code != 404:
                raise
            found = await self._create()
        metadata = found["metadata"]
        self._generation = metadata.get("generation", 1)
        self._written = found.get("status") or {}
        target = Target(ENGINES, metadata["namespace"], metadata["name"], UUID(metadata["uid"]))
        if misses == self._misses:  # else it was deleted while the answer was on its way
            self._target = target
        return target

    async def _create(self) -> Json:
        body = {
            "apiVersion": API_VERSION,
            "kind": "WorkflowEngine",
            "metadata": {"name": self._settings.engine},
            "spec": {},
        }
        try:
            created = await self._kube.call("POST", path_of(ENGINES, namespace=self._settings.namespace), body)
        except KubeError as error:
            if error.code != 409:  # else somebody was faster
                raise
            return await self._kube.call("GET", self._path)
        logger.info("engine_created", namespace=self._settings.namespace, name=self._settings.engine)
        return created

    async def look(self, store: Store, foreign: Mapping[UUID, str]) -> Health:
        """Ask the store how the engine is, and let it tell apart the runs that nobody can take."""
        now = asyncio.get_running_loop().time()
        try:
            await store.mark_stranded()
            # Each batch of new runs brings a look: the backlog reads all open runs, and so is not asked for each time.
            if self._must_count or now >= self._count_at:
                self._must_count = False
                self._workers, self._backlog = tuple(await store.list_workers()), await store.backlog()
                where = RunFilter(phases=frozenset({Phase.BLOCKED}))
                self._blocked = (
                    tuple(await store.list_runs(where, limit=BLOCKED_NAMED_MAX)) if self._backlog.blocked else ()
                )
                is_ready = any(not worker.is_expired for worker in self._workers)
                self._count_at = now + (EVERY_SECONDS if is_ready else NOT_READY_SECONDS)
                measure(self._workers, self._backlog)
            self.store_error = ""
            self._tries.done("engine")
        except StoreError as error:
            self._tries.failed("engine", error)
            self._must_count, self._count_at = True, now + NOT_READY_SECONDS
            measure_nothing()
            self.store_error = error.message
            return self.blind(foreign)
        return self._health(foreign, workers=self._workers, backlog=self._backlog, blocked=self._blocked)

    def blind(self, foreign: Mapping[UUID, str]) -> Health:
        """What is known while the store does not answer."""
        return self._health(foreign, store_error=self.store_error)

    def _health(self, foreign: Mapping[UUID, str], **known: Any) -> Health:
        return Health(
            self._leader,
            foreign=dict(foreign),
            unwatched=dict(self.unwatched),
            unwritten=dict(self.unwritten),
            **known,
        )

    def name_of(self, worker_id: WorkerId) -> str:
        """A worker that was listed, in words; it may be buried by now."""
        return next((each.name for each in self._workers if each.id == worker_id), f"of id {worker_id}")

    async def show(self, health: Health) -> None:
        """Write the status if it says something new; counts alone not each time."""
        target = await self.ensure()
        now = asyncio.get_running_loop().time()
        status = status_of(health, self._written, generation=self._generation, now=self._clock.now())
        if status == self._written:
            return
        if _without_counts(status) == _without_counts(self._written) and now < self._written_at + COUNTS_SECONDS:
            return
        if not await self._kube.patch_status(target, status):
            self.missed()
            return
        self._tell(*news.of_engine(target, self._written, status, self._leader))
        self._written, self._written_at = status, now

    async def bury_expired(self, store: Store) -> None:
        """Bury every worker that has given no sign of life for too long: its runs go on elsewhere."""
        for worker_id in await store.expired_workers():
            try:
                freed = await store.bury_worker(worker_id)
                self.look_soon(counts=True)
                await self._lost(store, worker_id, freed)
            except StoreError as error:  # something holds its rows: others must not wait for that
                logger.warning(
                    "burial_failed", worker_id=worker_id, error=error.message, hint="the next tick tries again"
                )


def measure(workers: Iterable[WorkerRow], backlog: Backlog) -> None:
    """Show in the metrics what the store has said."""
    metrics.WORKERS.set(sum(not worker.is_expired for worker in workers))
    metrics.DUE_RUNS.set(backlog.due)
    metrics.OLDEST_DUE_SECONDS.set(backlog.oldest_due_seconds)
    metrics.HELD_RUNS.set(backlog.held)
    metrics.OPEN_RUNS.set(backlog.open)
    metrics.BLOCKED_RUNS.set(backlog.blocked)
    metrics.EVENTS_PENDING.set(backlog.emitted)
    metrics.DEAD_LETTERS.set(backlog.dead_letters)


def measure_nothing() -> None:
    """What the store has said is not known to be so any more."""
    for gauge in metrics.HEALTH:
        gauge.forget()


def _without_counts(status: Json) -> Json:
    kept = {name: value for name, value in status.items() if name != "backlog"}
    return {**kept, "blocked": status.get("backlog", {}).get("blocked")}


def add_handlers(
    registry: kopf.OperatorRegistry,
    settings: ControlSettings,
    *,
    tick: Callable[[], Awaitable[None]],
    missed: Callable[[], None],
) -> None:
    """The timer that looks for dead workers, and the watch on the object that it ticks on; both in kopf's thread.

    Args:
        registry: must be one of `registry_without_finalizers`.
        tick: must not fail but by what ends the engine.
        missed: called when the object was deleted.
    """
    name = settings.engine
    deleted: set[str] = set()

    def is_there(uid: str, **_: Any) -> bool:
        # Without a finalizer kopf does not end the timer of a deleted object, and then waits 5 s for it when it stops. A
        # timer whose filter does not match any more it does end: at the event of the deletion, after `engine_seen`.
        return uid not in deleted

    @kopf.timer(
        GROUP,
        VERSION,
        ENGINES,
        interval=settings.bury_seconds,
        sharp=True,
        backoff=settings.bury_seconds,
        field="metadata.name",
        value=name,
        when=is_there,
        registry=registry,
    )
    async def look_for_dead_workers(**_: Any) -> None:
        """Bury those whose lease is over."""
        await tick()

    @kopf.on.event(GROUP, VERSION, ENGINES, field="metadata.name", value=name, registry=registry)
    async def engine_seen(event: kopf.RawEvent, uid: str, **_: Any) -> None:
        """Have a deleted object made again."""
        if event["type"] == "DELETED":
            deleted.add(uid)
            missed()
