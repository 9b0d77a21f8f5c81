"""Why a run does not move: one text for every reason, wherever it is shown."""

from datetime import timedelta
from typing import Any

import pytest

from romancy.errors import NonDeterminismError
from romancy.model.message import message_of, why_of
from romancy.model.run import Phase, Reason, Run, Wishes
from tests.builders import SOME_TIME, a_run

LATER = SOME_TIME + timedelta(hours=1)
T = "2026-01-01 13:00:00 UTC"
TAKEN = "nothing: the next worker that has workflow 'w' and a free slot takes it (romancy workers)"
REGISTER = "start a worker that has workflow 'w', or cancel the run and start it under the right name"
KEPT = "(nothing is lost: it goes on when a worker can run it)"


def waiting(reason: Reason, message: str, **changes: Any) -> Run:
    return a_run(Phase.WAITING, reason=reason, message=message, **changes)


def blocked(reason: str) -> Run:
    return a_run(Phase.BLOCKED, reason=reason, message="what is")


TABLE: list[tuple[Run, str, str]] = [
    (a_run(Phase.PENDING), "no worker has taken the run yet", TAKEN),
    (
        a_run(Phase.PENDING, wake_at=LATER),
        f"no worker has taken the run yet: it is due since {T}, and no slot is free for it",
        TAKEN,
    ),
    (
        a_run(Phase.PENDING, reason=Reason.DELAYED, wake_at=LATER),
        f"the run is delayed until {T}; then the first free worker takes it",
        f"nothing: it starts at {T}",
    ),
    (
        a_run(
            Phase.PENDING, reason=Reason.WORKFLOW_NOT_REGISTERED, message="no live worker has workflow 'w': near: 'v'"
        ),
        "no live worker has workflow 'w': near: 'v'",
        REGISTER,
    ),
    (waiting(Reason.WORKFLOW_NOT_REGISTERED, "no live worker has it"), "no live worker has it", REGISTER),
    (a_run(Phase.RUNNING, worker="pod-1"), "worker pod-1 runs it", "nothing: it is at work"),
    (a_run(Phase.RUNNING, reason=Reason.DRAINED), "a worker takes it next", TAKEN),
    (
        waiting(Reason.RETRYING, f"attempt 4 of activity 'charge' at {T}; the last one failed: OSError", wake_at=LATER),
        f"attempt 4 of activity 'charge' at {T}; the last one failed: OSError",
        f"nothing: it goes on at {T}",
    ),
    (waiting(Reason.TIMER, "waiting for a timer", wake_at=LATER), "waiting for a timer", f"nothing: it goes on at {T}"),
    (
        waiting(Reason.EVENT, "waiting for event com.shop.paid where order='7'", wake_at=LATER),
        "waiting for event com.shop.paid where order='7'",
        (
            f"nothing: it goes on when the event comes, at {T} at the latest; if its sender does not, "
            "`romancy events send TYPE --to 00000000-0000-0000-0000-000000000007`"
        ),
    ),
    (
        waiting(Reason.EVENT, "waiting for event x"),
        "waiting for event x",
        (
            "nothing: it goes on when the event comes; if its sender does not, "
            "`romancy events send TYPE --to 00000000-0000-0000-0000-000000000007`"
        ),
    ),
    (
        waiting(Reason.CHILD, "waiting for child run 'ship-1'"),
        "waiting for child run 'ship-1'",
        "nothing: it goes on when the child run has ended; `romancy why` says why that does not move",
    ),
    (
        waiting(Reason.MESSAGE, "waiting for channel jobs"),
        "waiting for channel jobs",
        "nothing: it goes on when that comes",
    ),
    (waiting(Reason.RECURRED, "iteration 2 begins"), "iteration 2 begins", "nothing: its next iteration begins"),
    (
        waiting(Reason.WORKER_LOST, "two workers were lost with it", wake_at=LATER),
        "two workers were lost with it",
        f"nothing: it goes on at {T}",
    ),
    (
        waiting(Reason.NOTHING_OPEN, "nothing is open"),
        "nothing is open",
        "cancel it (romancy cancel order -n shop), and correct the workflow",
    ),
    (
        waiting(Reason.NOTHING_OPEN, "nothing is open", wake_at=LATER),
        "nothing is open",
        f"cancel it, or wait for its timeout at {T}; and correct the workflow",
    ),
    (
        a_run(Phase.SUSPENDED, reason=Reason.SUSPENDED),
        "suspended by its owner: no new activity starts until it is resumed",
        "resume it: romancy resume order -n shop",
    ),
    (
        a_run(Phase.SUSPENDED, reason=Reason.SUSPENDED, wishes=Wishes(suspend=True)),
        "suspended by its owner: no new activity starts until it is resumed",
        (
            "it goes on when spec.suspend is false: kubectl patch wfr order -n shop --type=merge "
            """-p '{"spec":{"suspend":false}}'"""
        ),
    ),
    (
        a_run(Phase.COMPENSATING, reason=Reason.COMPENSATING),
        "the run takes back what it did; nothing interrupts that",
        "nothing: nothing interrupts that",
    ),
    (
        a_run(Phase.COMPENSATING, reason=Reason.RETRYING, message="attempt 2 of release", wake_at=LATER),
        "attempt 2 of release",
        f"nothing: it goes on at {T}",
    ),
    (
        blocked(Reason.NON_DETERMINISM),
        "what is",
        f"guard the change with ctx.patched(), or deploy the code that wrote this history {KEPT}",
    ),
    (
        blocked(Reason.STEP_TOO_LONG),
        "what is",
        f"move long computations into an activity, and await something durable in every endless loop {KEPT}",
    ),
    (
        blocked(Reason.HISTORY_TOO_LONG),
        "what is",
        f"split the work into several runs, or raise ROMANCY_WORKER__HISTORY_ENTRIES_MAX {KEPT}",
    ),
    (
        blocked(Reason.HISTORY_INCOMPLETE),
        "what is",
        "restore the run's history from a backup, or cancel the run; `romancy db verify` names all such runs " + KEPT,
    ),
    (
        blocked(Reason.WORKER_LOST),
        "what is",
        f"see how its workers ended (out of memory, a crash in native code), and deploy a build that does not {KEPT}",
    ),
    (blocked("PayloadNotFaithful"), "what is", f"deploy code that can run it {KEPT}"),
]

# STORE_UNAVAILABLE is of an object that has no run yet (control/conditions.py); the others are ends.
NOT_OF_OPEN_RUNS = {
    Reason.STORE_UNAVAILABLE,
    Reason.SUCCEEDED,
    Reason.WORKFLOW_FAILED,
    Reason.INPUT_INVALID,
    Reason.PAYLOAD_REFUSED,
    Reason.TIMED_OUT,
    Reason.CANCELLED,
    Reason.DELETED,
    Reason.PARENT_ENDED,
    Reason.COMPENSATION_FAILED,
}


@pytest.mark.parametrize(("run", "text", "following"), TABLE)
def test_each_open_run_says_why_it_does_not_move_and_what_comes_next(run: Run, text: str, following: str) -> None:
    why = why_of(run)

    assert (why.text, why.next) == (text, following)
    assert why.reason == (run.reason or run.phase)
    assert message_of(run) == (text if following.startswith("nothing: ") else f"{text}; {following}")


def test_every_reason_of_an_open_run_has_its_text() -> None:
    assert {run.reason for run, _text, _next in TABLE} >= set(Reason) - NOT_OF_OPEN_RUNS


@pytest.mark.parametrize(
    ("run", "text", "following"),
    [
        (a_run(Phase.SUCCEEDED), "the workflow returned", ""),
        (
            a_run(Phase.FAILED, failure='{"type":"builtins.OSError","message":"away"}'),
            "OSError: away",
            "retry it from its last checkpoint: romancy retry order -n shop",
        ),
        (a_run(Phase.CANCELLED, message="not wanted"), "not wanted", ""),
    ],
)
def test_an_ended_run_says_how_it_ended(run: Run, text: str, following: str) -> None:
    assert (why_of(run).next, message_of(run)) == (following, text)


def test_what_a_former_release_has_stored_is_not_said_twice() -> None:
    run = a_run(Phase.BLOCKED, reason="NonDeterminism", message=f"at position 3; {NonDeterminismError.advice}")

    assert message_of(run).count(NonDeterminismError.advice) == 1
