"""The rights of an installed release: those that are documented, each of them used, and nothing else is asked for."""

import re

import pytest

from tests.pods.conftest import Release

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]

ALLOWED = {
    "workflowruns.romancy.dev": {"get", "list", "watch", "delete"},
    "workflowruns.romancy.dev/status": {"patch"},
    "workflowengines.romancy.dev": {"get", "list", "watch", "create"},
    "workflowengines.romancy.dev/status": {"patch"},
    "leases.coordination.k8s.io": {"create"},
    "leases.coordination.k8s.io [romancy]": {"get", "update", "watch"},
    "pods": {"list", "watch"},
    "events.events.k8s.io": {"create", "patch"},
    "tokenreviews.authentication.k8s.io": {"create"},
    "subjectaccessreviews.authorization.k8s.io": {"create"},
}
SELDOM = {
    ("get", "workflowruns"),  # after a status that was refused: tests/control/test_faults.py
    ("patch", "events"),  # for the same news again: tests/control/test_news.py
    ("create", "tokenreviews"),  # when somebody calls the HTTP API: tests/e2e/test_access.py
    ("create", "subjectaccessreviews"),  # so too
}
REFUSED = (
    "get secrets",
    "get configmaps",
    "create -f -",  # a pod
    "delete pod --all",
    "get deployments.apps",
    "get roles.rbac.authorization.k8s.io",
    "get events",
    "get pod any",
    "get leases.coordination.k8s.io another",
    "get workflowruns.romancy.dev -n default",
)
POD = '{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"i"}]}}'
RUN = """
apiVersion: romancy.dev/v1alpha1
kind: WorkflowRun
metadata: {name: short}
spec: {workflow: steps, ttlSecondsAfterFinished: 0, input: {run: short, count: 1, seconds: 0.1}}
"""
LINE = re.compile(r"^(\S+)\s+\[.*?\]\s+\[(.*?)\]\s+\[(.*?)\]$")


def test_rights_are_those_that_are_documented(release: Release) -> None:
    release.install()
    account = f"--as=system:serviceaccount:{release.namespace}:romancy"

    found: dict[str, set[str]] = {}
    for line in release.kubectl("auth", "can-i", "--list", "--no-headers", account).splitlines():
        if (match := LINE.match(line.strip())) and not match[1].startswith("self"):
            name = f" [{match[2]}]" if match[2] else ""
            found.setdefault(match[1] + name, set()).update(match[3].split())
    assert found == ALLOWED

    for request in REFUSED:
        with pytest.raises(AssertionError, match=r"(?i)forbidden"):
            release.kubectl(*request.split(), account, stdin=POD)


def test_every_right_is_used_and_nothing_else_is_asked_for(release: Release) -> None:
    """By the audit log of the API server, over a run from its start to the deletion of its object, and a change of leaders."""
    plane = release.pods.control_plane
    if plane is None:
        pytest.skip("another cluster's audit log can't be read")
    release.install()
    release.kubectl("apply", "-f", "-", stdin=RUN)
    release.until(lambda: release.effects() == ["short 0"] and not release.get("wfr")["items"], "its object is deleted")
    leader = release.leader()
    release.kubectl("delete", "pod", leader, "--wait=false")
    release.until(lambda: release.leader() not in {"", leader}, "another leads")

    asked = plane.requests_of(f"system:serviceaccount:{release.namespace}:romancy", namespace=release.namespace)
    assert [each for each in asked if each.code == 403] == []
    used = {(each.verb, each.resource) for each in asked}
    allowed = {(verb, _plain(resource)) for resource, verbs in ALLOWED.items() for verb in verbs}
    assert used <= allowed
    print(f"rights that this life did not need: {sorted(allowed - used)}")
    assert allowed - used <= SELDOM


def _plain(resource: str) -> str:
    """`workflowruns.romancy.dev/status` as the audit log has it: `workflowruns/status`."""
    kind, slash, part = resource.partition(" ")[0].partition("/")
    return kind.partition(".")[0] + slash + part
