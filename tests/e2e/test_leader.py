"""The leader dies, is robbed, stands still, dies among thousands of runs: no run notices, and none is shown wrongly."""

import asyncio
import os
import signal
import time
from collections import Counter
from datetime import UTC, datetime

import pytest

from tests.chaos.fleet import Fleet, Process
from tests.e2e.kubernetes import Kubernetes
from tests.proxy import proxy_to

pytestmark = [pytest.mark.slow, pytest.mark.kube]

PRESENT_RUNS = int(os.environ.get("PRESENT_RUNS", "600"))  # 5000 for the whole of it: that takes two minutes
RSS_MAX_MIB = 400
CONTROL_ONLY = {"ROMANCY_WORKFLOWS": "workflows.order_saga"}  # which is not run here
WORKER_ONLY = {"ROMANCY_CONTROL__ENABLED": "false"}


async def another_leads(engine: Fleet, kube: Kubernetes, first: str) -> float:
    """Wait until another of the processes leads; how long that took."""
    began = time.monotonic()
    await engine.until(lambda: kube.leader() in engine.processes.keys() - {first}, "another leads")
    return time.monotonic() - began


def events(process: Process, event: str) -> int:
    return process.log.read_text().count(f'"event": "{event}"')


async def test_the_leader_is_killed(engine: Fleet, kube: Kubernetes) -> None:
    await asyncio.gather(*(engine.start(name) for name in ("a", "b")))
    await engine.until(kube.leader, "somebody leads")
    first = kube.leader()
    for number in range(10):
        kube.apply(f"before-{number}", "takes_time", input={"seconds": 1})
    await engine.until(lambda: engine.log().count("begin slow") == 10, "all have begun")

    engine.processes[first].kill()
    took = await another_leads(engine, kube, first)
    for number in range(10):
        assert (await kube.end(f"before-{number}"))["phase"] == "Succeeded"
    kube.apply("after", "takes_time", input={"seconds": 0})
    assert (await kube.end("after"))["phase"] == "Succeeded"

    assert took < 8, f"another led after {took:.1f} s"
    runs = await engine.client.list(namespace="*", limit=100)
    for run in runs:
        assert len(await engine.client.store.read_history(run.id)) == 1
    assert len(runs) == 11
    [heir] = [process for name, process in engine.processes.items() if name != first]
    heir.signal(signal.SIGTERM)
    assert heir.popen.wait(15) == 0


async def test_the_leader_alone_has_no_database(engine: Fleet, kube: Kubernetes) -> None:
    """Another process that has one takes the Lease, and the runs go on there."""
    async with proxy_to(engine.database) as (proxy, through):
        await engine.start("a", url=through.url.get_secret_value())
        await engine.until(lambda: kube.leader() == "a", "it leads")
        await engine.start("b")
        kube.apply("before", "takes_time", input={"seconds": 0})
        await kube.end("before")

        proxy.is_open.clear()
        proxy.cut()
        for number in range(5):
            kube.apply(f"during-{number}", "takes_time", input={"seconds": 0})
        for number in range(5):
            assert (await kube.end(f"during-{number}"))["phase"] == "Succeeded"
        await engine.until(lambda: kube.leader() == "b", "the other leads")
        assert events(engine.processes["b"], "leadership_taken") == 1
        proxy.is_open.set()
        kube.apply("after", "takes_time", input={"seconds": 0})
        assert (await kube.end("after"))["phase"] == "Succeeded"
        assert kube.leader() == "b"


async def test_the_lease_is_stolen(engine: Fleet, kube: Kubernetes) -> None:
    """By somebody who then gives no sign of life: the leader ends its work, and one of ours leads after the thief's lease."""
    runs = 10
    await asyncio.gather(*(engine.start(name) for name in ("a", "b")))
    await engine.until(kube.leader, "somebody leads")
    robbed = engine.processes[kube.leader()]
    for number in range(runs):
        kube.apply(f"run-{number}", "stands", input={"label": f"run-{number}", "seconds": 2})
    await engine.until(lambda: len(engine.log()) == runs, "all have begun")
    await engine.until(lambda: kube.phases()["Running"] == runs, "all are shown")

    spec = {"holderIdentity": "thief/1", "leaseDurationSeconds": 3, "renewTime": f"{datetime.now(UTC):%FT%T.%fZ}"}
    kube.plane.call("PATCH", kube.lease_path, {"spec": spec})
    stolen_at = time.monotonic()
    await engine.until(lambda: events(robbed, "leadership_lost"), "it has noticed", seconds=3)
    noticed = time.monotonic() - stolen_at
    assert kube.leader() == "thief"
    await engine.until(lambda: kube.leader() in engine.processes, "one of ours leads")
    took = time.monotonic() - stolen_at
    kube.apply("after", "stands", input={"label": "after", "seconds": 0})
    for name in [*(f"run-{number}" for number in range(runs)), "after"]:
        assert (await kube.end(name))["phase"] == "Succeeded"

    assert "the object has been modified" in robbed.log.read_text()  # why it was lost is in the log
    assert sum(events(process, "kopf_stopped") for process in engine.processes.values()) >= 2
    assert noticed < 1.5, f"noticed after {noticed:.2f} s"
    assert 3 <= took < 8, f"led again after {took:.1f} s"
    assert sorted(engine.log()) == sorted(
        f"{what} {name}"
        for what in ("begin", "end")
        for name in [*(f"run-{number}" for number in range(runs)), "after"]
    )
    assert len(kube.status_writes()) <= 1.1 * 2 * (runs + 1)
    assert all(process.popen.poll() is None for process in engine.processes.values())


async def test_two_lead_at_once(engine: Fleet, kube: Kubernetes) -> None:
    """The leader is stopped in the middle of writing statuses, and goes on when another has long written newer ones.

    Who leads has no workflows here, so that what is stopped holds no runs.
    """
    runs = 40
    rate = {"ROMANCY_CONTROL__STATUS_WRITES_PER_SECOND": "20"}
    await asyncio.gather(
        *(engine.start(name, **CONTROL_ONLY, **rate) for name in ("a", "b")), engine.start("worker", **WORKER_ONLY)
    )
    await engine.until(kube.leader, "somebody leads")
    stopped = engine.processes[kube.leader()]
    for number in range(runs):
        kube.apply(f"run-{number}", "stands", input={"label": f"run-{number}", "seconds": 3})
    kube.apply("turned", "sleeps", input={"seconds": 600})
    await engine.until(lambda: len(kube.status_writes()) > 20, "statuses are written")
    kube.change("turned", suspend=True)

    stopped.signal(signal.SIGSTOP)
    took = await another_leads(engine, kube, stopped.name)
    for number in range(10):
        kube.apply(f"meanwhile-{number}", "stands", input={"label": f"meanwhile-{number}", "seconds": 0})
    kube.change("turned", suspend=False)
    await engine.until(lambda: kube.phases()["Succeeded"] == runs + 10, "all have ended")
    await kube.status("turned", lambda status: status["observedGeneration"] == 3, "resumed")
    before = len(kube.status_writes())
    stopped.signal(signal.SIGCONT)
    await engine.until(lambda: events(stopped, "leadership_lost"), "the old one has noticed")

    assert kube.phases() == {"Succeeded": runs + 10, "Waiting": 1}
    kube.apply("last", "stands", input={"label": "last", "seconds": 0})
    await kube.end("last")
    assert kube.phases() == {"Succeeded": runs + 11, "Waiting": 1}
    assert took < 8
    assert len(kube.status_writes()) == before + 1
    names = [*(f"run-{number}" for number in range(runs)), *(f"meanwhile-{number}" for number in range(10)), "last"]
    assert Counter(engine.log()) == Counter(f"{what} {name}" for what in ("begin", "end") for name in names)
    assert all(process.popen.poll() is None for process in engine.processes.values())


@pytest.mark.timeout(240)
async def test_the_leader_is_killed_with_thousands_of_runs_present(engine: Fleet, kube: Kubernetes) -> None:
    """Half of them have ended, half sleep."""
    quick = {"ROMANCY_CONTROL__STATUS_WRITES_PER_SECOND": "2000"}
    await asyncio.gather(*(engine.start(name, **quick) for name in ("a", "b")))

    half = range(PRESENT_RUNS // 2)
    began = time.monotonic()
    await kube.apply_all(
        [(f"sleeps-{number}", "sleeps", {"seconds": 36_000}) for number in half]
        + [(f"ended-{number}", "send_parcel", {"to": f"house {number}", "grams": number}) for number in half]
    )
    applied = time.monotonic() - began

    def are_present() -> bool:
        return not kube.has_others_than("Succeeded", "Waiting")

    await engine.until(are_present, "all are there", seconds=150)
    present = time.monotonic() - began
    first = kube.leader()
    engine.processes[first].kill()
    killed_at = time.monotonic()
    led = await another_leads(engine, kube, first)
    kube.apply("new", "send_parcel", input={"to": "the new house", "grams": 1})
    await kube.end("new")
    took = time.monotonic() - killed_at
    heir = engine.processes[kube.leader()]
    memory = {name: memory_mib(heir, name) for name in ("VmRSS", "VmHWM")}
    print(
        f"{PRESENT_RUNS} runs: applied in {applied:.1f} s, there after {present:.1f} s; another led {led:.1f} s after the "
        f"kill, and a new run had succeeded after {took:.1f} s; the new leader has {memory} MiB"
    )

    assert took < 10
    assert memory["VmRSS"] < RSS_MAX_MIB
    assert sum(count for line, count in Counter(engine.log()).items()) == PRESENT_RUNS / 2 + 1


def memory_mib(process: Process, name: str) -> int:
    with open(f"/proc/{process.pid}/status") as lines:
        [found] = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found) // 1024
