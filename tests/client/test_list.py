"""Lists of the client, on PostgreSQL: pages, filters, and what is refused."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from romancy import Client
from romancy.base.settings import DatabaseSettings
from romancy.errors import FilterError, SearchTooBroadError
from romancy.model.run import run_id_of
from tests.builders import a_new_run


@pytest.fixture
async def client(database: DatabaseSettings) -> AsyncIterator[Client]:
    async with Client(database) as client:
        yield client


async def start(client: Client, count: int, **changes: Any) -> list[str]:
    """So many runs, one after the other; their names, newest first."""
    names = [f"{changes.get('workflow', 'flow')}-{nth}" for nth in range(count)]
    for nth, name in enumerate(names):
        text = f'{{"order":{{"id":{nth},"lines":[{{"sku":"s{nth % 5}"}}]}}}}'
        new = a_new_run(id=run_id_of("default", name), name=name, input=text, labels={"shard": str(nth % 2)}, **changes)
        await client.store.start_runs([new])
    return names[::-1]


async def test_pages_of_ten_are_ten_ten_and_five(client: Client) -> None:
    names = await start(client, 25)

    first = await client.list(limit=10)
    await start(client, 3, workflow="newer")  # what comes meanwhile shifts nothing
    second = await client.list(limit=10, after=first.next)
    third = await client.list(limit=10, after=second.next)

    assert [len(page) for page in (first, second, third)] == [10, 10, 5]
    assert [run.name for run in (*first, *second, *third)] == names
    assert third.next is None
    assert (await client.list(limit=10, after=first.next)).next == second.next  # the same page has the same token
    assert [run.name for run in await client.list(limit=10, after=first[-1])] == [run.name for run in second]


async def test_a_full_last_page_is_the_last(client: Client) -> None:
    names = await start(client, 4)

    pages = [page async for page in client.list(limit=2).pages()]
    empty = [page async for page in client.list(limit=2, workflow="none").pages()]

    assert [[run.name for run in page] for page in pages] == [names[:2], names[2:]]
    assert [page.next is None for page in pages] == [False, True]
    assert empty == [[]]


async def test_all_runs_come_one_after_the_other(client: Client) -> None:
    names = await start(client, 7)

    assert [run.name async for run in client.list(limit=3)] == names


async def test_filters_combine(client: Client) -> None:
    await start(client, 10)
    await start(client, 3, workflow="other")
    await start(client, 3, workflow="elsewhere", namespace="shop")
    [some] = await client.list(name_part="flow-7")

    async def names(**filters: Any) -> list[str]:
        return [run.name async for run in client.list(**filters)]

    assert await names(name_part="w-7", id_prefix=str(some.id)[:13], phases=["Pending"]) == ["flow-7"]
    assert await names(input={"order": {"id": 7}}) == ["flow-7"]
    assert await names(input_at={"order.id": 7}) == ["flow-7"]
    assert await names(input={"order": {"lines": [{"sku": "s2"}]}}, workflow="flow") == ["flow-7", "flow-2"]
    assert await names(input={"order": {"lines": [{"sku": "s2"}]}}, workflow="flow", labels={"shard": "0"}) == [
        "flow-2"
    ]
    assert await names(input_at={"order.id": 1}) == ["other-1", "flow-1"]
    assert await names(input_at={"order.id": 1}, namespace="*") == ["elsewhere-1", "other-1", "flow-1"]
    assert await names(input_at={"order.id": 1}, created_before=some.created_at) == ["flow-1"]
    assert await names(created_after=some.created_at, workflow="flow") == ["flow-9", "flow-8", "flow-7"]
    assert await names(input_at={"order.id": 7}, labels={"shard": "0"}) == []
    assert await names(finished_after=datetime(2020, 1, 1, tzinfo=UTC)) == []


async def test_what_is_wrong_is_said_before_anybody_is_asked(client: Client) -> None:
    await start(client, 2)
    token = (await client.list(limit=1)).next

    with pytest.raises(FilterError, match="is not safe"):
        client.list(input_at={"a'b": 1})
    with pytest.raises(FilterError, match="there is no phase"):
        client.list(phases=["Lost"])
    with pytest.raises(FilterError, match="no token"):
        client.list(after="page-2")
    with pytest.raises(FilterError, match="no token of a page of this search"):
        client.list(after=token, workflow="flow")
    with pytest.raises(FilterError, match="1 to 1000"):
        client.list(limit=5000)


async def test_a_search_through_too_much_is_ended(database: DatabaseSettings) -> None:
    """By its input, through runs of which none fits; the same with a filter that has an index is answered."""
    connection = await asyncpg.connect(
        database.url.get_secret_value(), server_settings={"search_path": database.schema_name}
    )
    await connection.execute("""
        insert into run (id, namespace, name, workflow, priority, input, labels, phase, finished_at)
        select gen_random_uuid(), 'default', 'run-' || nth, 'flow', 0, '{"n":' || nth || '}',
               case when nth <= 20 then '{"kind":"rare"}' else '{}' end::jsonb, 'Succeeded', now()
          from generate_series(1, 200000) as nth
    """)
    await connection.execute("analyze run")
    await connection.close()

    async with Client(database.model_copy(update={"statement_timeout_seconds": 0.1})) as client:
        with pytest.raises(SearchTooBroadError, match=r"ended after 0.1 s") as refused:
            await client.list(input={"n": -1})
        narrow = await client.list(input={"n": 7}, labels={"kind": "rare"})

    assert "narrow it by namespace" in refused.value.hint
    assert [run.name for run in narrow] == ["run-7"]
