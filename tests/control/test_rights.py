"""The rights that control needs, and no more: it runs under a ServiceAccount with exactly these."""

from pathlib import Path
from typing import Any, Final

import pytest

from romancy.base.settings import Settings
from tests.control.conftest import Controlled, claimed, eventually, finish, is_gone, status_where
from tests.control.objects import a_run, condition, create, engine_where, path_of
from tests.controlplane.plane import ControlPlane
from tests.store.hands import Hands

pytestmark = pytest.mark.kube

RULES: Final[list[dict[str, Any]]] = [
    {
        "apiGroups": ["romancy.dev"],
        "resources": ["workflowruns"],
        "verbs": ["get", "list", "watch", "delete"],
    },
    {"apiGroups": ["romancy.dev"], "resources": ["workflowruns/status", "workflowengines/status"], "verbs": ["patch"]},
    {"apiGroups": ["romancy.dev"], "resources": ["workflowengines"], "verbs": ["get", "list", "watch", "create"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["romancy"],
        "verbs": ["get", "update"],
    },
]
WATCH_LEASE: Final[dict[str, Any]] = {
    "apiGroups": ["coordination.k8s.io"],
    "resources": ["leases"],
    "resourceNames": ["romancy"],
    "verbs": ["watch"],
}
PODS: Final[dict[str, Any]] = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}


@pytest.fixture
def account(cluster: ControlPlane, namespace: str, settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a ServiceAccount without any rights yet."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    cluster.call("POST", accounts, {"metadata": {"name": "romancy"}})
    token = cluster.call("POST", f"{accounts}/romancy/token", {"spec": {}})["status"]["token"]
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(cluster.kubeconfig_with(token))
    binding = {
        "metadata": {"name": "romancy"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "romancy"},
        "subjects": [{"kind": "ServiceAccount", "name": "romancy", "namespace": namespace}],
    }
    cluster.call("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)
    return settings.model_copy(update={"control": settings.control.model_copy(update={"kubeconfig": str(kubeconfig)})})


def allow(cluster: ControlPlane, namespace: str, rules: list[dict[str, Any]]) -> None:
    """Make the role, or replace its rules."""
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles"
    body = {"metadata": {"name": "romancy"}, "rules": rules}
    if is_gone(cluster, f"{path}/romancy"):
        cluster.call("POST", path, body)
    else:
        cluster.call("PUT", f"{path}/romancy", body)


async def test_these_rights_suffice(cluster: ControlPlane, namespace: str, account: Settings, hands: Hands) -> None:
    allow(cluster, namespace, [*RULES, PODS, WATCH_LEASE])
    control = Controlled(account)
    control.start()

    create(cluster, namespace, a_run("order", ttlSecondsAfterFinished=0))
    await finish(hands, await claimed(hands))
    await eventually(lambda: is_gone(cluster, path_of(namespace, name="order")), "it ran, was shown and expired")
    await control.end()

    user = f"system:serviceaccount:{namespace}:romancy"
    asked = cluster.requests_of(user, namespace=namespace)
    assert len(asked) > 10
    assert [each for each in asked if each.code == 403] == []
    assert {each.resource for each in asked} == {
        "leases",
        "pods",
        "workflowengines",
        "workflowengines/status",
        "workflowruns",
        "workflowruns/status",
    }


async def test_a_missing_right_is_said_and_the_rest_goes_on(
    cluster: ControlPlane, namespace: str, account: Settings, hands: Hands
) -> None:
    allow(cluster, namespace, RULES)
    control = Controlled(account)
    control.start()

    create(cluster, namespace, a_run("order"))
    await finish(hands, await claimed(hands))
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Succeeded", "it ended")
    blind = await eventually(lambda: engine_where(cluster, namespace, "Watching", "False"), "it is said")
    allow(cluster, namespace, [*RULES, PODS])
    await eventually(lambda: engine_where(cluster, namespace, "Watching", "True"), "the pods are watched", seconds=15)
    await control.end()

    assert "pods: " in condition(blind, "Watching")["message"]
    assert "403" in condition(blind, "Watching")["message"]
    assert condition(blind, "Ready")["status"] == "True"


async def test_without_any_right_it_waits_and_leads_when_it_may(
    cluster: ControlPlane, namespace: str, account: Settings
) -> None:
    control = Controlled(account)
    task = control.start()
    user = f"system:serviceaccount:{namespace}:romancy"
    await eventually(lambda: len(cluster.requests_of(user, resource="leases")) >= 2, "it tries again")
    assert not task.done()

    allow(cluster, namespace, [*RULES, PODS])
    await eventually(control.leads.is_set, "it leads")
    await control.end()
