"""PostgresStore: the store for real, made of its parts."""

import asyncpg

from romancy.base.settings import DatabaseSettings
from romancy.store import interface
from romancy.store.claims import Claims
from romancy.store.interface import WorkerId
from romancy.store.journal import PostgresJournal
from romancy.store.migrate import migrate
from romancy.store.mirror import Mirror
from romancy.store.notify import Notifier, PostgresWakeups
from romancy.store.pool import APPLICATION, application_name, open_pool
from romancy.store.resources import Resources
from romancy.store.runs import Runs
from romancy.store.workers import Workers


class PostgresStore(Runs, Claims, Workers, Mirror, Resources):
    """Everything that the engine keeps, in one schema of PostgreSQL.

    It belongs to the event loop that opened it; two of them, in threads of one process, know nothing of each other.
    """

    _pool: asyncpg.Pool
    _listing_pool: asyncpg.Pool

    def __init__(self, settings: DatabaseSettings) -> None:
        self.settings = settings
        self._claiming = {}
        self._turn = 0

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
        """Tell what is still to be told, and close every connection but those of journals and wakeups."""
        for worker_id in list(self._claiming):
            await self.close_worker(worker_id)
        await self._notifier.close()
        await self._listing_pool.close()
        await self._pool.close()

    async def __aenter__(self) -> "PostgresStore":
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def journal(self, worker_id: WorkerId) -> PostgresJournal:
        """Begin to write for a worker, on fence slots 0 to journal_connections - 1. Close it before the store."""
        return PostgresJournal(self.settings, worker_id, self._notifier)

    def wakeups(self, worker_id: WorkerId | None) -> PostgresWakeups:
        """Listen for a worker, or (None) for control; `async with`, or `open` and `close`."""
        name = APPLICATION if worker_id is None else application_name(self.settings, worker_id)
        return PostgresWakeups(self.settings, worker_id, name=name)

    async def close_worker(self, worker_id: WorkerId) -> None:
        """Close the connection that this worker claims on; a buried one needs it no more."""
        if (connection := self._claiming.pop(worker_id, None)) is not None:
            await connection.close()


def _keeps_the_contract(store: PostgresStore) -> tuple[interface.Store, interface.Journal, interface.Wakeups]:
    """Never called: mypy compares what is here with what was promised."""
    return store, store.journal(0), store.wakeups(None)
