"""What a replay costs, in calls of Python functions: they don't depend on the machine, or on who else is using it."""

import asyncio
import sys
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import pytest

from romancy import activity, workflow
from romancy.model.history import Entry
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow
from tests.builders import SOME_TIME, ended_activities


@activity(name="cost.add_one")
async def add_one(number: int) -> int:
    return number + 1


@workflow(name="cost.one_after_the_other")
async def one_after_the_other(count: int) -> int:
    number = 0
    for _ in range(count):
        number = await add_one(number)
    return number


@workflow(name="cost.all_at_once")
async def all_at_once(count: int) -> int:
    return sum(await asyncio.gather(*(add_one(number) for number in range(count))))


def calls_of_a_replay(flow: Workflow[Any, int], entries: Sequence[Entry]) -> int:
    """How many functions are called while these are delivered, the code's own among them."""
    info = RunInfo(id=UUID(int=1), namespace="n", name="n", workflow=flow.name, labels={}, started_at=SOME_TIME)
    replay = Replay(
        flow.program({"count": len(entries)}, info),
        started_at=SOME_TIME,
        monotonic=time.monotonic,
        step_seconds_max=1000,
    )
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        replay.advance(entries, replaying=True)
    finally:
        sys.setprofile(None)
    assert replay.outcome is not None
    return calls


@pytest.mark.parametrize(("flow", "calls_max"), [(one_after_the_other, 100), (all_at_once, 155)])
def test_a_replay_is_linear(flow: Workflow[Any, int], calls_max: int) -> None:
    calls_of_a_replay(flow, ended_activities(add_one.name, 10))  # what is only done once

    few, many = (
        calls_of_a_replay(flow, ended_activities(add_one.name, 500)),
        calls_of_a_replay(flow, ended_activities(add_one.name, 5000)),
    )

    assert many <= 10.2 * few
    assert many / 5000 < calls_max, "calls an entry"
