"""A thousand WorkflowRuns applied at once, with three operators."""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.chaos.fleet import Fleet
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube, pytest.mark.timeout(300)]

RUNS = 1000


async def test_a_thousand_runs_at_once(engine: Fleet, kube: Kubernetes) -> None:
    """All succeed, each activity runs once, and a run costs at most 1.1 status writes."""
    rate = {"ROMANCY_CONTROL__STATUS_WRITES_PER_SECOND": "200"}
    for name in ("a", "b", "c"):
        await engine.start(name, **rate)

    def apply(number: int) -> None:
        kube.apply(f"parcel-{number}", "send_parcel", input={"to": f"house {number}", "grams": number})

    with ThreadPoolExecutor(8) as pool:
        await asyncio.to_thread(lambda: list(pool.map(apply, range(RUNS))))

    def phases() -> Counter[str]:
        items = kube.plane.call("GET", kube.path)["items"]
        return Counter(item.get("status", {}).get("phase", "none") for item in items)

    async def all_ended() -> bool:
        return (await asyncio.to_thread(phases))["Succeeded"] == RUNS

    await engine.until(all_ended, "all have succeeded", seconds=120)

    assert sorted(engine.log()) == sorted(f"stamp house {number}" for number in range(RUNS))
    writes = kube.plane.requests_of("romancy/", "patch", "workflowruns/status", kube.namespace)
    assert RUNS <= len(writes) <= 1.1 * RUNS
    lines = (engine.folder / "log").read_text().splitlines()
    shares = Counter(line.partition(" pid=")[2] for line in lines)
    assert len(shares) > 1, f"one process did it all: {json.dumps(shares)}"


async def test_five_hundred_failures_at_once(engine: Fleet, kube: Kubernetes) -> None:
    """Events have a rate of their own: the statuses neither wait for them nor cost one write more."""
    count = 500
    await engine.start("a", ROMANCY_CONTROL__STATUS_WRITES_PER_SECOND="200")
    await engine.until(lambda: kube.condition("Ready").get("status") == "True", "it is ready")
    began_at = asyncio.get_running_loop().time()
    await kube.apply_all([(f"lost-{number}", "raises", {"to": f"house {number}"}) for number in range(count)])
    await engine.until(lambda: not kube.has_others_than("Failed"), "all are shown", seconds=60)
    shown = asyncio.get_running_loop().time() - began_at
    told = kube.plane.requests_of("romancy/", "create", "events", kube.namespace)
    writes = kube.status_writes()
    events = kube.plane.call("GET", f"/apis/events.k8s.io/v1/namespaces/{kube.namespace}/events")["items"]
    of_runs = Counter(each["regarding"]["name"] for each in events if each["regarding"]["kind"] == "WorkflowRun")
    print(f"{count} failures shown within {shown:.1f} s by {len(writes)} writes; {len(told)} Events written by then")

    assert count <= len(writes) <= 1.1 * count
    assert 0 < len(told) <= 10 * (shown + 2) + 10
    assert set(of_runs.values()) == {1}
    assert {each["reason"] for each in events if each["regarding"]["kind"] == "WorkflowRun"} == {"WorkflowFailed"}
    assert engine.processes["a"].log.read_text().count('"kubernetes_events_dropped"') <= 1
