"""kopf, embedded: in a thread of its own with an event loop of its own, started on the leader and stopped by its flag.

In our loop it would cancel every other task when it stops, take over SIGTERM, and, when it is cancelled instead of stopped,
arm a SIGKILL. All that is avoided here, and pinned by tests/control/test_startup.py.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Any, Final

import aiohttp
import kopf
from kopf._cogs.structs.references import Insights
from kopf._core.intents.causes import SpawningCause
from kopf._core.intents.registries import SpawningRegistry

from romancy.base import log
from romancy.base.settings import ControlSettings
from romancy.control import loops
from romancy.control.kube import HINTS, read_configuration, ssl_context_of, token_of
from romancy.control.resources import ENGINES, RUNS
from romancy.control.runs import UNFINISHED
from romancy.errors import RomancyError

logger = log.get(__name__)

WORKER_LABEL: Final = "romancy.dev/worker"
"""On the pods of workers."""
TOKEN_SECONDS: Final = 300
"""kopf asks for its credentials anew so often: a pod's token is replaced in its file."""
STOP_SECONDS: Final = 8.0
"""kopf ends within 0.1 s; more when a handler of ours hangs, for which it waits 5 s."""
ENDING_SECONDS: Final = 3.0
"""A kopf that has begun to end is cancelled after so long."""


READY_SECONDS: Final = 2.0
"""kopf knows the kinds within 0.3 s, if the API server answers."""
PODS: Final = "pods"
WATCHED: Final = frozenset({RUNS, ENGINES, PODS})

Heard = Callable[[str, str, str], None]
"""Called in kopf's thread with a kind, the path of its collection, and why it can't be watched; "" is good news: kopf has
listed it and watches it from there. So each "" after the first says that something may have been missed in between."""


class KopfDiedError(RomancyError):
    """kopf's thread ended by something that ends programs."""

    reason = "KopfDied"


class KopfStuckError(RomancyError):
    """kopf did not end when it was told to."""

    reason = "KopfStuck"


# A line for each event of each object, without a word about which.
for _name in ("kopf.objects", "kopf.activities"):
    logging.getLogger(_name).setLevel(logging.WARNING)
# kopf says at each start that it leaves the signals alone, which is why it is in a thread.
logging.getLogger("kopf._core.reactor.running").addFilter(lambda record: "OS signals are ignored" not in record.msg)


class NoFinalizerTimers(SpawningRegistry):
    """Timers without a finalizer on their object: else its deletion, and its namespace's, would need a living operator."""

    def requires_finalizer(self, cause: SpawningCause, excluded: Any = frozenset()) -> bool:
        """Never. The timer of a deleted object must be ended by its filter."""
        return False


def registry_without_finalizers() -> kopf.OperatorRegistry:
    """A registry whose timers leave no mark on their objects."""
    registry = kopf.OperatorRegistry()
    registry._spawning = NoFinalizerTimers()
    return registry


def kopf_settings() -> kopf.OperatorSettings:
    """What kopf is told, and why its defaults are not right here."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # else it watches all CRDs and namespaces, for which we have no right
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.process.ultimate_exiting_timeout = None  # else it kills the process that lost its leadership
    settings.execution.default_backoff = 2
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 2, 2, 5)  # the defaults cost 4 s of blindness after a restart
    settings.networking.request_timeout = 15
    settings.networking.connect_timeout = 3
    settings.watching.connect_timeout = 3
    settings.watching.inactivity_timeout = 70
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 0.5  # an object's task is kept so long after its last event
    settings.queueing.exit_timeout = 1
    settings.watching.field_selectors[RUNS] = UNFINISHED
    settings.watching.label_selectors["pods"] = WORKER_LABEL
    return settings


async def run_kopf(
    name: str,
    registry: kopf.OperatorRegistry,
    settings: ControlSettings,
    *,
    namespaces: Sequence[str],
    heard: Heard = lambda _kind, _path, _why: None,
) -> None:
    """Run a kopf operator in a thread until it ends by itself, or until this is cancelled: then it is stopped by its flag.

    Args:
        name: of the thread.
        registry: its handlers; a login handler is added.
        namespaces: the ones to look into; none means the whole cluster.
        heard: what the API server answers to its lists and watches.

    Raises:
        KopfStuckError: it was told to stop, and did not.
        KopfDiedError: SystemExit or a cancellation of its own making ended it.
        Exception: whatever ended it, as the refusal of a list.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()
    stop = Stop()

    def tell(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            loops.run(_operator(registry, settings, stop, namespaces, heard))
        except BaseException as raised:
            error = raised
        with _closed_loop_ignored():
            loop.call_soon_threadsafe(tell, error)

    thread = threading.Thread(target=run, name=f"romancy {name}", daemon=True)
    thread.start()
    logger.info("kopf_started", thread=name, namespaces=list(namespaces) or "all")
    try:
        error = await asyncio.shield(ended)
    except asyncio.CancelledError:
        stop.ask()
        done, _ = await asyncio.wait({ended}, timeout=STOP_SECONDS)
        if not done:
            raise KopfStuckError(
                f"kopf's thread {name!r} did not stop within {STOP_SECONDS:g} s", hint="end this process"
            ) from None
        logger.info("kopf_stopped", thread=name)
        raise
    if error is not None and not isinstance(error, Exception):
        # Raised here, a CancelledError would look like our own end, which a TaskGroup passes over in silence, and a
        # SystemExit would end the leader's loop.
        raise KopfDiedError(f"kopf's thread {name!r} ended by {error!r}") from error
    if error is not None:
        raise error


class Stop:
    """Asked for in our thread, and given to kopf in its own when it can take it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event: asyncio.Event | None = None

    def ask(self) -> None:
        """From any thread, at any time."""
        with self._lock:
            self._asked = True
            if self._loop is not None and self._event is not None:
                with contextlib.suppress(RuntimeError):  # kopf has ended by itself, and its loop with it
                    self._loop.call_soon_threadsafe(self._event.set)

    def here(self) -> asyncio.Event:
        """The event of the loop that this is called in."""
        with self._lock:
            self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()
            if self._asked:
                self._event.set()
            return self._event


async def _operator(
    registry: kopf.OperatorRegistry, settings: ControlSettings, stop: Stop, namespaces: Sequence[str], heard: Heard
) -> None:
    where: dict[str, Any] = {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}
    asked, flag, insights = stop.here(), asyncio.Event(), Insights()

    async def stop_when_it_can() -> None:
        # In the middle of its first look at the kinds kopf does not see the flag: it hangs, and gives up after 5 s.
        await asked.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await insights.ready_resources.wait()
        flag.set()

    stopping = asyncio.create_task(stop_when_it_can(), name="kopf stop")
    sessions = _add_login(registry, settings, heard)
    ending = asyncio.Event()

    @kopf.on.cleanup(registry=registry)
    async def let_go(**_: Any) -> None:
        """A kopf that dies of one watch leaves the others behind, and its own wait for the flag. It waits 5 s for them, then
        cancels all that is left at once, and a watch whose parts are cancelled at the same time takes that for a pause and
        begins anew: kopf then neither works nor ends.
        """
        flag.set()
        for task in asyncio.all_tasks():
            if task.get_name().startswith("watcher for "):
                task.cancel()
        ending.set()

    async def end_for_sure() -> None:
        await ending.wait()
        await asyncio.sleep(ENDING_SECONDS)
        logger.warning("kopf_ends_slowly", hint="it is cancelled")
        running.cancel()

    # Made before kopf begins: what is made later in this loop it cancels when it ends.
    ensuring = asyncio.create_task(end_for_sure(), name="kopf end")
    operator = kopf.operator(
        registry=registry,
        settings=kopf_settings(),
        insights=insights,
        standalone=True,
        stop_flag=flag,
        **where,
    )
    running = asyncio.create_task(operator, name="kopf")
    try:
        await running
    finally:
        stopping.cancel()
        ensuring.cancel()
        for session in sessions:
            await session.close()  # kopf does so with those that it has used; twice is once


def _add_login(registry: kopf.OperatorRegistry, settings: ControlSettings, heard: Heard) -> list[aiohttp.ClientSession]:
    """Have kopf log in as we do. Returns the sessions that are made, as they are made."""
    sessions: list[aiohttp.ClientSession] = []
    listening = _listening(heard)

    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.AiohttpSession:
        """A session with the credentials of our own client: kopf's handlers use the synchronous one, and keep a token until
        a 401. A session and no mere credentials, so that we hear what the API server answers to kopf.
        """
        configuration = await read_configuration(settings)
        token = await token_of(configuration)
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=ssl_context_of(configuration), limit=0),
            headers={"Authorization": token} if token else None,
            trace_configs=[listening],
        )
        sessions[:] = [*(each for each in sessions if not each.closed), session]
        return kopf.AiohttpSession(
            server=configuration.host,
            aiohttp_session=session,
            expiration=datetime.now(UTC) + timedelta(seconds=TOKEN_SECONDS) if token else None,
        )

    return sessions


def _listening(heard: Heard) -> aiohttp.TraceConfig:
    """Tells of lists and watches. kopf keeps to itself that it had to list anew, and what it was refused until it gives up."""
    to_tell: set[str] = set()

    async def answered(_session: aiohttp.ClientSession, _context: Any, request: aiohttp.TraceRequestEndParams) -> None:
        path, status = request.url.path, request.response.status
        if (kind := path.rsplit("/", 1)[-1]) not in WATCHED or request.method != "GET":
            return
        is_watch = "watch" in request.url.query
        if status >= HTTPStatus.BAD_REQUEST:
            to_tell.add(path)
            verb = "watch" if is_watch else "list"
            hint = f"; {HINTS[status]}" if status in HINTS else ""
            heard(kind, path, f"{verb} of {path} is refused: {status} {request.response.reason}{hint}")
        elif not is_watch:
            to_tell.add(path)
        elif path in to_tell:
            to_tell.discard(path)
            heard(kind, path, "")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(answered)
    return trace


@contextmanager
def _closed_loop_ignored() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # the loop that waited has ended without us
        logger.warning("kopf_outlived_its_leader")
