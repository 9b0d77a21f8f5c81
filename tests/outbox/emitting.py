"""Runs that emit events, without a worker that executes them."""

from dataclasses import dataclass, field
from uuid import UUID

from romancy.model.event import CloudEvent
from romancy.model.outbox import OutboxKind, OutboxRow, Outgoing
from romancy.store.interface import Claim
from romancy.store.postgres import PostgresStore
from tests.builders import an_entry
from tests.store.hands import Hands


@dataclass
class Emitting:
    """Writes for a worker."""

    store: PostgresStore
    hands: Hands
    claims: dict[str, Claim] = field(default_factory=dict)
    positions: dict[str, int] = field(default_factory=dict)

    async def emit(self, run: str, *ids: str) -> UUID:
        """The run of that name, which is started if it is new, emits events of these ids; it is then due."""
        if run not in self.claims:
            self.claims[run] = await self.hands.started(name=run)
        claim, position = self.claims[run], self.positions.get(run, 0) + 1
        self.positions[run] = position
        rows = [
            OutboxRow(
                claim.run_id, position * 1000 + nth, OutboxKind.EMIT, CloudEvent(each, f"/{run}", "t", {}).as_text()
            )
            for nth, each in enumerate(ids)
        ]
        outgoing = tuple(Outgoing(row.number, row.kind, row.payload) for row in rows)
        await self.hands.write(claim, an_entry(position), outbox=outgoing)
        await self.store.carry_out(rows)
        return claim.run_id
