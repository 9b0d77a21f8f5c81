"""CloudEvents in: a 202 says that the event is stored, and with the runs that wait for it (I5)."""

from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from aiohttp import web

from romancy.errors import EventInvalidError, RunNotFoundError
from romancy.gateway import cloudevents
from romancy.gateway.bodies import read_body
from romancy.gateway.operations import SERVICES, Asked, answer
from romancy.gateway.services import Services
from romancy.model.event import CloudEvent
from romancy.store.interface import Receipt, Sending

TARGET: Final = "romancyinstanceid"
"""The extension that names one run: its id, or its name in the engine's namespace."""
TRACE: Final = "traceparent"


async def post_event(request: web.Request) -> web.Response:
    """Take one CloudEvent or a batch."""
    services = request.app[SERVICES]
    await services.gate.sender(request, services.namespace)
    found = await _events_of(request, services)
    sent = [Sending(event, await _target_of(event, services)) for event in found]
    receipts = await services.intake.take(sent) if sent else []
    shown = [_shown(event, receipt) for event, receipt in zip(found, receipts, strict=True)]
    if request.content_type == cloudevents.BATCH:
        return answer({"status": "accepted", "events": shown}, status=202)
    return answer(shown[0], status=202)


async def post_to_run(asked: Asked) -> web.Response:
    """Take one CloudEvent for the run that the path names."""
    found = await _events_of(asked.request, asked.services)
    if len(found) != 1:
        raise EventInvalidError(f"one event is taken here, not {len(found)}", hint="send a batch to /events")
    [event] = found
    [receipt] = await asked.services.intake.take([Sending(event, asked.the_run.id)])
    return answer(_shown(event, receipt), status=202)


async def handshake(request: web.Request) -> web.Response:
    """Whoever wants to send events asks first whether they may (CloudEvents webhooks 1.0.2, section 4)."""
    headers = {"Allow": "POST, OPTIONS"}
    if origin := request.headers.get("WebHook-Request-Origin"):
        headers["WebHook-Allowed-Origin"] = origin[:255]
        headers["WebHook-Allowed-Rate"] = "*"
    return web.Response(headers=headers)


async def _events_of(request: web.Request, services: Services) -> list[CloudEvent]:
    body = await read_body(request, bytes_max=services.body_bytes_max)
    return [_traced(event, request) for event in cloudevents.parse(request.headers, body)]


def _traced(event: CloudEvent, request: web.Request) -> CloudEvent:
    """With the trace of the request, if the event has none of its own (distributed tracing extension)."""
    parent = request.headers.get(TRACE, "")
    if not parent or TRACE in event.extensions or not parent.isascii() or len(parent) > 64:
        return event
    return replace(event, extensions={**event.extensions, TRACE: parent})


async def _target_of(event: CloudEvent, services: Services) -> UUID | None:
    """The run that the event names.

    Raises:
        RunNotFoundError: there is none. It may be about to be started, so it is worth another try.
    """
    target = event.extensions.get(TARGET)
    if target is None:
        return None
    name = str(target)
    try:
        run = await services.store.read_run(UUID(name))
    except ValueError:
        run = await services.store.find_run(services.namespace, name)
    if run is None:
        raise RunNotFoundError(name)
    return run.id


def _shown(event: CloudEvent, receipt: Receipt) -> dict[str, Any]:
    return {
        "status": "accepted",
        "id": event.id,
        "source": event.source,
        "runs": receipt.runs,
        "started": receipt.started,
        "duplicate": not receipt.is_new,
    }
