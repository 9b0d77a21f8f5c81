"""Kubernetes does its worst to operator processes: the API server away, rights taken away, definitions and objects missing."""

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from romancy import Handle
from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import Fleet, Process, all_holds
from tests.control.faults import Fault, broken_watch, is_watch_of, proxy_before
from tests.control.rights import EVENTS, PODS, RULES, WATCH_LEASE, allow, make_account, without
from tests.controlplane.fixtures import install_crds
from tests.controlplane.plane import ControlPlane
from tests.e2e.conftest import engine_options
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube]

AWAY_SECONDS = float(os.environ.get("AWAY_SECONDS", "6"))  # longer than every lease and deadline here
AGAIN_SECONDS = 8
LINES_A_SECOND = 3
"""Of one process while the API server is away: the Lease, and kopf until its leader steps down."""


@contextmanager
def api_server_away(cluster: ControlPlane) -> Iterator[None]:
    cluster.kill_apiserver()
    try:
        yield
    finally:
        cluster.start_apiserver()


def lines(process: Process) -> int:
    """Besides those about the ends of runs: one of two processes may execute them all."""
    return sum('"event": "run_finished"' not in line for line in process.log.read_text().splitlines())


async def test_the_api_server_is_away(engine: Fleet, kube: Kubernetes) -> None:
    runs = 20
    processes = await asyncio.gather(*(engine.start(name) for name in ("a", "b")))
    await engine.until(kube.leader, "somebody leads")
    for number in range(runs):
        kube.apply(f"run-{number}", "stands", input={"label": f"run-{number}", "seconds": 3})
    await engine.until(lambda: len(engine.log()) == runs, "all have begun")
    before = [lines(process) for process in processes]

    with api_server_away(kube.plane):
        away_at = time.monotonic()
        # They end while nobody can be told; workers need no API server.
        await engine.until(lambda: len(engine.log()) == 2 * runs, "all end meanwhile")
        await asyncio.sleep(
            max(0, away_at + AWAY_SECONDS - time.monotonic())
        )  # nothing is waited for: so long it is away
    back_at = time.monotonic()
    said = [lines(process) - count for process, count in zip(processes, before, strict=True)]
    kube.apply("after", "stands", input={"label": "after", "seconds": 0})
    await kube.end("after")
    took = time.monotonic() - back_at
    await engine.until(lambda: kube.phases() == {"Succeeded": runs + 1}, "all statuses have come")
    print(
        f"away for {back_at - away_at:.1f} s: {said} log lines; a new run had succeeded {took:.1f} s after the return"
    )

    assert took < AGAIN_SECONDS
    assert max(said) <= LINES_A_SECOND * (back_at - away_at) + 20, [each.log.read_text()[-6000:] for each in processes]
    assert len(engine.log()) == len(set(engine.log())) == 2 * (runs + 1)
    assert len(kube.status_writes()) <= 2 * (runs + 1)
    assert all(process.popen.poll() is None for process in processes)


async def test_rights_are_taken_away_and_given_back(
    engine: Fleet, kube: Kubernetes, cluster: ControlPlane, tmp_path: Path
) -> None:
    """What is missing is said in the WorkflowEngine as far as that can be written, in the log always; the rest goes on."""
    everything = [*RULES, PODS, WATCH_LEASE, EVENTS]
    kubeconfig = tmp_path / "account"
    kubeconfig.write_text(make_account(cluster, kube.namespace))
    allow(cluster, kube.namespace, everything)
    process = await engine.start("a", ROMANCY_CONTROL__KUBECONFIG=str(kubeconfig))
    kube.apply("first", "send_parcel", input={"to": "house 0", "grams": 1})
    await kube.end("first")

    allow(cluster, kube.namespace, without("workflowruns/status"))
    for number in range(1, 21):
        kube.apply(f"run-{number}", "send_parcel", input={"to": f"house {number}", "grams": 1})
    await engine.until(lambda: len(engine.log()) == 21, "they run all the same")
    await engine.until(lambda: kube.condition("Mirroring").get("status") == "False", "it is said", seconds=10)
    mirroring, ready = kube.condition("Mirroring"), kube.condition("Ready")
    assert kube.phases() == {"Succeeded": 1, "none": 20}
    allow(cluster, kube.namespace, everything)
    given_at = time.monotonic()
    await engine.until(lambda: kube.phases() == {"Succeeded": 21}, "all statuses have come")
    healed = time.monotonic() - given_at
    await engine.until(lambda: kube.condition("Ready")["status"] == "True", "it is said", seconds=10)

    for text in ('cannot patch resource "workflowruns/status"', "give the engine's service account this right"):
        assert text in mirroring["message"]
        assert text in ready["message"]
        assert text in process.log.read_text().replace("\\", "")
    assert (mirroring["reason"], ready["status"], ready["reason"]) == ("NotMirroring", "False", "NotMirroring")
    assert process.log.read_text().count('"statuses_refused"') < 10  # of twenty runs, each tried again and again
    assert healed < AGAIN_SECONDS

    kube.plane.call("DELETE", kube.engine_path)
    await engine.until(kube.engine, "it is made again")
    allow(cluster, kube.namespace, [rule for rule in everything if "workflowengines" not in str(rule)] + RULES[:1])
    kube.plane.call("DELETE", kube.engine_path)
    kube.apply("blind", "send_parcel", input={"to": "house 21", "grams": 1})
    await engine.until(lambda: 'resource \\"workflowengines\\"' in process.log.read_text(), "it is in the log")
    kube.plane.call("PATCH", f"{kube.path}/blind", {"spec": {"ttlSecondsAfterFinished": 7200}})
    allow(cluster, kube.namespace, everything)
    given_at = time.monotonic()
    await kube.end("blind")
    await engine.until(lambda: kube.condition("Ready").get("status") == "True", "it is shown again")
    healed = time.monotonic() - given_at

    assert healed < AGAIN_SECONDS
    assert sorted(engine.log()) == sorted(f"stamp house {number}" for number in range(22))
    assert process.popen.poll() is None


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[ControlPlane]:
    """A control plane without our definitions."""
    plane = ControlPlane.start(tmp_path / "bare")
    try:
        yield plane
    finally:
        plane.stop()


@pytest.fixture
async def early(bare: ControlPlane, database: DatabaseSettings, tmp_path: Path) -> AsyncIterator[Fleet]:
    async with Fleet(database, tmp_path, workflows="tests.e2e.flows", options=engine_options(bare, "default")) as fleet:
        yield fleet
    await all_holds(database)


async def test_the_definitions_come_later(early: Fleet, bare: ControlPlane) -> None:
    """The operator says what is missing, and goes on by itself. It is ready meanwhile: its worker needs no Kubernetes."""
    kube = Kubernetes(bare, "default")
    process = await early.start("a")
    for kind in ("workflowruns", "workflowengines"):
        said = f'"kind": "{kind}"'
        await early.until(lambda said=said: said in process.log.read_text(), "it is said")
    port = re.search(r'"port": (\d+)', process.log.read_text())
    assert port is not None
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port[1]}/healthz/ready") as answer:
        assert answer.status == 200
    before = lines(process)
    await asyncio.sleep(3)  # nothing is waited for: how much is said, when nothing has changed

    assert "its definition is not installed" in process.log.read_text()
    assert "kubectl apply -f crds/" in process.log.read_text()
    assert lines(process) - before <= 3
    assert process.popen.poll() is None

    await asyncio.to_thread(install_crds, bare)
    installed_at = time.monotonic()
    kube.apply("first", "send_parcel", input={"to": "house 1", "grams": 1})
    await kube.end("first")
    await early.until(lambda: kube.condition("Ready").get("status") == "True", "the engine is shown")
    took = time.monotonic() - installed_at

    assert took < AGAIN_SECONDS
    assert "leader_failed" not in process.log.read_text()


async def test_the_engine_object_is_deleted_then_a_worker_dies(engine: Fleet, kube: Kubernetes) -> None:
    """The timer that buries ticks on that object."""
    await asyncio.gather(*(engine.start(name) for name in ("a", "b")))
    await engine.until(lambda: kube.condition("Ready").get("status") == "True", "it is shown")
    first = kube.engine()["metadata"]["uid"]

    kube.plane.call("DELETE", kube.engine_path)
    deleted_at = time.monotonic()
    await engine.until(lambda: kube.engine().get("metadata", {}).get("uid", first) != first, "it is made anew")
    made = time.monotonic() - deleted_at
    await engine.until(lambda: kube.condition("Ready").get("status") == "True", "it is shown")
    [follower] = [process for name, process in engine.processes.items() if name != kube.leader()]
    runs = [engine.client.handle(kube.apply(f"run-{n}", "takes_time", input={"seconds": 2})) for n in range(10)]
    await engine.until(lambda: engine.log().count("begin slow") == 10, "all have begun")
    held = [handle for handle in runs if (await handle.info()).worker == follower.name]
    follower.kill()
    killed_at = time.monotonic()
    for handle in held:
        await engine.until(lambda handle=handle: _is_elsewhere(handle, follower.name), "it goes on", seconds=10)
    took = time.monotonic() - killed_at

    assert held
    assert made < AGAIN_SECONDS
    assert took < 10
    for number in range(10):
        assert (await kube.end(f"run-{number}"))["phase"] == "Succeeded"


async def _is_elsewhere(handle: Handle[Any], name: str) -> bool:
    run = await handle.info()
    return run.is_done or run.worker not in {None, name}


async def test_kopf_dies(engine: Fleet, kube: Kubernetes, cluster: ControlPlane, tmp_path: Path) -> None:
    """An error in a watch ends kopf. Its leader starts it again, and leads on: another would have met the same."""
    async with proxy_before(cluster) as proxy:
        (tmp_path / "proxied").write_text(proxy.kubeconfig)
        process = await engine.start("a", ROMANCY_CONTROL__KUBECONFIG=str(tmp_path / "proxied"))
        await engine.until(lambda: kube.condition("Ready").get("status") == "True", "it is shown")
        await engine.until(lambda: len(proxy.open_watches) == 3, "runs, engine and pods are watched")
        for kind in ("workflowruns", "workflowengines"):
            proxy.faults.append(Fault(is_watch_of(kind), 200, 1, broken_watch(500)))
        proxy.cut_watches()
        await engine.until(lambda: process.log.read_text().count('"kopf_failed"') == 2, "it has died")
        died_at = time.monotonic()
        await engine.until(lambda: process.log.read_text().count('"kind_watched"') == 2, "all is watched again")
        took = time.monotonic() - died_at
        kube.apply("after", "send_parcel", input={"to": "house 1", "grams": 1})
        await kube.end("after")
        kube.plane.call("DELETE", kube.engine_path)
        await engine.until(kube.engine, "the engine's new watch works as well")
        # To its end while the proxy is there: it could not say good-bye to an API server that it does not reach.
        process.popen.terminate()
        await engine.until(lambda: process.popen.poll() is not None, "it ends")

    assert proxy.happened == [200, 200]
    assert "Error in the watch-stream" in process.log.read_text()
    assert took < AGAIN_SECONDS
    assert process.log.read_text().count('"leadership_won"') == 1
    assert process.popen.returncode == 0
