"""One operation of the HTTP API: what it takes, who may, what it gives. Routes and the OpenAPI document are made from the same.

So the document can't say anything else than the handlers do.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

from aiohttp import web
from pydantic import BaseModel, ValidationError

from romancy.errors import RequestInvalidError, RunNotFoundError
from romancy.gateway.access import RUNS, Gate
from romancy.gateway.bodies import read_body
from romancy.gateway.schemas import NoQuery
from romancy.gateway.services import Services
from romancy.model.access import Caller, Right
from romancy.model.codec import problems
from romancy.model.run import Run

SERVICES: Final = web.AppKey("services", Services)


@dataclass(slots=True)
class Asked:
    """A request that was let in, with what it asks."""

    request: web.Request
    services: Services
    caller: Caller
    query: Any  # of the operation's model
    body: Any  # likewise; None if it takes none
    namespace: str | None = None  # None: all
    run: Run | None = None

    @property
    def the_run(self) -> Run:
        """The run that the path names."""
        assert self.run is not None
        return self.run


Handler = Callable[[Asked], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What can be asked.

    Attributes:
        paths: where; with `{namespace}`, `{run}` or `{id}` in them.
        verb, resource: the right that it needs, in the namespace of the path or of the run, else in all.
        answers: what it gives by status; None: no JSON.
    """

    name: str
    method: str
    paths: Sequence[str]
    summary: str
    verb: str
    handler: Handler
    answers: Mapping[int, type[BaseModel] | None]
    resource: str = RUNS
    query: type[BaseModel] = NoQuery
    body: type[BaseModel] | None = None

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """Its routes."""
        return [web.route(self.method, prefix + path, self.answer) for path in self.paths]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Let the caller in, read what they ask, and do it. First who, then what: nothing is told to those who may not ask."""
        services = request.app[SERVICES]
        gate = services.gate
        caller = await gate.caller(request)
        asked = Asked(request, services, caller, None, None, namespace=request.match_info.get("namespace"))
        if "run" in request.match_info:
            asked.run = await self._find(asked, gate, request.match_info["run"])
        else:
            await gate.require(caller, Right(self.verb, self.resource, self._place(asked)))
        asked.query = _read(self.query, _query_of(request, self.query), "query")
        if self.body is not None:
            asked.body = _read(self.body, await _json_of(request, services.body_bytes_max), "body")
        return await self.handler(asked)

    def _place(self, asked: Asked) -> str | None:
        return asked.services.namespace if self.resource.startswith("workflowengines") else asked.namespace

    async def _find(self, asked: Asked, gate: Gate, name: str) -> Run:
        """The run of the path. One of another namespace is as if it were not there, for those who may not see that."""
        if asked.namespace is not None:
            await gate.require(asked.caller, Right(self.verb, self.resource, asked.namespace, name))
            return await _named(asked.services, asked.namespace, name)
        try:
            run = await asked.services.store.read_run(UUID(name))
        except ValueError as error:
            raise RequestInvalidError(
                f"{name!r:.80} is no id of a run",
                hint="a UUID; a name has a namespace: .../namespaces/{namespace}/runs/{name}",
            ) from error
        if run is None or not await gate.may(asked.caller, Right(self.verb, self.resource, run.namespace, run.name)):
            raise RunNotFoundError(name)
        return run


async def _named(services: Services, namespace: str, name: str) -> Run:
    """A run by its name or id, in this namespace alone."""
    try:
        run = await services.store.read_run(UUID(name))
    except ValueError:
        run = await services.store.find_run(namespace, _storable(name))
    if run is None or run.namespace != namespace:
        raise RunNotFoundError(f"{namespace}/{name}")
    return run


def _storable(name: str) -> str:
    if "\0" in name or not name.isprintable():
        raise RequestInvalidError(f"{name!r:.80} is no name of a run", hint="printable characters")
    return name


def _query_of(request: web.Request, model: type[BaseModel]) -> dict[str, Any]:
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    found: dict[str, Any] = {}
    for name in request.query:
        values = request.query.getall(name)
        is_list = name in fields and isinstance(fields[name].default, list)
        if not is_list and len(values) > 1:
            raise RequestInvalidError(f"{name!r:.80} stands {len(values)} times in the query", hint="give it once")
        found[name] = values if is_list else values[0]
    return found


async def _json_of(request: web.Request, bytes_max: int) -> Any:
    body = await read_body(request, bytes_max=bytes_max)
    if not body:
        return {}
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = "too deep" if isinstance(error, RecursionError) else str(error)
        raise RequestInvalidError(f"the body is no JSON: {text}", hint="a JSON object in UTF-8") from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no value of JSON")


def _read(model: type[BaseModel], given: Any, what: str) -> BaseModel:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise RequestInvalidError(
            f"the {what} does not fit: {'; '.join(problems(error))}", hint="/openapi.json says what is expected"
        ) from error
    except RecursionError as error:
        raise RequestInvalidError(f"the {what} is too deep") from error


def answer(value: Any, *, status: int = 200) -> web.Response:
    """JSON."""
    return web.Response(status=status, text=json.dumps(value, allow_nan=False), content_type="application/json")
