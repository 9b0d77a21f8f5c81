"""Transactions of activities: committed beside the journal, with the entry that says that the activity has ended."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import asyncpg

from romancy.errors import StoreUnavailableError, WorkerFencedError
from romancy.model.channel import ChannelMode
from romancy.model.history import Entry
from romancy.model.outbox import Outgoing
from romancy.store.interface import WorkerId
from romancy.store.outbox import Outbox
from romancy.store.pool import (
    FOREIGN_ERRORS,
    Statement,
    application_name,
    as_ours,
    open_transactions,
    unavailable_as_ours,
)
from romancy.store.queries import SQL


class Transactions(Outbox):
    """The part of the store that lends connections to activities."""

    _transacting: dict[WorkerId, asyncpg.Pool]

    async def begin_transaction(self, worker_id: WorkerId) -> "ActivityTransaction":
        """Begin one, on a connection of its own; waits while all of them are in use.

        Raises:
            StoreUnavailableError: there is no connection.
        """
        if (pool := self._transacting.get(worker_id)) is None:
            name = application_name(self.settings, worker_id)
            pool = self._transacting.setdefault(worker_id, await open_transactions(self.settings, name=name))
        try:
            connection = await pool.acquire()
            transaction = connection.transaction()
            await transaction.start()
        except FOREIGN_ERRORS as error:
            raise as_ours(error) from error
        return ActivityTransaction(self, worker_id, pool, connection, transaction)

    async def fix_mode(self, channel: str, mode: ChannelMode) -> None:
        """Decide a channel's mode, if nobody has.

        Raises:
            ChannelModeError: it has another one.
        """
        await self._check_mode(channel, mode)

    def hold_run(self, worker_id: WorkerId, run_id: UUID, claim: int) -> Statement:
        """Whether this worker may end an activity of this run; nobody takes it from here on."""
        return SQL.hold_run(worker_id=worker_id, slot=self._transactions_slot, run_id=run_id, claim=claim)

    def checkpoint(
        self, worker_id: WorkerId, run_id: UUID, claim: int, entries: Sequence[Entry], outbox: Sequence[Outgoing]
    ) -> Statement:
        """The last statement of such a transaction."""
        return SQL.checkpoint(
            worker_id=worker_id,
            slot=self._transactions_slot,
            run_id=run_id,
            claim=claim,
            e_positions=[each.position for each in entries],
            e_kinds=[each.kind for each in entries],
            e_ats=[each.at for each in entries],
            e_numbers=[each.number for each in entries],
            e_names=[each.name for each in entries],
            e_digests=[each.digest for each in entries],
            e_payloads=[each.payload for each in entries],
            o_numbers=[each.number for each in outbox],
            o_kinds=[each.kind for each in outbox],
            o_payloads=[each.payload for each in outbox],
        )

    @property
    def _transactions_slot(self) -> int:
        return self.settings.journal_connections + 1  # that of claims is before it


class ActivityTransaction:
    """One transaction, on a connection that is given back when it is over."""

    def __init__(
        self, store: Transactions, worker_id: WorkerId, pool: asyncpg.Pool, connection: Any, transaction: Any
    ) -> None:
        self.connection = connection
        self._store, self._worker_id, self._pool, self._transaction = store, worker_id, pool, transaction

    async def fix_mode(self, channel: str, mode: ChannelMode) -> None:
        """Decide a channel's mode, if nobody has; apart from the transaction."""
        await self._store.fix_mode(channel, mode)

    async def hold(self, run_id: UUID, claim: int) -> bool:
        """The activity has returned: what can be refused of it is refused here, and nobody takes the run from here on.

        Returns:
            False if the run is not this worker's any more.

        Raises:
            StoreError, PayloadRefusedError: what the activity wrote is refused, or the connection is lost.
            WorkerFencedError: this worker has been buried.
        """
        with unavailable_as_ours():
            await self.connection.execute("set constraints all immediate")
            # The engine's tables by their names; until the transaction ends.
            await self.connection.execute(f'set local search_path to "{self._store.settings.schema_name}"')
            [row] = await self.connection.fetch(*self._store.hold_run(self._worker_id, run_id, claim))
        if not row["is_alive"]:
            raise WorkerFencedError(self._worker_id)
        return bool(row["is_held"])

    async def commit(self, run_id: UUID, claim: int, entries: Sequence[Entry], outbox: Sequence[Outgoing]) -> None:
        """Append these entries to the run's history, put these rows into its outbox, and commit.

        Raises:
            StoreUnavailableError: it is not known whether it was committed; the worker must let itself be buried.
        """
        try:
            statement = self._store.checkpoint(self._worker_id, run_id, claim, entries, outbox)
            [row] = await self.connection.fetch(*statement)
            assert row["is_held"], "nobody can have taken it"
            await self._transaction.commit()
        except FOREIGN_ERRORS as error:
            self.connection.terminate()
            raise StoreUnavailableError(f"the checkpoint of an activity was not answered: {error!r}") from error
        finally:
            await self._pool.release(self.connection)

    async def rollback(self) -> None:
        """Undo all of it. Never fails: a connection that can't is closed, which undoes it as well."""
        try:
            await self._transaction.rollback()
        except FOREIGN_ERRORS:
            self.connection.terminate()
        await self._pool.release(self.connection)
