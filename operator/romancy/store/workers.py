"""Workers: one row for each life of a process, its lease, and its burial."""

from datetime import datetime
from uuid import UUID

import asyncpg

from romancy.base import log, metrics
from romancy.errors import StoreUnavailableError
from romancy.model.worker import WorkerRow
from romancy.store.interface import NewWorker, Renewal, WorkerId
from romancy.store.notify import due_channel, mirror_channel
from romancy.store.pool import Connected, application_name, unavailable_as_ours
from romancy.store.queries import SQL

logger = log.get(__name__)

BURIAL_TRIES = 10
"""How often the backends of the dead are ended and its rows tried for."""
BURIAL_LOCK_TIMEOUT = "500ms"
"""How long one try waits for what the dead has on its way."""
CLAIM_SLOTS = 2
"""Fence rows beside the journal's: for claims, and for transactional activities."""


class Workers(Connected):
    """The part of the store that knows which workers live."""

    async def register_worker(self, worker: NewWorker, *, ttl_seconds: float) -> WorkerId:
        """Begin a life. The answer may be lost: the row then expires by itself, and holds nothing."""
        workflows = sorted(worker.workflows)
        [first, *_] = await self._fetch(
            SQL.register_worker(
                name=worker.name,
                boot_id=worker.boot_id,
                pod_uid=worker.pod_uid,
                namespace=worker.namespace,
                workflows=workflows,
                forms=[worker.workflows[name] for name in workflows],
                build_id=worker.build_id,
                python=worker.python,
                ttl_seconds=ttl_seconds,
                slots=self.settings.journal_connections + CLAIM_SLOTS,
            )
        )
        return int(first["worker_id"])

    async def renew_lease(self, worker_id: WorkerId, *, ttl_seconds: float) -> Renewal:
        """Live on for so long from now, unless this worker has been buried."""
        row = await self._fetch_one(SQL.renew_lease(worker_id=worker_id, ttl_seconds=ttl_seconds))
        return Renewal(row["is_ours"], tuple(row["expired"]), row["burial_check_seconds"])

    async def drain_worker(self, worker_id: WorkerId) -> None:
        """Show that this worker is about to end."""
        await self._fetch(SQL.drain_worker(worker_id=worker_id))

    async def expired_workers(self) -> list[WorkerId]:
        """Who has given no sign of life for too long, longest first; notes that somebody has looked."""
        return [row["id"] for row in await self._fetch(SQL.expired_workers())]

    async def workers_of_pod(self, pod_uid: str) -> list[WorkerId]:
        """The workers of one pod; none for an empty uid, which is that of every process outside Kubernetes."""
        return [row["id"] for row in await self._fetch(SQL.workers_of_pod(pod_uid=pod_uid))]

    async def list_workers(self) -> list[WorkerRow]:
        """Every registered worker, oldest first."""
        return [
            WorkerRow(
                id=row["id"],
                name=row["name"],
                pod_uid=row["pod_uid"],
                namespace=row["namespace"],
                workflows=tuple(row["workflows"]),
                build_id=row["build_id"],
                python=row["python"],
                started_at=row["started_at"],
                expires_at=row["expires_at"],
                is_expired=row["is_expired"],
                is_draining=row["is_draining"],
                runs=row["runs"],
            )
            for row in await self._list(SQL.list_workers())
        ]

    async def bury_worker(self, worker_id: WorkerId, *, even_if_alive: bool = False) -> list[UUID]:
        """End its backends, delete its rows, and free its runs (I2). Empty also if its lease was renewed meanwhile.

        Each freed run counts one more loss; from `losses_max` on it is Blocked, reason WorkerLost.

        Raises:
            StoreUnavailableError: nothing was buried, or no answer came; ask again.
        """
        with unavailable_as_ours():
            async with self._pool.acquire() as connection:
                for _ in range(BURIAL_TRIES):
                    if not await self._may_bury(connection, worker_id, even_if_alive=even_if_alive):
                        return []
                    # An open transaction of a frozen process, or a flush whose last bytes never come, holds the fence row
                    # without limit. A process that lives on opens new connections, so this is done before each try.
                    await self._end_backends(connection, worker_id)
                    try:
                        async with connection.transaction():
                            await connection.execute(f"set local lock_timeout = '{BURIAL_LOCK_TIMEOUT}'")
                            dead = await self._delete_worker(connection, worker_id, even_if_alive=even_if_alive)
                            freed = [] if dead is None else await self._free_runs(connection, worker_id, dead)
                    except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
                        logger.warning("burial_waits", worker_id=worker_id, error=str(error))
                        continue
                    if dead is not None:
                        logger.info("worker_buried", worker_id=worker_id, worker=dead["name"], runs=len(freed))
                        metrics.WORKERS_BURIED.inc()
                        metrics.RUNS_RECOVERED.inc(len(freed))
                    return freed
        raise StoreUnavailableError(f"worker {worker_id} could not be buried: something holds its rows")

    async def _may_bury(self, connection: asyncpg.Connection, worker_id: WorkerId, *, even_if_alive: bool) -> bool:
        may_bury: bool = await connection.fetchval(*SQL.may_bury(worker_id=worker_id, even_if_alive=even_if_alive))
        return may_bury

    async def _end_backends(self, connection: asyncpg.Connection, worker_id: WorkerId) -> None:
        await connection.fetch(*SQL.end_backends(application_name=application_name(self.settings, worker_id)))

    async def _delete_worker(
        self, connection: asyncpg.Connection, worker_id: WorkerId, *, even_if_alive: bool
    ) -> asyncpg.Record | None:
        return await connection.fetchrow(*SQL.delete_worker(worker_id=worker_id, even_if_alive=even_if_alive))

    async def _free_runs(self, connection: asyncpg.Connection, worker_id: WorkerId, dead: asyncpg.Record) -> list[UUID]:
        name = str(dead["name"]).replace("%", "%%")
        message = (
            f"%s workers in a row were lost while they ran this run, without an entry between; the last was {name} "
            f"(id {worker_id}). It may be what ends them (memory, a crash in native code): see that worker's last log "
            "lines. It goes on when a worker with another build of the workflow appears"
        )
        row = await connection.fetchrow(
            *SQL.free_runs(
                worker_id=worker_id,
                losses_max=self.settings.losses_max,
                build_id=dead["build_id"],
                message=message,
                due_channel=due_channel(self.settings),
                mirror_channel=mirror_channel(self.settings),
            )
        )
        return list(row["freed"])

    async def now(self) -> datetime:
        """The database's clock."""
        now: datetime = (await self._fetch_one(SQL.now()))["now"]
        return now
