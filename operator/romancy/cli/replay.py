"""Replays what is stored against the code that is there: a sample of a database (`romancy replay`), and in the second process of
`romancy dev` each finished or parked run at once, with another hash seed.

So code that can't be replayed (a clock, chance, a set of strings), or does not fit its runs any more, shows before it is rolled
out.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from romancy.base.settings import DatabaseSettings
from romancy.cli import dev
from romancy.model.run import Phase, Run
from romancy.sdk.workflow import WORKFLOWS, Workflow
from romancy.store.interface import RunFilter
from romancy.store.postgres import PostgresStore
from romancy.testing import histories

PAGE_MAX: Final = 200
LOOK_SECONDS = 0.3
RUNS_MAX = 200  # the newest ones are looked at
RESTS = frozenset({Phase.WAITING, Phase.SUSPENDED, Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})


async def watch(file: Path, database_url: str) -> int:
    """Replay what comes to rest until SIGTERM, and say what does not replay."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    dev.import_file(file)
    seen: dict[object, object] = {}
    async with PostgresStore(DatabaseSettings(url=SecretStr(database_url))) as store:
        began_at = await store.now()
        while not stop.is_set():
            for run in await store.list_runs(RunFilter(), limit=RUNS_MAX):
                state = (run.phase, run.wake_at, run.finished_at)
                if is_at_rest(run, began_at) and seen.get(run.id) != state:
                    seen[run.id] = state
                    workflow = WORKFLOWS.get(run.workflow)
                    if workflow is None:
                        continue
                    if (problem := histories.difference(run, workflow, await store.read_history(run.id))) is not None:
                        dev.say(f"{run.workflow}/{run.name} does not replay: {problem}")
            try:
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue
    return 0


def is_at_rest(run: Run, began_at: datetime) -> bool:
    """Put away, or ended since this process looks: what ended before ended with other code."""
    return run.phase in RESTS and (run.finished_at is None or run.finished_at >= began_at)


async def sample(
    database: DatabaseSettings, workflows: Sequence[Workflow[..., object]], *, count: int, folder: Path | None
) -> AsyncIterator[tuple[Run, str | None]]:
    """Replay the newest runs of each workflow, and tell of each what its code does otherwise, None if nothing.

    Args:
        count: of each workflow, at most.
        folder: where their histories are kept as files, for `romancy.testing.replay`; None: nowhere.
    """
    async with PostgresStore(database) as store:
        for workflow in workflows:
            where = RunFilter(workflow=workflow.name)
            left = count
            while left > 0 and (runs := await store.list_runs(where, limit=min(left, PAGE_MAX))):
                for run in runs:
                    history = await store.read_history(run.id)
                    if folder is not None and run.started_at is not None:
                        (folder / f"{workflow.name}-{run.id}.json").write_text(histories.export(run, history))
                    yield run, histories.difference(run, workflow, history)
                left -= len(runs)
                where = RunFilter(workflow=workflow.name, after=(runs[-1].created_at, runs[-1].id))
