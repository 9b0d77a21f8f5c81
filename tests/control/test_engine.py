"""The WorkflowEngine, and the burial of workers that are gone."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from romancy.control.engine import Health, status_of
from romancy.control.pods import is_gone as pod_is_gone
from romancy.control.resources import WorkflowEngineStatus
from romancy.model.run import Form
from romancy.model.worker import WorkerRow
from romancy.store.interface import Backlog
from romancy.store.postgres import PostgresStore
from tests.control.conftest import Controlled, claimed, eventually, status_where
from tests.control.objects import ENGINES, a_run, condition, create, engine_where, path_of
from tests.controlplane.plane import ApiError, ControlPlane, wait_until
from tests.store.hands import Hands

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
LATER = datetime(2026, 1, 1, 13, tzinfo=UTC)


def a_worker(**changes: Any) -> WorkerRow:
    worker = WorkerRow(
        id=1,
        name="worker-1",
        pod_uid="",
        namespace="shop",
        workflows=("w",),
        build_id="",
        python="3.13",
        started_at=NOW,
        expires_at=LATER,
        is_expired=False,
        is_draining=False,
        runs=0,
    )
    return replace(worker, **changes)


def conditions_of(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def test_a_healthy_engine() -> None:
    workers = (a_worker(), a_worker(id=2, workflows=("v", "w")), a_worker(id=3, workflows=("x",), is_expired=True))
    backlog = Backlog(due=3, held=2, open=9, blocked=1, oldest_due_seconds=75)

    status = status_of(Health("pod-1", workers, backlog), {}, generation=1, now=NOW)

    assert (status["leader"], status["workers"], status["workflows"]) == ("pod-1", 2, ["v", "w"])
    assert status["backlog"] == {"due": 3, "held": 2, "open": 9, "blocked": 1, "oldestDue": "1m15s"}
    assert conditions_of(status) == {
        "Ready": ("True", "Ready"),
        "StoreAvailable": ("True", "Available"),
        "Watching": ("True", "Watching"),
        "Mirroring": ("True", "Mirroring"),
        "CodeFits": ("False", "Blocked"),
        "RunsOfOthers": ("False", "None"),
        "Reconciling": ("False", "Ready"),
        "Stalled": ("False", "Ready"),
    }
    WorkflowEngineStatus.model_validate(status)


def test_what_is_wrong_is_said() -> None:
    healthy = status_of(Health("pod-1", (a_worker(),)), {}, generation=1, now=NOW)

    no_workers = status_of(Health("pod-1"), healthy, generation=1, now=LATER)
    away = status_of(Health("pod-1", store_error="no answer"), healthy, generation=1, now=LATER)
    blind = status_of(
        Health("pod-1", (a_worker(),), unwatched={"workflowruns": "forbidden"}), healthy, generation=1, now=LATER
    )
    half_blind = status_of(Health("pod-1", (a_worker(),), unwatched={"pods": "no"}), healthy, generation=1, now=LATER)
    shared = status_of(Health("pod-1", (a_worker(),), foreign={uuid4(): "b"}), healthy, generation=1, now=LATER)

    assert conditions_of(no_workers)["Ready"] == ("False", "NoWorkers")
    assert conditions_of(away)["Ready"] == ("False", "StoreUnavailable")
    assert conditions_of(away)["StoreAvailable"] == ("False", "StoreUnavailable")
    assert away["workers"] == 1  # nothing newer is known
    assert conditions_of(blind)["Ready"] == ("False", "NotWatching")
    assert conditions_of(half_blind)["Ready"] == ("True", "Ready")
    assert conditions_of(half_blind)["Watching"] == ("False", "NotWatching")
    assert conditions_of(shared)["RunsOfOthers"] == ("True", "OtherEngine")
    for status in (no_workers, away, blind, half_blind, shared):
        WorkflowEngineStatus.model_validate(status)


def test_a_condition_keeps_its_time_until_it_changes() -> None:
    first = status_of(Health("pod-1", (a_worker(),)), {}, generation=1, now=NOW)
    second = status_of(Health("pod-2"), first, generation=1, now=LATER)

    times = {each["type"]: each["lastTransitionTime"] for each in second["conditions"]}
    assert times["StoreAvailable"] == "2026-01-01T12:00:00Z"
    assert times["Ready"] == "2026-01-01T13:00:00Z"


@pytest.mark.parametrize(
    ("event", "phase", "expected"),
    [
        ("DELETED", "Running", True),
        ("MODIFIED", "Failed", True),
        ("MODIFIED", "Succeeded", True),
        (None, "Failed", True),  # listed at the start
        ("MODIFIED", "Running", False),
        ("ADDED", "Pending", False),
        (None, "", False),
    ],
)
def test_a_pod_is_gone_when_nothing_of_it_runs(event: str | None, phase: str, expected: bool) -> None:
    assert pod_is_gone(event, {"status": {"phase": phase}} if phase else {}) is expected


@pytest.mark.kube
class TestForReal:
    async def test_the_engine_is_shown_and_made_again(
        self, cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
    ) -> None:
        first = await self._ready(cluster, namespace)

        cluster.call("DELETE", path_of(namespace, ENGINES, "romancy"))
        second = await eventually(lambda: self._other(cluster, namespace, first), "it is made again", seconds=4)

        assert first["status"]["workers"] == 1
        assert first["status"]["workflows"] == ["w"]
        assert first["status"]["leader"] == "pod-1"
        assert condition(first, "Watching")["status"] == "True"
        for thing in (first, second):
            assert "finalizers" not in thing["metadata"]
            assert "annotations" not in thing["metadata"]

    async def test_a_worker_that_gives_no_sign_is_buried_by_the_timer(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, control: Controlled
    ) -> None:
        await eventually(lambda: cluster.answers(path_of(namespace, ENGINES, "romancy")), "the timer's object is there")
        dead = await Hands.of(store, name="dead", workflows={"w": Form.WHOLE}, ttl_seconds=1)
        create(cluster, namespace, a_run("order"))
        lost = await claimed(dead)
        heir = await Hands.of(store, name="heir", workflows={"w": Form.WHOLE})

        found = await eventually(heir.claim, "the run is free", seconds=5)

        assert [claim.run_id for claim in found] == [lost.run_id]
        assert found[0].number == lost.number + 1
        assert [worker.name for worker in await store.list_workers()] == ["heir"]
        await asyncio.gather(dead.journal.close(), heir.journal.close(), return_exceptions=True)

    async def test_the_last_that_had_a_workflow_is_buried_and_its_runs_are_stalled(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
    ) -> None:
        """Soon after the burial, and not with one of the regular looks: the first of those is over."""
        await self._ready(cluster, namespace)
        only = await self._worker_in_a_pod(cluster, namespace, store, "only", workflow="v")
        create(cluster, namespace, a_run("order", workflow="v"))
        await claimed(only)

        cluster.call("DELETE", f"/api/v1/namespaces/{namespace}/pods/only", {"gracePeriodSeconds": 0})

        await status_where(
            cluster,
            namespace,
            "order",
            lambda status: status.get("reason") == "WorkflowNotRegistered",
            "it is stalled",
            seconds=4,
        )
        await asyncio.gather(only.journal.close(), return_exceptions=True)

    async def test_a_deleted_pod_buries_its_worker_at_once(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, control: Controlled
    ) -> None:
        """Its lease would have lasted ten minutes."""
        deleted = await self._worker_in_a_pod(cluster, namespace, store, "deleted")
        failed = await self._worker_in_a_pod(cluster, namespace, store, "failed")
        await self._worker_in_a_pod(cluster, namespace, store, "alive")
        create(cluster, namespace, a_run("order"))
        lost = await claimed(deleted)

        path = f"/api/v1/namespaces/{namespace}/pods"
        cluster.call("DELETE", f"{path}/deleted", {"gracePeriodSeconds": 0})
        cluster.call("PATCH", f"{path}/failed/status", {"status": {"phase": "Failed"}})
        await eventually(lambda: self._names(store, ["alive"]), "both are buried", seconds=2)
        heir = await Hands.of(store, name="heir", workflows={"w": Form.WHOLE})

        assert [claim.run_id for claim in await heir.claim()] == [lost.run_id]
        await asyncio.gather(*(each.journal.close() for each in (deleted, failed, heir)), return_exceptions=True)

    async def test_a_missing_definition_is_waited_for(
        self,
        cluster: ControlPlane,
        namespace: str,
        hands: Hands,
        start_control: Callable[..., Awaitable[Controlled]],
    ) -> None:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        definition = cluster.call("GET", f"{path}/workflowruns.romancy.dev")
        cluster.call("DELETE", f"{path}/workflowruns.romancy.dev")
        try:
            await eventually(lambda: not cluster.answers(path_of(namespace)), "it is not served")
            await start_control()
            blind = await eventually(lambda: engine_where(cluster, namespace, "Watching", "False"), "it is said")
        finally:
            new = {
                **{name: definition[name] for name in ("apiVersion", "kind", "spec")},
                "metadata": {"name": definition["metadata"]["name"]},
            }
            await asyncio.to_thread(wait_until, lambda: self._is_made(cluster, path, new), "it is made again")
            await eventually(lambda: cluster.answers(path_of(namespace)), "it is served")

        create(cluster, namespace, a_run("order"))
        await claimed(hands)
        await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")

        assert "workflowruns: its definition is not installed" in condition(blind, "Watching")["message"]

    async def _ready(self, cluster: ControlPlane, namespace: str) -> dict[str, Any]:
        found: dict[str, Any] = await eventually(
            lambda: engine_where(cluster, namespace, "Ready", "True"), "it is ready"
        )
        return found

    def _other(self, cluster: ControlPlane, namespace: str, first: dict[str, Any]) -> dict[str, Any]:
        found = engine_where(cluster, namespace, "Ready", "True")
        return found if found and found["metadata"]["uid"] != first["metadata"]["uid"] else {}

    def _is_made(self, cluster: ControlPlane, path: str, definition: dict[str, Any]) -> bool:
        try:
            cluster.call("POST", path, definition)
        except ApiError as error:
            if error.code != 409:  # else the old one is still being deleted
                raise
            return False
        return True

    async def _worker_in_a_pod(
        self, cluster: ControlPlane, namespace: str, store: PostgresStore, name: str, *, workflow: str = "w"
    ) -> Hands:
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts/default"
        await eventually(lambda: cluster.answers(accounts), "pods may be made")
        pod = {
            "metadata": {"name": name, "labels": {"romancy.dev/worker": "true"}},
            "spec": {"containers": [{"name": "romancy", "image": "none"}]},
        }
        made = cluster.call("POST", f"/api/v1/namespaces/{namespace}/pods", pod)
        return await Hands.of(store, name=name, workflows={workflow: Form.WHOLE}, pod_uid=made["metadata"]["uid"])

    async def _names(self, store: PostgresStore, names: list[str]) -> bool:
        return [worker.name for worker in await store.list_workers()] == names
