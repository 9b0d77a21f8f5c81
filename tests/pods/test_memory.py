"""What an operator's pod holds in memory: idle, leading, and with 5,000 WorkflowRuns on the cluster."""

import json

import pytest

from tests.pods.conftest import Release

pytestmark = [pytest.mark.pods, pytest.mark.timeout(900)]

RUNS = 5000
AT_ONCE = 500
LIMIT_MIB = 512  # of the chart


def resident_mib(release: Release, pod: str) -> float:
    text = release.kubectl("exec", pod, "--", "python", "-c", "print(open('/proc/1/status').read())")
    [line] = [line for line in text.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) / 1024


def test_memory_of_a_pod(release: Release) -> None:
    release.install(replicaCount="2")
    leader = release.leader()
    pods = {each["metadata"]["name"] for each in release.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]}
    [other] = pods - {leader}
    found = {"idle": resident_mib(release, other), "leading": resident_mib(release, leader)}

    for begin in range(0, RUNS, AT_ONCE):
        items = [
            {
                "apiVersion": "romancy.dev/v1alpha1",
                "kind": "WorkflowRun",
                "metadata": {"name": f"run-{number}"},
                "spec": {"workflow": "steps", "suspend": True, "input": {"run": "r", "count": 1, "seconds": 0.1}},
            }
            for number in range(begin, begin + AT_ONCE)
        ]
        release.kubectl("create", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    shown = ["select count(*) from romancy.mirror where mirrored > 0"]
    release.until(lambda: release.sql(*shown) == [str(RUNS)], "each has its status", seconds=300)
    found[f"leading, {RUNS:,} runs"] = resident_mib(release, leader)

    assert release.leader() == leader  # it was not killed for its memory
    for what, mib in found.items():
        print(f"memory of a pod, {what}: {mib:.0f} MiB resident")
    assert max(found.values()) < LIMIT_MIB / 2
