"""WorkflowRuns of one namespace, as users make and read them."""

import asyncio
import json
import ssl
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp

from tests.controlplane.plane import ApiError, ControlPlane, Request


class Kubernetes:
    """Objects of one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane, self.namespace = plane, namespace
        group = f"/apis/romancy.dev/v1alpha1/namespaces/{namespace}"
        self.path, self.engine_path = f"{group}/workflowruns", f"{group}/workflowengines/romancy"
        self.lease_path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/romancy"

    def apply(self, name: str, workflow: str, **spec: Any) -> str:
        """Create a run. Returns its uid."""
        body = {
            "apiVersion": "romancy.dev/v1alpha1",
            "kind": "WorkflowRun",
            "metadata": {"name": name},
            "spec": {"workflow": workflow, **spec},
        }
        uid: str = self.plane.call("POST", self.path, body)["metadata"]["uid"]
        return uid

    def delete(self, name: str) -> None:
        self.plane.call("DELETE", f"{self.path}/{name}")

    def change(self, name: str, **spec: Any) -> None:
        self.plane.call("PATCH", f"{self.path}/{name}", {"spec": spec})

    def phases(self) -> Counter[str]:
        """How many runs are shown in which phase."""
        items = self.plane.call("GET", self.path)["items"]
        return Counter(item.get("status", {}).get("phase", "none") for item in items)

    def has_others_than(self, *phases: str) -> bool:
        """Whether a run is shown in no phase or in another one; cheap among thousands."""
        selector = ",".join(f"status.phase!={phase}" for phase in phases)
        return bool(self.plane.call("GET", f"{self.path}?limit=1&fieldSelector={selector}")["items"])

    async def apply_all(self, runs: Sequence[tuple[str, str, dict[str, Any]]], *, at_once: int = 16) -> None:
        """Create many runs (name, workflow, input), on connections that are kept open."""
        context = ssl.create_default_context(cafile=self.plane.ca_file)
        pki = self.plane.directory / "pki"
        context.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        waiting = iter(runs)

        async def apply(session: aiohttp.ClientSession) -> None:
            for name, workflow, given in waiting:
                body = {
                    "apiVersion": "romancy.dev/v1alpha1",
                    "kind": "WorkflowRun",
                    "metadata": {"name": name},
                    "spec": {"workflow": workflow, "input": given},
                }
                async with session.post(self.path, json=body) as answer:
                    assert answer.status == 201, await answer.text()

        connector = aiohttp.TCPConnector(ssl=context, limit=at_once)
        async with aiohttp.ClientSession(self.plane.server, connector=connector) as session:
            await asyncio.gather(*(apply(session) for _ in range(at_once)))
            await connector.close(abort_ssl=True)

    def status_writes(self) -> list[Request]:
        """Of runs, by whatever leader."""
        return self.plane.requests_of("romancy/", "patch", "workflowruns/status", self.namespace)

    async def status(
        self, name: str, holds: Callable[[dict[str, Any]], bool], what: str, *, seconds: float = 20
    ) -> dict[str, Any]:
        """The status of a run, once it is so."""
        end = time.monotonic() + seconds
        while True:
            status: dict[str, Any] = self.plane.call("GET", f"{self.path}/{name}").get("status", {})
            if "phase" in status and holds(status):
                return status
            assert time.monotonic() < end, f"{name}: never {what}: {json.dumps(status)}"
            await asyncio.sleep(0.05)

    async def end(self, name: str) -> dict[str, Any]:
        return await self.status(name, lambda status: "completionTime" in status, "at an end")

    def engine(self) -> dict[str, Any]:
        """The WorkflowEngine; empty while there is none."""
        try:
            found: dict[str, Any] = self.plane.call("GET", self.engine_path)
        except ApiError as error:
            if error.code == 404:
                return {}
            raise
        return found

    def condition(self, kind: str) -> dict[str, Any]:
        """A condition of the WorkflowEngine; empty if it is not there."""
        conditions = self.engine().get("status", {}).get("conditions", [])
        return next((each for each in conditions if each["type"] == kind), {})

    def leader(self) -> str:
        """The name of the process that holds the Lease; "" if nobody does."""
        try:
            holder: str = self.plane.call("GET", self.lease_path)["spec"].get("holderIdentity") or ""
        except ApiError as error:
            if error.code == 404:
                return ""
            raise
        return holder.partition("/")[0]
