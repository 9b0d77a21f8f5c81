"""The pytest fixture `sim`, found by pytest itself where Romancy is installed."""

from collections.abc import Iterator

import pytest

from romancy.testing.simulation import Simulation


@pytest.fixture
def sim() -> Iterator[Simulation]:
    """Runs of workflows without a database, on a clock that jumps."""
    with Simulation() as simulation:
        yield simulation
