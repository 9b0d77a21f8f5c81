"""Claims: how a worker becomes the one owner of a run, and what it then replays it from."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from romancy.errors import WorkerFencedError
from romancy.model.retried import standing
from romancy.model.run import Form, Phase
from romancy.store.history import Histories, still_open
from romancy.store.interface import Claim, ClaimedRun, Poll, WorkerId
from romancy.store.notify import Notifier
from romancy.store.outbox import Outbox
from romancy.store.pool import EngineConnection, Statement, application_name, unavailable_as_ours
from romancy.store.queries import SQL


class Claims(Histories, Outbox):
    """The part of the store that hands runs to workers. A worker's claims have a connection and a fence row of their own."""

    _claiming: dict[WorkerId, EngineConnection]
    _losses: dict[WorkerId, dict[UUID, int]]  # claims of runs that have lost workers: an entry of theirs ends that
    _notifier: Notifier
    _turn: int

    async def claim_runs(self, worker_id: WorkerId, *, limit: int) -> list[Claim]:
        """Make this worker the one owner of up to `limit` due runs, best priority first, of the workflows it registered.

        Priority is strict: while better runs are due, others wait. Workflows of equal priority take turns.

        Returns:
            The claims, without history; empty when nothing is due.

        Raises:
            WorkerFencedError: this worker has been buried, and owns nothing any more.
            StoreUnavailableError: no answer came, and runs may be ours unseen: `poll` finds them.
        """
        assert limit >= 1
        self._turn += 1
        statement = SQL.claim_runs(worker_id=worker_id, slot=self._claims_slot, turn=self._turn % 10_000, limit=limit)
        return await self._claim(worker_id, statement)

    async def claim_blocked(self, worker_id: WorkerId, *, limit: int) -> list[Claim]:
        """The same for Blocked runs that this worker's build has not been tried on."""
        assert limit >= 1
        return await self._claim(worker_id, SQL.claim_blocked(worker_id=worker_id, slot=self._claims_slot, limit=limit))

    async def read_claimed(self, claims: Sequence[Claim]) -> list[ClaimedRun]:
        """What these runs are replayed from.

        Those that have ended, or begun anew meanwhile, are left out: only a buried worker asks for such.
        The newest number of a run's inbox, or the version of its claim if that is higher, is what has been seen of it.
        """
        if not claims:
            return []
        run_ids = [claim.run_id for claim in claims]
        begun = await self.read_begun(run_ids)
        # A run that nobody has claimed before has no history yet: most of those that are claimed.
        older = [claim.run_id for claim in claims if claim.number > 1]
        histories = await self.read_histories(older) if older else {}
        attempts = await self.read_attempts(older) if older else {}
        written_to = {claim.run_id: 0 for claim in claims if claim.inbox_version > 0}
        inboxes = await self.read_inboxes(written_to) if written_to else {}
        outboxes = (
            await self.read_outboxes(left) if (left := [id for id, row in begun.items() if row["has_outbox"]]) else {}
        )
        # Read after its beginning: one that has begun anew in between is somebody else's by now.
        gone_on = {
            run_id
            for run_id, history in histories.items()
            if history and run_id in begun and begun[run_id]["history_from"] + 1 != history[0].position
        }
        return [
            ClaimedRun(
                run_id=row["id"],
                namespace=row["namespace"],
                name=row["name"],
                workflow=row["workflow"],
                input=row["input"],
                form=Form(row["form"]),
                labels=json.loads(row["labels"]),
                started_at=row["started_at"],
                timeout_seconds=row["timeout_seconds"],
                history=tuple(histories.get(row["id"], ())),
                inbox=tuple(inboxes.get(row["id"], ())),
                attempts=still_open(attempts.get(row["id"], ()), standing(histories.get(row["id"], ()))),
                outbox=tuple(outboxes.get(row["id"], ())),
                is_child=row["is_child"],
                numbers=json.loads(row["numbers"]),
            )
            for row in (begun[run_id] for run_id in run_ids if run_id in begun and run_id not in gone_on)
        ]

    async def read_begun(self, run_ids: Sequence[UUID]) -> dict[UUID, Any]:
        """What claimed runs were started with, by id."""
        return {row["id"]: row for row in await self._fetch(SQL.read_begun(run_ids=list(run_ids)))}

    async def poll(self, worker_id: WorkerId, in_hand: Mapping[UUID, int]) -> Poll:
        """All that the slow poll wants to know, in one statement: an idle worker costs nearly nothing.

        Args:
            worker_id: must not have a claim on its way at the same time.
            in_hand: the number of the claim of each run that it works on, or that it is about to let go.
        """
        rows = await self._fetch(SQL.poll(worker_id=worker_id, run_ids=list(in_hand), claims=list(in_hand.values())))
        unseen = self._claims_of(worker_id, [row for row in rows if row["id"] is not None])
        first = rows[0]
        return Poll(
            first["now"],
            tuple(unseen),
            first["due_at"],
            first["has_blocked"],
            first["has_left"],
            first["emitted_due_at"],
        )

    async def next_due_at(self, worker_id: WorkerId) -> datetime | None:
        """The earliest time at which a run that this worker could claim is due; in the past if one is due already."""
        row = await self._fetch_one(SQL.next_due_at(worker_id=worker_id))
        due_at: datetime | None = row["next_due_at"]
        return due_at

    @property
    def _claims_slot(self) -> int:
        return self.settings.journal_connections  # the slots before it are the journal's

    async def _claim(self, worker_id: WorkerId, statement: Statement) -> list[Claim]:
        connection = self._claiming.get(worker_id)
        if connection is None:
            name = application_name(self.settings, worker_id)
            connection = self._claiming.setdefault(worker_id, EngineConnection(self.settings, name=name))
        with unavailable_as_ours():
            rows = await connection.fetch(statement)
        if not rows[0]["is_alive"]:
            raise WorkerFencedError(worker_id)
        if rows[0]["is_owed"]:
            self._notifier.status_owed()
        return self._claims_of(worker_id, [row for row in rows if row["id"] is not None])

    def _claims_of(self, worker_id: WorkerId, rows: Sequence[Any]) -> list[Claim]:
        claims = [_claim_of(row) for row in rows]
        self._losses.setdefault(worker_id, {}).update({each.run_id: each.number for each in claims if each.lost_count})
        return claims


def _claim_of(row: Any) -> Claim:
    return Claim(
        run_id=row["id"],
        number=row["claim"],
        workflow=row["workflow"],
        inbox_version=row["inbox_version"],
        phase=Phase(row["phase"]),
        lost_count=row["lost_count"],
        lost_noted=row["lost_noted"],
        was_suspended=bool(row.get("was_suspended")),  # only `claim_runs` can know
    )
