"""All errors that a user can meet: what is, what was expected, and what to do.

`reason` is the one word for an error: in the condition of a resource, a problem document, a log line and the page
`docs/errors/<reason>.md`. The hint stands as a note under the message in every traceback.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import ClassVar


class RomancyError(Exception):
    """Base of all errors of the engine."""

    reason: ClassVar[str] = "Internal"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")


class DefinitionError(RomancyError):
    """A workflow, activity or compensation can't be used as it is written; found at import or at start."""

    reason = "DefinitionInvalid"


class SettingsError(RomancyError):
    """An option is missing, unknown or out of its range."""

    reason = "SettingsInvalid"


class FilterError(RomancyError):
    """Runs can't be searched by this value, or it is no token of a page."""

    reason = "FilterInvalid"


# --- what the replay core finds ---------------------------------------------------------------------------------


class BlockingError(RomancyError):
    """The run can't go on with this code; nothing is lost, and it goes on when a worker has code that fits."""


class NonDeterminismError(BlockingError):
    """The code asked for something else than history holds at the same position."""

    reason = "NonDeterminism"
    advice: ClassVar[str] = "guard the change with ctx.patched(), or deploy the code that wrote this history"

    def __init__(self, *, position: int, history: str, code: str) -> None:
        super().__init__(
            f"at position {position} history says {history}, but the code asked for {code}",
            hint=self.advice,
        )
        self.position, self.history, self.code = position, history, code


class StepTooLongError(BlockingError):
    """The workflow's code ran on without asking for anything: an endless loop, or a long computation."""

    reason = "StepTooLong"
    advice: ClassVar[str] = "move long computations into an activity, and await something durable in every endless loop"

    def __init__(self, what: str, *, limit: str) -> None:
        super().__init__(
            f"one step of the workflow took {what} without asking for anything; the limit is {limit}",
            hint=self.advice,
        )


class HistoryTooLongError(BlockingError):
    """The run has as many entries as a history may have."""

    reason = "HistoryTooLong"
    advice: ClassVar[str] = "split the work into several runs, or raise ROMANCY_WORKER__HISTORY_ENTRIES_MAX"

    def __init__(self, *, entries: int, entries_max: int) -> None:
        super().__init__(
            f"the history has {entries:,} entries; the limit is {entries_max:,}",
            hint=self.advice,
        )


class HistoryIncompleteError(BlockingError):
    """Entries are missing in the middle of the run's history: the database has lost what was committed."""

    reason = "HistoryIncomplete"
    advice: ClassVar[str] = (
        "restore the run's history from a backup, or cancel the run; `romancy db verify` names all such runs"
    )

    def __init__(self, *, after: int, found: int) -> None:
        super().__init__(
            f"the history goes from entry {after} to entry {found}: what was between is not in the database any more",
            hint=self.advice,
        )


class NotDeterministicError(RomancyError):
    """Workflow code used something of asyncio that can't be replayed."""

    reason = "NotDeterministic"

    def __init__(self, call: str, *, hint: str = "do this in an activity and await that") -> None:
        super().__init__(f"{call} can't be used in a workflow: it would not replay in the same order", hint=hint)
        self.call = call


class NeverAwaitedError(RomancyError):
    """A durable call was made and dropped, so it would never run."""

    reason = "NeverAwaited"

    def __init__(self, call: str) -> None:
        super().__init__(
            f"{call} was called but never awaited",
            hint=f"write `await {call}(...)`, or hand it to asyncio.create_task(), gather() or a TaskGroup",
        )


class OutsideWorkflowError(RomancyError):
    """Something that only a running workflow has was used outside of one."""

    reason = "OutsideWorkflow"


class RecurInvalidError(RomancyError):
    """A run can't begin anew in this way."""

    reason = "RecurInvalid"


class ValueInvalidError(RomancyError):
    """A value that is shown to outsiders has no fit name."""

    reason = "ValueInvalid"


class ChannelInvalidError(RomancyError):
    """A channel, or a message to one, is not as it must be."""

    reason = "ChannelInvalid"


class ChannelModeError(RomancyError):
    """A channel is used in another mode than the one that its first use has decided."""

    reason = "ChannelMode"

    def __init__(self, *, channel: str, mode: str, wanted: str) -> None:
        super().__init__(
            f"channel {channel!r} is {mode}, and is used here as {wanted}",
            hint="declare the channel once, and import it where it is used; or choose another name",
        )
        self.mode = mode


class EventInvalidError(RomancyError):
    """An event, or what is asked of one, is not as it must be."""

    reason = "EventInvalid"


# --- values and exceptions ----------------------------------------------------------------------------------------


class PayloadError(RomancyError):
    """A value can't be stored."""

    reason = "PayloadInvalid"


class PayloadNotFaithfulError(PayloadError):
    """A value would come back from storage as something else than it was."""

    reason = "PayloadNotFaithful"

    def __init__(self, *, path: str, sent: object, came_back: object) -> None:
        super().__init__(
            f"{path} is {_shown(sent)}, but comes back from storage as {_shown(came_back)}",
            hint="annotate the exact type, or use a pydantic model, so that the value can be told apart in JSON",
        )
        self.path = path


class PayloadTooLargeError(PayloadError):
    """A value is larger than a payload may be."""

    reason = "PayloadTooLarge"

    def __init__(self, *, what: str, size_bytes: int, max_bytes: int) -> None:
        super().__init__(
            f"{what} has {size_bytes:,} bytes; the limit is {max_bytes:,}",
            hint="store it elsewhere (object storage, a table) in an activity, and pass a reference",
        )


class PayloadRefusedError(PayloadError):
    """The database refused a row of this run; the rows of other runs were written."""

    reason = "PayloadRefused"

    def __init__(self, why: str) -> None:
        super().__init__(f"PostgreSQL refused what the run has to store: {why}", hint="see the run's last command")


class InputInvalidError(RomancyError):
    """The input of a run does not fit the workflow's parameters; none of its code has run."""

    reason = "InputInvalid"

    def __init__(self, workflow: str, problems: Sequence[str]) -> None:
        super().__init__(
            f"the input does not fit workflow {workflow!r}: {'; '.join(problems)}",
            hint="correct the input and start a new run",
        )
        self.problems = list(problems)


class ActivityError(RomancyError):
    """An activity failed with an exception that can't be rebuilt here: its type's name, message and trace are kept."""

    reason = "ActivityFailed"

    def __init__(self, message: str, *, type_name: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.type_name, self.trace = type_name, trace


class ActivityTimeoutError(RomancyError, TimeoutError):
    """An attempt of an activity took longer than its timeout."""

    reason = "ActivityTimeout"

    def __init__(self, activity: str, *, timeout_seconds: float) -> None:
        super().__init__(
            f"activity {activity!r} did not end within its timeout of {timeout_seconds:g} s",
            hint="raise the activity's timeout, or make it faster",
        )


class WorkerLostError(RomancyError):
    """The worker that ran this attempt died, or was cut off from the database, before the attempt ended."""

    reason = "WorkerLost"

    def __init__(self, worker: str = "") -> None:
        super().__init__(f"worker {worker or '(unknown)'} was lost while the activity ran")


class TerminalError(RomancyError):
    """Raise this (or a subclass) in an activity to fail it at once, whatever its retry policy says."""

    reason = "Terminal"

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message, hint=hint)


class CompensationFailedError(RomancyError):
    """At least one compensation used up its retries; the others have run."""

    reason = "CompensationFailed"


# --- runs ----------------------------------------------------------------------------------------------------------


class RunNotFoundError(RomancyError):
    """There is no such run."""

    reason = "RunNotFound"

    def __init__(self, what: str) -> None:
        super().__init__(f"there is no run {what}", hint="list the runs, or start it first")


class DeadLetterNotFoundError(RomancyError):
    """There is no dead letter of this id, or it is in another namespace."""

    reason = "DeadLetterNotFound"

    def __init__(self, letter_id: int) -> None:
        super().__init__(
            f"there is no dead letter {letter_id}", hint="romancy dead-letters list shows those that there are"
        )


class RunExistsError(RomancyError):
    """A run of this identity exists with another workflow or another input."""

    reason = "RunExists"

    def __init__(self, *, namespace: str, name: str, what_differs: str) -> None:
        super().__init__(
            f"run {namespace}/{name} exists already with another {what_differs}",
            hint="choose another id, or start it with the same workflow and input to get the run that exists",
        )


class RetryRefusedError(RomancyError):
    """This run can't be retried."""

    reason = "RetryRefused"


class RunFailedError(RomancyError):
    """The run failed with an exception that can't be rebuilt here, or for a reason of its own."""

    reason = "RunFailed"

    def __init__(self, message: str, *, reason: str = "", type_name: str = "", trace: str = "") -> None:
        super().__init__(message)
        self.run_reason, self.type_name, self.trace = reason, type_name, trace


class RunCancelledError(RomancyError):
    """The run was cancelled before it ended by itself."""

    reason = "Cancelled"


class RunTimedOutError(RunCancelledError):
    """The run took longer than its timeout."""

    reason = "TimedOut"


class WorkflowNotRegisteredError(RomancyError):
    """No worker has this workflow."""

    reason = "WorkflowNotRegistered"

    def __init__(self, name: str, *, near: Sequence[str] = (), known: int = 0) -> None:
        hint = f"did you mean {' or '.join(near)}?" if near else "start a worker that has it, or correct the name"
        super().__init__(f"no worker has workflow {name!r} ({known} known)", hint=hint)


# --- what the HTTP API refuses ------------------------------------------------------------------------------------


class RequestInvalidError(RomancyError):
    """A request of the HTTP API is not as its OpenAPI document says."""

    reason = "RequestInvalid"


class UnauthenticatedError(RomancyError):
    """The caller has no token, or one that nobody vouches for. Says no more: whoever guesses must not learn from it."""

    reason = "Unauthenticated"

    def __init__(self) -> None:
        super().__init__(
            "who calls is not known", hint="send `Authorization: Bearer TOKEN` with a token that is valid here and now"
        )


class ForbiddenError(RomancyError):
    """The caller is known and may not do this."""

    reason = "Forbidden"

    def __init__(self, caller: str, verb: str, resource: str, namespace: str | None) -> None:
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        super().__init__(
            f"{caller} may not {verb} {resource} {where}",
            hint="ask for a role that allows it, as `kubectl auth can-i` tells",
        )


class AuthorityUnavailableError(RomancyError):
    """Whoever knows the callers and their rights gives no answer; nothing is allowed meanwhile."""

    reason = "AuthorityUnavailable"


class TooManyRequestsError(RomancyError):
    """More than is answered at once, or of one caller in a time."""

    reason = "TooManyRequests"

    def __init__(self, what: str, *, retry_after_seconds: float) -> None:
        super().__init__(what, hint=f"try again in {retry_after_seconds:.0f} s")
        self.retry_after_seconds = retry_after_seconds


class MediaTypeError(RomancyError):
    """The body is of a kind that is not read here."""

    reason = "MediaTypeUnsupported"


class RequestTooSlowError(RomancyError):
    """The body did not come in time; nothing was done."""

    reason = "RequestTooSlow"


# --- the store -----------------------------------------------------------------------------------------------------


class StoreError(RomancyError):
    """The database does not do what the engine needs."""

    reason = "StoreError"


class StoreUnavailableError(StoreError):
    """PostgreSQL, or whoever speaks for it, gave no answer; what was asked may have been done all the same."""

    reason = "StoreUnavailable"

    def __init__(self, why: str, *, who: str = "PostgreSQL") -> None:
        hint = (
            "the engine tries again; see that it can be reached"
            if who == "PostgreSQL"
            else "see that it can be reached"
        )
        super().__init__(f"{who} gave no answer: {why}", hint=hint)


class ProblemError(RomancyError):
    """The HTTP API refuses a request: what its problem document says."""

    reason = "RequestInvalid"

    def __init__(self, message: str, *, reason: str, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.told, self.status = reason, status


class SearchTooBroadError(StoreError):
    """The database looked for too long for runs that fit a list's filters."""

    reason = "SearchTooBroad"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the search was ended after {seconds:g} s: it looks through more runs than that time is enough for",
            hint="narrow it by namespace, workflow, labels, phases or created_after: parts of names and inputs have no index",
        )


class SchemaVersionError(StoreError):
    """The database's schema is newer or older than this process can use."""

    reason = "SchemaVersion"


class WorkerFencedError(StoreError):
    """This worker has been buried: its runs belong to others, and it can write nothing any more."""

    reason = "WorkerFenced"

    def __init__(self, worker_id: int) -> None:
        super().__init__(
            f"worker {worker_id} has been buried, and can write no more", hint="it drops its runs and registers anew"
        )
        self.worker_id = worker_id


class HistoryConflictError(StoreError):
    """Another writer has written to the history of a run that this worker holds: a breach of I3."""

    reason = "HistoryConflict"


class RunDiscarded(BaseException):  # it is no error of anybody, and must not be caught as one
    """The run was put out of memory here; whatever its code tries to do now must not happen."""


def at(moment: datetime) -> str:
    """The form of a time in messages to people: UTC, to the second."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__module__}.{type(value).__qualname__} {text if len(text) <= 60 else text[:57] + '...'}"
