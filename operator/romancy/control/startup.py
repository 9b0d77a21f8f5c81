"""kopf, embedded: in a thread of its own with an event loop of its own, started on the leader and stopped by its flag.

In our loop it would cancel every other task when it stops, take over SIGTERM, and, when it is cancelled instead of stopped,
arm a SIGKILL. All that is avoided here, and pinned by tests/control/test_startup.py.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import kopf
from kopf._cogs.structs.references import Insights
from kopf._core.intents.causes import SpawningCause
from kopf._core.intents.registries import SpawningRegistry

from romancy.base import log
from romancy.base.settings import ControlSettings
from romancy.control import loops
from romancy.control.kube import read_configuration, token_of
from romancy.control.resources import RUNS
from romancy.control.runs import UNFINISHED
from romancy.errors import RomancyError

logger = log.get(__name__)

WORKER_LABEL: Final = "romancy.dev/worker"
"""On the pods of workers."""
TOKEN_SECONDS: Final = 300
"""kopf asks for its credentials anew so often: a pod's token is replaced in its file."""
STOP_SECONDS: Final = 8.0
"""kopf ends within 0.1 s; more when a handler of ours hangs, for which it waits 5 s."""


READY_SECONDS: Final = 2.0
"""kopf knows the kinds within 0.3 s, if the API server answers."""


class KopfStuckError(RomancyError):
    """kopf did not end when it was told to."""

    reason = "KopfStuck"


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
) -> None:
    """Run a kopf operator in a thread until it ends by itself, or until this is cancelled: then it is stopped by its flag.

    Args:
        name: of the thread.
        registry: its handlers; a login handler is added.
        namespaces: the ones to look into; none means the whole cluster.

    Raises:
        KopfStuckError: it was told to stop, and did not.
        Exception: whatever ended it, as the refusal of a list.
    """
    _add_login(registry, settings)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()
    stop = Stop()

    def tell(error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            loops.run(_operator(registry, stop, namespaces))
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


async def _operator(registry: kopf.OperatorRegistry, stop: Stop, namespaces: Sequence[str]) -> None:
    where: dict[str, Any] = {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}
    asked, flag, insights = stop.here(), asyncio.Event(), Insights()

    async def stop_when_it_can() -> None:
        # In the middle of its first look at the kinds kopf does not see the flag: it hangs, and gives up after 5 s.
        await asked.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_SECONDS):
                await insights.ready_resources.wait()
        flag.set()

    # Made before kopf begins: what is made later in this loop it cancels when it ends.
    stopping = asyncio.create_task(stop_when_it_can(), name="kopf stop")
    try:
        await kopf.operator(
            registry=registry,
            settings=kopf_settings(),
            insights=insights,
            standalone=True,
            stop_flag=flag,
            **where,
        )
    finally:
        stopping.cancel()


def _add_login(registry: kopf.OperatorRegistry, settings: ControlSettings) -> None:
    @kopf.on.login(registry=registry)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        """The credentials of our own client: kopf's handlers use the synchronous client, and keep a token until a 401."""
        configuration = await read_configuration(settings)
        token = await token_of(configuration)
        scheme, _space, value = (token or "").partition(" ")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme.capitalize() if value else None,
            token=value or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            expiration=datetime.now(UTC) + timedelta(seconds=TOKEN_SECONDS) if token else None,
        )


@contextmanager
def _closed_loop_ignored() -> Iterator[None]:
    try:
        yield
    except RuntimeError:  # the loop that waited has ended without us
        logger.warning("kopf_outlived_its_leader")
