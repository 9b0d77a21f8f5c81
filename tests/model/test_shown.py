"""Runs, entries and workers as JSON."""

import json
from datetime import timedelta, timezone
from typing import Any

import pytest

from romancy.model.history import Kind
from romancy.model.run import Phase
from romancy.model.shown import attempt_as_json, entry_as_json, run_as_json, time_of, worker_as_json
from romancy.model.worker import WorkerRow
from tests.builders import SOME_TIME, a_run, an_attempt, an_entry

FAILURE = '{"type":"builtins.OSError","message":"away","trace":"Traceback"}'
SHOWN = {"type": "OSError", "message": "away", "trace": "Traceback"}


def test_a_run_is_the_object_of_the_api() -> None:
    run = a_run(Phase.FAILED, failure=FAILURE, reason="WorkflowFailed", labels={"team": "ü"}, timeout_seconds=60.0)

    assert run_as_json(run) == {
        "id": "00000000-0000-0000-0000-000000000007",
        "namespace": "shop",
        "name": "order",
        "workflow": "w",
        "phase": "Failed",
        "reason": "WorkflowFailed",
        "message": "OSError: away",
        "next": "retry it from its last checkpoint: romancy retry order -n shop",
        "labels": {"team": "ü"},
        "priority": 0,
        "createdAt": "2026-01-01T12:00:00.000000Z",
        "startedAt": "2026-01-01T12:00:01.000000Z",
        "finishedAt": "2026-01-01T12:00:03.500000Z",
        "dueAt": None,
        "worker": None,
        "timeoutSeconds": 60.0,
        "isResource": True,
        "input": {},
        "output": None,
        "failure": SHOWN,
    }


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, {"command": "activity", "number": 1, "name": "step", "value": {"result": 1}}),
        ({"kind": Kind.ACTIVITY_FAILED, "payload": FAILURE}, {"command": "activity", "value": None, "failure": SHOWN}),
        (
            {"kind": Kind.CHILD_FAILED, "payload": json.dumps({"phase": "Failed", "failure": FAILURE})},
            {"command": "child", "value": {"phase": "Failed"}, "failure": SHOWN},
        ),
        (
            {"kind": Kind.CHILD_CANCELLED, "payload": '{"phase":"Cancelled","failure":null}'},
            {"command": "child", "value": {"phase": "Cancelled"}, "failure": None},
        ),
        ({"kind": Kind.TIMER_FIRED, "payload": "", "name": "timer"}, {"command": "timer", "value": None}),
        (
            {"kind": Kind.STARTED, "payload": "", "name": "", "number": 0},
            {"command": None, "number": 0, "name": "", "value": None},
        ),
    ],
)
def test_an_entry_shows_what_came(changes: dict[str, Any], shown: dict[str, Any]) -> None:
    found = entry_as_json(an_entry(**changes))

    assert {name: found[name] for name in shown} == shown
    assert found["at"] == "2026-01-01T12:00:01.000000Z"


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_entry_can_be_shown(kind: Kind) -> None:
    is_failure = kind is Kind.ACTIVITY_FAILED
    entry = an_entry(kind=kind, payload=FAILURE if is_failure else '{"failure":null}')

    assert json.loads(json.dumps(entry_as_json(entry)))["kind"] == kind


def test_an_attempt_says_when_the_next_one_is() -> None:
    assert attempt_as_json(an_attempt(failure=FAILURE)) == {
        "number": 1,
        "attempt": 1,
        "failure": SHOWN,
        "failedAt": "2026-01-01T12:00:00.000000Z",
        "nextAt": "2026-01-01T12:00:01.000000Z",
    }


def test_a_worker_shows_what_it_has() -> None:
    worker = WorkerRow(1, "pod-1", "u", "shop", ("w", "v"), "b1", "3.13", SOME_TIME, SOME_TIME, False, True, 3)

    shown = worker_as_json(worker)

    assert shown["workflows"] == ["v", "w"]
    assert (shown["isExpired"], shown["isDraining"], shown["runs"]) == (False, True, 3)


def test_times_are_in_utc_wherever_they_come_from() -> None:
    east = SOME_TIME.astimezone(timezone(timedelta(hours=5)))

    assert time_of(east) == "2026-01-01T12:00:00.000000Z"
    assert time_of(None) is None
