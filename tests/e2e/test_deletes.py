"""Objects deleted when no operator looked: their runs are cancelled or go on, as their deletionPolicy says."""

import asyncio
from pathlib import Path

import pytest

from romancy.model.run import Phase
from tests.chaos.fleet import Fleet
from tests.control.faults import Fault, broken_watch, is_watch_of, proxy_before
from tests.controlplane.plane import ControlPlane
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube]


async def test_deleted_while_no_operator_lived(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    uids = {
        **{name: kube.apply(name, "books", input={"label": name, "seconds": 600}) for name in ("gone", "same", "kept")},
        "orphan": kube.apply("orphan", "books", input={"label": "orphan", "seconds": 12}, deletionPolicy="Orphan"),
        "done": kube.apply("done", "books", input={"label": "done", "seconds": 0}),
    }
    await kube.end("done")
    for name in ("gone", "same", "kept", "orphan"):
        await kube.status(name, lambda status: status["phase"] == "Waiting", "waiting")
    engine.processes["a"].kill()

    for name in ("gone", "same", "orphan", "done"):
        kube.delete(name)
    again = kube.apply("same", "books", input={"label": "same again", "seconds": 0})
    kube.apply("new", "books", input={"label": "new", "seconds": 0})
    await engine.start("b")
    await kube.end("same")
    await kube.end("new")
    ends = {name: await _end(engine, uid) for name, uid in uids.items() if name != "kept"}

    assert ends == {
        "gone": (Phase.CANCELLED, "Deleted"),
        "same": (Phase.CANCELLED, "Deleted"),
        "orphan": (Phase.SUCCEEDED, ""),
        "done": (Phase.SUCCEEDED, ""),
    }
    assert again != uids["same"]
    assert (await kube.status("same", lambda _: True, "shown"))["runId"] == again
    assert (await kube.status("kept", lambda _: True, "shown"))["phase"] == "Waiting"
    assert sorted(engine.log()) == sorted(
        [*(f"book {name}" for name in [*uids, "same again", "new"]), "unbook gone", "unbook same"]
    )


async def test_deleted_while_the_watch_was_too_old(
    engine: Fleet, kube: Kubernetes, cluster: ControlPlane, tmp_path: Path
) -> None:
    """The leader lives, but its watch is cut, and answered by a 410 when it comes back: kopf lists anew, and says nothing."""
    async with proxy_before(cluster) as proxy:
        (tmp_path / "proxied").write_text(proxy.kubeconfig)
        process = await engine.start("a", ROMANCY_CONTROL__KUBECONFIG=str(tmp_path / "proxied"))
        uids = {name: kube.apply(name, "books", input={"label": name, "seconds": 600}) for name in ("gone", "kept")}
        uids["orphan"] = kube.apply(
            "orphan", "books", input={"label": "orphan", "seconds": 12}, deletionPolicy="Orphan"
        )
        for name in uids:
            await kube.status(name, lambda status: status["phase"] == "Waiting", "waiting")
        away = Fault(is_watch_of("workflowruns"), 503, 1_000_000)
        proxy.faults += [away, Fault(is_watch_of("workflowruns"), 200, 1, broken_watch(410))]
        proxy.cut_watches()
        await engine.until(lambda: 503 in proxy.happened, "the runs are not watched")
        kube.delete("gone")
        kube.delete("orphan")
        for name in ("gone", "orphan"):
            assert not (await engine.client.handle(uids[name]).info()).is_done, f"{name} was deleted while it waited"
        away.times = 0
        ends = {name: await _end(engine, uids[name]) for name in ("gone", "orphan")}
        kube.apply("after", "books", input={"label": "after", "seconds": 0})
        await kube.end("after")
        process.popen.terminate()
        await engine.until(lambda: process.popen.poll() is not None, "it ends")

    assert ends == {"gone": (Phase.CANCELLED, "Deleted"), "orphan": (Phase.SUCCEEDED, "")}
    assert proxy.happened[-1] == 200
    assert sorted(engine.log()) == sorted([*(f"book {name}" for name in [*uids, "after"]), "unbook gone"])
    assert process.popen.returncode == 0


async def _end(engine: Fleet, uid: str) -> tuple[Phase, str]:
    """How a run ends, asked of the database: its object may be gone."""
    handle = engine.client.handle(uid)
    async with asyncio.timeout(40):
        while not (run := await handle.info()).is_done:  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.1)
    return run.phase, run.reason
