"""The whole of control: `run_control` competes for the Lease and, while it leads, does everything that knows Kubernetes.

It runs in a thread of its own with a loop of its own, so that user code that blocks the process's main loop does not cost
the Lease; kopf runs in two further threads (`startup` says why), one for the runs of the watched namespaces and one for the
engine's own namespace. Their handlers only file; all that talks to the store is here, in one loop, with a store of its own.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID, uuid4

import kopf

from romancy.base import log, metrics
from romancy.base.clock import Clock, SystemClock
from romancy.base.settings import Settings, worker_name
from romancy.control import engine, jobs, loops, news, pods, resources, runs, startup, ttl
from romancy.control.engine import Engine
from romancy.control.intake import Intake
from romancy.control.kube import KUBE_ERRORS, Kube, KubeError, Target, path_of
from romancy.control.leader import Elector
from romancy.control.mirror import Mirror
from romancy.control.resources import ENGINES, RUNS
from romancy.control.runs import Seen
from romancy.control.startup import PODS
from romancy.errors import StoreError
from romancy.model.run import Phase, Run
from romancy.store import purge
from romancy.store.interface import Store, WorkerId
from romancy.store.postgres import PostgresStore

logger = log.get(__name__)

LEASE_NAME: Final = "romancy"
STOP_SECONDS: Final = 15.0
KINDS_SECONDS: Final = 2.0
"""How often it is asked for kinds that are not there, or not ours to see, yet."""
KNOWN_SECONDS: Final = 10.0
"""The mirror waits so long at most for what only the objects know, and the first comparison for kopf's watch."""
STEADY_SECONDS: Final = 60.0
"""A kopf that has lasted so long is started again at once when it ends."""
NOT_INSTALLED: Final = "its definition is not installed"
CLOSE_SECONDS: Final = 3.0


async def run_control(
    settings: Settings,
    stop: asyncio.Event,
    store_of: Callable[[], PostgresStore] | None = None,
    *,
    led: Callable[[bool], None] | None = None,
    is_fit: Callable[[], bool] = lambda: True,
) -> None:
    """Compete for leadership, and control while leading, until `stop` is set; then hand over at once.

    Args:
        settings: all parts are read: control, database, and the worker's name and limits.
        stop: of the loop that this is called in.
        store_of: makes the store, in control's own loop; `PostgresStore(settings.database)` if not given.
        led: called from another thread with True when this process begins to lead, and False when it has ended.
        is_fit: asked from another thread: False while the rest of this process lacks the database, so that another one
            should lead.

    Raises:
        LeaderStuckError: what the leader does could not be ended; end the process, so that not two lead.
        SettingsError: there is no usable Kubernetes configuration.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    inside: asyncio.Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if error is None:
            ended.set_result(None)
        else:
            ended.set_exception(error)

    async def main() -> None:
        stopped = asyncio.Event()
        loop.call_soon_threadsafe(inside.set_result, (asyncio.get_running_loop(), stopped))
        make_store = store_of or (lambda: PostgresStore(settings.database))
        control = Control(settings, make_store, led or (lambda _: None), is_fit)
        await control.run(stopped)

    def run() -> None:
        error: BaseException | None = None
        try:
            loops.run(main())
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the caller's loop has ended without waiting for us
            loop.call_soon_threadsafe(tell, error)

    threading.Thread(target=run, name="romancy control", daemon=True).start()
    stopping = asyncio.create_task(stop.wait(), name="control stop")
    try:
        first: list[asyncio.Future[Any]] = [ended, stopping]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        known: list[asyncio.Future[Any]] = [ended, inside]
        await asyncio.wait(known, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            its_loop, stopped = inside.result()
            its_loop.call_soon_threadsafe(stopped.set)
            await asyncio.wait({ended}, timeout=STOP_SECONDS)
    if ended.done():
        ended.result()
    else:
        logger.error("control_did_not_stop", within_seconds=STOP_SECONDS)


class Control:
    """One life of control in a process. Belongs to its own loop."""

    def __init__(
        self,
        settings: Settings,
        store_of: Callable[[], PostgresStore],
        led: Callable[[bool], None],
        is_fit: Callable[[], bool],
    ) -> None:
        self._settings, self._store_of, self._led, self._is_fit = settings, store_of, led, is_fit
        self._leader: Leader | None = None
        self._name = worker_name(settings.worker)

    async def run(self, stop: asyncio.Event) -> None:
        """Compete until `stop` is set."""
        control = self._settings.control
        async with Kube.open(control) as kube:
            elector = Elector(
                kube,
                namespace=control.namespace,
                name=LEASE_NAME if control.engine == LEASE_NAME else f"{LEASE_NAME}-{control.engine}",
                identity=f"{self._name}/{uuid4()}",  # a process that comes again must not be taken for the one before
                lease_seconds=control.lease_seconds,
                renew_deadline_seconds=control.renew_deadline_seconds,
                retry_seconds=control.retry_seconds,
                is_fit=lambda: self._is_fit() and (self._leader is None or self._leader.has_store),
            )
            leading = kube.while_leading(lambda: elector.trusted_until)
            await elector.run(lambda: self._lead(leading), stop)

    async def _lead(self, kube: Kube) -> None:
        self._led(True)
        metrics.LEADER.set(1)
        try:
            self._leader = Leader(self._settings, self._store_of, kube, self._name, clock=SystemClock())
            await self._leader.run()
        finally:
            self._leader = None
            metrics.LEADER.set(0)
            self._led(False)


class Leader:
    """What the leader does, from winning the Lease to losing it. Whatever it does is idempotent (I6)."""

    def __init__(
        self, settings: Settings, store_of: Callable[[], PostgresStore], kube: Kube, name: str, *, clock: Clock
    ) -> None:
        self._settings, self._control = settings, settings.control
        self._store_of, self._kube = store_of, kube
        self._loop = asyncio.get_running_loop()
        self._tries = jobs.Tries()
        bucket = jobs.TokenBucket(self._control.status_writes_per_second)
        self._recorder = news.Recorder(kube, name, clock=clock)
        self._engine = Engine(
            kube,
            self._control,
            leader=name,
            clock=clock,
            tell=self._recorder.put,
            lost=self._tell_lost,
            tries=self._tries,
        )
        self._mirror = Mirror(
            kube,
            self._control,
            bucket,
            clock=clock,
            gone=self._file,
            told=self._engine.look_again,
            shown=self._run_shown,
            tries=self._tries,
        )
        self._intake = Intake(
            kube,
            runs.Rules.of(settings),
            self._control,
            clock=clock,
            settled=self._mirror.settled,
            started=partial(self._engine.look_soon, counts=False),
            unrun=self._tell_unrun,
            tries=self._tries,
        )
        self._expiry = ttl.Expiry(kube, self._control, bucket)
        self._engine.unwritten = self._mirror.refused
        self._pods: asyncio.Queue[str] = asyncio.Queue()
        self._store: PostgresStore | None = None
        self._is_first = True
        self._watches_runs = asyncio.Event()
        self._unwatched: dict[str, dict[str, str]] = {}  # by kind: path -> why

    def _file(self, seen: Seen) -> None:
        self._intake.file(seen)

    def _run_shown(self, run: Run, version: int, was_stalled: bool) -> None:
        self._recorder.run_shown(run, version, was_stalled=was_stalled)
        if (run.phase is Phase.BLOCKED) != was_stalled:
            self._engine.look_soon(counts=True)  # who rolls out new code waits to see what it blocks

    def _tell_unrun(self, seen: Seen, reason: str, text: str) -> None:
        target = Target(RUNS, seen.namespace, seen.name, seen.uid)
        self._recorder.put(news.of_refused(target, reason, text, seen.generation))

    async def _tell_lost(self, store: Store, worker_id: WorkerId, run_ids: Sequence[UUID]) -> None:
        """Tell of runs whose worker was buried. What can't be asked now is not told: the runs go on all the same."""
        if not run_ids:
            return
        with contextlib.suppress(StoreError):
            rows = await store.read_resources(run_ids[: news.WAITING_MAX])
            self._recorder.put(*news.of_lost_worker(rows.values(), self._engine.name_of(worker_id), worker_id))

    @property
    def has_store(self) -> bool:
        """False while the database does not answer this leader: another process may be better off."""
        return self._tries.has_store

    async def run(self) -> None:
        """Everything side by side, until it is cancelled or something fails that must not."""
        async with asyncio.TaskGroup() as watching:
            watching.create_task(self._watch_runs(), name="watch runs")
            watching.create_task(self._watch_engine(), name="watch engine")
            watching.create_task(self._recorder.run(), name="events")
            store = self._store = await self._open_store()
            try:
                async with asyncio.TaskGroup() as working:
                    for name, job in self._jobs(store).items():
                        working.create_task(job, name=name)
            finally:
                self._store = None
                engine.measure_nothing()
                await _close(store)

    def _jobs(self, store: PostgresStore) -> dict[str, Coroutine[Any, Any, None]]:
        return {
            "intake": self._intake.run(store),
            "mirror": self._keep_mirror(store),
            "comparison": self._tries.repeat("comparison", lambda: self._compare(store), self._until_comparison),
            "pods": self._bury_pods(store),
            "engine": self._tries.repeat("engine", lambda: self._show(store), self._engine.pause),
            "purge": self._tries.repeat(
                "purge",
                lambda: purge.purge_ended(store, self._settings.retention),
                lambda: asyncio.sleep(purge.EVERY_SECONDS),
            ),
            "ttl": self._tries.repeat(
                "ttl", lambda: self._expiry.run_once(store), lambda: asyncio.sleep(ttl.EVERY_SECONDS)
            ),
        }

    async def _open_store(self) -> PostgresStore:
        """The store, as soon as it answers; meanwhile what waits for it says so in its status."""
        while True:
            store = self._store_of()
            try:
                await store.open()
            except StoreError as error:
                failures = self._tries.failed("store", error)
                logger.warning("store_not_open", failures=failures, error=str(error))
                self._engine.store_error = error.message
                with contextlib.suppress(*KUBE_ERRORS):  # the next try says it
                    await self._engine.show(self._engine.blind(self._intake.foreign))
                await self._intake.tell_store_away(error.message)
                await asyncio.sleep(jobs.backoff_seconds(failures))
            else:
                self._tries.done("store")
                return store

    async def _keep_mirror(self, store: PostgresStore) -> None:
        # The generations are on the objects: written before they are known, each status would have to be written twice.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWN_SECONDS):
                await self._intake.listed.wait()
                await self._intake.drained.wait()
        wakeups = await self._tries.until_done("wakeups", lambda: store.wakeups(None))
        await self._mirror.run(store, wakeups)

    async def _compare(self, store: PostgresStore) -> None:
        if self._is_first:
            await self._until_watched()
        self._intake.must_compare.clear()
        await self._intake.compare(store)
        self._is_first = False

    async def _until_watched(self) -> None:
        """What is deleted after the comparison's list and before kopf's would be seen by neither: so kopf is first."""
        while not self._watches_runs.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KNOWN_SECONDS):
                    await self._watches_runs.wait()
            if NOT_INSTALLED not in self._unwatched.get(RUNS, {}).values():
                return  # perhaps we may list and not watch

    async def _until_comparison(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._control.relist_seconds):
                await self._intake.must_compare.wait()
                await self._intake.drained.wait()

    async def _bury_pods(self, store: PostgresStore) -> None:
        while True:
            pod_uid = await self._pods.get()
            if buried := await self._tries.until_done("pods", partial(pods.bury_workers_of, store, pod_uid)):
                self._engine.look_soon(counts=True)
                for worker_id, freed in buried.items():
                    await self._tell_lost(store, worker_id, freed)

    async def _show(self, store: PostgresStore) -> None:
        health = await self._engine.look(store, self._intake.foreign)
        if NOT_INSTALLED in self._unwatched.get(ENGINES, {}).values():
            return  # the log says so, and there is no object to say it on; it is shown as soon as there can be one
        await self._engine.show(health)

    async def _bury_expired(self) -> None:
        if self._store is None:
            return
        try:
            await self._engine.bury_expired(self._store)
            self._tries.done("burial")
        except StoreError as error:
            self._tries.failed("burial", error)
            logger.warning("burial_failed", error=str(error), hint="the next tick tries again")
            self._engine.look_soon(counts=True)  # which says so, if the database is away

    # --- kopf's threads: what calls `_from_thread` and `_tick` is in them ------------------------------------------

    async def _watch_runs(self) -> None:
        namespaces = self._control.watch_namespaces
        failures = 0
        while True:
            await self._until_ours([(RUNS, path_of(RUNS, namespace=each)) for each in namespaces or (None,)])
            registry = runs.registry(self._from_thread(self._intake.file))
            lasted = await self._run_kopf("kopf runs", RUNS, registry, namespaces)
            failures = 1 if lasted >= STEADY_SECONDS else failures + 1
            await asyncio.sleep(jobs.backoff_seconds(failures))

    async def _watch_engine(self) -> None:
        """The timer, and the pods as far as we may see them; without that right leases alone tell who is dead."""
        own = self._control.namespace
        pods_path = f"/api/v1/namespaces/{quote(own)}/pods"
        failures = 0
        while True:
            await self._until_ours([(ENGINES, path_of(ENGINES, namespace=own))])
            registry = startup.registry_without_finalizers()
            engine.add_handlers(
                registry,
                self._control,
                tick=self._tick,
                missed=self._engine_missed,
            )
            if with_pods := await self._is_ours(PODS, pods_path):
                pods.add_handlers(registry, self._from_thread(self._pods.put_nowait))
            running = asyncio.create_task(self._run_kopf("kopf engine", ENGINES, registry, (own,)))
            waiting: set[asyncio.Task[Any]] = {running}
            if not with_pods:
                waiting.add(asyncio.create_task(self._until_ours([(PODS, pods_path)])))
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
            if not running.cancelled():
                failures = 1 if running.result() >= STEADY_SECONDS else failures + 1
                await asyncio.sleep(jobs.backoff_seconds(failures))

    async def _run_kopf(
        self, name: str, kind: str, registry: kopf.OperatorRegistry, namespaces: Sequence[str]
    ) -> float:
        """Returns after how many seconds kopf has ended: when the API server refuses what it needs, or breaks a watch."""
        began_at = self._loop.time()
        try:
            await startup.run_kopf(name, registry, self._control, namespaces=namespaces, heard=self._heard_in_thread)
        except startup.KopfStuckError:
            raise
        except Exception as error:
            logger.error("kopf_failed", thread=name, error=repr(error), hint="it is started again")
            self._note(kind, "", f"its watch has ended, and is begun again: {error!r}")
        else:
            logger.error("kopf_ended", thread=name, hint="it is started again")
        return self._loop.time() - began_at

    def _heard_in_thread(self, kind: str, path: str, why: str) -> None:
        self._loop.call_soon_threadsafe(self._heard, kind, path, why)

    def _heard(self, kind: str, path: str, why: str) -> None:
        """kopf is refused a list or a watch; or it has listed and watches, and no list tells what was deleted before."""
        self._note(kind, path, why)
        if why:
            return
        self._note(kind, "", "")
        match kind:
            case resources.RUNS:
                self._watches_runs.set()
                self._intake.must_compare.set()
            case resources.ENGINES:
                self._engine.missed()
            case _:
                pass  # a pod's lease tells as well

    def _note(self, kind: str, path: str, why: str) -> None:
        """Keep, for log and status, why a collection is not watched; "": it is."""
        known = self._unwatched.setdefault(kind, {})
        if known.get(path, "") == why:
            return
        if why:
            known[path] = why
            hint = "kubectl apply -f crds/" if why == NOT_INSTALLED else "the engine goes on by itself when it may"
            logger.warning("kind_not_watched", kind=kind, path=path, why=why, hint=hint)
        else:
            del known[path]
            if not known:
                logger.info("kind_watched", kind=kind)
        self._engine.say_unwatched(kind, "; ".join(sorted(set(known.values()))))

    async def _tick(self) -> None:
        """In kopf's thread: what needs the store is done in ours."""
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._bury_expired(), self._loop))

    def _from_thread[T](self, call: Callable[[T], None]) -> Callable[[T], None]:
        def hand_over(value: T) -> None:
            self._loop.call_soon_threadsafe(call, value)

        return hand_over

    def _engine_missed(self) -> None:
        self._loop.call_soon_threadsafe(self._engine.missed)

    async def _until_ours(self, kinds: Sequence[tuple[str, str]]) -> None:
        """Wait until these collections are served and we may list them."""
        while not all([await self._is_ours(kind, path) for kind, path in kinds]):  # noqa: ASYNC110 - the server's to say
            await asyncio.sleep(KINDS_SECONDS)

    async def _is_ours(self, kind: str, path: str) -> bool:
        """Whether a collection is there for us; if not, log and status say why until it is watched."""
        try:
            await self._kube.call("GET", path, query={"limit": "1"})
        except KUBE_ERRORS as error:
            is_undefined = isinstance(error, KubeError) and error.code == 404
            self._note(kind, path, NOT_INSTALLED if is_undefined else str(error))
            return False
        return True


async def _close(store: PostgresStore) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await store.close()
    except (TimeoutError, StoreError) as error:
        logger.warning("store_not_closed", error=repr(error))
