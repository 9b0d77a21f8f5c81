"""What people and `kubectl wait` see of a run: a row in, a status out."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from romancy.control import conditions
from romancy.control.conditions import STATUS_BYTES_MAX, Shown, Stalled, of_run
from romancy.control.resources import WorkflowRunStatus
from romancy.model import failure
from romancy.model.run import Phase, Run
from tests.builders import a_run

CREATED = datetime(2026, 1, 1, 12, tzinfo=UTC)
NOW = CREATED + timedelta(hours=1)
SHOWN = Shown(engine="romancy", generation=2)


def of_type(status: dict[str, Any]) -> dict[str, tuple[str, str, str]]:
    return {each["type"]: (each["status"], each["reason"], each["lastTransitionTime"]) for each in status["conditions"]}


def test_a_delayed_run_says_until_when() -> None:
    status = of_run(a_run(Phase.PENDING, reason="Delayed", wake_at=NOW, started_at=None), SHOWN, now=NOW)

    text = "the run is delayed until 2026-01-01 13:00:00 UTC; then the first free worker takes it"
    assert (status["phase"], status["reason"], status["message"]) == ("Pending", "Delayed", text)
    assert {each["type"]: each["status"] for each in status["conditions"]}["Stalled"] == "False"


def test_a_run_that_succeeded() -> None:
    run = a_run(Phase.SUCCEEDED, reason="Succeeded", output='{"receipt":[1,null,"ü"]}')

    status = of_run(run, SHOWN, now=NOW)

    assert status["phase"] == "Succeeded"
    assert status["output"] == {"receipt": [1, None, "ü"]}
    assert status["duration"] == "2.5s"
    assert (status["startTime"], status["completionTime"]) == ("2026-01-01T12:00:01Z", "2026-01-01T12:00:03Z")
    assert status["observedGeneration"] == 2
    assert of_type(status) == {
        "Accepted": ("True", "Stored", "2026-01-01T12:00:00Z"),
        "Completed": ("True", "Succeeded", "2026-01-01T12:00:03Z"),
        "Succeeded": ("True", "Succeeded", "2026-01-01T12:00:03Z"),
        "Stalled": ("False", "Succeeded", "2026-01-01T12:00:00Z"),
        "Reconciling": ("False", "Succeeded", "2026-01-01T12:00:03Z"),
    }


@pytest.mark.parametrize(
    ("run", "succeeded", "stalled", "message"),
    [
        (a_run(Phase.PENDING), "Unknown", "False", "no worker has taken the run yet"),
        (
            a_run(Phase.PENDING, reason="WorkflowNotRegistered", message="no live worker has workflow 'w'"),
            "Unknown",
            "True",
            "no live worker has workflow 'w'",
        ),
        (a_run(Phase.RUNNING, worker="pod-1"), "Unknown", "False", "worker pod-1 runs it"),
        (
            a_run(Phase.WAITING, wake_at=NOW),
            "Unknown",
            "False",
            "the run waits until 2026-01-01 13:00:00 UTC",
        ),
        (a_run(Phase.WAITING), "Unknown", "False", "the run waits for something to come"),
        (a_run(Phase.WAITING, message="retry 4 of charge"), "Unknown", "False", "retry 4 of charge"),
        (a_run(Phase.SUSPENDED), "Unknown", "False", "resume it: romancy resume order -n shop"),
        (a_run(Phase.COMPENSATING), "Unknown", "False", "nothing interrupts that"),
        (
            a_run(Phase.BLOCKED, reason="NonDeterminism", message="at position 3"),
            "Unknown",
            "True",
            (
                "at position 3; guard the change with ctx.patched(), or deploy the code that wrote this history "
                "(nothing is lost: it goes on when a worker can run it)"
            ),
        ),
        (a_run(Phase.FAILED, reason="WorkflowFailed", message="boom"), "False", "True", "boom"),
        (a_run(Phase.CANCELLED, reason="Deleted"), "False", "False", "the run ended as Cancelled"),
        (a_run(Phase.SUCCEEDED), "True", "False", "the workflow returned"),
    ],
)
def test_each_phase_says_why_and_what_comes_next(run: Run, succeeded: str, stalled: str, message: str) -> None:
    status = of_run(run, SHOWN, now=NOW)

    found = of_type(status)
    assert found["Accepted"][0] == "True"
    assert found["Completed"][0] == str(run.is_done)
    assert found["Succeeded"][0] == succeeded
    assert found["Stalled"][0] == stalled
    assert message in status["message"]
    assert all(each["message"] and each["reason"] for each in status["conditions"])
    WorkflowRunStatus.model_validate(status)


def test_a_failure_is_shown_with_the_end_of_its_trace() -> None:
    def deep(depth: int) -> None:
        if not depth:
            raise ValueError("no such order")
        deep(depth - 1)

    with pytest.raises(ValueError, match="no such order") as raised:
        deep(20)
    run = a_run(Phase.FAILED, reason="WorkflowFailed", failure=failure.encode(raised.value))

    status = of_run(run, SHOWN, now=NOW)

    assert status["failure"]["type"] == "ValueError"
    assert status["failure"]["message"] == "no such order"
    assert status["failure"]["trace"].rstrip().endswith("ValueError: no such order")
    assert status["message"] == "ValueError: no such order"


def test_stalled_keeps_its_time_until_it_changes() -> None:
    blocked = a_run(Phase.BLOCKED, reason="WorkerLost")
    first = conditions.stalled_since(blocked, None, NOW)
    later = conditions.stalled_since(blocked, first, NOW + timedelta(hours=1))
    over = conditions.stalled_since(a_run(), later, NOW + timedelta(hours=2))

    assert first == later == Stalled(True, NOW)
    assert over == Stalled(False, NOW + timedelta(hours=2))
    assert conditions.stalled_since(a_run(), None, NOW) == Stalled(False, CREATED)


def test_the_generation_is_left_out_where_it_is_unknown() -> None:
    status = of_run(a_run(), Shown(engine="romancy", generation=None), now=NOW)

    assert "observedGeneration" not in status
    assert all("observedGeneration" not in each for each in status["conditions"])


def test_a_large_output_is_a_reference() -> None:
    run = a_run(Phase.SUCCEEDED, output=json.dumps("x" * STATUS_BYTES_MAX))

    status = of_run(run, SHOWN, now=NOW)

    assert "output" not in status
    assert status["outputRef"] == f"/api/v1/runs/{run.id}"
    small = of_run(replace(run, output='"x"'), replace(SHOWN, output_bytes_max=2), now=NOW)
    assert "outputRef" in small


def test_no_output_is_not_shown() -> None:
    assert "output" not in of_run(a_run(Phase.SUCCEEDED, output="null"), SHOWN, now=NOW)
    assert of_run(a_run(Phase.SUCCEEDED, output="0"), SHOWN, now=NOW)["output"] == 0


@given(
    message=st.text(max_size=20_000),
    trace=st.text(alphabet='"\\\n\x00ü😀', max_size=20_000),
    output=st.text(max_size=20_000).map(json.dumps),
    phase=st.sampled_from(Phase),
)
def test_a_status_is_small_and_valid_whatever_it_says(message: str, trace: str, output: str, phase: Phase) -> None:
    broken = json.dumps({"type": "E" * 1000, "message": message, "trace": trace})
    run = a_run(phase, message=message, failure=broken if phase.is_done else None, output=output, worker="w" * 300)

    status = of_run(run, SHOWN, now=NOW)

    assert len(json.dumps(status, ensure_ascii=False).encode()) <= STATUS_BYTES_MAX
    try:
        WorkflowRunStatus.model_validate(status)
    except ValidationError as error:
        pytest.fail(str(error))


def test_a_refusal_is_an_end() -> None:
    status = conditions.refused(engine="romancy", generation=1, reason="TooLarge", message="too large", now=NOW)

    assert status["phase"] == "Failed"
    assert {name: each[:2] for name, each in of_type(status).items()} == {
        "Accepted": ("False", "TooLarge"),
        "Completed": ("True", "TooLarge"),
        "Succeeded": ("False", "TooLarge"),
        "Stalled": ("True", "TooLarge"),
        "Reconciling": ("False", "TooLarge"),
    }
    assert status["message"] == "too large; create another WorkflowRun"
    WorkflowRunStatus.model_validate(status)


def test_a_store_that_is_away_and_a_lost_row_are_stalled_not_ended() -> None:
    away = conditions.store_away(engine="romancy", generation=1, message="refused", now=NOW)
    lost = conditions.lost(engine="romancy", generation=1, now=NOW)

    for status, reason in ((away, "StoreUnavailable"), (lost, "RunLost")):
        found = of_type(status)
        assert status["phase"] == "Pending"
        assert found["Accepted"][:2] == ("False", reason)
        assert found["Completed"][0] == "False"
        assert found["Stalled"][:2] == ("True", reason)
        WorkflowRunStatus.model_validate(status)
