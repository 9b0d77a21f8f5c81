"""A ServiceAccount with the rights that a test gives it, and takes away."""

from typing import Any, Final

from tests.controlplane.plane import ApiError, ControlPlane

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
EVENTS: Final[dict[str, Any]] = {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}
PODS: Final[dict[str, Any]] = {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}


def without(resource: str) -> list[dict[str, Any]]:
    """All rules, less everything about one resource."""
    rules = [*RULES, PODS, WATCH_LEASE, EVENTS]
    left = [{**rule, "resources": [each for each in rule["resources"] if each != resource]} for rule in rules]
    return [rule for rule in left if rule["resources"]]


def make_account(cluster: ControlPlane, namespace: str) -> str:
    """A ServiceAccount `romancy`, bound to a role that is not there yet. Returns its kubeconfig."""
    accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
    cluster.call("POST", accounts, {"metadata": {"name": "romancy"}})
    token = cluster.call("POST", f"{accounts}/romancy/token", {"spec": {}})["status"]["token"]
    binding = {
        "metadata": {"name": "romancy"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "romancy"},
        "subjects": [{"kind": "ServiceAccount", "name": "romancy", "namespace": namespace}],
    }
    cluster.call("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings", binding)
    return cluster.kubeconfig_with(token)


def allow(cluster: ControlPlane, namespace: str, rules: list[dict[str, Any]]) -> None:
    """Make the role, or replace its rules."""
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles"
    body = {"metadata": {"name": "romancy"}, "rules": rules}
    try:
        cluster.call("POST", path, body)
    except ApiError as error:
        if error.code != 409:
            raise
        cluster.call("PUT", f"{path}/romancy", body)
