"""Relays on a real PostgreSQL."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.store.postgres import PostgresStore
from tests.outbox.emitting import Emitting
from tests.store.conftest import connect, rewind
from tests.store.hands import Hands

__all__ = ["connect", "rewind"]


@pytest.fixture
async def store(database: DatabaseSettings) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(database) as store:
        yield store


@pytest.fixture
async def emit(store: PostgresStore) -> Callable[..., Awaitable[Any]]:
    """A run emits events of these ids."""
    return Emitting(store, await Hands.of(store)).emit
