"""Stored histories against code: what fits, what does not, and a sample of a database by the command."""

import json
from pathlib import Path

import pytest

from romancy import App, activity, workflow
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.errors import NonDeterminismError
from romancy.testing import Simulation, export, replay
from tests.cli.test_main import romancy
from workflows.order_saga import Order, order_saga

ORDER = Order(id="o1", sku="s", amount=3, card="visa")


@activity(name="histories.first")
async def first(number: int) -> int:
    return number + 1


@activity(name="histories.second")
async def second(number: int) -> int:
    return number * 2


@workflow(name="histories.sums")
async def sums(number: int) -> int:
    return await second(await first(number))


@workflow(name="histories.sums_otherwise")
async def sums_otherwise(number: int) -> int:
    return await first(await second(number))


@workflow(name="histories.sums_more")
async def sums_more(number: int) -> int:
    return await second(await first(number)) + 1


@pytest.fixture
def exported(sim: Simulation) -> str:
    run = sim.start(sums, 3)
    assert run.result() == 8
    return export(run.info(), run.history)


def named(text: str, name: str) -> str:
    """The same, of a workflow of another name."""
    content = json.loads(text)
    content["run"]["workflow"] = name
    return json.dumps(content)


def test_the_code_that_made_a_history_fits_it(exported: str) -> None:
    replay(sums, exported)


def test_other_code_does_not(exported: str) -> None:
    with pytest.raises(NonDeterminismError, match="position 1"):
        replay(sums_otherwise, named(exported, sums_otherwise.name))
    with pytest.raises(AssertionError, match="it gives 9 where the run gave 8"):
        replay(sums_more, named(exported, sums_more.name))
    with pytest.raises(AssertionError, match=r"of workflow 'histories.sums', not of 'histories.sums_more'"):
        replay(sums_more, exported)


def test_a_history_that_is_not_at_its_end_fits_as_far_as_it_goes(exported: str) -> None:
    content = json.loads(exported)
    content["history"].pop()
    with pytest.raises(AssertionError, match="the run has ended after 1 entries, but the code waits for more"):
        replay(sums, json.dumps(content))
    content["run"].update(phase="Waiting", output=None)
    replay(sums, json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "run": {}, "history": []}'])
def test_what_is_no_history_is_said(text: str) -> None:
    with pytest.raises(ValueError, match="no exported history"):
        replay(sums, text)


CHANGED = """
from pydantic import BaseModel

from romancy import activity, workflow


class Order(BaseModel):
    id: str
    sku: str
    amount: int
    card: str


@activity
async def book_parcel(order: Order) -> str:
    return ""


@workflow
async def order_saga(order: Order) -> str:
    return await book_parcel(order)
"""


async def test_a_sample_of_a_database(database: DatabaseSettings, tmp_path: Path) -> None:
    async with App(database, [order_saga], worker=WorkerSettings(name="w")) as app:
        for number in range(3):
            await (await app.start(order_saga, ORDER.model_copy(update={"id": f"o{number}"}))).result()
        declined = await app.start(order_saga.options(id="declined"), ORDER.model_copy(update={"card": "declined"}))
        with pytest.raises(Exception, match="declined"):
            await declined.result()
    url = database.url.get_secret_value()

    done = romancy("replay", "workflows.order_saga", "--export", str(tmp_path), DATABASE_URL=url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "4 replayed: all fit\n")
    texts = [file.read_text() for file in tmp_path.glob("order_saga-*.json")]  # noqa: ASYNC240 - a test
    assert len(texts) == 4
    for text in texts:
        replay(order_saga, text)
    assert "2 replayed" in romancy("replay", "workflows.order_saga", "--sample", "2", DATABASE_URL=url).stderr

    # Code that asks for something else under the same name.
    (tmp_path / "changed.py").write_text(CHANGED)
    changed = romancy("replay", "changed", DATABASE_URL=url, PYTHONPATH=f"operator:{tmp_path}")
    assert changed.returncode == 1
    assert changed.stderr == "4 replayed, 4 do not fit\n"
    assert "order_saga/declined (Failed" in changed.stdout
    assert "position 1" in changed.stdout
