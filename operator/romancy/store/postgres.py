"""PostgresStore: the store for real, made of its parts."""

import asyncpg

from romancy.base.settings import DatabaseSettings
from romancy.store import interface
from romancy.store.interface import WorkerId
from romancy.store.journal import PostgresJournal
from romancy.store.migrate import migrate
from romancy.store.mirror import Mirror
from romancy.store.notify import Notifier, PostgresWakeups
from romancy.store.pool import APPLICATION, application_name, open_pool
from romancy.store.purge import Purge
from romancy.store.resources import Resources
from romancy.store.retries import Retries
from romancy.store.transactions import Transactions
from romancy.store.workers import Workers


class PostgresStore(Retries, Transactions, Workers, Mirror, Resources, Purge):
    """Everything that the engine keeps, in one schema of PostgreSQL.

    It belongs to the event loop that opened it; two of them, in threads of one process, know nothing of each other.
    """

    _pool: asyncpg.Pool
    _listing_pool: asyncpg.Pool

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self._claiming = {}
        self._transacting = {}
        self._losses = {}
        self._told = {}
        self._turn = 0
        self._journals: list[PostgresJournal] = []
        self._wakeups: list[PostgresWakeups] = []

    async def open(self, *, is_migrating: bool = True) -> None:
        """Bring the schema up to date (or only check it), and be ready. No connection is kept before it is needed.

        Raises:
            SchemaVersionError: the schema is newer than this code, or older and `is_migrating` is False.
            StoreUnavailableError: there was no answer.
        """
        await migrate(self.settings, only_check=not is_migrating)
        listing = max(1, self.settings.pool_max // 4)
        self._pool = await open_pool(self.settings, size=self.settings.pool_max - listing)
        self._listing_pool = await open_pool(self.settings, size=listing, is_listing=True)
        self._notifier = Notifier(self.settings, self._pool)

    async def close(self) -> None:
        """Flush what is queued, tell what is still to be told, and close every connection."""
        for journal in self._journals:
            await journal.close()
        for wakeups in self._wakeups:
            await wakeups.close()
        for worker_id in {*self._claiming, *self._transacting}:
            await self.close_worker(worker_id)
        await self._notifier.close()
        await self._listing_pool.close()
        await self._pool.close()

    async def __aenter__(self) -> "PostgresStore":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def journal(self, worker_id: WorkerId) -> PostgresJournal:
        """Begin to write for a worker, on fence slots 0 to journal_connections - 1; ends with `close`, or with the store."""
        journal = PostgresJournal(self.settings, worker_id, self._notifier, self._losses.setdefault(worker_id, {}))
        self._journals.append(journal)
        return journal

    async def wakeups(self, worker_id: WorkerId | None) -> PostgresWakeups:
        """Listen for a worker, or (None) for control; ends with `close`, or with the store.

        Raises:
            StoreUnavailableError: there is no connection now. Once there was one, it is opened anew whenever it breaks.
        """
        name = APPLICATION if worker_id is None else application_name(self.settings, worker_id)
        wakeups = PostgresWakeups(self.settings, worker_id, name=name)
        try:
            await wakeups.open()
        except BaseException:  # also a cancel half-way: nobody else knows of this connection
            await wakeups.close()
            raise
        self._wakeups.append(wakeups)
        return wakeups

    async def close_worker(self, worker_id: WorkerId) -> None:
        """Close the connection that this worker claims on: one that was buried needs it no more."""
        self._losses.pop(worker_id, None)
        if (pool := self._transacting.pop(worker_id, None)) is not None:
            pool.terminate()  # nobody waits for what is in it: the runs are others' now
        if (connection := self._claiming.pop(worker_id, None)) is not None:
            await connection.close()


async def _keeps_the_contract(store: PostgresStore) -> tuple[interface.Store, interface.Journal, interface.Wakeups]:
    """Never called: mypy compares what is here with what was promised."""
    return store, await store.journal(0), await store.wakeups(None)
