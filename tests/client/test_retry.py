"""`Handle.retry` on a real PostgreSQL: what it does, who may ask at once, and that nothing is broken afterwards."""

import asyncio

import pytest

from romancy import App, RetryPolicy, activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.errors import RetryRefusedError, RunNotFoundError
from romancy.model.run import Phase
from romancy.store.verify import find_breaches

calls: list[str] = []
broken = {"is": True}


@pytest.fixture(autouse=True)
def _anew() -> None:
    calls.clear()
    broken["is"] = True


@activity
async def retry_of_client_reserve(order: str) -> str:
    calls.append("reserve")
    return f"reserved {order}"


@activity(retry=RetryPolicy(max_attempts=1))
async def retry_of_client_charge(order: str) -> str:
    calls.append("charge")
    if broken["is"]:
        raise OSError("the bank is away")
    return f"charged {order}"


@workflow
async def retry_of_client(order: str) -> list[str]:
    return [await retry_of_client_reserve(order), await retry_of_client_charge(order)]


async def test_a_failed_run_goes_on_from_its_last_checkpoint(database: DatabaseSettings) -> None:
    async with App(database=database, workflows=[retry_of_client]) as app:
        handle = await app.start(retry_of_client.options(id="order-1"), "1")
        with pytest.raises(OSError, match="the bank is away"):
            await handle.result()
        broken["is"] = False

        done = await asyncio.gather(*[app.handle("order-1").retry() for _ in range(4)])

        assert sorted(done) == [False, False, False, True]
        assert await handle.result() == ["reserved 1", "charged 1"]
        assert calls == ["reserve", "charge", "charge"]
        assert (await handle.info()).phase is Phase.SUCCEEDED
        with pytest.raises(RetryRefusedError):
            await handle.retry()
        with pytest.raises(RunNotFoundError):
            await app.handle("order-2").retry()
    assert await find_breaches(database) == []
