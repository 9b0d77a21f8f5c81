"""Installed by Helm on real pods: the first run, pods that are deleted, roll-outs, scaling, and what is left at the end."""

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.test_operate import run, tools
from tests.pods import images
from tests.pods.conftest import DEFINITIONS, Release
from tests.pods.images import ROOT

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]

STEPS = 12


def shown(heading: str) -> list[str]:
    """The README's commands under that heading."""
    text = (ROOT / "README.md").read_text()
    [section] = re.findall(rf"^#+ {heading}\n(.*?)(?:^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return [line.removeprefix("$ ") for line in section.splitlines() if line.startswith("$ ")]


def test_from_nothing_to_a_run_that_succeeded(release: Release, tmp_path: Path) -> None:
    """By the README's commands, in under a minute; uninstalled, it leaves only what is documented: definitions and runs."""
    make, install, apply = shown("In a cluster")
    apply_again, wait, get = shown("Romancy for Kubernetes")
    assert tuple(make.partition("#")[0].split()) == images.MAKE  # what the cluster has was made by it
    release.pods.kubectl(
        "delete", "crd", *DEFINITIONS, "--ignore-not-found", "--timeout=60s"
    )  # of another test's release
    environment = tools(tmp_path, release.pods.kubeconfig)

    def do(line: str) -> str:
        return run(line.replace("-n romancy", f"-n {release.namespace}"), environment, ROOT)

    began = time.monotonic()
    do(install)
    do(apply)
    do(f"{wait} -n {release.namespace}")
    took = time.monotonic() - began

    print(f"helm install to the first Succeeded run: {took:.1f} s")
    assert took < 60
    assert "unchanged" in do(f"{apply_again} -n {release.namespace}")
    heads, row = do(f"{get} -n {release.namespace}").splitlines()
    assert heads.split() == ["NAME", "WORKFLOW", "STATUS", "STARTED", "DURATION", "AGE"]
    assert row.split()[:3] == ["onboarding-1", "user_onboarding", "Succeeded"]
    assert release.status("onboarding-1")["output"] == {"status": "onboarded", "user_id": "user-1", "email_sent": True}
    [engine] = release.get("workflowengines")["items"]
    assert engine["status"]["workers"]
    # Without --logs: Helm reads them after it has deleted the pod that succeeded. One that failed is kept.
    assert "Phase:          Succeeded" in release.helm("test", "romancy", "--timeout", "90s")

    release.helm("uninstall", "romancy", "--wait", "--timeout", "60s")
    kinds = "deploy,sts,svc,pdb,role,rolebinding,sa,secret,configmap,netpol"
    left = {f"{each['kind']}/{each['metadata']['name']}" for each in release.get(kinds)["items"]}
    assert left == {"ServiceAccount/default", "ConfigMap/kube-root-ca.crt"}
    assert [each["metadata"]["name"] for each in release.get("wfr")["items"]] == ["onboarding-1"]
    release.pods.kubectl("get", "crd", *DEFINITIONS)


def test_the_pod_of_a_run_is_deleted_then_the_leader(release: Release) -> None:
    """The run goes on elsewhere, and what was finished is not done again."""
    release.install()
    release.apply("long", "steps", run="long", count=STEPS, seconds=0.5)
    release.until(lambda: len(release.effects()) >= 2, "two steps are done")

    holder = release.status("long")["worker"]
    deleted_at = time.monotonic()
    release.kubectl("delete", "pod", holder, "--wait=false", "--grace-period=0", "--force")
    others = f"select count(*) from public.effect where pod <> '{holder}'"
    release.until(lambda: release.sql(others) != ["0"], "it goes on elsewhere")
    print(f"pod deleted without grace: the next step had ended after {time.monotonic() - deleted_at:.1f} s")

    leader = release.leader()
    deleted_at = time.monotonic()
    release.kubectl("delete", "pod", leader, "--wait=false")
    release.until(lambda: release.leader() not in {"", leader}, "another leads")
    print(f"leader deleted: another led after {time.monotonic() - deleted_at:.1f} s")

    status = release.end("long")
    assert (status["phase"], status["output"]) == ("Succeeded", STEPS)
    times = Counter(release.effects())
    assert set(times) == {f"long {number}" for number in range(STEPS)}
    # A step that was interrupted may have had its effect before: at least once, and only those two.
    assert sorted(times.values())[:-2] == [1] * (STEPS - 2)
    assert max(times.values()) <= 2


def test_a_pod_that_is_told_to_end_hands_over(release: Release) -> None:
    """Within a second: what it runs ends and is saved, and another pod goes on."""
    release.install(replicaCount="2")
    release.apply("long", "steps", run="long", count=60, seconds=0.2)
    release.until(lambda: len(release.effects()) >= 3, "it runs")

    holder = release.status("long")["worker"]
    release.kubectl("delete", "pod", holder, "--wait=false")
    assert release.end("long")["output"] == 60

    assert Counter(release.effects()) == {f"long {step}": 1 for step in range(60)}
    [gap] = release.sql(
        f"select extract(epoch from min(at) filter (where pod <> '{holder}') - max(at) filter (where pod = '{holder}'))"
        " from public.effect"
    )
    print(f"SIGTERM: the next step, of 0.2 s, had ended {float(gap):.2f} s after the last one of the old pod")
    assert 0 < float(gap) < 1.2


def test_a_roll_out_under_load_and_scaling(release: Release) -> None:
    """Nothing is lost, nothing is done twice, no run stands still for long: a drained pod hands its runs over."""
    release.install(replicaCount="2")
    for number in range(10):
        release.apply(f"run-{number}", "steps", run=f"run-{number}", count=STEPS, seconds=0.5)
    release.until(lambda: len(release.effects()) >= 10, "they run")

    release.kubectl("rollout", "restart", "deployment/romancy")
    release.kubectl("rollout", "status", "deployment/romancy", f"--timeout={120}s")
    rolled_out = release.sql("select now()")[0]
    release.kubectl("scale", "deployment/romancy", "--replicas=4")
    release.kubectl("rollout", "status", "deployment/romancy", f"--timeout={120}s")
    release.kubectl("scale", "deployment/romancy", "--replicas=1")

    for number in range(10):
        status = release.end(f"run-{number}")
        assert (status["phase"], status["output"]) == ("Succeeded", STEPS), status
    times = Counter(release.effects())
    assert times == {f"run-{number} {step}": 1 for number in range(10) for step in range(STEPS)}
    per_run = "select at - lag(at) over (partition by split_part(what, ' ', 1) order by at) as gap from public.effect"
    query = f"select max(extract(epoch from gap)) from ({per_run} where at < '{rolled_out}') as gaps"
    [gap] = release.sql(query)
    print(f"rollout restart under load: a step of 0.5 s took {float(gap):.2f} s at most")
    assert float(gap) < 0.5 + 2
