"""docs/operate/backup.md, command by command: a dump, the engine goes on, the dump is restored, and what then becomes of runs."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.model.run import Phase
from tests import postgres
from tests.chaos.fleet import Fleet, all_holds
from tests.controlplane.plane import ControlPlane
from tests.docs.test_operate import commands, run, tools
from tests.e2e.conftest import engine_options
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube, pytest.mark.timeout(180)]

NAMESPACE = "romancy"


def deployment() -> str:
    """What is scaled: no pod of it ever runs, for there is no node; the operator is a process of the test's."""
    container = {"name": "romancy", "image": "none"}
    labels = {"app.kubernetes.io/name": "romancy"}
    spec = {
        "replicas": 0,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
    }
    return json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "romancy"}, "spec": spec})


async def test_a_restored_database(
    cluster: ControlPlane, namespace: str, postgres_server: postgres.Server, tmp_path: Path
) -> None:
    database: DatabaseSettings = await postgres_server.migrated_database()
    folder = tmp_path / "bin"
    folder.mkdir()
    environment = tools(folder, cluster.kubeconfig)
    environment["DATABASE_URL"] = database.url.get_secret_value()
    kube = Kubernetes(cluster, namespace)
    options = engine_options(cluster, namespace)

    async def do(line: str) -> str:
        return await asyncio.to_thread(run, line.replace(f"-n {NAMESPACE}", f"-n {namespace}"), environment, tmp_path)

    def books(name: str, seconds: float, **spec: Any) -> str:
        return kube.apply(name, "books", input={"label": name, "seconds": seconds}, **spec)

    await do(f"echo '{deployment()}' | kubectl -n {NAMESPACE} apply -f -")
    dump, scale_down, wait, drop, restore, scale_up, lost = commands("backup")
    async with Fleet(database, tmp_path, workflows="tests.e2e.flows", options=options) as engine:
        process = await engine.start("a")
        uids = {name: books(name, 600) for name in ("open", "deleted")}
        uids["orphan"] = books("orphan", 15, deletionPolicy="Orphan")
        uids["ends"] = kube.apply("ends", "takes_time", input={"seconds": 6})
        uids["done"] = books("done", 0)
        await kube.end("done")
        await engine.did("begin slow")
        for name in ("open", "deleted", "orphan"):
            await kube.status(name, lambda status: status["phase"] == "Waiting", "waiting")

        await do(dump)
        ended_before = (await kube.end("ends"))["completionTime"]
        books("new-open", 600)
        books("new-done", 0)
        await kube.end("new-done")
        await kube.status("new-open", lambda status: status["phase"] == "Waiting", "waiting")
        kube.delete("deleted")
        kube.delete("orphan")
        await engine.until(lambda: "unbook deleted" in engine.log(), "it is cancelled")
        await do(scale_down)
        process.kill()
        await do(wait)
        await do(drop)
        await do(restore)
        await do(scale_up)
        await engine.start("b")

        forgotten = await kube.status("new-open", lambda status: status.get("reason") == "RunLost", "lost")
        again = await kube.status(
            "ends",
            lambda status: status["phase"] == "Succeeded" and status["completionTime"] != ended_before,
            "ended again",
            seconds=40,
        )
        await engine.until(lambda: engine.log().count("unbook deleted") == 2, "it is cancelled again", seconds=40)
        ends = {name: await _end(engine, uids[name]) for name in ("deleted", "orphan")}
        kube.change("open", cancel=True)
        cancelled = await kube.end("open")
        names = await do(lost.replace("get wfr -A", f"get wfr -n {namespace}"))
        kept = await kube.status("new-done", lambda _: True, "shown")
        assert (
            kube.plane.call("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/romancy")["spec"]["replicas"] == 3
        )
        engine.processes["b"].kill()
    await all_holds(database)

    assert names.split() == [f"{namespace}/new-open"]
    stalled = next(each for each in forgotten["conditions"] if each["type"] == "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "RunLost")
    assert kept["phase"] == "Succeeded"
    assert again["phase"] == "Succeeded"
    assert cancelled["phase"] == "Cancelled"
    assert ends == {"deleted": (Phase.CANCELLED, "Deleted"), "orphan": (Phase.SUCCEEDED, "")}
    log = engine.log()
    assert log.count("begin slow") == 2  # what had ended since the dump is done again
    assert [log.count(f"book {name}") for name in ("open", "deleted", "done", "new-open", "new-done")] == [1] * 5


async def _end(engine: Fleet, uid: str) -> tuple[Phase, str]:
    handle = engine.client.handle(uid)
    async with asyncio.timeout(60):
        while not (found := await handle.info()).is_done:  # noqa: ASYNC110 - another process ends it
            await asyncio.sleep(0.1)
    return found.phase, found.reason
