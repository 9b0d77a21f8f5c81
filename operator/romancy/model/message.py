"""What a run is said to wait for: the same words in lists, on the command line and in the status of a resource."""

from romancy.errors import at
from romancy.model import failure
from romancy.model.run import Phase, Reason, Run


def message_of(run: Run) -> str:
    """Why the run is where it is, and what comes next, for people."""
    match run.phase:
        case Phase.PENDING:
            if run.reason == Reason.DELAYED and run.wake_at:
                return f"the run is delayed until {at(run.wake_at)}; then the first free worker takes it"
            return run.message or "no worker has taken the run yet"
        case Phase.RUNNING:
            return run.message or (f"worker {run.worker} runs it" if run.worker else "a worker takes it next")
        case Phase.WAITING:
            until = f"until {at(run.wake_at)}" if run.wake_at else "for something to come"
            return run.message or f"the run waits {until}"
        case Phase.SUSPENDED:
            return run.message or "the run is suspended; it goes on when spec.suspend is false"
        case Phase.COMPENSATING:
            return run.message or "the run takes back what it did; nothing interrupts that"
        case Phase.BLOCKED:
            return f"{run.message or 'the run can not go on'} (nothing is lost: it goes on when a worker can run it)"
        case Phase.SUCCEEDED:
            return run.message or "the workflow returned"
        case Phase.FAILED | Phase.CANCELLED:
            if run.message or not run.failure:
                return run.message or f"the run ended as {run.phase}"
            found = failure.describe(run.failure)
            return f"{found.type}: {found.message}"
