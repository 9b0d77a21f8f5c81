"""From `kubectl apply` to the status and back, with the real API server and the real store."""

from uuid import UUID

import pytest

from romancy.model.run import Phase
from romancy.store.postgres import PostgresStore
from tests.control.conftest import Controlled, claimed, eventually, finish, status_where
from tests.control.objects import a_run, condition, create, path_of, read
from tests.controlplane.plane import ControlPlane
from tests.store.hands import Hands

pytestmark = pytest.mark.kube


async def test_an_applied_object_becomes_a_run_and_its_end_a_status(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    made = create(cluster, namespace, a_run("order", input={"order": "ü 1"}, timeout="1m30s", priority=3))
    uid = UUID(made["metadata"]["uid"])

    claim = await claimed(hands)
    run = await store.read_run(uid)
    await finish(hands, claim, output='{"ok":true}')
    done = await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Succeeded", "it ended")

    assert claim.run_id == uid
    assert run is not None
    assert (run.namespace, run.name, run.workflow) == (namespace, "order", "w")
    assert (run.input, run.timeout_seconds, run.priority) == ('{"order":"ü 1"}', 90.0, 3)
    assert done["status"]["output"] == {"ok": True}
    assert done["status"]["runId"] == str(uid)
    assert done["status"]["engine"] == "romancy"
    assert condition(done, "Accepted")["status"] == "True"
    assert condition(done, "Completed")["status"] == "True"
    assert condition(done, "Succeeded")["status"] == "True"
    assert condition(done, "Stalled")["status"] == "False"
    assert done["metadata"].get("finalizers") is None
    assert done["metadata"].get("annotations") is None


async def test_a_short_run_costs_one_write(
    cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
) -> None:
    """At most 1.1 a run: also one that is seen as Pending meanwhile, or mirrored twice, would show."""
    names = [f"run-{number}" for number in range(20)]
    for name in names:
        create(cluster, namespace, a_run(name))
        for claim in await eventually(hands.claim, "a run is due"):
            await finish(hands, claim)

    for name in names:
        await status_where(cluster, namespace, name, lambda status: status["phase"] == "Succeeded", "it ended")

    writes = cluster.requests_of("romancy/", "patch", "workflowruns/status", namespace)
    assert len(names) <= len(writes) <= 1.1 * len(names)
    assert cluster.requests_of("kopf", "patch", namespace=namespace) == []
    assert [
        each.verb
        for each in cluster.requests_of("romancy/", "update", namespace=namespace)
        if "lease" not in each.resource
    ] == []


async def test_a_recreated_object_is_another_run(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    first = UUID(create(cluster, namespace, a_run("same"))["metadata"]["uid"])
    claim = await claimed(hands)
    cluster.call("DELETE", path_of(namespace, name="same"))
    second = UUID(create(cluster, namespace, a_run("same"))["metadata"]["uid"])
    heir = await claimed(hands)

    await finish(hands, claim, Phase.FAILED, message="the old one")
    await eventually(lambda: _owes_nothing(store), "nothing is owed to the old object")
    shown = read(cluster, namespace, "same")
    await finish(hands, heir, output='"new"')
    done = await status_where(cluster, namespace, "same", lambda status: "output" in status, "it ended")

    assert (claim.run_id, heir.run_id) == (first, second)
    assert shown.get("status", {}).get("phase") != "Failed"
    assert done["status"]["output"] == "new"
    assert done["status"]["runId"] == str(second)


async def _owes_nothing(store: PostgresStore) -> bool:
    owed = await store.take_unmirrored(hold_seconds=0, limit=10)
    return not [each for each in owed if each.run.is_done]
