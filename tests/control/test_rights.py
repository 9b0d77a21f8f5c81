"""The rights that control needs, and no more: it runs under a ServiceAccount with exactly these."""

from pathlib import Path

import pytest

from romancy.base.settings import Settings
from tests.control.conftest import Controlled, claimed, eventually, finish, is_gone, status_where
from tests.control.objects import a_run, condition, create, engine_where, path_of
from tests.control.rights import EVENTS, PODS, RULES, WATCH_LEASE, allow, make_account
from tests.controlplane.plane import ControlPlane
from tests.store.hands import Hands

pytestmark = pytest.mark.kube


@pytest.fixture
def account(cluster: ControlPlane, namespace: str, settings: Settings, tmp_path: Path) -> Settings:
    """Settings of a ServiceAccount without any rights yet."""
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(make_account(cluster, namespace))
    return settings.model_copy(update={"control": settings.control.model_copy(update={"kubeconfig": str(kubeconfig)})})


async def test_these_rights_suffice(cluster: ControlPlane, namespace: str, account: Settings, hands: Hands) -> None:
    allow(cluster, namespace, [*RULES, PODS, WATCH_LEASE, EVENTS])
    control = Controlled(account)
    control.start()

    create(cluster, namespace, a_run("order", ttlSecondsAfterFinished=0))
    await finish(hands, await claimed(hands))
    await eventually(
        lambda: is_gone(cluster, path_of(namespace, name="order")), "it ran, was shown and expired", seconds=15
    )
    await control.end()

    user = f"system:serviceaccount:{namespace}:romancy"
    asked = cluster.requests_of(user, namespace=namespace)
    assert len(asked) > 10
    assert [each for each in asked if each.code == 403] == []
    assert {each.resource for each in asked} == {
        "events",
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
