"""Old and new code of one workflow side by side, in real processes: what the roll-out of code that does not fit looks like."""

import asyncio
import re
import signal
import subprocess
from typing import Any

import pytest

from tests.chaos.fleet import ROOT, Fleet
from tests.controlplane.plane import kubectl
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube, pytest.mark.timeout(120)]

RUNS = 4


def version(name: str) -> dict[str, str]:
    return {
        "ROMANCY_WORKFLOWS": "changing",
        "PYTHONPATH": f"{ROOT}/operator:{ROOT}:{ROOT / 'tests/e2e/versions' / name}",
    }


def versions(kube: Kubernetes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = kube.engine().get("status", {}).get("versions", [])
    return found


async def ask(kube: Kubernetes, *arguments: str) -> str:
    """kubectl, as who rolls out types it."""
    command = [*kubectl(), "--kubeconfig", str(kube.plane.kubeconfig), "-n", kube.namespace, *arguments]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


async def begin(engine: Fleet, kube: Kubernetes) -> None:
    """Runs that the old code has begun, and that wait."""
    await engine.start("old", **version("old"))
    for number in range(RUNS):
        kube.apply(f"changing-{number}", "changing")
    for number in range(RUNS):
        await kube.status(f"changing-{number}", lambda status: status["phase"] == "Waiting", "waiting")


async def test_runs_of_the_old_code_go_on_beside_the_new(engine: Fleet, kube: Kubernetes) -> None:
    """Whoever takes one: the new code blocks it, and the old takes it up at once."""
    await begin(engine, kube)
    await engine.start("new", **version("new"))
    await engine.until(lambda: len(versions(kube)) == 2, "both are shown")
    shown = versions(kube)
    ends = [await kube.end(f"changing-{number}") for number in range(RUNS)]

    assert [each["workers"] for each in shown] == [1, 1]
    assert len({each["build"] for each in shown}) == 2
    assert [(end["phase"], end["output"]) for end in ends] == [("Succeeded", 21)] * RUNS


async def test_a_finished_roll_out_names_the_runs_that_it_blocks_and_the_old_code_heals_them(
    engine: Fleet, kube: Kubernetes
) -> None:
    await begin(engine, kube)
    await engine.start("new", **version("new"))
    engine.processes["old"].signal(signal.SIGTERM)

    await ask(kube, "wait", "workflowengine/romancy", "--for=condition=CodeFits=false", "--timeout=30s")
    await engine.until(
        lambda: f"{RUNS} runs are Blocked" in kube.condition("CodeFits")["message"], "all are counted", seconds=20
    )
    message = kube.condition("CodeFits")["message"]
    line = await ask(kube, "get", "workflowengine", "-o", "wide")
    await engine.until(lambda: _is_told(kube, "changing-0"), "the run's Event is written")
    told = await ask(kube, "events", "--for", "wfr/changing-0")
    of_engine = await ask(kube, "describe", "workflowengine", "romancy")
    [left] = versions(kube)
    await engine.start("old again", **version("old"))
    await ask(kube, "wait", "workflowengine/romancy", "--for=condition=CodeFits", "--timeout=30s")
    ends = [await kube.end(f"changing-{number}") for number in range(RUNS)]
    await engine.until(lambda: len(versions(kube)) == 2, "both are shown")

    for number in range(RUNS):
        assert f"{kube.namespace}/changing-{number} (NonDeterminism)" in message
    assert "Nothing is lost" in message
    assert re.search(r"^romancy +True ", line, re.MULTILINE)
    assert "runs are Blocked" in line
    assert "NonDeterminism" in told
    assert "CodeFits is False" in of_engine
    assert left["build"] in line
    assert [(end["phase"], end["output"]) for end in ends] == [("Succeeded", 21)] * RUNS


def _is_told(kube: Kubernetes, name: str) -> bool:
    items = kube.plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{kube.namespace}/events")["items"]
    return any(each["regarding"]["name"] == name for each in items)
