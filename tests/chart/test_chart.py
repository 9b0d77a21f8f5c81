"""What the chart renders and refuses, the rights that it gives, and that a real API server takes all of it."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from romancy.base import settings
from tests.chart.conftest import CHART, DATABASE, Template
from tests.control.rights import EVENTS, PODS, RULES, WATCH_LEASE
from tests.controlplane import plane
from tests.controlplane.plane import ControlPlane

Run = Callable[..., subprocess.CompletedProcess[str]]
EVERYTHING = (
    *DATABASE,
    *("--set", "autoscaling.enabled=true", "--set", "networkPolicy.enabled=true"),
    *("--set", "database.tls.existingSecret=shop-ca", "--set", "settings.worker.slots=100"),
    *("--set", "sink.existingSecret=shop-sink", "--set", "sink.tls.existingSecret=shop-ca"),
    *("--set", "settings.outbox.sink_url=https://broker.example/shop"),
    *("--set", "metrics.dashboard.enabled=true"),
    *("--set", "scope.namespaces={one,two}", "--set", "podLabels.team=a", "--set", "commonLabels.owner=b"),
)
CLUSTER_WIDE = {"ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition"}


def find(objects: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [found] = [each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def rights(rules: list[dict[str, Any]]) -> set[tuple[str, str, str, str]]:
    return {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def test_lint_is_clean(run_helm: Run) -> None:
    done = run_helm("lint", "--strict", str(CHART), *DATABASE)

    assert done.returncode == 0, done.stdout
    assert "0 chart(s) failed" in done.stdout


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((), "give exactly one database, not 0"),
        ((*DATABASE, "--set", "demo.enabled=true"), "give exactly one database, not 2"),
        ((*DATABASE, "--set", "replicas=3"), "additional properties 'replicas' not allowed"),
        ((*DATABASE, "--set", "settings.worker.slotz=3"), "additional properties 'slotz' not allowed"),
        ((*DATABASE, "--set", "settings.worker.slots=0"), "minimum: got 0, want 1"),
        ((*DATABASE, "--set", "image.digest=latest"), "does not match pattern"),
        ((*DATABASE, "--set", "scope.clusterWide=true,scope.namespaces={a}"), "exclude each other"),
    ],
)
def test_what_is_wrong_is_refused_in_words(run_helm: Run, values: tuple[str, ...], said: str) -> None:
    done = run_helm("template", "shop", str(CHART), *values)

    assert done.returncode != 0
    assert said in done.stderr


def test_every_option_of_a_process_can_be_given(template: Template) -> None:
    """By the name that it has in the settings; the process refuses a name that it does not know."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    parts = schema["properties"]["settings"]["properties"]
    names = {f"ROMANCY_{part.upper()}__{name.upper()}" for part, each in parts.items() for name in each["properties"]}

    rendered = template(
        *DATABASE,
        "--set",
        "settings.worker.slots=100",
        "--set",
        "settings.log.level=DEBUG",
        "--set",
        "settings.worker.retry.max_attempts=3",
    )

    [container] = find(rendered, "Deployment", "shop-romancy")["spec"]["template"]["spec"]["containers"]
    given = {each["name"]: each.get("value") for each in container["env"]}
    assert (given["ROMANCY_WORKER__SLOTS"], given["ROMANCY_LOG__LEVEL"]) == ("100", "DEBUG")
    assert given["ROMANCY_WORKER__RETRY"] == '{"max_attempts":3}'
    known = set(settings.variables())
    assert names <= known
    assert set(given) <= known
    assert len(names) > 30


def test_the_rights_are_those_that_control_is_tested_with(template: Template) -> None:
    """tests/control/test_rights.py runs it with exactly these, and sees no refusal."""
    rendered = template()

    engine = find(rendered, "Role", "shop-romancy-engine")["rules"]
    runs = find(rendered, "Role", "shop-romancy-runs")["rules"]

    assert rights([*engine, *runs]) == rights([*RULES, PODS, WATCH_LEASE, EVENTS])
    [binding] = [each for each in rendered if each["kind"] == "ClusterRoleBinding"]
    assert binding["roleRef"]["name"] == "system:auth-delegator"  # tests/e2e/test_access.py uses it
    without = template(*DATABASE, "--set", "rbac.authDelegator=false")
    assert not [each for each in without if each["kind"] == "ClusterRoleBinding"]


def test_a_whole_cluster_needs_a_cluster_role_and_nothing_else(template: Template) -> None:
    rendered = template(*DATABASE, "--set", "scope.clusterWide=true")

    cluster = find(rendered, "ClusterRole", "here-shop-romancy-runs")["rules"]
    namespaced = find(rendered, "Role", "shop-romancy-engine")["rules"]

    assert rights([*cluster, *namespaced]) == rights([*RULES, PODS, WATCH_LEASE, EVENTS])
    assert {rule["resources"][0] for rule in cluster} == {"workflowruns", "workflowruns/status", "events"}
    [container] = find(rendered, "Deployment", "shop-romancy")["spec"]["template"]["spec"]["containers"]
    assert {"name": "ROMANCY_CONTROL__WATCH_NAMESPACES", "value": ""} in container["env"]


def test_definitions_are_those_of_the_project_and_kept(template: Template) -> None:
    rendered = {each["metadata"]["name"]: each for each in template() if each["kind"] == "CustomResourceDefinition"}

    for path in (CHART.parents[1] / "crds").glob("*.yaml"):
        [crd] = [each for each in yaml.safe_load_all(path.read_text()) if each]
        mine = rendered.pop(crd["metadata"]["name"])
        assert mine["spec"] == crd["spec"]
        assert mine["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not rendered


def test_the_password_of_the_database_is_in_its_secret_alone(template: Template) -> None:
    rendered = template("--set", "database.url=postgresql://u:hidden-word@db/shop")

    holding = [each["kind"] for each in rendered if "hidden-word" in json.dumps(each)]

    assert holding == ["Secret"]


@pytest.mark.kube
@pytest.mark.parametrize(
    "values", [DATABASE, EVERYTHING, ("--set", "demo.enabled=true")], ids=["least", "most", "demo"]
)
def test_a_namespace_that_restricts_its_pods_takes_all_of_it(
    cluster: ControlPlane, namespace: str, template: Template, tmp_path: Path, values: tuple[str, ...]
) -> None:
    """The pods too, which a Deployment only warns of: each template is sent as a pod of its own."""
    labels = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    cluster.call("PATCH", f"/api/v1/namespaces/{namespace}", labels, kind="application/merge-patch+json")
    objects = template(*values, namespace=namespace)
    for each in objects:
        if each["kind"] not in CLUSTER_WIDE:
            each["metadata"].setdefault("namespace", namespace)
    for other in {each["metadata"].get("namespace", namespace) for each in objects} - {namespace}:
        cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": other}})
    pods = [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"as-{each['metadata']['name']}", "namespace": namespace},
            "spec": each["spec"].get("template", each)["spec"] | {"serviceAccountName": "default"},
        }
        for each in objects
        if each["kind"] in {"Deployment", "StatefulSet", "Pod"}
    ]
    objects = [each for each in objects if each["kind"] != "Pod"]  # its account would have to be there
    file = tmp_path / "objects.yaml"
    file.write_text(yaml.safe_dump_all([*objects, *pods]))

    command = ["--kubeconfig", str(cluster.kubeconfig), "apply", "--dry-run=server", "--validate=strict"]
    done = subprocess.run(
        [*plane.kubectl(), *command, "-f", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(objects) + len(pods)
    assert "would violate" not in done.stderr
    assert pods


def test_events_may_have_a_token_of_their_own(template: Template) -> None:
    rendered = template(*DATABASE, "--set", "events.existingSecret=broker,events.tokenKey=bearer")

    [container] = find(rendered, "Deployment", "shop-romancy")["spec"]["template"]["spec"]["containers"]
    [token] = [each for each in container["env"] if each["name"] == "ROMANCY_GATEWAY__EVENTS_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "broker", "key": "bearer"}
    role = find(rendered, "ClusterRole", "here-shop-romancy-events")
    assert rights(role["rules"]) == rights(
        [{"apiGroups": ["romancy.dev"], "resources": ["workflowengines/events"], "verbs": ["create"]}]
    )
    assert not role["metadata"]["labels"].keys() & {"rbac.authorization.k8s.io/aggregate-to-edit"}
