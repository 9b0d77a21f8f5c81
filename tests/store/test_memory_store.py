"""MemoryStore keeps what every Store promises, and answers each statement that the engine sends to PostgreSQL."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from romancy.base.clock import SystemClock
from romancy.store.queries import SQL
from romancy.testing import MemoryDatabase, MemoryStore
from tests.builders import a_message, a_new_run
from tests.store.conformance import StoreConformance
from tests.store.hands import Hands

# What only a real server has: its connections, its schema as a whole.
NOT_IN_MEMORY = {"end_backends", "probe", "find_breaches", "size_up"}


class JumpingClock(SystemClock):
    """The machine's, ahead by so much."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> JumpingClock:
    return JumpingClock()


@pytest.fixture
async def store(clock: JumpingClock) -> AsyncIterator[MemoryStore]:
    store = MemoryStore(MemoryDatabase(clock))
    async with store:
        yield store


@pytest.fixture
def rewind(clock: JumpingClock) -> Callable[[float], Awaitable[None]]:
    """Lets the database's time pass."""

    async def jump(seconds: float) -> None:
        clock.ahead += timedelta(seconds=seconds)

    return jump


@pytest.fixture
def hands(store: MemoryStore) -> Callable[..., Awaitable[Hands]]:
    async def register(**changes: Any) -> Hands:
        return await Hands.of(store, **changes)

    return register


class TestMemoryStore(StoreConformance):
    pass


@pytest.mark.parametrize("name", sorted(set(SQL.by_name) - NOT_IN_MEMORY))
def test_every_statement_has_its_like_in_memory(name: str) -> None:
    """With the same parameters; or, where they are columns, with all of them."""
    query, method = SQL.by_name[name], getattr(MemoryDatabase, name)
    signature = inspect.signature(method)
    named = {each.name for each in signature.parameters.values() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    takes_columns = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values())

    assert named <= set(query.parameters)
    if not takes_columns:
        assert named == set(query.parameters)
    assert method.__module__ == f"romancy.testing.memory.{query.concern}"


async def test_what_one_door_does_is_heard_at_another(
    store: MemoryStore, hands: Callable[..., Awaitable[Hands]]
) -> None:
    """Several stores on one database are several processes on one PostgreSQL."""
    worker = await hands()
    wakeups = await store.wakeups(worker.id)
    queues: list[str] = []
    mail: list[Any] = []
    wakeups.on_due(queues.extend)
    wakeups.on_inbox(mail.extend)
    run = a_new_run()

    async with MemoryStore(store.database) as other:
        await other.start_runs([run])
        await worker.claim()
        await other.send([a_message(run.id)])
        await asyncio.sleep(0)

    assert queues == ["flow"]
    assert mail == [run.id]
