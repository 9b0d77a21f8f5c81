"""What an engine that has nothing to do costs: statements a second, with the options that people get."""

import asyncio
import os
from collections import Counter

import pytest

from romancy.base.settings import ControlSettings, DatabaseSettings, WorkerSettings
from tests.chaos.fleet import Fleet
from tests.e2e.kubernetes import Kubernetes
from tests.proxy import Proxy, proxy_to

pytestmark = [pytest.mark.slow, pytest.mark.kube, pytest.mark.timeout(180)]

IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "20"))
# A short measurement may catch more than its share of what comes once a minute.
ALLOWED = 1 if IDLE_SECONDS >= 60 else 1.1
SETTLE_SECONDS = 6  # the first looks of everything, and the plans that are made anew after one and five seconds
USUAL = {
    "ROMANCY_WORKER__LEASE_SECONDS": str(WorkerSettings().lease_seconds),
    "ROMANCY_WORKER__POLL_SECONDS": str(WorkerSettings().poll_seconds),
    "ROMANCY_CONTROL__BURY_SECONDS": str(ControlSettings().bury_seconds),
    "ROMANCY_CONTROL__LEASE_SECONDS": str(ControlSettings().lease_seconds),
    "ROMANCY_CONTROL__RENEW_DEADLINE_SECONDS": str(ControlSettings().renew_deadline_seconds),
    "ROMANCY_CONTROL__RETRY_SECONDS": str(ControlSettings().retry_seconds),
}


async def test_an_idle_engine_sends_hardly_a_statement(
    engine: Fleet, kube: Kubernetes, database: DatabaseSettings
) -> None:
    """A worker fewer than one a second, a leader fewer than two: all of its process, worker and control."""
    async with proxy_to(database) as (leaders, to_leader), proxy_to(database) as (workers, to_worker):
        await engine.start("leader", url=to_leader.url.get_secret_value(), **USUAL)
        lease = f"/apis/coordination.k8s.io/v1/namespaces/{kube.namespace}/leases/romancy"
        await engine.until(lambda: kube.plane.answers(lease) and kube.leader() == "leader", "it leads")
        await engine.start("worker", url=to_worker.url.get_secret_value(), **USUAL)
        kube.apply("before", "send_parcel", input={"to": "house 1", "grams": 1})
        assert (await kube.end("before"))["phase"] == "Succeeded"
        await asyncio.sleep(SETTLE_SECONDS)

        before = [Counter(proxy.seen) for proxy in (leaders, workers)]
        await asyncio.sleep(IDLE_SECONDS)  # it is measured
        leader, worker = (_a_second(proxy, old) for proxy, old in zip((leaders, workers), before, strict=True))

        for name, seen in (("leader", leader), ("worker", worker)):
            print(f"{name}: {sum(seen.values()):.2f} statements a second:", seen)
        assert leader["renew_lease"] > 0.4, "it was counted"
        assert worker["poll"] > 0.1
        assert sum(worker.values()) < ALLOWED, worker
        assert sum(leader.values()) < 2 * ALLOWED, leader


def _a_second(proxy: Proxy, before: Counter[str]) -> dict[str, float]:
    return {statement: count / IDLE_SECONDS for statement, count in (proxy.seen - before).items()}
