"""What there is to run, and who runs it."""

from collections import Counter

from aiohttp import web

from romancy.errors import WorkflowNotRegisteredError
from romancy.gateway.operations import Asked, answer
from romancy.gateway.services import Services
from romancy.model.shown import worker_as_json


async def list_workflows(asked: Asked) -> web.Response:
    """The workflows that live workers have."""
    return answer(
        {"workflows": [_shown(asked.services, name, count) for name, count in await _workflows(asked.services)]}
    )


async def get_workflow(asked: Asked) -> web.Response:
    """One of them."""
    name = asked.request.match_info["workflow"]
    found = dict(await _workflows(asked.services))
    if name not in found:
        raise WorkflowNotRegisteredError(name, near=[], known=len(found))
    return answer(_shown(asked.services, name, found[name]))


async def list_workers(asked: Asked) -> web.Response:
    """Who is registered."""
    return answer({"workers": [worker_as_json(worker) for worker in await asked.services.store.list_workers()]})


async def _workflows(services: Services) -> list[tuple[str, int]]:
    """Names, and how many live workers have each."""
    live = [worker for worker in await services.store.list_workers() if not worker.is_expired]
    counts = Counter(name for worker in live for name in worker.workflows)
    return sorted((dict.fromkeys(services.registry, 0) | counts).items())


def _shown(services: Services, name: str, workers: int) -> dict[str, object]:
    known = services.registry.get(name)
    return {
        "name": name,
        "description": (known.fn.__doc__ or "").strip().partition("\n\n")[0] or None if known else None,
        "inputSchema": known.input_schema() if known else None,
        "outputSchema": known.signature.result.json_schema() if known else None,
        "workers": workers,
    }
