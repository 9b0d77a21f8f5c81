"""What scanners of others say of the chart and of the Dockerfile: nothing but what docs/operate/secure.md gives a reason for.

kubeconform is not among them: it takes its schemas from a web site. The API server itself validates each object strictly
(test_chart.py), with the definitions' own rules, which no schema file knows.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.conftest import CHART
from tests.helm import helm
from tests.kubescore import kube_score

ROOT = CHART.parents[1]
PAGE = (ROOT / "docs/operate/secure.md").read_text()

EVERYWHERE = {"container-resources", "container-image-pull-policy"}
INSTALLED = {
    "Deployment/romancy": {*EVERYWHERE, "deployment-has-host-podantiaffinity"},
    "Pod/romancy-test": {*EVERYWHERE, "pod-networkpolicy"},
}
DEMO = {
    "Deployment/romancy": {*INSTALLED["Deployment/romancy"], "pod-networkpolicy"},
    "Pod/romancy-test": INSTALLED["Pod/romancy-test"],
    "StatefulSet/romancy-demo-postgres": {
        *EVERYWHERE,
        "pod-networkpolicy",
        "pod-probes",
        "container-ephemeral-storage-request-and-limit",
        "container-security-context-user-group-id",
        "statefulset-has-poddisruptionbudget",
        "statefulset-has-host-podantiaffinity",
        "statefulset-has-servicename",
    },
}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (("database.existingSecret=db", "networkPolicy.enabled=true"), INSTALLED),
        (("demo.enabled=true",), DEMO),
    ],
)
def test_kube_score(values: tuple[str, ...], expected: dict[str, set[str]]) -> None:
    command = [str(helm()), "template", "romancy", str(CHART), "-n", "romancy"]
    rendered = subprocess.run(
        [*command, *(part for value in values for part in ("--set", value))], capture_output=True, check=True
    ).stdout
    # It ends with 1 for findings, which are compared here.
    scored = subprocess.run(
        [str(kube_score()), "score", "--output-format", "json", "-"], input=rendered, capture_output=True, check=False
    )
    found: dict[str, set[str]] = {}
    for thing in json.loads(scored.stdout):
        kind, name = thing["object_name"].partition("/")[0], thing["object_name"].rpartition("/")[2]
        ids = {check["check"]["id"] for check in thing["checks"] if check["grade"] < 10 and not check["skipped"]}
        if ids:
            found.setdefault(f"{kind}/{name}", set()).update(ids)

    assert found == expected
    assert [each for ids in expected.values() for each in ids if f"`{each}`" not in PAGE] == []


def test_hadolint() -> None:
    linted = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), "--no-color", "--format", "json", str(ROOT / "Dockerfile")],
        capture_output=True,
        check=False,
    )
    found = {each["code"] for each in json.loads(linted.stdout)}

    assert found == {"DL3008"}
    assert "`DL3008`" in PAGE
