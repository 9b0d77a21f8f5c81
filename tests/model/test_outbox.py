"""Numbers of outbox rows: each row of a run has its own, whoever writes it and however often the run ends."""

from itertools import pairwise

from romancy.model.outbox import ANNOUNCED_MAX, announced_number, ended_number, told_number

CLAIMS = (0, 1, 2, 1000, 10_000_000)


def test_no_two_of_them_meet() -> None:
    """A retried run ends again: who carries out the row of its former end deletes it, and must leave the new one."""
    ended = {ended_number(claim) for claim in CLAIMS}
    told = {told_number(claim, what) for claim in CLAIMS for what in range(8)}
    recurs = {-claim for claim in CLAIMS if claim}
    announced = {announced_number(number, nth) for number in (1, 2, 50_000) for nth in (0, ANNOUNCED_MAX - 1)}

    assert (len(ended), len(told), len(announced)) == (5, 40, 6)
    for one, other in pairwise([ended, told, recurs, announced, set(range(1, 1_000))]):
        assert not one & other
    assert min(ended) > -(2**31)
    assert max(announced) < 2**31
