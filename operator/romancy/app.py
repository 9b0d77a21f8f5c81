"""Durable workflows in one's own program: a client that executes runs as well."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from aiohttp import web
from pydantic import SecretStr

from romancy.base import log
from romancy.base.clock import SystemClock
from romancy.base.settings import DatabaseSettings, GatewaySettings, OutboxSettings, RetentionSettings, WorkerSettings
from romancy.client import Client
from romancy.errors import DefinitionError
from romancy.gateway import server
from romancy.gateway.access import Access, Open, Tokens, tokens_of
from romancy.gateway.services import services_of
from romancy.model import failure
from romancy.model.command import Outcome
from romancy.model.run import NewRun
from romancy.outbox.relay import relaying
from romancy.sdk.middleware import Middleware
from romancy.sdk.workflow import Workflow
from romancy.store.postgres import PostgresStore
from romancy.worker.around import labels_of_start
from romancy.worker.worker import Worker

LOG = log.get(__name__)


class App(Client):
    """`async with App(database=URL, workflows=[...]) as app: handle = await app.start(...)`

    Runs go on in any process with the same database and workflows: on leaving, what is not finished is handed over.

    Args:
        database: URL of PostgreSQL, or settings.
        workflows: what this process executes.
        worker_name: shown in status and logs; default: host and process.
        worker: all other options.
        retention: how long ended runs are kept; for ever if it is not given.
        outbox: where events go that runs emit; by default to $K_SINK, if that is given.
        middleware: stands around runs and activities, the first of them outermost.

    Raises:
        DefinitionError: two workflows have one name.
        SettingsError: the database or the sink can't be used as it is given.
    """

    def __init__(
        self,
        database: str | DatabaseSettings,
        workflows: Sequence[Workflow[..., Any]],
        *,
        worker_name: str = "",
        worker: WorkerSettings | None = None,
        retention: RetentionSettings | None = None,
        outbox: OutboxSettings | None = None,
        middleware: Sequence[Middleware] = (),
    ) -> None:
        settings = worker or WorkerSettings()
        if worker_name:
            settings = settings.model_copy(update={"name": worker_name})
        super().__init__(database, namespace=settings.namespace, payload_bytes_max=settings.payload_bytes_max)
        names = [each.name for each in workflows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise DefinitionError(f"two workflows are named {', '.join(twice)}", hint="give one another name")
        sink = (outbox or OutboxSettings()).with_binding()
        clock = SystemClock()
        self.worker = Worker(
            lambda: PostgresStore(self._settings),
            workflows,
            settings,
            clock=clock,
            retention=retention,
            make_relay=relaying(sink, clock),
            tells_lifecycle=sink.lifecycle,
            middleware=middleware,
        )

    async def __aenter__(self) -> Self:
        log.configure_library()
        if sys.flags.hash_randomization:
            LOG.warning(
                "hash_seed_random", hint="set PYTHONHASHSEED=0, so that sets of strings replay in the same order"
            )
        failure.freeze_modules()
        await super().__aenter__()
        try:
            await self.worker.start()
        except BaseException:
            await self.store.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.worker.drain()
        await super().__aexit__(kind, error, trace)

    def http(
        self,
        *,
        tokens: Mapping[str, str] | None = None,
        events_token: str = "",
        is_open: bool = False,
    ) -> web.Application:
        """An aiohttp application to mount anywhere: CloudEvents in (`/events`), the API (`/api/v1`), health, metrics.

        Args:
            tokens: who may use the API: a role (Viewer, Operator, Sender) by token. Without any, nobody may.
            events_token: lets events in, and nothing else.
            is_open: everybody may do everything: where the application around it says who gets here.

        Raises:
            SettingsError: there is no such role.
        """
        access: Access = Open() if is_open else Tokens(tokens_of(tokens or {}))
        settings = GatewaySettings(events_token=SecretStr(events_token))
        services = services_of(
            self,
            access,
            settings,
            self.worker.workflows,
            namespace=self.namespace,
            payload_bytes_max=self._payload_bytes_max,
        )
        return server.application(services, [self.worker])

    def watch(self, run_id: UUID) -> "asyncio.Future[Outcome | None]":
        return self.worker.watch(run_id)

    def unwatch(self, run_id: UUID, left: "asyncio.Future[Outcome | None]") -> None:
        self.worker.unwatch(run_id, left)

    def executes(self, run_id: UUID) -> bool:
        return self.worker.holds(run_id)

    def _labels_of_start(self) -> Mapping[str, str]:
        return labels_of_start(self.worker.middleware)

    async def _start(self, workflow: Workflow[..., Any], new: NewRun) -> None:
        mine = self.worker.workflows.get(workflow.name)
        if mine is not None and await self.worker.begin(new, mine):
            return
        await super()._start(workflow, new)
