"""What control measures, and that nothing stays that nobody measures any more."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from romancy.base.metrics import REGISTRY
from romancy.base.settings import Settings
from romancy.control.kube import KUBE_ERRORS, Kube, Target
from romancy.control.resources import RUNS
from romancy.store.postgres import PostgresStore
from tests.builders import a_new_run
from tests.control.conftest import Controlled, eventually
from tests.control.faults import Fault, Proxy, proxy_before
from tests.control.objects import a_run, create
from tests.controlplane.plane import ControlPlane
from tests.proxy import proxy_to
from tests.store.hands import Hands

pytestmark = pytest.mark.kube

KNOWN_TO_THE_LEADER = {
    *("romancy_due_runs", "romancy_held_runs", "romancy_open_runs", "romancy_blocked_runs"),
    *("romancy_oldest_due_seconds", "romancy_workers"),
}


def shown() -> dict[str, float]:
    """The gauges that the leader alone has, as far as they are there."""
    found = {name: REGISTRY.get_sample_value(name) for name in KNOWN_TO_THE_LEADER}
    return {name: value for name, value in found.items() if value is not None}


def writes(outcome: str) -> float:
    return REGISTRY.get_sample_value("romancy_status_writes_total", {"outcome": outcome}) or 0


async def test_the_leader_shows_the_backlog_and_nobody_does_after_it(
    settings: Settings, store: PostgresStore, hands: Hands
) -> None:
    await hands.started(workflow="w")
    await store.start_runs([a_new_run(workflow="v"), a_new_run(workflow="v")])
    before = shown()
    async with proxy_to(settings.database) as (proxy, far):
        quick = far.model_copy(update={"connect_timeout_seconds": 0.5})
        control = Controlled(settings.model_copy(update={"database": quick}))
        control.start()
        await eventually(lambda: shown().keys() == KNOWN_TO_THE_LEADER, "the counts are there")
        leads, while_leading = REGISTRY.get_sample_value("romancy_leader"), shown()
        proxy.is_open.clear()
        proxy.cut()
        await eventually(lambda: shown() == {}, "what was known is not said any more")
        proxy.is_open.set()
        await eventually(lambda: shown().keys() == KNOWN_TO_THE_LEADER, "it is known again")
        await control.end()

    assert before == {}
    assert leads == 1
    assert while_leading.pop("romancy_oldest_due_seconds") > 0
    assert while_leading == {
        "romancy_due_runs": 2,
        "romancy_held_runs": 1,
        "romancy_open_runs": 3,
        "romancy_blocked_runs": 0,
        "romancy_workers": 1,
    }
    assert REGISTRY.get_sample_value("romancy_leader") == 0
    assert shown() == {}


@pytest.fixture
async def proxied(cluster: ControlPlane, settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[Kube, Proxy]]:
    async with proxy_before(cluster) as proxy:
        kubeconfig = tmp_path / "proxied"
        kubeconfig.write_text(proxy.kubeconfig)
        control = settings.control.model_copy(update={"kubeconfig": str(kubeconfig)})
        async with Kube.open(control) as kube:
            yield kube, proxy


@pytest.mark.parametrize(
    ("code", "outcome"),
    [(None, "written"), (403, "refused"), (404, "refused"), (409, "failed"), (500, "failed"), (0, "failed")],
    ids=str,
)
async def test_each_write_of_a_status_is_counted_by_what_came_of_it(
    cluster: ControlPlane, namespace: str, proxied: tuple[Kube, Proxy], code: int | None, outcome: str
) -> None:
    kube, proxy = proxied
    uid = create(cluster, namespace, a_run("order"))["metadata"]["uid"]
    target = Target(RUNS, namespace, "order", UUID(uid))
    if code is not None:
        proxy.faults.append(Fault(lambda request: request.method == "PATCH", code))
    before = {each: writes(each) for each in ("written", "gone", "refused", "failed")}

    try:
        await kube.patch_status(target, {"engine": "romancy", "phase": "Running"})
    except KUBE_ERRORS:
        assert code is not None

    assert {each: writes(each) - count for each, count in before.items()} == {
        each: int(each == outcome) for each in before
    }


async def test_a_status_of_an_object_that_is_gone_is_counted_so(
    cluster: ControlPlane, namespace: str, proxied: tuple[Kube, Proxy]
) -> None:
    kube, _proxy = proxied
    target = Target(RUNS, namespace, "order", uuid4())
    create(cluster, namespace, a_run("order"))
    before = writes("gone")

    for each in (target, replace(target, name="other")):
        assert not await kube.patch_status(each, {"engine": "romancy"})

    assert writes("gone") == before + 2
