"""Events that runs have emitted, until a sink has taken them; and those that none will take."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from romancy.model.dead_letter import DeadLetter
from romancy.model.event import read
from romancy.model.outbox import EVENT_KINDS
from romancy.store.interface import EmittedEvent, Emitter, Settled
from romancy.store.pool import Connected
from romancy.store.queries import SQL


class Emitted(Connected):
    """The part of the store that relays ask."""

    async def emit(self, run_ids: Sequence[UUID]) -> None:
        """Move what these runs have emitted from the outbox to where relays find it; twice is once."""
        await self._fetch(SQL.emit(run_ids=sorted(set(run_ids)), kinds=list(EVENT_KINDS)))

    async def claim_emitters(self, *, room: int, failing_max: int, lease_seconds: float) -> list[Emitter]:
        """Take so many runs with events that are due, at most `failing_max` whose first event has failed before.

        Whoever asks when the lease is over may take them again.
        """
        rows = await self._fetch(SQL.claim_emitters(room=room, failing_max=failing_max, lease_seconds=lease_seconds))
        return [
            Emitter(row["run_id"], row["claim"], row["version"], row["attempts"], row["failing_seconds"])
            for row in rows
        ]

    async def read_emitted(self, run_ids: Sequence[UUID], *, limit: int) -> dict[UUID, list[EmittedEvent]]:
        """The first events of each of these runs, in order. To be asked after the claim."""
        found: dict[UUID, list[EmittedEvent]] = {}
        for row in await self._fetch(SQL.read_emitted(run_ids=list(run_ids), limit=limit)):
            found.setdefault(row["run_id"], []).append(EmittedEvent(row["position"], read(row["payload"])))
        return found

    async def settle_emitters(self, settled: Sequence[Settled]) -> tuple[int, int]:
        """Store what came of claimed runs, as far as the claims hold; how many events were delivered, and how many died."""
        row = await self._fetch_one(
            SQL.settle_emitters(
                run_ids=[each.run_id for each in settled],
                claims=[each.claim for each in settled],
                versions=[each.version for each in settled],
                delivered_tos=[each.delivered_to for each in settled],
                deads=[each.dead for each in settled],
                failures=[each.failure for each in settled],
                attempts=[each.attempts for each in settled],
                delays=[each.delay_seconds for each in settled],
                has_mores=[each.has_more for each in settled],
            )
        )
        return row["delivered"], row["died"]

    async def list_dead_letters(
        self, namespace: str | None, *, limit: int, before: int | None = None
    ) -> list[DeadLetter]:
        """Newest first.

        Args:
            namespace: None for all.
            before: the id of the last one of the page before.
        """
        rows = await self._list(SQL.list_dead_letters(namespace=namespace, before=before, limit=limit))
        return [_letter_of(row) for row in rows]

    async def resend_dead_letter(self, letter_id: int, *, namespace: str | None = None) -> bool:
        """Have a dead letter delivered again, behind what its run has emitted since. False if it is not there.

        Args:
            namespace: where it must be; None for anywhere.
        """
        return bool(await self._fetch(SQL.resend_dead_letter(letter_id=letter_id, namespace=namespace)))

    async def delete_dead_letter(self, letter_id: int, *, namespace: str | None = None) -> bool:
        """Give a dead letter up. False if it is not there."""
        return bool(await self._fetch(SQL.delete_dead_letter(letter_id=letter_id, namespace=namespace)))

    async def purge_dead_letters(self, *, older_than_seconds: float, limit: int) -> int:
        """Delete a batch of those that died long enough ago; how many."""
        return len(await self._fetch(SQL.purge_dead_letters(older_than_seconds=older_than_seconds, limit=limit)))


def _letter_of(row: Any) -> DeadLetter:
    return DeadLetter(
        row["id"],
        row["run_id"],
        row["namespace"],
        row["run_name"] or "",
        row["at"],
        row["died_at"],
        row["attempts"],
        row["failure"],
        read(row["payload"]),
    )
