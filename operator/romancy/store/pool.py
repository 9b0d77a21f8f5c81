"""Connections to PostgreSQL, and its errors as ours.

The engine's connections are direct: a pooler in transaction mode breaks cached statements and hears no LISTEN. Those of a
worker carry its id in their application_name, so that whoever buries it can end the backends that it left behind.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from romancy.base import log
from romancy.base.settings import DatabaseSettings
from romancy.errors import PayloadRefusedError, SearchTooBroadError, SettingsError, StoreError, StoreUnavailableError
from romancy.store.arrays import as_text

logger = log.get(__name__)

Statement = tuple[Any, ...]  # what a Query gives: text and arguments

APPLICATION: Final = "romancy"
DEFAULT_SCHEMA: Final = "romancy"
_NAME_BYTES_MAX: Final = 63  # what PostgreSQL keeps of application_name

# Plans must not hang on statistics: with a generic plan made on a small table a claim hashed the whole of it. Not for
# listings, where the planner knows best.
REPLAN_SECONDS: Final = (1.0, 5.0, 30.0, 60.0)
"""When the plans of a connection are made anew, counted from the last time; the last of these again and again.

A generic plan that is made while `due` is empty joins it the wrong way round and reads all of it for each row of a flush. It
would be kept until the next autovacuum of that table: at 50 runs at once a twentieth of the throughput for a minute or two.
"""

_BROKEN: Final = frozenset({"", "08", "25", "57"})
"""No answer at all, or one that says to go elsewhere: 57P01 this backend ends, 25006 this is not the primary any more."""

_QUERY_CANCELED: Final = "57014"  # by statement_timeout

_ENGINE_PLANS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
_LISTING_PLANS: Final = {"plan_cache_mode": "force_custom_plan"}  # optional filters fold away only with their values


class EngineBackend(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
    """A connection that knows how old its plans are."""

    replan_seconds: Sequence[float] = REPLAN_SECONDS
    _replans = 0
    _planned_at: float | None = None

    async def renew_plans(self) -> None:
        """Have the plans made anew, if it is time: a round trip a minute, and none while nothing is asked."""
        now = asyncio.get_running_loop().time()
        if self._planned_at is None:
            self._planned_at = now
        elif now - self._planned_at >= self.replan_seconds[min(self._replans, len(self.replan_seconds) - 1)]:
            self._planned_at, self._replans = now, self._replans + 1
            await self.execute("discard plans")


def application_name(settings: DatabaseSettings, worker_id: int) -> str:
    """What the backends of a worker are called. Ids count per schema, so another schema than the default one is named."""
    schema = "" if settings.schema_name == DEFAULT_SCHEMA else f" {settings.schema_name}"
    return f"{APPLICATION} {worker_id}{schema}"[:_NAME_BYTES_MAX]


def sqlstate_of(error: BaseException) -> str:
    """The five characters, or "" if the error did not come from the server."""
    return getattr(error, "sqlstate", None) or ""


def is_refusal(error: BaseException) -> bool:
    """Whether the values are to blame: sent again they would be refused again.

    Class 22 data, 23 constraints, 54 limits of PostgreSQL; asyncpg's own DataError never gets as far as the server.
    """
    is_unencodable = isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError)
    return is_unencodable or sqlstate_of(error)[:2] in {"22", "23", "54"}


def as_ours(error: Exception) -> StoreError | PayloadRefusedError:
    """The error of ours that says the same."""
    text = f"{type(error).__name__}: {error}"
    if is_refusal(error):
        return PayloadRefusedError(text)
    if sqlstate_of(error)[:2] == "42":
        return StoreError(
            f"PostgreSQL refused a statement of the engine: {text}",
            hint="see that the migrations have run and that the role owns the schema",
        )
    return StoreUnavailableError(text)


FOREIGN_ERRORS: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@contextmanager
def unavailable_as_ours() -> Iterator[None]:
    """Turn what asyncpg and the network raise into our errors, here where they enter."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise as_ours(error) from error


async def connect(
    settings: DatabaseSettings, *, name: str = APPLICATION, is_listing: bool = False, **changes: str
) -> EngineBackend:
    """Open one connection; raises what asyncpg and the network raise. `changes` are settings of the server."""
    connection: EngineBackend = await asyncpg.connect(**_options(settings, name=name, is_listing=is_listing, **changes))
    return connection


async def open_pool(settings: DatabaseSettings, *, size: int, is_listing: bool = False) -> asyncpg.Pool:
    """Open a pool whose connections are made when they are needed."""

    async def renew_plans(connection: EngineBackend) -> None:
        await connection.renew_plans()

    async def leave_as_it_is(_connection: asyncpg.Connection) -> None:
        """Nothing of ours leaves anything behind on a connection: the usual reset costs a round trip each time."""

    with unavailable_as_ours():
        return await asyncpg.create_pool(
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=300,
            setup=None if is_listing else renew_plans,
            reset=leave_as_it_is,
            **_options(settings, name=APPLICATION, is_listing=is_listing),
        )


async def open_transactions(settings: DatabaseSettings, *, name: str) -> asyncpg.Pool:
    """Open a pool of connections for activities: what the server plans and where it looks for tables is its own affair.

    Their state is set back after each use.
    """
    options = _options(settings, name=name, is_listing=True)
    del options["connection_class"], options["server_settings"]["search_path"]
    with unavailable_as_ours():
        return await asyncpg.create_pool(
            min_size=0, max_size=settings.transactions_max, max_inactive_connection_lifetime=60, **options
        )


def _options(settings: DatabaseSettings, *, name: str, is_listing: bool, **changes: str) -> dict[str, Any]:
    url = settings.url.get_secret_value()
    if not url:
        raise SettingsError(
            "no database is given", hint="set ROMANCY_DATABASE__URL to postgresql://user:password@host:5432/name"
        )
    server = {
        "application_name": name,
        "search_path": settings.schema_name,
        "default_transaction_isolation": "read committed",  # another default of the role would fail each flush that waits
        "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
        "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(settings.statement_timeout_seconds),
        "jit": "off",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "10000",
        **(_LISTING_PLANS if is_listing else _ENGINE_PLANS),
        **changes,
    }
    return {
        "dsn": url,
        "connection_class": EngineBackend,
        "timeout": settings.connect_timeout_seconds,
        # Above what the server allows itself: this one only ends when no answer comes at all.
        "command_timeout": settings.statement_timeout_seconds + 5,
        "max_cached_statement_lifetime": 0,  # else each statement is parsed and planned anew every five minutes
        "max_cacheable_statement_size": 0,
        "server_settings": server,
    }


def _milliseconds(seconds: float) -> str:
    return str(max(1, round(seconds * 1000)))


class EngineConnection:
    """One connection of a worker, for one statement at a time; opened when it is needed, and anew when it broke."""

    def __init__(self, settings: DatabaseSettings, *, name: str) -> None:
        self._settings, self._name = settings, name
        self._turn = asyncio.Lock()
        self._connection: EngineBackend | None = None

    async def fetch(self, statement: Statement) -> list[Any]:
        """Run one statement. Raises what asyncpg and the network raise; the next call then has a connection that works."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._settings, name=self._name)
            try:
                await self._connection.renew_plans()
                rows: list[Any] = await self._connection.fetch(*as_text(statement))
            except Exception as error:
                if sqlstate_of(error)[:2] in _BROKEN and not is_refusal(error):
                    self._drop()
                raise
            return rows

    async def close(self) -> None:
        """Say good-bye if the server still listens."""
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None and not connection.is_closed():
                await close_quietly(connection)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


async def close_quietly(connection: asyncpg.Connection) -> None:
    """Close a connection that nobody needs any more, whatever state it is in."""
    try:
        await connection.close(timeout=2)
    except FOREIGN_ERRORS:
        connection.terminate()


class Connected:
    """What the parts of the store share: two pools, and who is told of what."""

    settings: DatabaseSettings
    _pool: asyncpg.Pool
    _listing_pool: asyncpg.Pool

    async def _fetch(self, statement: Statement) -> list[Any]:
        """Run one statement, with the plans of the engine."""
        with unavailable_as_ours():
            rows: list[Any] = await self._pool.fetch(*statement)
            return rows

    async def _fetch_one(self, statement: Statement) -> Any:
        """The first row, or None."""
        rows = await self._fetch(statement)
        return rows[0] if rows else None

    async def _search(self, statement: Statement) -> list[Any]:
        """The same for one that may look at many rows.

        Raises:
            SearchTooBroadError: it took longer than a statement may.
        """
        try:
            return await self._list(statement)
        except StoreUnavailableError as error:
            if error.__cause__ is not None and sqlstate_of(error.__cause__) == _QUERY_CANCELED:
                raise SearchTooBroadError(self.settings.statement_timeout_seconds) from error
            raise

    async def _list(self, statement: Statement) -> list[Any]:
        """Run one statement that people wait for: with the plans that PostgreSQL thinks best."""
        with unavailable_as_ours():
            rows: list[Any] = await self._listing_pool.fetch(*statement)
            return rows
