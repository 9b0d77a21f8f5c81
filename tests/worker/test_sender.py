"""What runs send out: one that can't be sent stops nobody else."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from romancy.errors import PayloadRefusedError, StoreUnavailableError
from romancy.model.outbox import OutboxKind, OutboxRow
from romancy.worker.sender import Sender


class Clock:
    """Waits for nobody."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


class Store:
    """Refuses what it is told to refuse, and is away for so many calls."""

    def __init__(self, refused: set[int], away: int = 0) -> None:
        self.refused, self.away, self.sent = refused, away, list[int]()

    async def carry_out(self, rows: Sequence[OutboxRow]) -> None:
        if self.away:
            self.away -= 1
            raise StoreUnavailableError("away")
        if self.refused & {row.number for row in rows}:
            raise PayloadRefusedError("too large")
        self.sent += [row.number for row in rows]


async def sent(store: Any, numbers: range) -> list[int]:
    sender = Sender(store, Clock())  # type: ignore[arg-type]
    run_id = uuid4()
    sender.send([OutboxRow(run_id, number, OutboxKind.SUBSCRIBE, "{}") for number in numbers])
    await sender.close()
    found: list[int] = store.sent
    return found


async def test_what_can_t_be_sent_stops_nobody_else() -> None:
    assert await sent(Store({3}), range(1, 6)) == [1, 2, 4, 5]


async def test_what_could_not_be_sent_is_sent_later_in_its_order() -> None:
    assert await sent(Store(set(), away=3), range(1, 4)) == [1, 2, 3]


async def test_a_store_that_goes_away_between_is_waited_for() -> None:
    class Leaves(Store):
        async def carry_out(self, rows: Sequence[OutboxRow]) -> None:
            if len(rows) == 1 and rows[0].number == 2 and not self.is_back:
                self.is_back = True
                raise StoreUnavailableError("away")
            await super().carry_out(rows)

        is_back = False

    assert await sent(Leaves({3}), range(1, 5)) == [1, 2, 4]
