"""The rate that status writes and deletions share."""

import asyncio

from romancy.control.jobs import TokenBucket, Tries, backoff_seconds
from romancy.control.kube import KubeError
from romancy.errors import StoreUnavailableError


async def test_a_bucket_gives_a_second_s_worth_at_once_and_then_its_rate() -> None:
    loop = asyncio.get_running_loop()
    bucket = TokenBucket(50)
    began = loop.time()

    await asyncio.gather(*(bucket.take() for _ in range(50)))
    burst = loop.time() - began
    await asyncio.gather(*(bucket.take() for _ in range(10)))
    took = loop.time() - began

    assert burst < 0.1
    assert 0.15 < took < 0.4


def test_backoff_grows_to_a_limit_and_never_overflows() -> None:
    pauses = [backoff_seconds(failures) for failures in (1, 3, 10, 10_000)]

    assert 0.16 <= pauses[0] <= 0.24
    assert 0.64 <= pauses[1] <= 0.96
    assert all(4 <= pause <= 6 for pause in pauses[2:])


def test_one_job_without_an_answer_says_that_the_database_is_away_until_that_job_is_done() -> None:
    tries = Tries()
    away, refused = (
        StoreUnavailableError("no answer"),
        KubeError("PATCH", code=503, word="ServiceUnavailable", text="busy"),
    )

    assert [tries.failed("mirror", away) for _ in range(2)] == [1, 2]
    tries.done("engine")  # others may have connections that it lacks
    assert tries.has_store
    assert tries.failed("mirror", away) == 3
    assert not tries.has_store
    tries.done("mirror")
    assert tries.has_store

    assert [tries.failed("intake", refused) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert tries.has_store
