"""Every operation of the HTTP API, in the order of its document."""

from typing import Final

from aiohttp import web

from romancy.gateway import dead_letters, events, runs, workflows
from romancy.gateway.access import ENGINES
from romancy.gateway.operations import Operation
from romancy.gateway.schemas import (
    Accepted,
    Change,
    DeadLetterId,
    DeadLetterQuery,
    DeadLetters,
    History,
    NewRun,
    ResultQuery,
    Run,
    RunQuery,
    Runs,
    Values,
    Workers,
    Workflow,
    Workflows,
)

PREFIX: Final = "/api/v1"
_RUN: Final = ("/runs/{run}", "/namespaces/{namespace}/runs/{run}")


def _of_run(part: str) -> tuple[str, ...]:
    return tuple(path + part for path in _RUN)


def _of_letters(part: str) -> tuple[str, ...]:
    return f"/dead-letters{part}", f"/namespaces/{{namespace}}/dead-letters{part}"


OPERATIONS: Final = (
    Operation(
        name="listWorkflows",
        method="GET",
        paths=("/workflows",),
        summary="The workflows that live workers have, with their schemas",
        verb="get",
        resource=ENGINES,
        handler=workflows.list_workflows,
        answers={200: Workflows},
    ),
    Operation(
        name="getWorkflow",
        method="GET",
        paths=("/workflows/{workflow}",),
        summary="One workflow",
        verb="get",
        resource=ENGINES,
        handler=workflows.get_workflow,
        answers={200: Workflow},
    ),
    Operation(
        name="listWorkers",
        method="GET",
        paths=("/workers",),
        summary="Who executes runs",
        verb="get",
        resource=ENGINES,
        handler=workflows.list_workers,
        answers={200: Workers},
    ),
    Operation(
        name="listRuns",
        method="GET",
        paths=("/runs", "/namespaces/{namespace}/runs"),
        summary="Runs, newest first",
        verb="list",
        handler=runs.list_runs,
        query=RunQuery,
        answers={200: Runs},
    ),
    Operation(
        name="startRun",
        method="POST",
        paths=("/namespaces/{namespace}/runs",),
        summary="Start a run; the same name again is the same run",
        verb="create",
        handler=runs.start_run,
        body=NewRun,
        answers={201: Run, 200: Run},
    ),
    Operation(
        name="getRun",
        method="GET",
        paths=_RUN,
        summary="A run as it is now",
        verb="get",
        handler=runs.get_run,
        answers={200: Run},
    ),
    Operation(
        name="getHistory",
        method="GET",
        paths=_of_run("/history"),
        summary="All that happened to a run",
        verb="get",
        handler=runs.get_history,
        answers={200: History},
    ),
    Operation(
        name="getResult",
        method="GET",
        paths=_of_run("/result"),
        summary="Wait for the end of a run: 200 when it has ended, 202 while it has not",
        verb="get",
        handler=runs.get_result,
        query=ResultQuery,
        answers={200: Run, 202: Run},
    ),
    Operation(
        name="getValues",
        method="GET",
        paths=_of_run("/values"),
        summary="What a run shows to outsiders",
        verb="get",
        handler=runs.get_values,
        answers={200: Values},
    ),
    Operation(
        name="watchRun",
        method="GET",
        paths=_of_run("/watch"),
        summary="Server-sent events: the run, and again whenever it changes, until it has ended",
        verb="watch",
        handler=runs.watch_run,
        answers={200: None},
    ),
    Operation(
        name="cancelRun",
        method="POST",
        paths=_of_run("/cancel"),
        summary="Ask a run to end; what is done is compensated",
        verb="patch",
        handler=runs.cancel_run,
        body=Change,
        answers={202: Run, 200: Run},
    ),
    Operation(
        name="suspendRun",
        method="POST",
        paths=_of_run("/suspend"),
        summary="Let running activities end, and start no new ones",
        verb="patch",
        handler=runs.suspend_run,
        body=Change,
        answers={202: Run, 200: Run},
    ),
    Operation(
        name="resumeRun",
        method="POST",
        paths=_of_run("/resume"),
        summary="Let a suspended run go on",
        verb="patch",
        handler=runs.resume_run,
        body=Change,
        answers={202: Run, 200: Run},
    ),
    Operation(
        name="retryRun",
        method="POST",
        paths=_of_run("/retry"),
        summary="Have a failed run go on from its last checkpoint",
        verb="patch",
        handler=runs.retry_run,
        body=Change,
        answers={202: Run, 200: Run},
    ),
    Operation(
        name="sendEventToRun",
        method="POST",
        paths=_of_run("/events"),
        summary="Send a CloudEvent to one run",
        verb="patch",
        handler=events.post_to_run,
        answers={202: Accepted},
    ),
    Operation(
        name="listDeadLetters",
        method="GET",
        paths=_of_letters(""),
        summary="Events that runs have emitted and no sink has taken, newest first",
        verb="list",
        handler=dead_letters.list_dead_letters,
        query=DeadLetterQuery,
        answers={200: DeadLetters},
    ),
    Operation(
        name="resendDeadLetter",
        method="POST",
        paths=_of_letters("/{id}/resend"),
        summary="Have a dead letter delivered again, behind what its run has emitted since",
        verb="patch",
        handler=dead_letters.resend_dead_letter,
        answers={202: DeadLetterId},
    ),
    Operation(
        name="deleteDeadLetter",
        method="DELETE",
        paths=_of_letters("/{id}"),
        summary="Give a dead letter up",
        verb="patch",
        handler=dead_letters.delete_dead_letter,
        answers={200: DeadLetterId},
    ),
)


def routes() -> list[web.RouteDef]:
    """The routes of all of them, and of events."""
    found = [route for operation in OPERATIONS for route in operation.routes(PREFIX)]
    return [*found, web.post("/events", events.post_event), web.options("/events", events.handshake)]
