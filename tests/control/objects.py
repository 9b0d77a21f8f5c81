"""Objects of the API as tests make them: valid, and named only in what a test is about."""

import uuid
from typing import Any

from tests.controlplane.plane import ControlPlane

RUNS = "workflowruns"
ENGINES = "workflowengines"


def path_of(namespace: str, resource: str = RUNS, name: str = "", sub: str = "") -> str:
    """The path of a collection, an object or a subresource of ours."""
    parts = ["/apis/romancy.dev/v1alpha1/namespaces", namespace, resource, name, sub]
    return "/".join(part for part in parts if part)


def a_run(name: str = "", **spec: Any) -> dict[str, Any]:
    """A WorkflowRun of workflow w, as a user writes it."""
    return {
        "apiVersion": "romancy.dev/v1alpha1",
        "kind": "WorkflowRun",
        "metadata": {"name": name or f"r-{uuid.uuid4().hex[:8]}"},
        "spec": {"workflow": "w", **spec},
    }


def create(plane: ControlPlane, namespace: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST; returns the object with its uid."""
    created: dict[str, Any] = plane.call("POST", path_of(namespace), body)
    return created


def read(plane: ControlPlane, namespace: str, name: str) -> dict[str, Any]:
    """GET of a run."""
    found: dict[str, Any] = plane.call("GET", path_of(namespace, name=name))
    return found


def change(plane: ControlPlane, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    """A merge patch of the spec; None takes a field away."""
    changed: dict[str, Any] = plane.call("PATCH", path_of(namespace, name=name), {"spec": spec})
    return changed


def delete(plane: ControlPlane, namespace: str, name: str) -> None:
    """DELETE of a run."""
    plane.call("DELETE", path_of(namespace, name=name))


def condition(thing: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of an object's status; empty if there is none of that type."""
    conditions = thing.get("status", {}).get("conditions", [])
    return next((each for each in conditions if each["type"] == kind), {})


def engine_where(plane: ControlPlane, namespace: str, kind: str, status: str) -> dict[str, Any]:
    """The WorkflowEngine, if a condition of it has this status."""
    path = path_of(namespace, ENGINES, "romancy")
    if not plane.answers(path):
        return {}
    engine: dict[str, Any] = plane.call("GET", path)
    return engine if condition(engine, kind).get("status") == status else {}
