"""The OpenAPI 3.1 document, made from the operations that answer."""

from functools import cache
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from romancy.base.version import engine_version
from romancy.gateway import api
from romancy.gateway.cloudevents import BATCH, STRUCTURED
from romancy.gateway.operations import Operation
from romancy.gateway.problems import MEDIA_TYPE
from romancy.gateway.schemas import Accepted, AcceptedBatch, Problem

_REF: Final = "#/components/schemas/{model}"
_PATH_TEXTS: Final = {
    "namespace": "A namespace of Kubernetes.",
    "run": "A run's id; under a namespace also its name: then the newest run of it.",
    "workflow": "The name of a workflow.",
    "id": "An id.",
}
_PROBLEMS: Final = {
    "400": "The request is wrong; the document says how.",
    "401": "No token, or one that nobody vouches for.",
    "403": "The caller may not do this.",
    "404": "There is no such thing, or it is not the caller's to see.",
    "408": "The body did not come in time.",
    "409": "It contradicts what is there.",
    "413": "The body is too large.",
    "415": "The body is of a kind that is not read.",
    "429": "Too many requests; Retry-After says when to come again.",
    "503": "The database or the authority gives no answer. Nothing is lost: send the same again.",
}


@cache
def document() -> dict[str, Any]:
    """The document of this version of the API."""
    models: set[type[BaseModel]] = {Problem, Accepted, AcceptedBatch}
    for operation in api.OPERATIONS:
        models |= {model for model in (operation.body, *operation.answers.values()) if model is not None}
    ordered = sorted(models, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(model, _mode(model)) for model in ordered], ref_template=_REF)
    paths: dict[str, Any] = {}
    for operation in api.OPERATIONS:
        for nth, path in enumerate(operation.paths):
            shown = _operation(operation, path, suffix="" if nth == 0 else "InNamespace")
            paths.setdefault(api.PREFIX + path, {})[operation.method.lower()] = shown
    paths["/events"] = {"post": _post_event(), "options": _handshake()}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Romancy",
            "version": engine_version(),
            "description": "Durable workflows: start, find, watch and change runs, and send events to them.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
            "responses": {"Problem": _content("Why it was refused.", Problem, MEDIA_TYPE)},
        },
        "security": [{"bearer": []}],
    }


def _mode(model: type[BaseModel]) -> Any:
    return "validation" if any(model is operation.body for operation in api.OPERATIONS) else "serialization"


def _operation(operation: Operation, path: str, *, suffix: str) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "operationId": operation.name + suffix,
        "summary": operation.summary,
        "description": f"Needs the right to {operation.verb} {operation.resource} there.",
        "parameters": [*_path_parameters(path), *_query_parameters(operation.query)],
        "responses": {
            **{str(status): _answer(operation, status, model) for status, model in operation.answers.items()},
            **_problems(),
        },
    }
    if operation.body is not None:
        shown["requestBody"] = {
            "required": _has_required(operation.body),
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=operation.body.__name__)}}},
        }
    if operation.name == "sendEventToRun":
        shown["requestBody"] = {"required": True, "content": {STRUCTURED: {"schema": _EVENT}}}
    return shown


def _answer(operation: Operation, status: int, model: type[BaseModel] | None) -> dict[str, Any]:
    text = {200: "It is so.", 201: "It is new.", 202: "It was taken in."}[status]
    if model is None:
        return {"description": text, "content": {"text/event-stream": {"schema": _STREAMED}}}
    shown = _content(text, model)
    if operation.name == "listRuns":
        shown["content"]["text/event-stream"] = {"schema": _STREAMED}
    return shown


def _content(text: str, model: type[BaseModel], media_type: str = "application/json") -> dict[str, Any]:
    return {"description": text, "content": {media_type: {"schema": {"$ref": _REF.format(model=model.__name__)}}}}


def _problems() -> dict[str, Any]:
    return {status: {**_content(text, Problem, MEDIA_TYPE)} for status, text in _PROBLEMS.items()}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": text,
            "schema": {"type": "string", "minLength": 1},
        }
        for name, text in _PATH_TEXTS.items()
        if f"{{{name}}}" in path
    ]


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=_REF)
    found = []
    for name, each in schema.get("properties", {}).items():
        text = each.pop("description", None)
        parameter: dict[str, Any] = {"name": name, "in": "query", "required": False}
        if name == "input":
            parameter["content"] = {"application/json": {"schema": {"type": "object"}}}
        else:
            parameter["schema"] = _without_null(each)
        found.append({**parameter, "description": text} if text else parameter)
    return found


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter of a query is there or not: nothing is null in a query."""
    schema = {name: value for name, value in schema.items() if name not in {"title", "default"}}
    if "anyOf" in schema:
        [schema] = [each for each in schema["anyOf"] if each != {"type": "null"}]
    return schema


def _has_required(model: type[BaseModel]) -> bool:
    return any(field.is_required() for field in model.model_fields.values())


_STREAMED: Final = {
    "type": "object",
    "description": "Each event: a run, the id of one that has left the list, or a problem while the database is away.",
    "properties": {
        "event": {"enum": ["run", "gone", "problem"]},
        "data": {"type": "string", "contentMediaType": "application/json"},
    },
}
_EVENT: Final = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1, "maxLength": 255},
        "source": {"type": "string", "minLength": 1, "maxLength": 255},
        "type": {"type": "string", "minLength": 1, "maxLength": 255},
        "subject": {"type": ["string", "null"], "minLength": 1},
        "time": {"type": ["string", "null"], "format": "date-time"},
        "datacontenttype": {"type": ["string", "null"], "minLength": 1},
        "dataschema": {"type": ["string", "null"], "minLength": 1},
        "romancyinstanceid": {"type": ["string", "null"], "description": "The run that it is for, by id or name."},
        "data": {},
        "data_base64": {"type": ["string", "null"], "contentEncoding": "base64"},
    },
}


def _post_event() -> dict[str, Any]:
    return {
        "operationId": "sendEvent",
        "summary": "Send CloudEvents: one (structured or binary), or a batch",
        "description": "202 only when they are stored, and with the runs that wait for them. The same source and id is the same "
        "event. Binary: the data as body, the attributes as ce- headers.",
        "requestBody": {
            "required": True,
            "content": {STRUCTURED: {"schema": _EVENT}, BATCH: {"schema": {"type": "array", "items": _EVENT}}},
        },
        "responses": {
            "202": {
                "description": "Taken in.",
                "content": {
                    "application/json": {
                        "schema": {
                            "anyOf": [
                                {"$ref": _REF.format(model=Accepted.__name__)},
                                {"$ref": _REF.format(model=AcceptedBatch.__name__)},
                            ]
                        }
                    }
                },
            },
            **_problems(),
        },
    }


def _handshake() -> dict[str, Any]:
    return {
        "operationId": "askToSendEvents",
        "summary": "The handshake of CloudEvents webhooks",
        "security": [],
        "responses": {"200": {"description": "Send them."}},
    }
