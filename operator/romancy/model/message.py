"""Why a run is where it is, and what comes next: the same words in lists, status, API, command line and log."""

from typing import Final, assert_never

from romancy.errors import (
    HistoryIncompleteError,
    HistoryTooLongError,
    NonDeterminismError,
    StepTooLongError,
    at,
)
from romancy.model import failure
from romancy.model.record import record
from romancy.model.run import Phase, Reason, Run

_NOTHING_LOST: Final = "nothing is lost: it goes on when a worker can run it"
# What stands in the way of a Blocked run, and what a person can do.
BLOCKED_NEXT: Final[dict[str, str]] = {
    Reason.NON_DETERMINISM: NonDeterminismError.advice,
    Reason.STEP_TOO_LONG: StepTooLongError.advice,
    Reason.HISTORY_TOO_LONG: HistoryTooLongError.advice,
    Reason.HISTORY_INCOMPLETE: HistoryIncompleteError.advice,
    Reason.WORKER_LOST: "see how its workers ended (out of memory, a crash in native code), and deploy a build that does not",
}


@record
class Why:
    """Why a run does not move, or what moves it.

    Attributes:
        reason: the word that has a page in docs/errors.
        text: what is.
        next: what a person can do now, or "nothing: ..." with what happens by itself. Empty if nothing comes any more.
    """

    reason: str
    text: str
    next: str

    @property
    def is_by_itself(self) -> bool:
        """Nobody has to do anything."""
        return not self.next or self.next.startswith("nothing: ")


def message_of(run: Run) -> str:
    """Why the run is where it is, and what somebody has to do, for people."""
    why = why_of(run)
    return why.text if run.is_done or why.is_by_itself else f"{why.text}; {why.next}"


def why_of(run: Run) -> Why:
    """Why the run is where it is, and what comes next."""
    text, following = _said(run)
    return Why(run.reason or run.phase.value, text, following)


def _said(run: Run) -> tuple[str, str]:
    match run.phase:
        case Phase.PENDING:
            return _pending(run)
        case Phase.RUNNING:
            held = f"worker {run.worker} runs it" if run.worker else "a worker takes it next"
            return run.message or held, "nothing: it is at work" if run.worker else f"nothing: {_taken(run)}"
        case Phase.WAITING:
            return _waiting(run)
        case Phase.SUSPENDED:
            return "suspended by its owner: no new activity starts until it is resumed", _resume(run)
        case Phase.COMPENSATING:
            goes_on = f"it goes on at {at(run.wake_at)}" if run.wake_at else "nothing interrupts that"
            return run.message or "the run takes back what it did; nothing interrupts that", f"nothing: {goes_on}"
        case Phase.BLOCKED:
            advice = BLOCKED_NEXT.get(run.reason, "deploy code that can run it")
            # A process of a former release has written the advice beside what is.
            text = run.message.removesuffix(f"; {advice}") or "the run can not go on"
            return text, f"{advice} ({_NOTHING_LOST})"
        case Phase.SUCCEEDED:
            return run.message or "the workflow returned", ""
        case Phase.FAILED:
            return _ended(run), f"retry it from its last checkpoint: romancy retry {_named(run)}"
        case Phase.CANCELLED:
            return _ended(run), ""
        case _:
            assert_never(run.phase)


def _pending(run: Run) -> tuple[str, str]:
    if run.reason == Reason.DELAYED and run.wake_at:
        text = f"the run is delayed until {at(run.wake_at)}; then the first free worker takes it"
        return text, f"nothing: it starts at {at(run.wake_at)}"
    if run.reason == Reason.WORKFLOW_NOT_REGISTERED:
        return run.message or f"no live worker has workflow {run.workflow!r}", _register(run)
    if run.message:
        return run.message, f"nothing: {_taken(run)}"
    since = f": it is due since {at(run.wake_at)}, and no slot is free for it" if run.wake_at else ""
    return f"no worker has taken the run yet{since}", f"nothing: {_taken(run)}"


def _waiting(run: Run) -> tuple[str, str]:
    until = f"until {at(run.wake_at)}" if run.wake_at else "for something to come"
    text = run.message or f"the run waits {until}"
    goes_on = f"nothing: it goes on at {at(run.wake_at)}" if run.wake_at else "nothing: it goes on when that comes"
    match run.reason:
        case Reason.WORKFLOW_NOT_REGISTERED:
            return text, _register(run)
        case Reason.EVENT:
            latest = f", at {at(run.wake_at)} at the latest" if run.wake_at else ""
            send = f"if its sender does not, `romancy events send TYPE --to {run.id}`"
            return text, f"nothing: it goes on when the event comes{latest}; {send}"
        case Reason.CHILD:
            return text, "nothing: it goes on when the child run has ended; `romancy why` says why that does not move"
        case Reason.NOTHING_OPEN:
            if run.wake_at:
                return text, f"cancel it, or wait for its timeout at {at(run.wake_at)}; and correct the workflow"
            return text, f"cancel it (romancy cancel {_named(run)}), and correct the workflow"
        case Reason.RECURRED:
            return text, "nothing: its next iteration begins"
        case _:
            return text, goes_on


def _ended(run: Run) -> str:
    if run.message or not run.failure:
        return run.message or f"the run ended as {run.phase}"
    found = failure.describe(run.failure)
    return f"{found.type}: {found.message}"


def _taken(run: Run) -> str:
    return f"the next worker that has workflow {run.workflow!r} and a free slot takes it (romancy workers)"


def _register(run: Run) -> str:
    return f"start a worker that has workflow {run.workflow!r}, or cancel the run and start it under the right name"


def _resume(run: Run) -> str:
    if run.wishes.suspend:  # the wish of its object stands against any other
        patch = """--type=merge -p '{"spec":{"suspend":false}}'"""
        return f"it goes on when spec.suspend is false: kubectl patch wfr {run.name} -n {run.namespace} {patch}"
    return f"resume it: romancy resume {_named(run)}"


def _named(run: Run) -> str:
    return f"{run.name} -n {run.namespace}"
