"""Valid values for tests: a test names only what it is about."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from romancy.model.codec import digest
from romancy.model.history import Attempt, Entry, Kind, Message, MessageKind
from romancy.model.run import Form, NewRun, Phase, Run, Wishes
from romancy.store.interface import NewWorker

SOME_TIME: Final = datetime(2026, 1, 1, 12, tzinfo=UTC)


def a_new_run(**changes: Any) -> NewRun:
    """A run of workflow `flow`, due now, that no resource belongs to."""
    run_id = changes.pop("id", None) or uuid4()
    run = NewRun(id=run_id, namespace="default", name=f"run-{run_id}", workflow="flow", input="{}")
    return replace(run, **changes)


def a_run(phase: Phase = Phase.RUNNING, **changes: Any) -> Run:
    """A run of workflow `w` as it is shown, begun at `SOME_TIME`."""
    run = Run(
        id=UUID(int=7),
        namespace="shop",
        name="order",
        workflow="w",
        input="{}",
        form=None,
        priority=0,
        phase=phase,
        reason="",
        message="",
        labels={},
        created_at=SOME_TIME,
        started_at=SOME_TIME + timedelta(seconds=1),
        finished_at=SOME_TIME + timedelta(seconds=3.5) if phase.is_done else None,
        wake_at=None,
        worker=None,
        python="3.13",
        timeout_seconds=None,
        output=None,
        failure=None,
        is_resource=True,
        wishes=Wishes(),
    )
    return replace(run, **changes)


def an_entry(position: int = 1, **changes: Any) -> Entry:
    """The result of the activity with the number of its position."""
    entry = Entry(
        position=position,
        kind=Kind.ACTIVITY_COMPLETED,
        at=SOME_TIME + timedelta(seconds=position),
        number=position,
        name="step",
        digest="digest",
        payload=f'{{"result":{position}}}',
    )
    return replace(entry, **changes)


def an_attempt(number: int = 1, attempt: int = 1, **changes: Any) -> Attempt:
    """A failed attempt that is tried again a second later."""
    tried = Attempt(number, attempt, '{"type":"ValueError"}', SOME_TIME, SOME_TIME + timedelta(seconds=1))
    return replace(tried, **changes)


def a_message(run_id: Any, **changes: Any) -> Message:
    """A suspend that nobody has sent before: it wakes waiting runs and no others."""
    return replace(Message(run_id, MessageKind.SUSPEND, source=f"test/{uuid4()}"), **changes)


def a_new_worker(**changes: Any) -> NewWorker:
    """A worker on Python 3.13 that has workflow `flow`."""
    worker = NewWorker(
        name="worker",
        boot_id=uuid4(),
        pod_uid="",
        namespace="default",
        workflows={"flow": Form.WHOLE},
        build_id="build-1",
        python="3.13",
    )
    return replace(worker, **changes)


def ended_activities(name: str, count: int) -> list[Entry]:
    """The history of so many activities that took one number each, from 0 on, and gave the next."""
    return [
        Entry(
            position=number + 1,
            kind=Kind.ACTIVITY_COMPLETED,
            at=SOME_TIME + timedelta(milliseconds=number),
            number=number + 1,
            name=name,
            digest=digest(f'{{"number":{number}}}'),
            payload=str(number + 1),
        )
        for number in range(count)
    ]
