"""What the simulator has found, each as the shortest life that shows it."""

import asyncio

from romancy import activity, workflow
from romancy.model.history import MessageKind
from romancy.model.run import Phase
from romancy.store.interface import Park
from tests.worker.doubles import Engine, settle


@activity(name="findings.never")
async def never(label: str) -> None:
    raise AssertionError("it was given up before it could start")


@workflow(name="findings.gives_up")
async def gives_up() -> None:
    task = asyncio.create_task(never("a"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(3600)


async def test_a_run_that_gave_a_call_up_at_once_is_parked() -> None:
    """What it gave up held it back, and nothing told it that this was done: it stayed in memory, deaf to what was sent to
    it while nobody was listening."""
    for is_suspended in (False, True):
        engine = Engine()
        if is_suspended:
            engine.send(None, MessageKind.SUSPEND)
        task = asyncio.create_task(engine.claim(gives_up).run())

        for _ in range(3):
            await settle()
            engine.journal.flush()
        await settle()

        assert isinstance(engine.row.then, Park)
        assert engine.row.then.phase is (Phase.SUSPENDED if is_suspended else Phase.WAITING)
        assert task.done()
