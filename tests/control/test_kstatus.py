"""What kstatus makes of our statuses: the library by which Flux and others tell whether an object is well."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from romancy.control import conditions
from romancy.control.conditions import Shown, of_run
from romancy.control.engine import Health, status_of
from romancy.model.run import Phase, Reason
from tests.control.conftest import Controlled, claimed, finish, status_where
from tests.control.objects import a_run as an_object
from tests.control.objects import create, read
from tests.control.test_conditions import a_run
from tests.control.test_engine import a_worker
from tests.controlplane.plane import ControlPlane
from tests.kstatus import compute
from tests.store.hands import Hands

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 1, 13, tzinfo=UTC)
OF_PHASE = {
    Phase.PENDING: "InProgress",
    Phase.RUNNING: "InProgress",
    Phase.WAITING: "InProgress",
    Phase.COMPENSATING: "InProgress",
    Phase.SUSPENDED: "Current",  # as its spec wants it
    Phase.BLOCKED: "Failed",
    Phase.SUCCEEDED: "Current",
    Phase.FAILED: "Failed",
    Phase.CANCELLED: "Current",  # as its spec wants it
}


def of(kind: str, status: dict[str, Any], generation: int = 2) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "shop", "generation": generation}
    return {"apiVersion": "romancy.dev/v1alpha1", "kind": kind, "metadata": metadata, "status": status}


def shown(phase: Phase, **changes: Any) -> dict[str, Any]:
    return of("WorkflowRun", of_run(a_run(phase, **changes), Shown(engine="romancy", generation=2), now=NOW))


@pytest.mark.kube
def test_runs_in_every_phase() -> None:
    assert dict(zip(OF_PHASE, compute([shown(phase) for phase in OF_PHASE]), strict=True)) == OF_PHASE
    assert set(OF_PHASE) == set(Phase)


@pytest.mark.kube
def test_argo_cd_s_script_says_what_the_page_says(tmp_path: Path) -> None:
    """docs/operate/gitops.md: the script, and the table beside it."""
    page = (ROOT / "docs/operate/gitops.md").read_text()
    [script] = re.findall(r"```lua\n(.*?)```", page, re.DOTALL)
    (tmp_path / "health.lua").write_text(script)
    new = of("WorkflowRun", {"observedGeneration": -1}, generation=1)
    bare = {key: value for key, value in new.items() if key != "status"}
    away = conditions.store_away(engine="r", generation=2, message="m", now=NOW)
    objects = [*(shown(phase) for phase in OF_PHASE), new, bare, of("WorkflowRun", away)]

    argo = {"InProgress": "Progressing", "Current": "Healthy", "Failed": "Degraded"}
    expected = {phase: argo[word] for phase, word in OF_PHASE.items()} | {Phase.SUSPENDED: "Suspended"}
    found = compute(objects, script=tmp_path / "health.lua")

    assert dict(zip(OF_PHASE, found, strict=False)) == expected
    assert found[len(OF_PHASE) :] == ["Progressing", "Progressing", "Degraded"]
    rows = {
        name: row
        for row in re.findall(r"^\| (.+?) \| (\w+) \| (\w+) \|$", page, re.MULTILINE)
        for name in row[0].split(", ")
    }
    for phase, word in OF_PHASE.items():
        assert rows[phase.value][1:] == (word, expected[phase])


@pytest.mark.kube
def test_what_is_not_the_phase_s_to_say() -> None:
    unknown = shown(Phase.PENDING, reason=Reason.WORKFLOW_NOT_REGISTERED)
    refused = of("WorkflowRun", conditions.refused(engine="r", generation=2, reason="TooLarge", message="m", now=NOW))
    lost = of("WorkflowRun", conditions.lost(engine="r", generation=2, now=NOW))
    changed = {**shown(Phase.SUCCEEDED), "metadata": {"name": "x", "namespace": "shop", "generation": 3}}

    assert compute([unknown, refused, lost, changed]) == ["Failed", "Failed", "Failed", "InProgress"]


@pytest.mark.kube
def test_the_engine() -> None:
    healths = {
        "Current": Health("pod-1", (a_worker(),)),
        "InProgress": Health("pod-1"),  # no worker: pods start
        "Failed": Health("pod-1", (a_worker(),), unwatched={"workflowruns": "forbidden"}),
    }
    away = Health("pod-1", store_error="no answer")

    objects = [of("WorkflowEngine", status_of(each, {}, generation=2, now=NOW)) for each in [*healths.values(), away]]

    assert compute(objects) == [*healths, "InProgress"]


@pytest.mark.kube
def test_an_object_is_not_well_before_anybody_has_seen_it(cluster: ControlPlane, namespace: str) -> None:
    create(cluster, namespace, an_object("order"))

    assert compute([read(cluster, namespace, "order")]) == ["InProgress"]


@pytest.mark.kube
async def test_a_run_from_its_object_to_its_end(
    cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, an_object("order"))
    claim = await claimed(hands)
    running = await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")
    await finish(hands, claim)
    done = await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Succeeded", "it ended")

    assert compute([running, done]) == ["InProgress", "Current"]
