"""From `kubectl apply` to the status and back, with the real API server and the real store."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

import asyncpg
import pytest

from romancy.base.settings import RetentionSettings, Settings
from romancy.model.history import MessageKind
from romancy.model.run import Phase
from romancy.store.interface import Claim, Purgeable, RunFilter
from romancy.store.postgres import PostgresStore
from tests.builders import a_new_run
from tests.control.conftest import (
    Controlled,
    claimed,
    eventually,
    finish,
    is_gone,
    park,
    status_where,
)
from tests.control.objects import a_run, change, condition, create, delete, engine_where, path_of, read
from tests.control.test_crds import kubectl
from tests.controlplane.plane import ControlPlane
from tests.proxy import proxy_to
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


async def test_the_leader_purges_what_is_kept_no_longer(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, settings: Settings
) -> None:
    """But no run whose object is there: that is done with first, and then no second run."""
    kept = RetentionSettings(succeeded_seconds=86_400)
    leading = Controlled(settings.model_copy(update={"retention": kept}))
    leading.start()
    try:
        create(cluster, namespace, a_run("kept"))
        await finish(hands, await claimed(hands), output="1")
        await status_where(cluster, namespace, "kept", lambda status: status["phase"] == "Succeeded", "it ended")
    finally:
        await leading.end()
    await store.start_runs([a_new_run(name=name, workflow="w") for name in ("young", "old")])
    for claim in await hands.claim():
        await finish(hands, claim, output="1")
    connection = await asyncpg.connect(settings.database.url.get_secret_value())
    await connection.execute(
        "update romancy.run set finished_at = finished_at - interval '2 days' where name <> 'young'"
    )
    await connection.execute("delete from romancy.purge_check")
    await connection.close()

    again = Controlled(leading.settings)
    again.start()
    try:

        async def left() -> set[str]:
            return {run.name for run in await store.list_runs(RunFilter(), limit=9)}

        async def is_old_purged() -> bool:
            return "old" not in await left()

        await eventually(is_old_purged, "the old run is purged")
        assert await left() == {"kept", "young"}
    finally:
        await again.end()
    assert read(cluster, namespace, "kept")["status"]["phase"] == "Succeeded"


async def test_an_object_whose_run_was_purged_is_not_run_again(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, settings: Settings, control: Controlled
) -> None:
    create(cluster, namespace, a_run("done"))
    claim = await claimed(hands)
    await finish(hands, claim)
    await status_where(cluster, namespace, "done", lambda status: status["phase"] == "Succeeded", "it ended")
    await control.end()
    connection = await asyncpg.connect(settings.database.url.get_secret_value())
    await connection.execute(
        "update romancy.run set finished_at = finished_at - interval '1 h', resource_gone_at = now() where id = $1",
        claim.run_id,
    )
    await connection.close()
    assert (await store.purge_runs(Purgeable(Phase.SUCCEEDED, 1800))).runs == 1

    again = Controlled(settings)
    again.start()
    try:
        create(cluster, namespace, a_run("next"))
        assert (await claimed(hands)).run_id != claim.run_id  # by now the list has been compared
    finally:
        await again.end()
    assert await store.read_run(claim.run_id) is None


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


async def test_kubectl_waits_for_the_end_and_shows_the_columns(
    cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("good"))
    good = await claimed(hands)
    create(cluster, namespace, a_run("bad"))
    bad = await claimed(hands)
    wait = ("wait", "-n", namespace, "--timeout=15s")
    succeeded = asyncio.create_task(asyncio.to_thread(kubectl, cluster, *wait, "--for=condition=Succeeded", "wfr/good"))
    completed = asyncio.create_task(
        asyncio.to_thread(kubectl, cluster, *wait, "--for=condition=Completed", "wfr/bad", "wfr/good")
    )

    await finish(hands, good)
    await finish(hands, bad, Phase.FAILED, reason="WorkflowFailed", message="no such order")

    assert "workflowrun.romancy.dev/good condition met" in await succeeded
    assert "workflowrun.romancy.dev/bad condition met" in await completed
    header, *lines = (await asyncio.to_thread(kubectl, cluster, "get", "wfr", "-n", namespace)).splitlines()
    assert header.split() == ["NAME", "WORKFLOW", "STATUS", "STARTED", "DURATION", "AGE"]
    assert sorted(line.split()[:3] for line in lines) == [["bad", "w", "Failed"], ["good", "w", "Succeeded"]]
    wide = await asyncio.to_thread(kubectl, cluster, "get", "wfr", "-n", namespace, "-o", "wide")
    assert "no such order" in wide


async def test_a_run_that_waits_says_for_what(
    cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("order"))
    claim = await claimed(hands)
    running = await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")

    await park(hands, claim, message="waiting for event com.shop.paid")
    waiting = await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Waiting", "it waits")

    assert running["status"]["worker"] == "worker-1"
    assert "worker" not in waiting["status"]
    assert waiting["status"]["message"] == "waiting for event com.shop.paid"
    assert condition(waiting, "Succeeded")["status"] == "Unknown"
    assert condition(waiting, "Succeeded")["message"] == "waiting for event com.shop.paid"
    assert condition(running, "Accepted") == condition(waiting, "Accepted")


async def test_a_workflow_that_nobody_has_is_stalled_and_named(
    cluster: ControlPlane,
    namespace: str,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    """At once, with the first status: the next of the regular looks would come up to ten seconds later."""
    await start_control(status_hold_seconds=1)
    await eventually(lambda: engine_where(cluster, namespace, "Ready", "True"), "it is ready")
    create(cluster, namespace, a_run("order", workflow="ww"))

    shown = await status_where(
        cluster,
        namespace,
        "order",
        lambda status: status.get("reason") == "WorkflowNotRegistered",
        "it is stalled",
        seconds=4,
    )

    assert len(cluster.requests_of("romancy/", "patch", "workflowruns/status", namespace)) == 1
    assert shown["status"]["phase"] == "Pending"
    assert condition(shown, "Accepted")["status"] == "True"
    assert condition(shown, "Stalled")["status"] == "True"
    assert "no live worker has workflow 'ww'" in condition(shown, "Stalled")["message"]


async def test_suspend_resume_and_cancel_reach_the_inbox_once(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("order"))
    claim = await claimed(hands)
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")

    for spec in ({"suspend": True}, {"suspend": False}, {"cancel": True}):
        generation = change(cluster, namespace, "order", **spec)["metadata"]["generation"]
        await status_where(
            cluster,
            namespace,
            "order",
            lambda status, generation=generation: status["observedGeneration"] == generation,  # type: ignore[misc]
            "the change was seen",
        )

    inbox = await store.read_inbox(claim.run_id, 0)
    assert [(row.kind, row.source) for row in inbox] == [
        (MessageKind.SUSPEND, "resource:suspend:2"),
        (MessageKind.RESUME, "resource:resume:3"),
        (MessageKind.CANCEL, "resource:cancel"),
    ]
    assert json.loads(inbox[2].payload)["reason"] == "Cancelled"
    run = await store.read_run(claim.run_id)
    assert run is not None
    assert (run.wishes.suspend, run.wishes.cancel) == (False, True)


async def test_a_change_that_moves_nothing_is_acknowledged(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("order"))
    claim = await claimed(hands)
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")

    change(cluster, namespace, "order", ttlSecondsAfterFinished=5)
    shown = await status_where(
        cluster, namespace, "order", lambda status: status["observedGeneration"] == 2, "the change was seen"
    )

    assert all(each["observedGeneration"] == 2 for each in shown["status"]["conditions"])
    run = await store.read_run(claim.run_id)
    assert run is not None
    assert run.wishes.ttl_seconds == 5
    assert await store.read_inbox(claim.run_id, 0) == []


async def test_an_object_made_suspended_waits_for_its_resume(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    made = create(cluster, namespace, a_run("order", suspend=True))
    uid = UUID(made["metadata"]["uid"])
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Suspended", "it is suspended")
    before = await hands.claim()

    change(cluster, namespace, "order", suspend=False)
    claim = await claimed(hands)

    assert before == []
    assert claim.run_id == uid
    assert [row.kind for row in await store.read_inbox(uid, 0)] == [MessageKind.SUSPEND, MessageKind.RESUME]


async def test_deleting_an_object_cancels_its_run_or_orphans_it(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("doomed"))
    doomed = await claimed(hands)
    create(cluster, namespace, a_run("orphan"))
    orphan = await claimed(hands)
    change(cluster, namespace, "orphan", deletionPolicy="Orphan")

    delete(cluster, namespace, "doomed")
    delete(cluster, namespace, "orphan")
    assert await eventually(lambda: store.read_inbox(doomed.run_id, 0), "the cancel is there")
    await eventually(lambda: _has_no_resources(store), "both objects are known to be gone")

    [message] = await store.read_inbox(doomed.run_id, 0)
    assert (message.kind, message.source) == (MessageKind.CANCEL, "resource:deleted")
    assert json.loads(message.payload) == {
        "reason": "Deleted",
        "message": f"WorkflowRun {namespace}/doomed was deleted",
    }
    assert await store.read_inbox(orphan.run_id, 0) == []
    await finish(hands, orphan)
    run = await store.read_run(orphan.run_id)
    assert run is not None
    assert run.phase is Phase.SUCCEEDED


async def test_what_happened_while_nobody_looked_is_found(
    cluster: ControlPlane,
    namespace: str,
    store: PostgresStore,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    """Created, changed and deleted between two leaders: kopf tells of no deletion that it has not watched."""
    first = await start_control()
    claims = {}
    for name in ("doomed", "orphan", "suspended", "kept"):
        create(cluster, namespace, a_run(name, deletionPolicy="Orphan" if name == "orphan" else "Cancel"))
        claims[name] = await claimed(hands)
        await status_where(cluster, namespace, name, lambda status: status["phase"] == "Running", "it runs")
    await first.end()

    delete(cluster, namespace, "doomed")
    delete(cluster, namespace, "orphan")
    change(cluster, namespace, "suspended", suspend=True)
    create(cluster, namespace, a_run("new"))
    await finish(hands, claims["kept"])
    await start_control()

    assert await eventually(lambda: store.read_inbox(claims["suspended"].run_id, 0), "the suspend is there")
    assert [claim.run_id for claim in await eventually(hands.claim, "the new one is due")] == [
        UUID(read(cluster, namespace, "new")["metadata"]["uid"])
    ]
    await status_where(cluster, namespace, "kept", lambda status: status["phase"] == "Succeeded", "it ended")
    assert await store.read_inbox(claims["doomed"].run_id, 0) == []  # one list is not enough to be sure
    inbox = await eventually(lambda: store.read_inbox(claims["doomed"].run_id, 0), "the cancel is there", seconds=20)
    assert [row.source for row in inbox] == ["resource:deleted"]
    assert await store.read_inbox(claims["orphan"].run_id, 0) == []
    assert await store.read_inbox(claims["kept"].run_id, 0) == []


async def test_a_namespace_is_deleted_with_no_operator_alive(
    cluster: ControlPlane,
    namespace: str,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    """Nothing of ours holds an object back: no finalizer on runs, and none on the object that the timer ticks on."""
    one = await start_control()
    create(cluster, namespace, a_run("order"))
    await claimed(hands)
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")
    await eventually(lambda: cluster.answers(path_of(namespace, "workflowengines", "romancy")), "the engine is shown")
    await one.end()

    began = time.monotonic()
    cluster.call("DELETE", f"/api/v1/namespaces/{namespace}")
    await eventually(lambda: is_gone(cluster, f"/api/v1/namespaces/{namespace}"), "the namespace is gone", seconds=20)

    assert time.monotonic() - began < 10


async def test_an_object_is_deleted_after_its_time(
    cluster: ControlPlane, namespace: str, store: PostgresStore, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("short", ttlSecondsAfterFinished=0))
    short = await claimed(hands)
    create(cluster, namespace, a_run("long"))
    long = await claimed(hands)
    await finish(hands, short)
    await finish(hands, long)

    await eventually(lambda: is_gone(cluster, path_of(namespace, name="short")), "it is deleted", seconds=15)

    assert not is_gone(cluster, path_of(namespace, name="long"))
    run = await store.read_run(short.run_id)
    assert run is not None
    assert run.phase is Phase.SUCCEEDED
    assert await store.read_inbox(short.run_id, 0) == []


async def test_too_large_an_input_is_refused_in_the_status(
    cluster: ControlPlane, namespace: str, settings: Settings, store: PostgresStore
) -> None:
    small = settings.model_copy(update={"worker": settings.worker.model_copy(update={"payload_bytes_max": 1024})})
    control = Controlled(small)
    control.start()
    made = create(cluster, namespace, a_run("large", input={"text": "x" * 2000}))

    shown = await status_where(cluster, namespace, "large", lambda status: status["phase"] == "Failed", "it is refused")
    await control.end()

    assert condition(shown, "Accepted")["status"] == "False"
    assert condition(shown, "Accepted")["reason"] == "TooLarge"
    assert "the limit is 1,024" in shown["status"]["message"]
    assert await store.read_run(UUID(made["metadata"]["uid"])) is None


async def test_a_text_that_the_database_refuses_stops_nobody_else(
    cluster: ControlPlane,
    namespace: str,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    for name, workflow in (("good-1", "w"), ("bad", "w\0"), ("good-2", "w")):
        create(cluster, namespace, a_run(name, workflow=workflow))
    await start_control()

    shown = await status_where(cluster, namespace, "bad", lambda status: status["phase"] == "Failed", "it is refused")
    found: set[UUID] = set()

    async def both() -> bool:
        found.update(claim.run_id for claim in await hands.claim())  # the watch may have brought them one by one
        return len(found) == 2

    await eventually(both, "the others are due")
    assert condition(shown, "Accepted")["reason"] == "SpecInvalid"


async def test_a_whole_cluster_is_watched_where_no_namespaces_are_given(
    cluster: ControlPlane,
    namespace: str,
    another_namespace: str,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    early = create(cluster, another_namespace, a_run("early"))
    await start_control(watch_namespaces=())
    late = create(cluster, another_namespace, a_run("late"))
    wanted = {UUID(each["metadata"]["uid"]) for each in (early, late)}
    found: dict[UUID, Claim] = {}

    async def both() -> bool:
        found.update({claim.run_id: claim for claim in await hands.claim()})  # also those of other tests' namespaces
        return wanted <= found.keys()

    await eventually(both, "both are due")
    for run_id in wanted:
        await finish(hands, found[run_id])

    for name in ("early", "late"):
        await status_where(cluster, another_namespace, name, lambda status: status["phase"] == "Succeeded", "it ended")


async def test_another_engines_objects_are_left_alone(
    cluster: ControlPlane,
    namespace: str,
    store: PostgresStore,
    hands: Hands,
    start_control: Callable[..., Awaitable[Controlled]],
) -> None:
    theirs = create(cluster, namespace, a_run("theirs"))
    cluster.call("PATCH", path_of(namespace, name="theirs", sub="status"), {"status": {"engine": "other"}})
    await start_control()
    create(cluster, namespace, a_run("ours"))

    claim = await claimed(hands)
    engine = await eventually(lambda: engine_where(cluster, namespace, "RunsOfOthers", "True"), "it is said")

    assert claim.run_id != UUID(theirs["metadata"]["uid"])
    assert read(cluster, namespace, "theirs")["status"] == {"engine": "other", "observedGeneration": -1}
    assert "1 runs name another engine (other)" in condition(engine, "RunsOfOthers")["message"]


async def test_a_database_that_is_away_is_said_and_nothing_is_lost(
    cluster: ControlPlane,
    namespace: str,
    settings: Settings,
    store: PostgresStore,
    hands: Hands,
) -> None:
    async with proxy_to(settings.database) as (proxy, through):
        proxy.is_open.clear()
        quick = through.model_copy(update={"connect_timeout_seconds": 0.5})
        control = Controlled(settings.model_copy(update={"database": quick}))
        control.start()
        create(cluster, namespace, a_run("early"))

        shown = await status_where(
            cluster, namespace, "early", lambda status: status.get("reason") == "StoreUnavailable", "it is said"
        )
        engine = await eventually(lambda: engine_where(cluster, namespace, "StoreAvailable", "False"), "it is said")
        proxy.is_open.set()
        claim = await claimed(hands)
        await finish(hands, claim)
        done = await status_where(
            cluster, namespace, "early", lambda status: status["phase"] == "Succeeded", "it ended"
        )
        await control.end()

    assert condition(shown, "Stalled")["status"] == "True"
    assert condition(shown, "Accepted")["status"] == "False"
    assert condition(engine, "Ready")["reason"] == "StoreUnavailable"
    assert condition(done, "Stalled")["status"] == "False"
    assert condition(done, "Accepted")["status"] == "True"


async def test_control_goes_on_when_the_api_server_comes_back(
    cluster: ControlPlane, namespace: str, hands: Hands, control: Controlled
) -> None:
    create(cluster, namespace, a_run("before"))
    before = await claimed(hands)
    await status_where(cluster, namespace, "before", lambda status: status["phase"] == "Running", "it runs")

    cluster.kill_apiserver()
    await finish(hands, before)
    await asyncio.to_thread(cluster.start_apiserver)

    await status_where(
        cluster, namespace, "before", lambda status: status["phase"] == "Succeeded", "it ended", seconds=20
    )
    create(cluster, namespace, a_run("after"))
    await finish(hands, await claimed(hands))
    await status_where(cluster, namespace, "after", lambda status: status["phase"] == "Succeeded", "it ended")
    assert control.task is not None
    assert not control.task.done()


async def test_another_takes_over_at_once_when_the_leader_stops(
    cluster: ControlPlane, namespace: str, hands: Hands, start_control: Callable[..., Awaitable[Controlled]]
) -> None:
    first = await start_control()
    second = await start_control(waits=False)
    create(cluster, namespace, a_run("one"))
    one = await claimed(hands)
    await status_where(cluster, namespace, "one", lambda status: status["phase"] == "Running", "it runs")

    began = time.monotonic()
    await first.end()
    ended = time.monotonic()
    await asyncio.wait_for(second.leads.wait(), 5)
    took_over = time.monotonic()
    await finish(hands, one)
    create(cluster, namespace, a_run("two"))
    await finish(hands, await claimed(hands))

    for name in ("one", "two"):
        await status_where(cluster, namespace, name, lambda status: status["phase"] == "Succeeded", "it ended")
    assert ended - began < 2
    assert took_over - ended < 1
    assert (first.lives, second.lives) == (1, 1)


async def _has_no_resources(store: PostgresStore) -> bool:
    return await store.resources(None) == []
