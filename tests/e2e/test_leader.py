"""The leader dies and the API server is away, with real operator processes: control comes back, and no run notices."""

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos.fleet import Fleet
from tests.controlplane.plane import ControlPlane
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube]

AWAY_SECONDS = 6  # longer than the lease of these tests, and than every deadline of a call


@pytest.fixture
def kube(cluster: ControlPlane, namespace: str) -> Kubernetes:
    return Kubernetes(cluster, namespace)


@contextmanager
def api_server_away(cluster: ControlPlane) -> Iterator[None]:
    cluster.kill_apiserver()
    try:
        yield
    finally:
        cluster.start_apiserver()


async def test_the_leader_is_killed_then_the_api_server(engine: Fleet, kube: Kubernetes) -> None:
    await asyncio.gather(*(engine.start(name) for name in ("a", "b")))
    path = f"/apis/coordination.k8s.io/v1/namespaces/{kube.namespace}/leases/romancy"
    await engine.until(lambda: kube.plane.answers(path) and kube.leader(), "somebody leads")
    first = kube.leader()
    for number in range(10):
        kube.apply(f"before-{number}", "takes_time", input={"seconds": 1})
    await engine.until(lambda: engine.log().count("begin slow") == 10, "all have begun")

    engine.processes[first].kill()
    killed_at = time.monotonic()
    await engine.until(lambda: kube.leader() not in {"", first}, "another leads")
    took = time.monotonic() - killed_at
    for number in range(10):
        assert (await kube.end(f"before-{number}"))["phase"] == "Succeeded"
    assert took < 8, f"another led after {took:.1f} s"

    begun = engine.log().count("begin slow")
    kube.apply("during", "takes_time", input={"seconds": 2})

    await engine.until(lambda: engine.log().count("begin slow") > begun, "it has begun")
    ended = engine.log().count("end slow")
    with api_server_away(kube.plane):
        # The run ends while nobody can be told; the worker needs no API server.
        await engine.until(lambda: engine.log().count("end slow") > ended, "it ends meanwhile")
        await asyncio.sleep(AWAY_SECONDS)  # nothing is waited for: this is how long it is away
        [heir] = [process for name, process in engine.processes.items() if name != first]
        assert heir.popen.poll() is None
    assert (await kube.end("during"))["phase"] == "Succeeded"
    kube.apply("after", "takes_time", input={"seconds": 0})
    assert (await kube.end("after"))["phase"] == "Succeeded"
    runs = await engine.client.list(namespace="*", limit=100)
    for run in runs:
        assert len(await engine.client.store.read_history(run.id)) == 1
    assert len(runs) == 12
    heir.signal(signal.SIGTERM)
    assert heir.popen.wait(15) == 0
