"""`make bench`: each figure min / median / max of so many rounds, beside its target, from one run on one machine.

`python -m bench [throughput|replay|fan_out|timers|recovery|kubernetes|cli ...] [--rounds N]`
"""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import flows, yardsticks
from romancy import App
from romancy.base import collector
from romancy.base.settings import DatabaseSettings, WorkerSettings
from romancy.client import Client
from tests import postgres
from tests.controlplane.fixtures import install_crds
from tests.controlplane.plane import ControlPlane

ROOT = Path(__file__).parents[1]
REPLAYED = 10_000
FANNED = 5000


@dataclass
class Figure:
    """One line of the table."""

    name: str
    unit: str
    values: list[float]
    target: str = ""

    def __str__(self) -> str:
        low, middle, high = min(self.values), statistics.median(self.values), max(self.values)
        form = "{:9.0f}" if middle >= 100 else "{:9.2f}"
        shown = " /".join(form.format(value) for value in (low, middle, high))
        return f"  {self.name:<58}{shown} {self.unit:<7}{self.target}"


def show(figure: Figure) -> None:
    print(figure, flush=True)


async def throughput(server: postgres.Server, rounds: int) -> None:
    """Runs of five activities, start to result, beside what PostgreSQL gives for the same rows."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        database = await server.migrated_database()
        url = database.url.get_secret_value()
        found.setdefault("bare", []).append(await yardsticks.autocommits(url, 300))
        for at_once, runs in ((1, 300), (50, 3000), (500, 5000)):
            found.setdefault(f"group {at_once}", []).append(await yardsticks.group_commit(url, runs, at_once=at_once))
            found.setdefault(f"ours {at_once}", []).append(await _engine(database, runs // 2, at_once))
        await server.give_back(database)
    show(Figure("yardstick: bare autocommits, one at a time", "runs/s", found["bare"]))
    for at_once, share in ((1, "70 %"), (50, "50 %"), (500, "")):
        ours, group = found[f"ours {at_once}"], found[f"group {at_once}"]
        show(Figure(f"yardstick: group commit without an engine, {at_once} at once", "runs/s", group))
        show(Figure(f"runs of 5 activities, {at_once} at once", "runs/s", ours))
        shares = [100 * a / b for a, b in zip(ours, group, strict=True)]
        show(Figure(f"  share of the yardstick, {at_once} at once", "%", shares, share and f"target {share}"))


async def _engine(database: DatabaseSettings, runs: int, at_once: int) -> float:
    async with App(database, [flows.five_steps], worker=WorkerSettings(name="bench", slots=2000)) as app:
        for _ in range(20):
            await (await app.start(flows.five_steps, 1)).result()
        left = iter(range(runs))

        async def one_after_the_other() -> None:
            for _ in left:
                handle = await app.start(flows.five_steps, 1)
                assert await handle.result() == 6

        began = time.perf_counter()
        await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
        return runs / (time.perf_counter() - began)


async def replay(_: postgres.Server, rounds: int) -> None:
    """A long history, from the first entry to the last: activities one after the other, and all at once."""
    for flow in (flows.one_after_the_other, flows.all_at_once):
        took = [1000 * flows.replay_seconds(flow, REPLAYED) for _ in range(rounds)]
        show(Figure(f"replay of {REPLAYED:,} entries, {flow.name}", "ms", took, "target 300 ms"))


async def fan_out(server: postgres.Server, rounds: int) -> None:
    """Thousands of activities of one run at once."""
    database = await server.migrated_database()
    took = []
    async with App(database, [flows.all_at_once], worker=WorkerSettings(name="bench")) as app:
        for _ in range(rounds):
            began = time.perf_counter()
            assert await (await app.start(flows.all_at_once, FANNED)).result() == sum(range(1, FANNED + 1))
            took.append(time.perf_counter() - began)
    await server.give_back(database)
    show(Figure(f"a run of {FANNED:,} activities at once", "s", took))


async def timers(server: postgres.Server, rounds: int) -> None:
    """How late timers fire: in memory, and parked."""
    database = await server.migrated_database()
    late: dict[str, list[float]] = {"in memory": [], "parked": []}
    async with App(database, [flows.wakes], worker=WorkerSettings(name="bench")) as app:
        for _ in range(rounds):
            handles = [await app.start(flows.wakes, 0.5) for _ in range(20)]
            late["in memory"] += [1000 * await handle.result() for handle in handles]
            handles = [await app.start(flows.wakes, 2.0 + number / 50) for number in range(20)]
            late["parked"] += [1000 * await handle.result() for handle in handles]
    await server.give_back(database)
    for name, values in late.items():
        show(Figure(f"a timer fires late, {name}", "ms", values, "target within 100 ms"))


class Process:
    """A real operator process."""

    def __init__(self, folder: Path, name: str, database: DatabaseSettings, **options: str) -> None:
        self.log = folder / f"{name}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ROMANCY_")},
            "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
            "PYTHONHASHSEED": "0",
            "ROMANCY_DATABASE__URL": database.url.get_secret_value(),
            "ROMANCY_WORKFLOWS": "bench.flows",
            "ROMANCY_WORKER__NAME": name,
            "ROMANCY_GATEWAY__HOST": "127.0.0.1",
            "ROMANCY_GATEWAY__PORT": "0",
            "BENCH_EFFECTS": str(folder),
            **options,
        }
        with self.log.open("wb") as out:
            command = [sys.executable, "-m", "romancy", "operator"]
            self.popen = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)

    async def ready(self) -> None:
        while "worker_registered" not in self.log.read_text():
            assert self.popen.poll() is None, self.log.read_text()
            await asyncio.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(number)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="romancy-bench-") as name:
        yield Path(name)


async def _gap(place: Path, client: Client, end: Callable[[int], Awaitable[None]]) -> float:
    """Seconds from the end of the process that executes a run of ticks until another process ticks."""
    ticks = place / "ticks"
    ticks.unlink(missing_ok=True)
    handle = await client.start(flows.ticks, 400, 0.05)

    def lines() -> list[tuple[int, float]]:
        rows = [line.split() for line in ticks.read_text().splitlines()] if ticks.exists() else []
        return [(int(pid), float(at)) for _, pid, at in rows]

    while len(lines()) < 5:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    first = lines()[-1][0]
    at = time.time()
    await end(first)
    while not (others := [when for pid, when in lines() if pid != first and when >= at]):  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.01)
    await handle.cancel()
    return others[0] - at


async def recovery(server: postgres.Server, rounds: int) -> None:
    """How long a run stands still, with the default settings: its process killed, its pod deleted, drained."""
    plane_folder = tempfile.TemporaryDirectory(prefix="romancy-bench-kube-")
    plane = ControlPlane.start(Path(plane_folder.name))
    install_crds(plane)
    found: dict[str, list[float]] = {"kill": [], "pod": [], "term": []}
    try:
        for _ in range(rounds):
            for how, gaps in found.items():
                with folder() as place:
                    database = await server.migrated_database()
                    namespace = f"bench-{uuid.uuid4().hex[:6]}"
                    plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": namespace}})
                    gaps.append(await _recovery(place, plane, namespace, database, how))
                    await server.give_back(database)
    finally:
        plane.stop()
        plane_folder.cleanup()
    show(Figure("kill -9 of the process: the run stands still", "s", found["kill"], "target 10 s"))
    show(Figure("pod deleted and its process killed", "s", found["pod"], "target 2 s"))
    show(Figure("SIGTERM", "s", found["term"], "target 1 s"))


async def _recovery(place: Path, plane: ControlPlane, namespace: str, database: DatabaseSettings, how: str) -> float:
    pods = {}
    for name in ("a", "b", "leader"):
        body = {
            "metadata": {"name": name, "labels": {"romancy.dev/worker": "true"}},
            "spec": {"containers": [{"name": "c", "image": "none"}]},
        }
        pods[name] = plane.call("POST", f"/api/v1/namespaces/{namespace}/pods", body)["metadata"]["uid"]
    options = {
        "ROMANCY_CONTROL__KUBECONFIG": str(plane.kubeconfig),
        "ROMANCY_CONTROL__NAMESPACE": namespace,
        "ROMANCY_CONTROL__WATCH_NAMESPACES": namespace,
    }
    # One leads and has none of the workflows: what is measured is the loss of a worker, not a change of leaders as well.
    apart = {
        "a": {"ROMANCY_CONTROL__ENABLED": "false"},
        "b": {"ROMANCY_CONTROL__ENABLED": "false"},
        "leader": {"ROMANCY_WORKFLOWS": "workflows.onboarding"},
    }
    processes = {
        name: Process(place, name, database, ROMANCY_WORKER__POD_UID=uid, **options, **apart[name])
        for name, uid in pods.items()
    }
    try:
        for process in processes.values():
            await process.ready()
        while not any("leadership_won" in process.log.read_text() for process in processes.values()):  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)  # the leader watches pods by now

        async def end(pid: int) -> None:
            [name] = [name for name, process in processes.items() if process.popen.pid == pid]
            processes[name].end(signal.SIGTERM if how == "term" else signal.SIGKILL)
            if how == "pod":
                path = f"/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0"
                await asyncio.to_thread(plane.call, "DELETE", path)

        async with Client(database) as client:
            return await _gap(place, client, end)
    finally:
        for process in processes.values():
            process.end()
            process.popen.wait()


async def kubernetes(server: postgres.Server, rounds: int) -> None:
    """From the POST of a WorkflowRun that does nothing to its condition Succeeded, one at a time."""
    with folder() as place, tempfile.TemporaryDirectory(prefix="romancy-bench-kube-") as kube:
        plane = ControlPlane.start(Path(kube))
        install_crds(plane)
        database = await server.migrated_database()
        process = Process(
            place,
            "a",
            database,
            ROMANCY_CONTROL__KUBECONFIG=str(plane.kubeconfig),
            ROMANCY_CONTROL__WATCH_NAMESPACES="default",
        )
        path = "/apis/romancy.dev/v1alpha1/namespaces/default/workflowruns"
        try:
            await process.ready()
            while "leadership_won" not in process.log.read_text():  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
            seconds = [await _apply(plane, path, f"run-{number}") for number in range(10 + 20 * rounds)][10:]
            show(
                Figure(
                    "apply -> Succeeded of a run that does nothing",
                    "ms",
                    [1000 * each for each in seconds],
                    "target 250 ms",
                )
            )
        finally:
            process.end()
            process.popen.wait()
            plane.stop()
            await server.give_back(database)


async def cli(server: postgres.Server, rounds: int) -> None:
    """What `romancy` takes until it has said all, as a process of its own."""
    database = await server.migrated_database()
    asked = {
        "--help": (["--help"], {}),
        "get X, by the HTTP API (which is not there)": (["get", "x", "--server", "http://127.0.0.1:1"], {}),
        "get X, by the database": (["get", "x"], {"DATABASE_URL": database.url.get_secret_value()}),
    }
    for name, (arguments, environment) in asked.items():
        took = []
        for _ in range(3 * rounds):
            began = time.perf_counter()
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "romancy", *arguments),
                env={**os.environ, "PYTHONPATH": str(ROOT / "operator"), **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            await process.wait()
            took.append(1000 * (time.perf_counter() - began))
        show(Figure(f"romancy {name}", "ms", took, "target 250 ms"))
    await server.give_back(database)


async def _apply(plane: ControlPlane, path: str, name: str) -> float:
    body = {
        "apiVersion": "romancy.dev/v1alpha1",
        "kind": "WorkflowRun",
        "metadata": {"name": name},
        "spec": {"workflow": "no_op"},
    }
    began = time.perf_counter()
    await asyncio.to_thread(plane.call, "POST", path, body)
    while True:
        made = await asyncio.to_thread(plane.call, "GET", f"{path}/{name}")
        conditions = {each["type"]: each["status"] for each in made.get("status", {}).get("conditions", [])}
        if conditions.get("Succeeded") == "True":
            return time.perf_counter() - began
        await asyncio.sleep(0.005)


PARTS: dict[str, Callable[[postgres.Server, int], Awaitable[None]]] = {
    "throughput": throughput,
    "replay": replay,
    "fan_out": fan_out,
    "timers": timers,
    "kubernetes": kubernetes,
    "cli": cli,
    "recovery": recovery,
}


async def main(arguments: Sequence[str]) -> int:
    rounds = int(arguments[arguments.index("--rounds") + 1]) if "--rounds" in arguments else 3
    chosen = [name for name in arguments if name in PARTS] or list(PARTS)
    collector.tune()  # as `romancy operator` does
    machine = f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}; min / median / max of {rounds} rounds")
    with postgres.server(postgres.embedded_binaries()) as server:
        for name in chosen:
            print(f"{name}: {(PARTS[name].__doc__ or '').splitlines()[0]}", flush=True)
            await PARTS[name](server, rounds)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
