"""Compensations: nothing interrupts them, and nothing of a run is left when it is over."""

import asyncio
import gc
import time
import weakref
from datetime import UTC, datetime, timedelta
from uuid import UUID

from romancy import WorkflowContext, activity, workflow
from romancy.model.command import CancelActivity, Command, End, RunActivity
from romancy.model.history import Entry, Kind
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow

STARTED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@activity(name="saga.book")
async def book(label: str) -> str:
    raise NotImplementedError


@book.compensate(name="saga.unbook")
async def unbook(booking: str) -> None:
    raise NotImplementedError


def replay_of(flow: Workflow[[], None]) -> Replay:
    info = RunInfo(
        id=UUID(int=1), namespace="default", name="run", workflow=flow.name, labels={}, started_at=STARTED_AT
    )
    return Replay(flow.program({}, info), started_at=STARTED_AT, monotonic=time.monotonic)


class World:
    """Answers the first open activity, one entry at a time."""

    def __init__(self, replay: Replay) -> None:
        self.replay = replay
        self.commands: list[Command] = replay.advance()
        self.done: list[str] = []

    def answer(self) -> None:
        [command, *_] = [each for each in self.replay.open_commands() if isinstance(each, RunActivity)]
        self.done.append(f"{command.name} {command.arguments}")
        payload = command.arguments.partition(":")[2][:-1] if command.name == "saga.book" else "null"
        entry = Entry(
            self.replay.position + 1,
            Kind.ACTIVITY_COMPLETED,
            STARTED_AT + timedelta(seconds=self.replay.position),
            command.number,
            command.name,
            command.digest,
            payload,
        )
        self.commands += self.replay.advance([entry])


def test_a_rollback_in_a_task_that_is_cancelled_runs_to_its_end() -> None:
    """The function ends while a background task takes back: its tasks are cancelled then, its compensations are not."""

    @workflow
    async def leaves(ctx: WorkflowContext) -> None:
        for label in "abc":
            await book(label)
        ctx.logger.info("on", task=asyncio.create_task(ctx.rollback()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        raise ValueError("over")

    world = World(replay_of(leaves))
    while world.replay.outcome is None:
        world.answer()

    assert [each for each in world.commands if isinstance(each, CancelActivity)] == []
    assert [each for each in world.done if each.startswith("saga.unbook")] == [
        f'saga.unbook {{"booking":"{label}"}}' for label in "cba"
    ]
    world.replay.discard()


def test_all_tasks_cancelled_by_the_code_itself_interrupt_no_compensation() -> None:
    @workflow
    async def cancels(ctx: WorkflowContext) -> None:
        await book("a")
        await book("b")
        rollback = asyncio.create_task(ctx.rollback())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            if task.get_name() != "workflow":
                task.cancel()
        await asyncio.wait([rollback])

    world = World(replay_of(cancels))
    while world.replay.outcome is None:
        world.answer()

    assert world.done[2:] == ['saga.unbook {"booking":"b"}', 'saga.unbook {"booking":"a"}']
    world.replay.discard()


def test_nothing_is_left_of_a_run_that_is_over() -> None:
    """Also of one that had something to take back."""

    @workflow
    async def fails() -> None:
        await book("a")
        raise ValueError("over")

    world = World(replay_of(fails))
    while world.replay.outcome is None:
        world.answer()
    world.replay.discard()
    left = weakref.ref(world.replay)
    del world
    gc.collect()

    assert left() is None


def test_a_group_that_fails_while_the_run_is_cancelled_loses_no_outcome() -> None:
    """asyncio cancels the task once more then, and a task that returns with that is cancelled."""

    @workflow
    async def groups() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails_when_cancelled())
            await asyncio.Event().wait()

    @workflow
    async def swallows() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fails_when_cancelled())
                await asyncio.Event().wait()
        except* ValueError:
            pass

    async def fails_when_cancelled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("while it was cancelled")

    for flow, end in ((groups, End.FAILED), (swallows, End.CANCELLED)):
        replay = replay_of(flow)
        replay.advance()
        payload = '{"reason":"Cancelled","message":""}'
        replay.advance([Entry(1, Kind.CANCEL_REQUESTED, STARTED_AT, payload=payload)])

        assert replay.outcome is not None
        assert replay.outcome.end is end
        replay.discard()


class OwnExit(BaseException):
    pass


def test_an_exception_that_is_none_fails_the_run_and_goes_no_further() -> None:
    @workflow
    async def exits() -> None:
        raise OwnExit("over")

    replay = replay_of(exits)
    replay.advance()

    assert replay.outcome is not None
    assert (replay.outcome.end, replay.outcome.message) == (End.FAILED, "OwnExit: over")
    replay.discard()
