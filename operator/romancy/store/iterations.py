"""What a run does to itself from within: it begins anew, and shows values to outsiders."""

import json
from collections.abc import Sequence
from uuid import UUID

from romancy.model.outbox import OutboxRow
from romancy.store.notify import due_channel
from romancy.store.pool import Connected
from romancy.store.queries import SQL


class Iterations(Connected):
    """The part of the store that begins iterations and keeps values."""

    async def recur(self, rows: Sequence[OutboxRow]) -> list[UUID]:
        """Begin the next iteration of runs that nobody holds; which began. Deletes what asked for it, if that is settled."""
        asked = [(row, json.loads(row.payload)) for row in rows]
        [answer] = await self._fetch(
            SQL.recur(
                run_ids=[row.run_id for row, _ in asked],
                numbers=[row.number for row, _ in asked],
                claims=[each["claim"] for _, each in asked],
                archives=[UUID(each["archive"]) for _, each in asked],
                inputs=[each["input"] for _, each in asked],
                counts=[json.dumps(each["numbers"]) for _, each in asked],
                positions=[each["numbers"]["position"] for _, each in asked],
                sents=[each["numbers"]["outbox"] for _, each in asked],
                seens=[each["seen"] for _, each in asked],
                kepts=[",".join(map(str, each["kept"])) for _, each in asked],
                due_channel=due_channel(self.settings),
            )
        )
        return list(answer["began"])

    async def set_values(self, rows: Sequence[OutboxRow]) -> None:
        """Set what runs show to outsiders."""
        asked = [(row, json.loads(row.payload)) for row in rows]
        await self._fetch(
            SQL.set_values(
                run_ids=[row.run_id for row, _ in asked],
                names=[each["name"] for _, each in asked],
                numbers=[row.number for row, _ in asked],
                payloads=[each["value"] for _, each in asked],
            )
        )

    async def read_set_values(self, run_id: UUID) -> dict[str, tuple[int, str]]:
        """What a run has set: numbers and JSON texts by name."""
        rows = await self._fetch(SQL.read_set_values(run_id=run_id))
        return {row["name"]: (row["number"], row["payload"]) for row in rows}
