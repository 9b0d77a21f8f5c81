"""`make demo`: the main job on this machine, for real.

A PostgreSQL, a Kubernetes API server and three operator processes; the onboarding example by `kubectl apply`; then a run of
slow activities whose process is killed by SIGKILL, and then the leader. The summary is computed from the database and from
the file that the activities append to; the exit code is 0 only if it is right. DEMO_BREAK=1 switches recovery off: the
demo must then end with 1.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from romancy.base.settings import DatabaseSettings
from romancy.client import Client
from romancy.model.history import Kind
from tests import postgres
from tests.controlplane import plane

ROOT: Final = Path(__file__).parents[1]
STEPS: Final = 10
STEP_SECONDS: Final = 0.7
IS_BROKEN: Final = os.environ.get("DEMO_BREAK") == "1"
PATIENCE_SECONDS: Final = 20.0 if IS_BROKEN else 60.0
STARTED: Final = time.monotonic()


class DemoError(Exception):
    """Something did not come as it must."""


def say(text: str) -> None:
    print(f"\033[2m[{time.monotonic() - STARTED:5.1f} s]\033[0m {text}", flush=True)


@dataclass
class Operator:
    """One operator process."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


@dataclass
class Stage:
    """Everything that runs."""

    folder: Path
    kubeconfig: Path
    database: DatabaseSettings
    kubectl_command: list[str]
    operators: dict[str, Operator] = field(default_factory=dict)

    @property
    def effects(self) -> Path:
        return self.folder / "effects"

    def kubectl(self, *arguments: str, is_shown: bool = True) -> str:
        """Run kubectl and show it as a user would see it."""
        command = [*self.kubectl_command, "--kubeconfig", str(self.kubeconfig), *arguments]
        if is_shown:
            say(f"\033[1m$ kubectl {' '.join(argument.replace(f'{ROOT}/', '') for argument in arguments)}\033[0m")
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        if done.returncode:
            raise DemoError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        if is_shown:
            print("".join(f"          {line}\n" for line in done.stdout.splitlines()), end="", flush=True)
        return done.stdout

    def start_operator(self, name: str) -> None:
        """A process as the chart would run it, without a pod around it."""
        log = self.folder / f"{name}.log"
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ROMANCY_")},
            "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}",
            "ROMANCY_DATABASE__URL": self.database.url.get_secret_value(),
            "ROMANCY_WORKFLOWS": "workflows.onboarding,tools.demo_workflows",
            "ROMANCY_WORKER__NAME": name,
            "ROMANCY_CONTROL__KUBECONFIG": str(self.kubeconfig),
            "ROMANCY_GATEWAY__HOST": "127.0.0.1",
            "ROMANCY_GATEWAY__PORT": "0",
            "DEMO_EFFECTS": str(self.effects),
        }
        if IS_BROKEN:  # nobody is ever believed dead, so nobody is buried
            environment["ROMANCY_WORKER__LEASE_SECONDS"] = "3600"
        with log.open("ab") as out:
            popen = subprocess.Popen(
                [sys.executable, "-m", "romancy", "operator"], cwd=ROOT, env=environment, stdout=out, stderr=out
            )
        self.operators[name] = Operator(name, popen, log)

    def stop(self) -> None:
        for operator in self.operators.values():
            if operator.popen.poll() is None:
                operator.popen.send_signal(signal.SIGTERM)
        for operator in self.operators.values():
            try:
                operator.popen.wait(5)
            except subprocess.TimeoutExpired:
                operator.kill()

    def traces(self) -> list[tuple[str, int, int]]:
        """What the activities wrote: begin or end, number, pid."""
        if not self.effects.exists():
            return []
        lines = [line.split() for line in self.effects.read_text().splitlines()]
        return [(what, int(number), int(pid)) for what, number, pid in lines]

    def ended(self) -> int:
        return sum(what == "end" for what, _, _ in self.traces())

    def name_of(self, pid: int) -> str:
        return next((each.name for each in self.operators.values() if each.popen.pid == pid), f"pid {pid}")


async def until(find: Callable[[], Any], what: str, *, seconds: float = PATIENCE_SECONDS) -> Any:
    """Wait for something that other processes do."""
    end = time.monotonic() + seconds
    while True:
        found = find()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        if time.monotonic() > end:
            raise DemoError(f"waited {seconds:.0f} s in vain until {what}")
        await asyncio.sleep(0.05)


async def leader_of(stage: Stage) -> str | None:
    """The name of the operator that holds the Lease."""
    try:
        lease = json.loads(stage.kubectl("get", "lease", "romancy", "-o", "json", is_shown=False))
    except DemoError:
        return None
    return str(lease["spec"].get("holderIdentity") or "").partition("/")[0] or None


async def onboarding(stage: Stage) -> None:
    """The example of the README."""
    stage.kubectl("apply", "-f", f"{ROOT}/crds")
    stage.kubectl("wait", "--for=condition=Established", "crd/workflowruns.romancy.dev", is_shown=False)
    for number in (1, 2, 3):
        stage.start_operator(f"operator-{number}")
    say("three operator processes are starting")
    await until(lambda: leader_of(stage), "one of them leads", seconds=60)
    stage.kubectl("apply", "-f", f"{ROOT}/workflows/onboarding.yaml")
    stage.kubectl("wait", "--for=condition=Completed", "wfr/onboarding-1", "--timeout=30s")
    stage.kubectl("get", "wfr")
    output = json.loads(stage.kubectl("get", "wfr", "onboarding-1", "-o", "jsonpath={.status.output}", is_shown=False))
    if output != {"status": "onboarded", "user_id": "user-1", "email_sent": True}:
        raise DemoError(f"onboarding-1 gave {output}")


async def kills(stage: Stage, client: Client) -> tuple[UUID, list[str], list[float]]:
    """Kill the process that executes, then the leader; who was killed, and how long the run stood still each time."""
    manifest = stage.folder / "slow.yaml"
    manifest.write_text(
        "apiVersion: romancy.dev/v1alpha1\nkind: WorkflowRun\nmetadata: {name: slow-1}\n"
        f"spec: {{workflow: slow_sum, input: {{steps: {STEPS}, seconds: {STEP_SECONDS}}}}}\n"
    )
    stage.kubectl("apply", "-f", str(manifest))
    await until(lambda: stage.ended() >= 2, "two of its activities have finished")
    run_id = UUID(stage.kubectl("get", "wfr", "slow-1", "-o", "jsonpath={.metadata.uid}", is_shown=False))
    killed, stood = [], []

    async def kill(name: str, why: str) -> None:
        before = stage.ended()
        stage.operators[name].kill()
        at = time.monotonic()
        killed.append(name)
        say(f"\033[31mkill -9 {name}\033[0m: {why}")
        await until(lambda: stage.ended() > before, "another process goes on")
        stood.append(time.monotonic() - at)
        say(f"goes on after {stood[-1]:.1f} s: {stage.ended()} of {STEPS} activities are finished")

    run = await client.handle(run_id).info()
    if run.worker is None:
        raise DemoError(f"nobody executes slow-1: {run.phase} {run.message}")
    await kill(run.worker, "it executes slow-1")

    async def living_leader() -> str | None:
        name = await leader_of(stage)
        return name if name not in killed else None

    leader = await until(living_leader, "a living process leads")
    await kill(
        leader, "it leads" + (" and executes slow-1" if leader == (await client.handle(run_id).info()).worker else "")
    )
    stage.kubectl("wait", "--for=condition=Succeeded", "wfr/slow-1", f"--timeout={PATIENCE_SECONDS:.0f}s")
    stage.kubectl("get", "wfr")
    return run_id, killed, stood


async def summary(stage: Stage, client: Client, run_id: UUID, killed: list[str], stood: list[float]) -> None:
    """From the database and the effects alone: where each activity ran, and that each finished one ran once."""
    run = await client.handle(run_id).info()
    history = await client.store.read_history(run_id)
    traces = stage.traces()
    begun = {
        n: [stage.name_of(pid) for what, m, pid in traces if (what, m) == ("begin", n)] for n in range(1, STEPS + 1)
    }
    ended = Counter(number for what, number, _ in traces if what == "end")
    finished_by = {number: stage.name_of(pid) for what, number, pid in traces if what == "end"}
    print(f"\n  {'activity':<14}{'begun in':<44}{'finished in':<14}times finished")
    for number in range(1, STEPS + 1):
        print(f"  slow_step#{number:<4}{', '.join(begun[number]):<44}{finished_by.get(number, '-'):<14}{ended[number]}")
    completed = [entry.number for entry in history if entry.kind is Kind.ACTIVITY_COMPLETED]
    expected = sum(number * number for number in range(1, STEPS + 1))
    checks = {
        f"the run {run.phase} with {run.output}, and must be {expected}": (run.phase, run.output)
        == ("Succeeded", str(expected)),
        f"{len(killed)} processes were killed, and must be 2": len(set(killed)) == 2,
        f"history holds activities {completed}, and must hold each once": completed == list(range(1, STEPS + 1)),
        "each activity finished exactly once": all(ended[number] == 1 for number in range(1, STEPS + 1)),
        "only what was under way when its process died was begun again": sum(map(len, begun.values()))
        <= STEPS + len(killed),
        "more than one process took part": len(set(finished_by.values())) > 1,
    }
    print(f"\n  stood still after the kills: {', '.join(f'{seconds:.1f} s' for seconds in stood)}")
    for text, holds in checks.items():
        print(f"  {'ok  ' if holds else 'FAIL'} {text}")
    if not all(checks.values()):
        raise DemoError("the summary is not as it must be")


@contextmanager
def kubernetes(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """A Kubernetes: built from the Go module proxy, or kind where Docker runs; its kubeconfig, and kubectl."""
    binary = plane.cached_binary()
    if shutil.which("go") or binary.exists():
        once = "" if binary.exists() else ", built once (about 4 minutes on two cores)"
        say(f"Kubernetes: etcd, API server and controllers{once}")
        plane.build()
        running = plane.ControlPlane.start(folder / "kube")
        try:
            yield running.kubeconfig, plane.kubectl()
        finally:
            running.stop()
    elif shutil.which("kind") and shutil.which("kubectl") and _docker_runs():
        say("Kubernetes: a kind cluster")
        path = folder / "kubeconfig"
        cluster = ["cluster", "--name", "romancy-demo", "--kubeconfig", str(path)]
        subprocess.run(["kind", "create", *cluster, "--config", str(ROOT / "kind-config.yaml")], check=True)
        try:
            yield path, ["kubectl"]
        finally:
            subprocess.run(["kind", "delete", *cluster], check=False)
    else:
        raise DemoError(
            "there is neither Go (to build an API server) nor kind and kubectl with a running Docker. Without Kubernetes, "
            "see crash recovery with: .venv/bin/romancy dev workflows/onboarding.py --run user_onboarding "
            '-i \'{"user_id": "user-1", "email": "user-1@example.com"}\''
        )


def _docker_runs() -> bool:
    return (
        bool(shutil.which("docker"))
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


def errors_in(folder: Path) -> str:
    """The last errors in the logs of the operators."""
    lines = [(log.stem, line) for log in sorted(folder.glob("operator-*.log")) for line in log.read_text().splitlines()]
    errors = [
        f"          {name}: {line[:300]}\n" for name, line in lines if '"level": "error"' in line or "Error" in line
    ]
    return "".join(errors[-10:])


async def main() -> int:
    with tempfile.TemporaryDirectory(prefix="romancy-demo-") as name, ExitStack() as stack:
        folder = Path(name)
        try:
            say("PostgreSQL" + (" (recovery is switched off: this demo must fail)" if IS_BROKEN else ""))
            server = stack.enter_context(postgres.server(postgres.embedded_binaries()))
            database = await server.migrated_database()
            kubeconfig, kubectl = stack.enter_context(kubernetes(folder))
            stage = Stage(folder, kubeconfig, database, kubectl)
            stack.callback(stage.stop)
            await onboarding(stage)
            async with Client(database) as client:
                await summary(stage, client, *await kills(stage, client))
        except DemoError as error:
            say(f"\033[31mFAILED\033[0m: {error}")
            print(errors_in(folder), end="")
            return 1
    say("\033[32mthe run went on after both kills, and nothing was done twice\033[0m")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
