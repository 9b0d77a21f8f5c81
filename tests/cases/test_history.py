"""A history that has lost entries: only a broken database makes one."""

import asyncio

import asyncpg

from romancy import activity, workflow
from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase, Reason
from tests.cases.conftest import Running, in_phase


@activity
async def write_down(number: int) -> int:
    return number


@workflow
async def writes_down(count: int) -> int:
    for number in range(count):
        await write_down(number)
    await asyncio.sleep(3600)
    return count


async def test_a_run_whose_history_has_lost_entries_is_blocked_and_says_so(
    running: Running, database: DatabaseSettings
) -> None:
    async with running(writes_down) as app:
        handle = await app.start(writes_down.options(id="broken"), 3)
        await in_phase(handle, Phase.WAITING, Reason.TIMER)
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("delete from romancy.history where position = 2")
    await connection.execute("update romancy.due set wake_at = now()")
    await connection.close()
    async with running(writes_down, name="next") as another:
        run = await in_phase(another.handle("broken"), Phase.BLOCKED)
        await another.handle("broken").cancel()

    assert run.reason == Reason.HISTORY_INCOMPLETE
    assert run.message.startswith(
        "the history goes from entry 1 to entry 3: what was between is not in the database any more"
    )
