"""A store without a database, for tests: the engine's own store, on tables in memory.

Everything in Python is what runs in production (the journal, its repeated flushes, what an answer means); only the statements
of store/sql/ are carried out here. One conformance suite holds it to what PostgreSQL does.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Final
from uuid import UUID

from romancy.base.settings import DatabaseSettings
from romancy.errors import StoreUnavailableError, WorkerFencedError
from romancy.model.channel import ChannelMode
from romancy.model.history import Entry
from romancy.model.outbox import Outgoing
from romancy.store.interface import WorkerId
from romancy.store.journal import PostgresJournal
from romancy.store.notify import Notifier, PostgresWakeups
from romancy.store.pool import Statement, unavailable_as_ours
from romancy.store.postgres import PostgresStore
from romancy.store.queries import SQL, Query
from romancy.store.transactions import ActivityTransaction
from romancy.testing.memory.channels import Channels
from romancy.testing.memory.children import Children
from romancy.testing.memory.claims import Claims
from romancy.testing.memory.emitted import Emitted
from romancy.testing.memory.events import Events
from romancy.testing.memory.history import History
from romancy.testing.memory.iterations import Iterations
from romancy.testing.memory.journal import Journal
from romancy.testing.memory.messages import Messages
from romancy.testing.memory.mirror import Mirror
from romancy.testing.memory.notify import Notify
from romancy.testing.memory.purge import Purge
from romancy.testing.memory.resources import Resources
from romancy.testing.memory.retries import Retries
from romancy.testing.memory.tables import Row
from romancy.testing.memory.transactions import Transactions
from romancy.testing.memory.workers import Workers

_QUERIES: Final[dict[str, Query]] = {query.text: query for query in SQL.by_name.values()}
_CAST: Final = re.compile(r"\$(\d+)::(\w+)")
_BITS: Final = {"smallint": 15, "integer": 31, "bigint": 63}


class ValueRefusedError(OSError):
    """PostgreSQL would refuse this value: it is too large for its column, or holds what text can't."""

    sqlstate = "22000"


class MemoryDatabase(
    Channels,
    Children,
    Claims,
    Emitted,
    Events,
    History,
    Iterations,
    Journal,
    Messages,
    Mirror,
    Notify,
    Purge,
    Resources,
    Retries,
    Transactions,
    Workers,
):
    """What several processes share: the tables. A statement is carried out as a whole, one after the other.

    Args:
        clock: its time.
    """

    def execute(self, statement: Statement) -> list[Row]:
        """Carry out one statement of store/sql/.

        Raises:
            ValueRefusedError: one of its arguments can't be stored; nothing was.
        """
        query = _QUERIES[statement[0]]
        arguments = statement[1:]
        for argument, kind in zip(arguments, _kinds(query), strict=True):
            _refuse(argument, kind)
        carry_out: Callable[..., list[Row]] = getattr(self, query.name)
        return carry_out(**dict(zip(query.parameters, arguments, strict=True)))


class MemoryStore(PostgresStore):
    """One process's door to a MemoryDatabase.

    Args:
        database: may have other doors, in the same event loop.
        settings: limits and the like; no URL is needed.
    """

    def __init__(self, database: MemoryDatabase, settings: DatabaseSettings | None = None) -> None:
        super().__init__(settings or DatabaseSettings())
        self.database = database

    async def perform[T](self, what: str, act: Callable[[], Awaitable[T]]) -> T:
        """Everything that is asked of the database passes here: each statement by its name, and the burial as a whole.

        Others get their turn before it is done, as with a database.
        """
        del what
        await asyncio.sleep(0)
        return await act()

    async def execute(self, statement: Statement) -> list[Row]:
        """One statement and its answer."""

        async def act() -> list[Row]:
            return self.database.execute(statement)

        return await self.perform(_QUERIES[statement[0]].name, act)

    async def open(self, *, is_migrating: bool = True) -> None:
        """Be ready."""
        del is_migrating
        self._pool = self._listing_pool = _Pool(self)
        self._notifier = Notifier(self.settings, self._pool)

    async def journal(self, worker_id: WorkerId) -> PostgresJournal:
        """Begin to write for a worker; ends with `close`, or with the store."""
        journal = _Journal(self, worker_id, self._notifier, self._losses.setdefault(worker_id, {}))
        self._journals.append(journal)
        return journal

    async def wakeups(self, worker_id: WorkerId | None) -> PostgresWakeups:
        """Listen for a worker, or (None) for control; ends with `close`, or with the store."""
        wakeups = MemoryWakeups(self, worker_id)
        with unavailable_as_ours():
            await wakeups.open()
        self._wakeups.append(wakeups)
        return wakeups

    async def bury_worker(self, worker_id: WorkerId, *, even_if_alive: bool = False) -> list[UUID]:
        """Delete its rows, and free its runs (I2). Empty also if its lease was renewed meanwhile."""

        async def bury() -> list[UUID]:
            tables: Any = _Tables(self.database)  # nothing in here waits: nobody sees one statement without the other
            dead = await self._delete_worker(tables, worker_id, even_if_alive=even_if_alive)
            return [] if dead is None else await self._free_runs(tables, worker_id, dead)

        with unavailable_as_ours():
            return await self.perform("bury_worker", bury)

    async def begin_transaction(self, worker_id: WorkerId) -> ActivityTransaction:
        """One with no connection."""
        return MemoryTransaction(self, worker_id)

    async def _claim(self, worker_id: WorkerId, statement: Statement) -> Any:
        connection: Any = _EngineConnection(self)
        self._claiming.setdefault(worker_id, connection)
        return await super()._claim(worker_id, statement)


class MemoryTransaction(ActivityTransaction):
    """A transaction with no database in it: all that it does is the checkpoint."""

    def __init__(self, store: MemoryStore, worker_id: WorkerId) -> None:
        self.connection = None
        self._memory, self._worker = store, worker_id

    async def fix_mode(self, channel: str, mode: ChannelMode) -> None:
        await self._memory.fix_mode(channel, mode)

    async def hold(self, run_id: UUID, claim: int) -> bool:
        with unavailable_as_ours():
            [row] = await self._memory.execute(self._memory.hold_run(self._worker, run_id, claim))
        if not row["is_alive"]:
            raise WorkerFencedError(self._worker)
        return bool(row["is_held"])

    async def commit(self, run_id: UUID, claim: int, entries: Sequence[Entry], outbox: Sequence[Outgoing]) -> None:
        statement = self._memory.checkpoint(self._worker, run_id, claim, entries, outbox)
        with unavailable_as_ours():
            [row] = await self._memory.execute(statement)
        if not row["is_held"]:  # with a database its backend would have been ended
            raise StoreUnavailableError("the worker was buried meanwhile")

    async def rollback(self) -> None:
        """There is nothing to undo."""


class MemoryWakeups(PostgresWakeups):
    """Hears what is told in a MemoryDatabase."""

    def __init__(self, store: MemoryStore, worker_id: WorkerId | None) -> None:
        super().__init__(store.settings, worker_id, name="")
        self._store = store
        self._is_listening = False

    def hear(self, channel: str, payload: str) -> None:
        """Somebody tells something; it is heard when whoever is busy now has had his turn."""
        asyncio.get_running_loop().call_soon(self._heard_if_open, channel, payload)

    def _heard_if_open(self, channel: str, payload: str) -> None:
        if self._is_listening:
            self._on_notify(None, 0, channel, payload)

    async def _listen(self) -> None:
        self._broken.clear()
        self._is_listening = True
        for channel in self._heard:
            self._store.database.listen(channel, self.hear)

    async def _probe(self) -> bool:
        return self._is_listening

    async def _drop(self) -> None:
        self._is_listening = False
        self._store.database.unlisten(self.hear)


class _Journal(PostgresJournal):
    """The journal, on a connection to memory."""

    def __init__(self, store: MemoryStore, worker_id: WorkerId, notifier: Notifier, losses: dict[UUID, int]) -> None:
        self._store = store
        super().__init__(store.settings, worker_id, notifier, losses)

    def _connect(self) -> Any:
        return _EngineConnection(self._store)


class _Tables:
    """What burial asks of a connection, answered at once."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def fetchrow(self, *statement: Any) -> Row | None:
        rows = self._database.execute(statement)
        return rows[0] if rows else None


class _Pool:
    """What the store asks of a pool."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    async def fetch(self, *statement: Any) -> list[Row]:
        return await self._store.execute(statement)

    async def close(self) -> None:
        pass


class _EngineConnection:
    """What the journal and claims ask of a connection: one statement at a time."""

    def __init__(self, store: MemoryStore) -> None:
        self._store, self._turn = store, asyncio.Lock()

    async def fetch(self, statement: Statement) -> list[Row]:
        async with self._turn:
            return await self._store.execute(statement)

    async def close(self) -> None:
        pass


# --- what PostgreSQL refuses ------------------------------------------------------------------------------------------


def _kinds(query: Query) -> list[str]:
    if (found := _KINDS.get(query.name)) is None:
        casts = {int(number): kind for number, kind in _CAST.findall(query.text)}
        found = _KINDS[query.name] = [casts.get(nth, "") for nth in range(1, len(query.parameters) + 1)]
    return found


_KINDS: dict[str, list[str]] = {}


def _refuse(argument: Any, kind: str) -> None:
    values: Iterable[Any] = argument if isinstance(argument, (list, tuple)) else (argument,)
    if bits := _BITS.get(kind):
        for value in values:
            if value is not None and not -(2**bits) <= value < 2**bits:
                raise ValueRefusedError(f"{value} is out of range for type {kind}")
    elif kind == "text":
        for value in values:
            if value is not None and "\0" in value:
                raise ValueRefusedError("a text holds a NUL")
