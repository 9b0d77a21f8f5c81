"""The rate that status writes and deletions share."""

import asyncio

from romancy.control.jobs import TokenBucket, backoff_seconds


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
