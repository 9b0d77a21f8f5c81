"""Stored histories against code: does a replay ask for the same, and end the same?"""

import json
import time
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from romancy.errors import BlockingError, InputInvalidError, RomancyError
from romancy.model.command import End, Outcome, WriteLog
from romancy.model.history import Entry, Kind
from romancy.model.retried import standing
from romancy.model.run import Form, Phase, Run, Wishes
from romancy.replay.replay import Replay
from romancy.sdk.context import RunInfo
from romancy.sdk.workflow import Workflow

FORMAT: Final = 1


def export(run: Run, history: list[Entry]) -> str:
    """A run and its history as JSON, for `replay`. It holds the run's input and results: handle it like them."""
    kept = {
        "id": str(run.id),
        "namespace": run.namespace,
        "name": run.name,
        "workflow": run.workflow,
        "input": run.input,
        "form": run.form,
        "phase": run.phase,
        "labels": run.labels,
        "created_at": run.created_at.isoformat(),
        "started_at": run.started_at and run.started_at.isoformat(),
        "output": run.output,
        "numbers": dict(run.numbers),
        "recurred_into": run.recurred_into and str(run.recurred_into),
    }
    entries = [
        {
            "position": entry.position,
            "kind": entry.kind,
            "at": entry.at.isoformat(),
            "number": entry.number,
            "name": entry.name,
            "digest": entry.digest,
            "payload": entry.payload,
            "inbox": entry.inbox,
        }
        for entry in history
    ]
    return json.dumps({"format": FORMAT, "run": kept, "history": entries}, ensure_ascii=False, indent=1)


def read(text: str) -> tuple[Run, list[Entry]]:
    """What `export` has written.

    Raises:
        ValueError: it is something else.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, and {FORMAT} is known")
        return _run_of(content["run"]), [_entry_of(each) for each in content["history"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"this is no exported history, as `romancy replay --export` writes them: {error!r}") from error


def replay(workflow: Workflow[..., Any], text: str) -> None:
    """Replay an exported history: it must ask for the same, and end the same.

    Raises:
        NonDeterminismError: the code asks for something else; says at which position.
        AssertionError: it ends otherwise, or its arguments differ.
        ValueError: the text is no exported history.
    """
    run, history = read(text)
    assert run.workflow == workflow.name, f"the history is of workflow {run.workflow!r}, not of {workflow.name!r}"
    outcome, warnings = replayed(run, workflow, history)
    if (problem := _otherwise(run, history, outcome, warnings)) is not None:
        raise AssertionError(problem)


def difference(run: Run, workflow: Workflow[..., Any], history: list[Entry]) -> str | None:
    """What a replay of this history by that code does otherwise; None if nothing."""
    if run.form is None or run.started_at is None:
        return None
    try:
        outcome, warnings = replayed(run, workflow, history)
    except BlockingError as error:
        return f"{error.message}; {error.hint}"
    except InputInvalidError:
        return None  # it failed for that, and ran no code
    except RomancyError as error:
        return error.message
    return _otherwise(run, history, outcome, warnings)


def _otherwise(run: Run, history: list[Entry], outcome: Outcome | None, warnings: list[str]) -> str | None:
    if warnings:
        return "; ".join(warnings)  # what it asks for depends on something that is not in its history
    if not run.is_done:
        return None if outcome is None else f"the code has ended after {len(history)} entries, but the run goes on"
    if outcome is None:
        return f"the run has ended after {len(history)} entries, but the code waits for more"
    if run.recurred_into is not None:
        return None if outcome.end is End.RECURRED else "the code ends, where the run began anew"
    if outcome.payload != run.output:
        return f"it gives {outcome.payload} where the run gave {run.output}"
    return None


def replayed(run: Run, workflow: Workflow[..., object], history: list[Entry]) -> tuple[Outcome | None, list[str]]:
    """The outcome of a replay, None if the code waits for more; and what was asked for with other arguments."""
    history = standing(history)
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
    replay = Replay(
        workflow.program(arguments, info),
        started_at=run.started_at,
        monotonic=time.monotonic,
        numbers=run.numbers,
        patches=[entry.name for entry in history if entry.kind is Kind.PATCHED],
    )
    try:
        commands = replay.advance(history, replaying=True)
        lines = [dict(command.fields) for command in commands if isinstance(command, WriteLog)]
        return replay.outcome, [str(fields["detail"]) for fields in lines if "detail" in fields]
    finally:
        replay.discard()


def _run_of(kept: dict[str, Any]) -> Run:
    started_at = kept["started_at"]
    return Run(
        id=UUID(kept["id"]),
        namespace=kept["namespace"],
        name=kept["name"],
        workflow=kept["workflow"],
        input=kept["input"],
        form=Form(kept["form"]) if kept["form"] else None,
        priority=0,
        phase=Phase(kept["phase"]),
        reason="",
        message="",
        labels=dict(kept["labels"]),
        created_at=datetime.fromisoformat(kept["created_at"]),
        started_at=datetime.fromisoformat(started_at) if started_at else None,
        finished_at=None,
        wake_at=None,
        worker=None,
        python=None,
        timeout_seconds=None,
        output=kept["output"],
        failure=None,
        is_resource=False,
        wishes=Wishes(),
        numbers=dict(kept.get("numbers") or {}),
        recurred_into=UUID(kept["recurred_into"]) if kept.get("recurred_into") else None,
    )


def _entry_of(kept: dict[str, Any]) -> Entry:
    return Entry(
        position=kept["position"],
        kind=Kind(kept["kind"]),
        at=datetime.fromisoformat(kept["at"]),
        number=kept["number"],
        name=kept["name"],
        digest=kept["digest"],
        payload=kept["payload"],
        inbox=kept["inbox"],
    )
