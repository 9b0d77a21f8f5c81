"""WorkflowRuns of one namespace, as users make and read them."""

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from tests.controlplane.plane import ControlPlane


class Kubernetes:
    """Objects of one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        self.path = f"/apis/romancy.dev/v1alpha1/namespaces/{namespace}/workflowruns"

    def apply(self, name: str, workflow: str, **spec: Any) -> None:
        body = {
            "apiVersion": "romancy.dev/v1alpha1",
            "kind": "WorkflowRun",
            "metadata": {"name": name},
            "spec": {"workflow": workflow, **spec},
        }
        self.plane.call("POST", self.path, body)

    async def status(
        self, name: str, holds: Callable[[dict[str, Any]], bool], what: str, *, seconds: float = 20
    ) -> dict[str, Any]:
        """The status of a run, once it is so."""
        end = time.monotonic() + seconds
        while True:
            status: dict[str, Any] = self.plane.call("GET", f"{self.path}/{name}").get("status", {})
            if status and holds(status):
                return status
            assert time.monotonic() < end, f"{name}: never {what}: {json.dumps(status)}"
            await asyncio.sleep(0.05)

    async def end(self, name: str) -> dict[str, Any]:
        return await self.status(name, lambda status: "completionTime" in status, "at an end")

    def leader(self) -> str:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/romancy"
        holder: str = self.plane.call("GET", path)["spec"].get("holderIdentity") or ""
        return holder.partition("/")[0]
