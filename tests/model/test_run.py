"""Phases, identity, and retry delays."""

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from romancy.errors import DefinitionError
from romancy.model.retry import RetryPolicy
from romancy.model.run import TRANSITIONS, Phase, queue_of, run_id_of


def test_ends_have_no_way_out_but_a_retry_and_everything_else_has_one() -> None:
    ends = {phase for phase in Phase if phase.is_done}

    assert ends == {Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED}
    assert all(ends <= TRANSITIONS[phase] for phase in Phase if phase not in ends)
    assert {end: TRANSITIONS[end] for end in ends} == {
        Phase.SUCCEEDED: frozenset(),
        Phase.FAILED: frozenset({Phase.PENDING}),
        Phase.CANCELLED: frozenset(),
    }


def test_a_name_is_one_run_and_a_uuid_is_itself() -> None:
    some = uuid4()

    assert run_id_of("a", "order-1") == run_id_of("a", "order-1") != run_id_of("b", "order-1")
    assert run_id_of("a", str(some)) == some
    # Stable for ever: it is the identity of runs that exist.
    assert run_id_of("default", "order-1") == UUID("e2561761-f239-5f09-8ff2-9eb1c3a67e49")


def test_a_run_that_has_begun_keeps_its_python() -> None:
    assert queue_of("w") == "w"
    assert queue_of("w", "3.13") == "w/3.13"


def test_delays_grow_to_the_longest() -> None:
    policy = RetryPolicy(max_attempts=0, initial_interval=timedelta(seconds=1), jitter=0)

    assert [policy.delay_seconds(n, lambda: 0.5) for n in (1, 2, 3, 7, 8)] == [1, 2, 4, 60, 60]
    assert policy.delay_seconds(5000, lambda: 0.5) == 60


@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
def test_jitter_stays_within_its_share(chance: float) -> None:
    delay = RetryPolicy(jitter=0.25).delay_seconds(1, lambda: chance)

    assert delay is not None
    assert 0.75 <= delay <= 1.25


def test_no_attempt_beyond_the_last() -> None:
    assert RetryPolicy(max_attempts=3).delay_seconds(3, lambda: 0.5) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": -1},
        {"backoff_coefficient": 0.5},
        {"jitter": 2},
        {"max_interval": timedelta(0)},
        {"non_retryable": (1,)},
    ],
)
def test_a_policy_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        RetryPolicy(**wrong)  # type: ignore[arg-type]
