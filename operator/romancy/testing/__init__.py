"""For tests, of users and of the engine itself: a store without a database. Nothing here runs in production."""

from romancy.testing.memory_store import MemoryDatabase, MemoryStore

__all__ = ["MemoryDatabase", "MemoryStore"]
