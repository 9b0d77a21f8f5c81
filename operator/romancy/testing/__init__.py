"""For tests, of users and of the engine itself: workflows on a clock that jumps, and a store without a database.

Nothing here runs in production.
"""

from romancy.testing.histories import export, replay
from romancy.testing.memory_store import MemoryDatabase, MemoryStore
from romancy.testing.simulation import SimulatedRun, Simulation

__all__ = ["MemoryDatabase", "MemoryStore", "SimulatedRun", "Simulation", "export", "replay"]
