"""The second process of `romancy dev`: replays each finished or parked run at once, with another hash seed.

So code that can't be replayed (a clock, chance, a set of strings) shows before the first crash.
"""

import asyncio
import signal
import time
from datetime import datetime
from pathlib import Path

from pydantic import SecretStr

from romancy.base.settings import DatabaseSettings
from romancy.cli import dev
from romancy.errors import BlockingError, InputInvalidError, RomancyError
from romancy.model.command import Outcome, WriteLog
from romancy.model.history import Entry
from romancy.model.run import Phase, Run
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import WORKFLOWS, Workflow
from romancy.store.interface import RunFilter
from romancy.store.postgres import PostgresStore

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
                    if (problem := difference(run, await store.read_history(run.id))) is not None:
                        dev.say(f"{run.workflow}/{run.name} does not replay: {problem}")
            try:
                await asyncio.wait_for(stop.wait(), LOOK_SECONDS)
            except TimeoutError:
                continue
    return 0


def is_at_rest(run: Run, began_at: datetime) -> bool:
    """Put away, or ended since this process looks: what ended before ended with other code."""
    return run.phase in RESTS and (run.finished_at is None or run.finished_at >= began_at)


def difference(run: Run, history: list[Entry]) -> str | None:
    """What a replay of this history by the code that is loaded does otherwise; None if nothing."""
    workflow = WORKFLOWS.get(run.workflow)
    if workflow is None or run.form is None or run.started_at is None:
        return None
    try:
        outcome, warnings = replayed(run, workflow, history)
    except BlockingError as error:
        return f"{error.message}; {error.hint}"
    except InputInvalidError:
        return None  # it failed for that, and ran no code
    except RomancyError as error:
        return error.message
    if warnings:
        return "; ".join(warnings)  # what it asks for depends on something that is not in its history
    if not run.is_done:
        return None if outcome is None else f"the code has ended after {len(history)} entries, but the run waits"
    if outcome is None:
        return f"the run has ended after {len(history)} entries, but the code waits for more"
    if outcome.payload != run.output:
        return f"it gives {outcome.payload} where the run gave {run.output}"
    return None


def replayed(run: Run, workflow: Workflow[..., object], history: list[Entry]) -> tuple[Outcome | None, list[str]]:
    """The outcome of a replay, None if the code waits for more; and what was asked for with other arguments."""
    assert run.form is not None
    assert run.started_at is not None
    arguments = workflow.decode_input(run.input, run.form)
    info = RunInfo(
        id=run.id,
        namespace=run.namespace,
        name=run.name,
        workflow=run.workflow,
        labels=run.labels,
        started_at=run.started_at,
    )
    replay = Replay(workflow.program(arguments, info), started_at=run.started_at, monotonic=time.monotonic)
    try:
        commands = replay.advance(history, replaying=True)
        lines = [dict(command.fields) for command in commands if isinstance(command, WriteLog)]
        return replay.outcome, [str(fields["detail"]) for fields in lines if "detail" in fields]
    finally:
        replay.discard()
