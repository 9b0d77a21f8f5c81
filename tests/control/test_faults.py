"""What control does when the API server answers badly, not at all, or twice."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from aiohttp import web

from romancy.base.clock import SystemClock
from romancy.base.settings import Settings
from romancy.control.control import Leader
from romancy.control.kube import Kube
from romancy.store.interface import Claim
from romancy.store.postgres import PostgresStore
from tests.control.conftest import Controlled, claimed, eventually, finish, status_where
from tests.control.faults import Fault, Proxy, broken_watch, is_watch_of, proxy_before
from tests.control.objects import a_run, change, condition, create, delete, engine_where, read
from tests.controlplane.plane import ControlPlane
from tests.store.hands import Hands

pytestmark = pytest.mark.kube


@dataclass
class Behind:
    """Control behind a proxy."""

    proxy: Proxy
    control: Controlled


@pytest.fixture
async def behind(cluster: ControlPlane, settings: Settings, tmp_path: Path) -> AsyncIterator[Behind]:
    async with proxy_before(cluster) as proxy:
        kubeconfig = tmp_path / "proxied"
        kubeconfig.write_text(proxy.kubeconfig)
        changed = settings.control.model_copy(update={"kubeconfig": str(kubeconfig)})
        control = Controlled(settings.model_copy(update={"control": changed}))
        control.start()
        await asyncio.wait_for(control.leads.wait(), 10)
        yield Behind(proxy, control)
        await control.end()


def is_status_of(name: str) -> "Fault":
    """Matches writes of one run's status."""
    return Fault(lambda request: request.method == "PATCH" and f"/{name}/status" in request.path, 0, 0)


@pytest.mark.parametrize("code", [409, 422, 429, 500, 503])
async def test_a_refused_status_is_written_again(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind, code: int
) -> None:
    fault = is_status_of("order")
    fault.code, fault.times = code, 2
    behind.proxy.faults.append(fault)

    create(cluster, namespace, a_run("order"))
    await finish(hands, await claimed(hands))
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Succeeded", "it is written")

    assert behind.proxy.happened == [code, code]


async def test_one_refused_status_holds_up_no_other(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind
) -> None:
    fault = is_status_of("cursed")
    fault.code, fault.times = 500, 1_000_000
    behind.proxy.faults.append(fault)
    for name in ("cursed", "fine-1", "fine-2"):
        create(cluster, namespace, a_run(name))
        await finish(hands, await claimed(hands))

    for name in ("fine-1", "fine-2"):
        await status_where(cluster, namespace, name, lambda status: status["phase"] == "Succeeded", "it is written")
    assert read(cluster, namespace, "cursed").get("status", {}).get("phase") != "Succeeded"
    assert 0 < len(behind.proxy.happened) < 20  # with backoff
    fault.times = 0
    await status_where(cluster, namespace, "cursed", lambda status: status["phase"] == "Succeeded", "it is written")


async def test_a_write_whose_answer_is_lost_is_written_again_and_means_the_same(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind, store: PostgresStore
) -> None:
    fault = is_status_of("order")
    fault.times = 1
    behind.proxy.faults.append(fault)

    create(cluster, namespace, a_run("order"))
    claim = await claimed(hands)
    await finish(hands, claim, output='"x"')
    done = await status_where(cluster, namespace, "order", lambda status: "output" in status, "it is written")
    await eventually(lambda: _is_mirrored(store), "nothing is owed any more")

    assert done["status"]["output"] == "x"
    assert read(cluster, namespace, "order")["status"] == done["status"]
    assert behind.proxy.happened == [0]


async def test_an_acknowledgement_that_failed_is_tried_again(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind
) -> None:
    """No row owes it: the run is as it was, only the object has a new generation."""
    create(cluster, namespace, a_run("order"))
    await claimed(hands)
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it runs")
    fault = is_status_of("order")
    fault.code, fault.times = 500, 3
    behind.proxy.faults.append(fault)

    change(cluster, namespace, "order", ttlSecondsAfterFinished=5)
    await status_where(
        cluster, namespace, "order", lambda status: status["observedGeneration"] == 2, "the change was seen"
    )

    assert behind.proxy.happened == [500, 500, 500]


async def test_a_kind_that_is_not_served_for_a_moment_is_no_deletion(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind, store: PostgresStore
) -> None:
    """A 404 that does not name the object: the run must not be cancelled for it."""
    fault = is_status_of("order")
    fault.code, fault.times, fault.body = 404, 1, "404 page not found"
    behind.proxy.faults.append(fault)

    create(cluster, namespace, a_run("order"))
    claim = await claimed(hands)
    await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "it is written")

    assert behind.proxy.happened == [404]
    assert await store.read_inbox(claim.run_id, 0) == []


async def test_cut_watches_are_opened_again(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind, store: PostgresStore
) -> None:
    create(cluster, namespace, a_run("before"))
    before = await claimed(hands)
    await eventually(lambda: len(behind.proxy._watches) == 3, "runs, engine and pods are watched")

    assert behind.proxy.cut_watches() == 3
    create(cluster, namespace, a_run("after"))
    delete(cluster, namespace, "before")
    after = await claimed(hands)
    await eventually(lambda: store.read_inbox(before.run_id, 0), "its deletion is seen")

    assert after.run_id != before.run_id


@pytest.mark.slow
async def test_a_right_taken_away_is_said_and_its_return_is_noticed(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind, store: PostgresStore
) -> None:
    """It is said at once. kopf tries again for 13 s, then ends; meanwhile and afterwards the rest of control goes on."""
    create(cluster, namespace, a_run("before"))
    before = await claimed(hands)
    fault = Fault(lambda request: request.path.endswith("/workflowruns") and request.method == "GET", 403, 1_000_000)
    await eventually(lambda: len(behind.proxy._watches) == 3, "runs, engine and pods are watched")
    behind.proxy.faults.append(fault)
    behind.proxy.cut_watches()

    await finish(hands, before)
    await status_where(cluster, namespace, "before", lambda status: status["phase"] == "Succeeded", "it ended")
    said_at_once = await eventually(lambda: engine_where(cluster, namespace, "Ready", "False"), "it is said", seconds=3)

    def is_tried_anew() -> dict[str, Any]:
        engine = engine_where(cluster, namespace, "Ready", "False")
        return engine if "workflowruns: GET" in condition(engine, "Watching")["message"] else {}

    await eventually(is_tried_anew, "kopf has given up", seconds=40)
    create(cluster, namespace, a_run("after"))
    fault.times = 0
    after = await claimed(hands)

    assert condition(said_at_once, "Ready")["reason"] == "NotWatching"
    message = condition(said_at_once, "Watching")["message"]
    assert "workflowruns: watch of " in message
    assert "403 Forbidden; give the engine's service account this right" in message
    assert after.run_id != before.run_id
    assert behind.control.lives == 1


async def test_a_late_write_of_a_leader_before_is_put_right(
    cluster: ControlPlane, namespace: str, settings: Settings, hands: Hands, tmp_path: Path
) -> None:
    """No lease keeps a request back that is on its way; the run has ended by then, and owes nothing any more."""
    held = asyncio.Event()
    async with proxy_before(cluster) as proxy:
        proxy.faults.append(Fault(is_status_of("order").matches, 0, 1, held=held))
        (tmp_path / "proxied").write_text(proxy.kubeconfig)
        changed = settings.control.model_copy(update={"kubeconfig": str(tmp_path / "proxied")})
        first = Controlled(settings.model_copy(update={"control": changed}))
        first.start()
        create(cluster, namespace, a_run("order"))
        claim = await claimed(hands)
        await eventually(lambda: proxy.happened == [0], "its status is on its way")
        await first.end()
        second = Controlled(settings)
        second.start()
        await finish(hands, claim, output="1")
        await status_where(cluster, namespace, "order", lambda status: "output" in status, "it is written")

        held.set()
        await status_where(cluster, namespace, "order", lambda status: status["phase"] == "Running", "the old one came")
        await status_where(cluster, namespace, "order", lambda status: "output" in status, "it is put right")
        await second.end()


async def test_a_refusal_is_forgotten_when_nothing_is_owed_there(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind
) -> None:
    """As in a namespace that is being deleted, where the rights go before the objects: no write tells that it is over."""
    fault = is_status_of("order")
    fault.code, fault.times = 403, 1_000_000
    behind.proxy.faults.append(fault)
    create(cluster, namespace, a_run("order"))
    await claimed(hands)
    refused = await eventually(lambda: engine_where(cluster, namespace, "Mirroring", "False"), "it is said", seconds=15)
    delete(cluster, namespace, "order")
    await eventually(lambda: engine_where(cluster, namespace, "Mirroring", "True"), "it is taken back", seconds=15)

    assert f"in namespace {namespace}: as told (403): " in condition(refused, "Mirroring")["message"]
    assert len(behind.proxy.happened) < 15


async def test_a_kopf_that_dies_is_started_again(
    cluster: ControlPlane, namespace: str, hands: Hands, behind: Behind
) -> None:
    """An error in a watch ends kopf. The leader leads on: what it does without kopf goes on, and the lease is not passed
    round for a trouble that the next leader would have as well.
    """
    create(cluster, namespace, a_run("before"))
    await claimed(hands)
    await eventually(lambda: len(behind.proxy._watches) == 3, "runs, engine and pods are watched")
    lives = behind.control.lives
    for kind in ("workflowruns", "workflowengines"):
        behind.proxy.faults.append(Fault(is_watch_of(kind), 200, 2, broken_watch(500)))
    behind.proxy.cut_watches()

    await eventually(lambda: behind.proxy.happened == [200] * 4, "it has died twice")
    create(cluster, namespace, a_run("after"))
    await asyncio.wait_for(claimed(hands), 8)
    engine = await eventually(lambda: engine_where(cluster, namespace, "Watching", "True"), "it is watched again")

    assert condition(engine, "Ready")["status"] == "True"
    assert behind.control.lives == lives


async def test_a_list_that_took_too_long_is_begun_anew(
    cluster: ControlPlane, namespace: str, settings: Settings, hands: Hands, tmp_path: Path
) -> None:
    def is_comparison(request: web.Request) -> bool:
        return request.path.endswith("/workflowruns") and request.query.get("limit") == "500"

    first = create(cluster, namespace, a_run("order"))
    async with proxy_before(cluster) as proxy:
        proxy.faults.append(Fault(is_comparison, 410, 1))
        (tmp_path / "proxied").write_text(proxy.kubeconfig)
        changed = settings.control.model_copy(update={"kubeconfig": str(tmp_path / "proxied")})
        control = Controlled(settings.model_copy(update={"control": changed}))
        control.start()
        claim = await claimed(hands)
        await eventually(lambda: proxy.happened == [410], "it was told so")
        await control.end()

    assert str(claim.run_id) == first["metadata"]["uid"]


async def test_two_leaders_at_once_do_what_one_does(
    cluster: ControlPlane, namespace: str, settings: Settings, store: PostgresStore, hands: Hands
) -> None:
    """I6: leases can overlap for moments, and nothing may come of it."""
    names = [f"run-{number}" for number in range(10)]
    async with Kube.open(settings.control) as kube:
        leaders = [
            asyncio.create_task(
                Leader(settings, lambda: PostgresStore(settings.database), kube, name, clock=SystemClock()).run()
            )
            for name in ("one", "two")
        ]
        for name in names:
            create(cluster, namespace, a_run(name))
        claims: list[Claim] = []
        while len(claims) < len(names):
            claims += await eventually(hands.claim, "runs are due")
        change(cluster, namespace, "run-0", cancel=True)  # later than the claim: one that nobody has taken ends at once
        cancelled = UUID(read(cluster, namespace, "run-0")["metadata"]["uid"])
        await eventually(lambda: store.read_inbox(cancelled, 0), "the cancel is sent")
        for name in names[:5]:
            delete(cluster, namespace, name)
        deleted = {str(claim.run_id) for claim in claims} - {
            read(cluster, namespace, name)["metadata"]["uid"] for name in names[5:]
        }
        for claim in claims:
            if str(claim.run_id) not in deleted:
                await finish(hands, claim)
        for name in names[5:]:
            await status_where(cluster, namespace, name, lambda status: status["phase"] == "Succeeded", "it ended")

        async def sources() -> list[list[str]]:
            inboxes = [await store.read_inbox(claim.run_id, 0) for claim in claims if str(claim.run_id) in deleted]
            # A leader whose first list has the change can't know that it was sent, and says again that nothing is suspended.
            found = sorted(sorted({row.source for row in inbox} - {"resource:resume:2"}) for inbox in inboxes)
            return found if all("resource:deleted" in each for each in found) else []

        found = await eventually(sources, "the cancels are there")
        for leader in leaders:
            leader.cancel()
        await asyncio.gather(*leaders, return_exceptions=True)

    assert len({claim.run_id for claim in claims}) == len(claims) == len(names)
    assert found == [["resource:cancel", "resource:deleted"], *[["resource:deleted"]] * 4]


async def _is_mirrored(store: PostgresStore) -> bool:
    return await store.take_unmirrored(hold_seconds=0, limit=1) == []
