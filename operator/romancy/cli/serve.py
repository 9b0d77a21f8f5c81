"""`romancy operator`: the one process type. Worker and gateway always; control where the Lease is held."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from romancy.base import collector, log, settings
from romancy.base.clock import SystemClock
from romancy.client import Client
from romancy.errors import RomancyError, SettingsError
from romancy.gateway import server
from romancy.gateway.access import Access, Open, Remembered, Tokens, read_tokens
from romancy.gateway.services import services_of
from romancy.outbox.relay import relaying
from romancy.store.postgres import PostgresStore
from romancy.worker import loader
from romancy.worker.worker import Worker

LOG = log.get(__name__)
START_AGAIN_SECONDS = 2.0


async def run() -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    options = settings.load()
    log.configure(level=options.log.level, as_json=options.log.json_lines)
    if not options.database.url.get_secret_value():
        raise SettingsError("no database is given", hint="set ROMANCY_DATABASE__URL or DATABASE_URL")
    workflows = loader.load(options.workflows)
    # Imported now, since it takes seconds: later it would block the loop of a worker that holds runs.
    run_control = _control() if options.control.enabled else None
    collector.tune()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = Worker(
        lambda: PostgresStore(options.database),
        workflows,
        options.worker,
        clock=SystemClock(),
        is_leader_expected=options.control.enabled,
        bury_seconds=options.control.bury_seconds,
        retention=options.retention,
        make_relay=relaying(options.outbox, SystemClock()),
        tells_lifecycle=options.outbox.lifecycle,
        middleware=loader.load_middleware(options.middleware),
    )
    client = Client(options.database, namespace=options.worker.namespace)
    store = client.store
    # Health is served before the database answers: a pod that waits for it is live, and says why it is not ready.
    async with (
        _access(options) as access,
        server.serving(
            server.application(
                services_of(
                    client,
                    access,
                    options.gateway,
                    worker.workflows,
                    namespace=options.control.namespace if options.control.enabled else options.worker.namespace,
                    payload_bytes_max=options.worker.payload_bytes_max,
                ),
                [worker],
            ),
            options.gateway,
        ),
    ):
        if not await _started(store, worker, stop):
            return 0
        control = (
            asyncio.create_task(run_control(options, stop, is_fit=lambda: worker.is_ready), name="control")
            if run_control
            else None
        )
        failed = await _until_stopped(stop, control)
        # The Lease is given up at once, while activities may take their time to end.
        await asyncio.gather(worker.drain(), *([control] if control and not control.done() else []))
        await store.close()
    return 1 if failed else 0


async def _until_stopped(stop: asyncio.Event, control: "asyncio.Task[None] | None") -> bool:
    """Until it is asked to stop; True if control has failed before: the process then ends, and is started anew."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, *([control] if control else [])}, return_when=asyncio.FIRST_COMPLETED)
    if stop.is_set():
        LOG.info("stop_asked")
        return False
    stopped.cancel()
    assert control is not None
    error = control.exception()
    LOG.critical(
        "control_failed", error=repr(error), hint=getattr(error, "hint", "") or "the process ends, to start anew"
    )
    stop.set()
    return True


async def _started(store: PostgresStore, worker: Worker, stop: asyncio.Event) -> bool:
    """Start when the database answers; False if it was stopped before."""
    is_open = False
    while not stop.is_set():
        try:
            if not is_open:
                await store.open()
                is_open = True
            await worker.start()
        except RomancyError as error:
            LOG.error("start_failed", reason=error.reason, error=error.message, hint=error.hint)
            try:
                await asyncio.wait_for(stop.wait(), START_AGAIN_SECONDS)
            except TimeoutError:
                continue
        else:
            return True
    return False


@asynccontextmanager
async def _access(options: settings.Settings) -> AsyncIterator[Access]:
    """Who says what callers of the API may do."""
    gateway = options.gateway
    match gateway.access or ("kubernetes" if options.control.enabled else "tokens"):
        case "open":
            LOG.warning("api_open", hint="everybody who reaches the port may do everything: let nobody else reach it")
            yield Open()
        case "tokens":
            yield Tokens(read_tokens(gateway.tokens_file) if gateway.tokens_file else {})
        case _:
            from romancy.control.access import KubernetesAccess
            from romancy.control.kube import Kube

            async with Kube.open(options.control) as kube:
                yield Remembered(KubernetesAccess(kube, gateway.audiences), SystemClock())


def _control() -> Callable[..., Coroutine[Any, Any, None]]:
    from romancy.control.control import run_control

    return run_control
