"""A cluster with real pods and, in each test, a release of the chart.

KUBECONFIG and ROMANCY_IMAGES name another one, as kind; the commands of the docs take the images by the chart's own names there.
"""

import contextlib
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.controlplane import plane
from tests.helm import helm
from tests.pods import cluster, images
from tests.pods import database as own_database

CHART = Path(__file__).parents[2] / "charts/romancy"
FLOWS = Path(__file__).parent / "flows.py"
DEFINITIONS = ("workflowruns.romancy.dev", "workflowengines.romancy.dev")
PATIENCE_SECONDS = 90


@dataclass(frozen=True)
class Pods:
    """A cluster, through kubectl alone."""

    kubeconfig: Path
    operator_image: str
    postgres_image: str
    control_plane: cluster.PodCluster | None = None  # of the cluster that was made here

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        command = [*plane.kubectl(), "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stdout}{done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found


@pytest.fixture(scope="session")
def pods(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    """The cluster of the environment, or one that is made here."""
    if kubeconfig := os.environ.get("KUBECONFIG"):
        operator, postgres = os.environ["ROMANCY_IMAGES"].split(",")
        yield Pods(Path(kubeconfig), operator, postgres)
        return
    if why := cluster.missing():
        if os.environ.get("CI") == "true":
            pytest.fail(why)  # an assertion would show the whole environment
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("pods")
    tars = [images.pause(folder), images.postgres(folder), images.operator(folder)]
    with cluster.network():
        kube = cluster.PodCluster.start(folder / "kube")
        try:
            kube.start_node(tars)
            yield Pods(kube.kubeconfig, images.OPERATOR, images.POSTGRES, kube)
        finally:
            kube.stop_node()
            kube.stop()


@dataclass
class Release:
    """One release of the chart, in a namespace of its own that enforces the restricted level."""

    pods: Pods
    namespace: str
    database_pod: str = "romancy-demo-postgres-0"

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.pods.kubectl("-n", self.namespace, *arguments, stdin=stdin)

    def get(self, *arguments: str) -> dict[str, Any]:
        return self.pods.get("-n", self.namespace, *arguments)

    def helm(self, *arguments: str) -> str:
        command = [str(helm()), "--kubeconfig", str(self.pods.kubeconfig), "-n", self.namespace, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"{done.stderr}\n{self.kubectl('get', 'pods')}"
        return done.stdout

    def install(self, *, chart: Path = CHART, **values: str) -> None:
        """`helm install --wait`, with the demo database and our workflows beside the image's own."""
        self.kubectl("create", "configmap", "flows", f"--from-file=flows.py={FLOWS}")
        # Definitions belong to the first release of a cluster, and stay when it goes.
        is_first = "workflowruns" not in self.pods.kubectl("get", "crd", "-o", "name")
        self.helm("install", "romancy", str(chart), *self._settings({"crds.install": str(is_first).lower(), **values}))
        self.sql("create table public.effect (what text, pod text, at timestamptz default now())")

    def _settings(self, values: dict[str, str]) -> list[str]:
        repository, tag = self.pods.operator_image.rsplit(":", 1)
        mount = '{"name":"flows","mountPath":"/app/flows.py","subPath":"flows.py"}'
        given = {
            "demo.enabled": "true",
            "demo.image": self.pods.postgres_image,
            "image.repository": repository,
            "image.tag": tag,
            **values,
        }
        settings = [part for name, value in given.items() for part in ("--set", f"{name}={value}")]
        return [
            *("--wait", "--timeout", "120s", *settings),
            *("--set-json", 'workflows=["workflows.onboarding","flows"]'),
            *("--set-json", 'extraVolumes=[{"name":"flows","configMap":{"name":"flows"}}]'),
            *("--set-json", f"extraVolumeMounts=[{mount}]"),
        ]

    def apply(self, name: str, workflow: str, **given: Any) -> None:
        run = {
            "apiVersion": "romancy.dev/v1alpha1",
            "kind": "WorkflowRun",
            "metadata": {"name": name},
            "spec": {"workflow": workflow, "input": given},
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(run))

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.get("wfr", name).get("status", {})
        return found

    def end(self, name: str) -> dict[str, Any]:
        """Wait for its end."""
        self.until(lambda: "completionTime" in self.status(name), f"{name} ends")
        return self.status(name)

    def leader(self) -> str:
        """The pod that holds the Lease; empty if none does."""
        holder = self.get("lease", "romancy")["spec"].get("holderIdentity") or ""
        return str(holder).partition("/")[0]

    def sql(self, text: str) -> list[str]:
        """Rows of the database, as psql prints them."""
        command = ["exec", self.database_pod, "--", "psql", "-U", "romancy", "romancy"]
        return self.kubectl(*command, "-Atc", text).splitlines()

    def effects(self) -> list[str]:
        return self.sql("select what from public.effect order by at")

    def story(self) -> str:
        """How it stands, for a test that fails."""
        logs = self.kubectl("logs", "-l", "app.kubernetes.io/name=romancy", "--tail=20", "--prefix")
        return f"{self.kubectl('get', 'pods,wfr,workflowengines', '-o', 'wide')}\n{logs}"

    def until(self, holds: Callable[[], object], what: str, *, seconds: float = PATIENCE_SECONDS) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{self.story()}"
            time.sleep(0.1)  # another machine's state can only be asked for


@pytest.fixture
def release(pods: Pods) -> Iterator[Release]:
    """An empty namespace to install into."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    pods.kubectl("create", "namespace", namespace)
    pods.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    yield Release(pods, namespace)
    with contextlib.suppress(AssertionError):
        pods.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def database(release: Release, tmp_path: Path) -> Release:
    """The same with a database of one's own, which an upgrade of the chart leaves alone: install it with database.OWN."""
    own_database.make(release, tmp_path)
    return release
