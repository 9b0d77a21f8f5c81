"""Runs over HTTP: start, find, watch, change."""

import json
from datetime import timedelta
from typing import Any

from aiohttp import web

from romancy.base import log
from romancy.errors import FilterError
from romancy.gateway import watching
from romancy.gateway.operations import Asked, answer
from romancy.gateway.schemas import Change, NewRun, ResultQuery, RunQuery
from romancy.model import trace
from romancy.model.run import Form
from romancy.model.shown import attempt_as_json, entry_as_json, run_as_json

LOG = log.get(__name__)

Shown = dict[str, Any]
STARTED_BY = "romancy.dev/started-by"
"""The label of who started a run by the API."""
_OPTIONS = (
    "workflow",
    "name_part",
    "id_prefix",
    "created_after",
    "created_before",
    "finished_after",
    "finished_before",
)


async def list_runs(asked: Asked) -> web.StreamResponse:
    """A page of runs, or all news of that page."""
    query: RunQuery = asked.query
    listing = asked.services.client.list(
        namespace=asked.namespace or "*",
        phases=query.phase,
        labels=dict(label.split("=", 1) for label in query.label),
        input=None if query.input is None else _object(query.input),
        after=query.page,
        limit=query.limit,
        **{name: getattr(query, name) for name in _OPTIONS},
    )
    if not query.watch:
        page = await listing
        return answer({"runs": [run_as_json(run) for run in page], "next": page.next})

    async def look() -> list[Shown]:
        return [run_as_json(run) for run in await listing]

    services = asked.services
    return await watching.stream(asked.request, services.watches, services.clock, look, seconds=watching.LIST_SECONDS)


async def start_run(asked: Asked) -> web.Response:
    """Start a run; the same name again is the same run."""
    body: NewRun = asked.body
    services = asked.services
    if (workflow := services.registry.get(body.workflow)) is not None:
        # Here the code is known: an input that does not fit is refused before anything is stored.
        workflow.decode_input(json.dumps(body.input), workflow.signature.form or Form.BY_NAME)
    run, is_new = await services.client.start_by_name(
        body.workflow,
        body.input,
        id=body.name,
        namespace=asked.namespace,
        labels={**_trace_of(asked.request), **body.labels, STARTED_BY: asked.caller.name},
        priority=body.priority,
        delay=timedelta(seconds=body.delay_seconds) if body.delay_seconds else None,
        timeout=timedelta(seconds=body.timeout_seconds) if body.timeout_seconds else None,
    )
    if is_new:
        LOG.info("run_started_by_api", run_id=str(run.id), workflow=run.workflow, caller=asked.caller.name)
    return answer(run_as_json(run), status=201 if is_new else 200)


async def get_run(asked: Asked) -> web.Response:
    """A run as it is now."""
    return answer(run_as_json(await asked.services.client.explained(asked.the_run)))


async def get_history(asked: Asked) -> web.Response:
    """All that happened to it."""
    run, store = asked.the_run, asked.services.store
    entries = await store.read_history(run.id)
    attempts = (await store.read_attempts([run.id]))[run.id]
    return answer(
        {
            "entries": [entry_as_json(entry) for entry in entries],
            "attempts": [attempt_as_json(attempt) for attempt in attempts],
        }
    )


async def get_result(asked: Asked) -> web.Response:
    """Wait for its end: 200 with the run when it has ended, 202 while it has not."""
    query: ResultQuery = asked.query
    run = asked.the_run
    if not run.is_done and query.wait_seconds:
        run = await asked.services.client.handle(run.id).wait(timeout=query.wait_seconds)
    return answer(run_as_json(run), status=200 if run.is_done else 202)


async def get_values(asked: Asked) -> web.Response:
    """What it shows to outsiders."""
    return answer({"values": await asked.services.client.handle(asked.the_run.id).values()})


async def watch_run(asked: Asked) -> web.StreamResponse:
    """The run, and again whenever it changes, until it has ended."""
    services, run_id = asked.services, asked.the_run.id

    async def look() -> list[Shown]:
        run = await services.store.read_run(run_id)
        return [run_as_json(run)] if run is not None else []

    def is_over(found: list[Shown]) -> bool:
        return not found or found[0]["finishedAt"] is not None

    return await watching.stream(
        asked.request, services.watches, services.clock, look, seconds=watching.RUN_SECONDS, is_over=is_over
    )


async def cancel_run(asked: Asked) -> web.Response:
    """Ask it to end; what is done is compensated."""
    body: Change = asked.body
    return await _changed(
        asked, "cancel", await asked.services.client.handle(asked.the_run.id).cancel(body.message, by=asked.caller.name)
    )


async def suspend_run(asked: Asked) -> web.Response:
    """Let running activities end, and start no new ones."""
    handle = asked.services.client.handle(asked.the_run.id)
    return await _changed(asked, "suspend", await handle.suspend(by=asked.caller.name))


async def resume_run(asked: Asked) -> web.Response:
    """Let a suspended run go on."""
    handle = asked.services.client.handle(asked.the_run.id)
    return await _changed(asked, "resume", await handle.resume(by=asked.caller.name))


async def retry_run(asked: Asked) -> web.Response:
    """Let a failed run go on from its last checkpoint; 200 if it goes on already."""
    handle = asked.services.client.handle(asked.the_run.id)
    return await _changed(asked, "retry", await handle.retry(by=asked.caller.name))


async def _changed(asked: Asked, verb: str, is_new: bool) -> web.Response:
    """The run after it was asked; 200 if that changed nothing."""
    run = asked.the_run
    if is_new:
        LOG.info("run_changed_by_api", run_id=str(run.id), verb=verb, caller=asked.caller.name)
    now = await asked.services.store.read_run(run.id)
    return answer(run_as_json(now or run), status=202 if is_new else 200)


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FilterError(f"`input` is no JSON: {error}", hint='an object, as in {"order":{"id":7}}') from error
    if not isinstance(found, dict):
        raise FilterError("`input` is no JSON object", hint='as in {"order":{"id":7}}')
    return found


def _trace_of(request: web.Request) -> dict[str, str]:
    """The label of the trace that the request is of (W3C Trace Context), where it is of one."""
    parent = trace.read(request.headers.get(trace.LABEL))
    return {trace.LABEL: str(parent)} if parent else {}
