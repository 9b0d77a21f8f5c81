"""Start runs and ask about them, without running any: everything goes through the database."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

from pydantic import SecretStr

from romancy.base import log
from romancy.base.settings import DatabaseSettings
from romancy.errors import (
    RunCancelledError,
    RunExistsError,
    RunFailedError,
    RunNotFoundError,
    RunTimedOutError,
    SettingsError,
)
from romancy.model import failure
from romancy.model.codec import PAYLOAD_BYTES_MAX, Codec
from romancy.model.history import Message, MessageKind
from romancy.model.run import NAME_MAX, NewRun, Phase, Reason, Run, run_id_of
from romancy.sdk.workflow import Workflow
from romancy.store.interface import RunFilter
from romancy.store.postgres import PostgresStore

_POLL_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)  # then the last one for ever


class Handle[R]:
    """One run, from outside. Making one asks nobody."""

    def __init__(
        self, client: "Client", run_id: UUID | None, *, name: str = "", result: Codec[R] | None = None
    ) -> None:
        self._client, self._run_id, self._name, self._result = client, run_id, name, result

    @property
    def id(self) -> UUID | None:
        """The run's id; None if the handle was made from a name and has not been used."""
        return self._run_id

    async def info(self) -> Run:
        """The run as it is now.

        Raises:
            RunNotFoundError: there is none.
        """
        run = await self._client.read(self._run_id, self._name)
        self._run_id = run.id
        return run

    async def result(self, *, timeout: float | None = None) -> R:
        """Wait for the end of the run.

        Args:
            timeout: in seconds; the run goes on after it.

        Returns:
            What the workflow returned; from a handle made by name or id, the plain value of its JSON.

        Raises:
            RunFailedError: it failed in a way that can't be rebuilt here; else the exception that failed it, by its type.
            RunCancelledError: it was cancelled; RunTimedOutError: it used up its own timeout.
            TimeoutError: `timeout` is over.
            RunNotFoundError: there is none.
        """
        async with asyncio.timeout(timeout):
            run = await self.info()
            async with self._client.watching(run.id) as event:
                polls = 0
                while not run.is_done:
                    try:
                        async with asyncio.timeout(_POLL_SECONDS[min(polls, len(_POLL_SECONDS) - 1)]):
                            await event.wait()
                        event.clear()
                    except TimeoutError:
                        polls += 1
                    run = await self.info()
        return self._outcome(run)

    async def cancel(self, message: str = "") -> bool:
        """Ask the run to end: it may clean up, and what is done is compensated. False if it had ended, or was asked before."""
        return await self._send(MessageKind.CANCEL, "client:cancel", {"reason": Reason.CANCELLED, "message": message})

    async def suspend(self) -> bool:
        """Let running activities end, and start no new ones until it is resumed. Time goes on."""
        return await self._send(MessageKind.SUSPEND, f"client:suspend:{uuid4()}", {})

    async def resume(self) -> bool:
        """Let a suspended run go on."""
        return await self._send(MessageKind.RESUME, f"client:resume:{uuid4()}", {})

    async def _send(self, kind: MessageKind, source: str, content: Mapping[str, str]) -> bool:
        run_id = self._run_id or (await self.info()).id
        return await self._client.store.send([Message(run_id, kind, source, json.dumps(content))]) > 0

    def _outcome(self, run: Run) -> R:
        match run.phase:
            case Phase.SUCCEEDED:
                assert run.output is not None
                value: R = self._result.decode(run.output) if self._result else json.loads(run.output)
                return value
            case Phase.CANCELLED:
                raise RunCancelledError(f"run {run.name} was cancelled: {run.message or run.reason}")
            case _ if run.reason == Reason.TIMED_OUT:
                raise RunTimedOutError(f"run {run.name}: {run.message}")
            case _ if run.failure is not None:
                raise failure.decode(run.failure)
            case _:
                raise RunFailedError(f"run {run.name} failed: {run.message}", reason=run.reason)


class Client:
    """Asks the database. `async with Client(url) as client: ...`

    Args:
        database: URL of PostgreSQL, or settings.
        namespace: of runs that are started or named without one.
        payload_bytes_max: the largest input.
    """

    def __init__(
        self,
        database: str | DatabaseSettings,
        *,
        namespace: str = "default",
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        self._settings = (
            database if isinstance(database, DatabaseSettings) else DatabaseSettings(url=SecretStr(database))
        )
        if not self._settings.url.get_secret_value():
            raise SettingsError("no database is given", hint="pass its URL, or set ROMANCY_DATABASE__URL")
        self.namespace = namespace
        self.store = PostgresStore(self._settings)
        self._payload_bytes_max = payload_bytes_max

    async def __aenter__(self) -> Self:
        log.configure_library()
        await self.store.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.store.close()

    async def start[**P, R](self, workflow: Workflow[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Start a run of a workflow; returns when it is durable.

        Starting the same id twice is one run, also after its end, until it is purged.

        Raises:
            RunExistsError: the id belongs to another workflow, or another input.
            PayloadError: an argument can't be stored.
            TypeError: the arguments don't fit, as in any Python call.
        """
        new = self._new_run(workflow, args, kwargs)
        await self._start(workflow, new)
        return Handle(self, new.id, name=new.name, result=workflow.signature.result)

    def handle(self, run: str | UUID) -> Handle[Any]:
        """A handle of a run that exists: a UUID is its id, anything else the newest run of that name."""
        try:
            return Handle(self, run if isinstance(run, UUID) else UUID(run))
        except ValueError:
            return Handle(self, None, name=str(run))

    async def list(
        self,
        *,
        namespace: str | None = None,
        workflow: str | None = None,
        phases: frozenset[Phase] = frozenset(),
        labels: Mapping[str, str] | None = None,
        after: Run | None = None,
        limit: int = 50,
    ) -> "list[Run]":
        """Runs, newest first; all that is given must hold.

        Args:
            namespace: None for the client's own, "*" for all.
            after: the last run of the page before.
            limit: 1 to 1000.
        """
        if not 1 <= limit <= 1000:
            raise ValueError(f"limit must be 1 to 1000, not {limit}")
        where = RunFilter(
            namespace=None if namespace == "*" else namespace or self.namespace,
            workflow=workflow,
            phases=phases,
            labels=labels or {},
            after=(after.created_at, after.id) if after else None,
        )
        return await self.store.list_runs(where, limit=limit)

    async def read(self, run_id: UUID | None, name: str) -> Run:
        """The run of an id or, without one, the newest of a name.

        Raises:
            RunNotFoundError: there is none.
        """
        if run_id is not None:
            run = await self.store.read_run(run_id)
        else:
            run = await self.store.find_run(self.namespace, name)
        if run is None:
            raise RunNotFoundError(str(run_id) if run_id is not None else f"{self.namespace}/{name}")
        return run

    @asynccontextmanager
    async def watching(self, run_id: UUID) -> AsyncIterator[asyncio.Event]:
        """An event that may be set when the run ends; who waits for it polls as well."""
        del run_id
        yield asyncio.Event()

    async def _start(self, workflow: Workflow[..., Any], new: NewRun) -> None:
        del workflow
        [started] = await self.store.start_runs([new])
        if started.existing is not None:
            refuse_other(new, started.existing)

    def _new_run(self, workflow: Workflow[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> NewRun:
        options = workflow.start_options
        namespace = options.namespace or self.namespace
        name = options.id or f"{workflow.name[: NAME_MAX - 13].replace('_', '-')}-{uuid4().hex[:12]}"
        return NewRun(
            id=run_id_of(namespace, name),
            namespace=namespace,
            name=name,
            workflow=workflow.name,
            input=workflow.encode_input(args, kwargs, bytes_max=self._payload_bytes_max),
            form=workflow.signature.form,
            priority=options.priority,
            timeout_seconds=options.timeout.total_seconds() if options.timeout else None,
            labels=dict(options.labels),
            start_at=datetime.now(UTC) + options.delay if options.delay else None,
        )


def refuse_other(new: NewRun, existing: Run) -> None:
    """The same identity must be the same run.

    Raises:
        RunExistsError: it is another workflow, or another input.
    """
    for what in ("workflow", "input"):
        if getattr(new, what) != getattr(existing, what):
            raise RunExistsError(namespace=existing.namespace, name=existing.name, what_differs=what)
