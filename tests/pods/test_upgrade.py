"""From the chart before to this one, and back, while runs are under way.

The image is the same: what is upgraded is what belongs to the cluster (definitions, rights, Deployment, values). That code of two
builds works side by side shows tests/e2e/test_rollouts.py; that a migration waits for nobody, tests/store/test_migrate.py.
"""

from collections import Counter
from pathlib import Path

import pytest

from tests.docs.test_operate import commands, run, tools
from tests.pods.conftest import CHART, DEFINITIONS, Release
from tests.pods.database import OWN

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]

PREVIOUS = Path(__file__).parent / "previous/romancy"
RUNS, STEPS = 6, 60


def test_runs_go_on_through_an_upgrade_and_a_rollback(database: Release, tmp_path: Path) -> None:
    release = database  # the demo database has no volume: an upgrade that changes its pod takes all runs with it
    # Those of this chart may be there from another test; a release owns its definitions.
    release.pods.kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found", "--timeout=60s")
    release.install(chart=PREVIOUS, **OWN)
    for number in range(RUNS):
        release.apply(f"run-{number}", "steps", run=f"run-{number}", count=STEPS, seconds=0.5)
    release.until(lambda: len(release.effects()) >= RUNS, "they run")
    assert "versions" not in release.get("workflowengine", "romancy")["status"]  # the definition does not know it

    # As docs/operate/upgrade.md says, in this test's namespace.
    upgrade, wait, test, rollback = commands("upgrade", fence="shell needs=cluster")
    environment = tools(tmp_path, release.pods.kubeconfig)

    def do(line: str) -> None:
        print(run(line.replace("-n romancy", f"-n {release.namespace}"), environment, CHART.parents[1]))

    for line in (upgrade, wait, test):
        do(line)
    new_pods = {
        each["metadata"]["name"] for each in release.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
    }
    release.until(
        lambda: release.get("workflowengine", "romancy")["status"].get("versions"),
        "the new definition's field is written",
    )
    for number in range(RUNS):
        status = release.end(f"run-{number}")
        assert (status["phase"], status.get("output")) == ("Succeeded", STEPS), status
    worked = set(release.sql("select distinct pod from public.effect"))
    assert worked & new_pods
    assert worked - new_pods
    assert Counter(release.effects()) == {f"run-{number} {step}": 1 for number in range(RUNS) for step in range(STEPS)}

    do(rollback)
    release.apply("after", "steps", run="after", count=1, seconds=0.1)
    assert release.end("after")["output"] == 1
