"""`romancy runs` on a real PostgreSQL: lists, pages, and what is deleted."""

import asyncio
import json
import subprocess
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase, run_id_of
from romancy.store.interface import Finish
from romancy.store.postgres import PostgresStore
from tests.builders import a_new_run
from tests.cli.test_main import romancy
from tests.store.hands import Hands

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
async def filled(database: DatabaseSettings) -> DatabaseSettings:
    """Five runs that ended 40 days ago, a delayed one, and one of another namespace."""
    async with PostgresStore(database) as store:
        hands = await Hands.of(store)
        for nth in range(5):
            text = f'{{"order":{{"id":{nth},"kind":"k{nth % 2}"}}}}'
            claim = await hands.started(name=f"old-{nth}", id=run_id_of("default", f"old-{nth}"), input=text)
            end = (
                Finish(Phase.FAILED, "WorkflowFailed", "it broke\nhere")
                if nth == 4
                else Finish(Phase.SUCCEEDED, output="[1]")
            )
            await hands.write(claim, then=end)
        later = await store.now() + timedelta(hours=1)
        await store.start_runs([a_new_run(name="later", start_at=later, labels={"team": "ü"}, priority=3)])
        await store.start_runs([a_new_run(name="elsewhere", namespace="shop")])
    connection = await asyncpg.connect(database.url.get_secret_value())
    await connection.execute("update romancy.run set finished_at = finished_at - interval '40 days'")
    await connection.close()
    return database


@pytest.fixture
def command(filled: DatabaseSettings) -> Command:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return romancy("runs", *arguments, DATABASE_URL=filled.url.get_secret_value())

    return run


async def ran(command: Command, *arguments: str) -> str:
    done = await asyncio.to_thread(command, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def names(command: Command, *arguments: str) -> list[str]:
    found: dict[str, Any] = json.loads(await ran(command, "list", "-o", "json", *arguments))
    return [run["name"] for run in found["runs"]]


async def test_a_list_says_why_each_run_is_where_it_is(command: Command) -> None:
    lines = (await ran(command, "list")).splitlines()

    assert lines[0].split() == ["NAMESPACE", "NAME", "WORKFLOW", "PHASE", "CREATED", "WHY"]
    assert lines[1].startswith("default    later  flow      Pending ")
    assert "the run is delayed until" in lines[1]
    assert lines[2].endswith("it broke here")
    assert [line.split()[1] for line in lines[1:]] == ["later", "old-4", "old-3", "old-2", "old-1", "old-0"]


async def test_filters_of_the_command_line(command: Command) -> None:
    assert await names(command, "-A", "--phase", "pending") == ["elsewhere", "later"]
    assert await names(command, "-n", "shop") == ["elsewhere"]
    assert await names(command, "-l", "team=ü") == ["later"]
    assert await names(command, "-l", "team=ü,else=x") == []
    assert await names(command, "-l", "team=ü", "-l", "else=x,y") == []
    assert await names(command, "--input-at", "order.id=3") == ["old-3"]
    assert await names(command, "--input-at", "order.kind=k1", "--phase", "Succeeded") == ["old-3", "old-1"]
    assert await names(command, "-i", '{"order":{"id":2}}', "--name", "old") == ["old-2"]
    assert await names(command, "--finished-before", "30d", "--phase", "Failed") == ["old-4"]
    assert await names(command, "--finished-after", "30d") == []
    assert await names(command, "--created-before", "2020-01-01") == []
    assert await names(command, "--id", str(run_id_of("default", "old-1"))[:18]) == ["old-1"]


async def test_pages_of_the_command_line(command: Command) -> None:
    """Also where a filter is a time that passes."""
    page = ("list", "--limit", "4", "--created-after", "1h")
    first = await asyncio.to_thread(command, *page)
    token = first.stderr.strip().removeprefix("more: --page ")
    second = await asyncio.to_thread(command, *page, "--page", token)

    assert len(first.stdout.splitlines()) == 5
    assert [line.split()[1] for line in second.stdout.splitlines()[1:]] == ["old-1", "old-0"]
    assert second.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "--page", "x"), "error (FilterInvalid): 'x' is no token of a page of this search"),
        (("list", "--input-at", "a'b=1"), 'error (FilterInvalid): input path "a\'b" is not safe'),
        (("list", "--phase", "Done"), "'Done' is not one of"),
        (("list", "-i", "[1]"), "the input must be a JSON object, not list"),
        (("list", "-l", "team"), "'team' is not of the form name=value"),
        (("list", "--created-after", "yesterday"), "'yesterday' is no time such as"),
        (("list", "--limit", "0"), "error (FilterInvalid): a page has 1 to 1000 runs, not 0"),
        (("list", "--finished-after", "999999999d"), "'999999999d' is no time such as"),
        (("purge", "--older-than", "999999999d999999999d"), "is longer than any time"),
        (("purge",), "Missing option '--older-than'"),
        (("purge", "--older-than", "1w"), "'1w' is no duration with the units d, h, m or s"),
        (
            ("purge", "--older-than", "5m"),
            "error (FilterInvalid): older_than is 0:05:00; it may be 10 minutes to 100 years",
        ),
        (("purge", "--older-than", "30d", "--phase", "Running"), "'Running' is not one of"),
    ],
)
async def test_what_the_command_line_refuses(command: Command, arguments: tuple[str, ...], said: str) -> None:
    done = await asyncio.to_thread(command, *arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


async def test_a_purge_says_how_many(command: Command) -> None:
    purge = ("purge", "--older-than", "30d")

    counted = await ran(command, *purge, "--dry-run")
    assert counted == "Succeeded: 4 would be purged\nFailed: 1 would be purged\nCancelled: 0 would be purged\n"
    assert await ran(command, *purge, "-n", "shop", "--phase", "failed") == "Failed: 0 purged\n"
    assert await ran(command, *purge, "--phase", "Succeeded") == "Succeeded: 4 purged\n"
    assert await names(command) == ["later", "old-4"]
    assert await ran(command, *purge) == "Succeeded: 0 purged\nFailed: 1 purged\nCancelled: 0 purged\n"
    assert await names(command, "-A") == ["elsewhere", "later"]
