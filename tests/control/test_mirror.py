"""When the mirror looks again."""

import math

import pytest

from romancy.control.mirror import HELD_TOGETHER_SECONDS, Held


def test_each_run_that_is_held_back_is_looked_at_soon_after_its_time() -> None:
    """However many begin after it."""
    held = Held(0.5)
    for hundredth in range(100):
        held.heard(hundredth / 100)

    looks: list[float] = []
    while (at := held.next_after(looks[-1] if looks else 0)) < math.inf:
        looks.append(at)

    for hundredth in range(100):
        due_at = hundredth / 100 + 0.5
        assert any(due_at <= at <= due_at + HELD_TOGETHER_SECONDS + 1e-9 for at in looks)
    assert len(looks) <= 1 / HELD_TOGETHER_SECONDS


def test_a_look_that_began_before_the_time_is_over_does_not_count() -> None:
    held = Held(0.5)
    held.heard(1)

    assert held.next_after(1.5) == pytest.approx(1.5 + HELD_TOGETHER_SECONDS)
    assert held.next_after(1.6) == math.inf
