"""docs/operate: its commands are run, against a real API server with an operator process and a real PostgreSQL.

A fence `shell` is run here; `shell needs=cluster` needs pods that run. Who runs what is in RUN_BY.
"""

import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from romancy import Middleware
from romancy.base.settings import DatabaseSettings
from tests import postgres
from tests.chaos.fleet import ROOT, Fleet
from tests.chart.conftest import CHART
from tests.controlplane.plane import ApiError, ControlPlane, kubectl
from tests.e2e.conftest import engine_options
from tests.e2e.kubernetes import Kubernetes
from tests.helm import helm
from tests.test_house import REASONS

pytestmark = [pytest.mark.slow, pytest.mark.kube]

PAGES = ROOT / "docs/operate"
RUN_HERE = ("monitor", "troubleshoot", "size", "secure", "gitops", "upgrade")
RUN_BY = {
    ("shell", RUN_HERE): "tests/docs/test_operate.py",
    ("python", ("monitor",)): "tests/docs/test_operate.py",
    ("shell", ("backup",)): "tests/e2e/test_restore.py",
    ("shell needs=cluster", ("install", "troubleshoot", "backup")): "tests/pods/test_pages.py",
    ("shell needs=cluster", ("upgrade",)): "tests/pods/test_upgrade.py",
}
"""Which sort of fences of which pages are run by which test: all of their commands, or it fails."""
OTHERS = {"yaml", "lua", "dockerfile"}
"""Fences that hold no commands."""
NAMESPACE = "romancy"  # of the pages


def commands(page: str, *, fence: str = "shell") -> list[str]:
    """The commands of the fences of that sort (a pattern): `shell` for what can be run here."""
    text = (PAGES / f"{page}.md").read_text()
    return [
        line
        for block in re.findall(rf"^```{fence}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.replace("\\\n", "").splitlines()
    ]


def tools(folder: Path, kubeconfig: Path) -> dict[str, str]:
    """An environment in which the pages' commands are found."""
    binaries = postgres.embedded_binaries()
    for name, command in {
        "kubectl": " ".join([*kubectl(), f"--kubeconfig={kubeconfig}"]),
        "helm": str(helm()),
        "romancy": f"env PYTHONPATH={ROOT / 'operator'} {sys.executable} -m romancy",
        **{name: str(binaries / name) for name in ("psql", "pg_dump", "pg_restore")},
    }.items():
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        file.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "KUBECONFIG": str(kubeconfig)}


def run(line: str, environment: dict[str, str], folder: Path) -> str:
    """One command, as it stands."""
    done = subprocess.run(
        ["bash", "-c", line], env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=150
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
async def engine(cluster: ControlPlane, database: DatabaseSettings, tmp_path: Path) -> AsyncIterator[Fleet]:
    """An operator in the namespace of the pages, with the run that they speak of."""
    try:
        cluster.call("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    except ApiError as error:
        if error.code != 409:
            raise
    kube = Kubernetes(cluster, NAMESPACE)
    options = engine_options(cluster, NAMESPACE)
    async with Fleet(database, tmp_path, workflows="workflows.onboarding", options=options) as fleet:
        await fleet.start("romancy-0")
        kube.apply("onboarding-1", "user_onboarding", input={"user_id": "1", "email": "a@example.com"})
        await kube.end("onboarding-1")
        await fleet.until(lambda: kube.condition("Ready").get("status") == "True", "it is ready")
        yield fleet
    kube.delete("onboarding-1")


@pytest.mark.parametrize("page", RUN_HERE)
async def test_the_commands_of_a_page_run(page: str, engine: Fleet, cluster: ControlPlane, tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "charts").symlink_to(CHART.parent)
    environment = tools(folder, cluster.kubeconfig)
    environment["DATABASE_URL"] = engine.database.url.get_secret_value()

    lines = commands(page)
    for line in lines:
        print(line)
        print(run(line, environment, tmp_path))
    if page == "size":
        run(
            'psql "$DATABASE_URL" -c "drop owned by romancy_scaler" -c "drop role romancy_scaler"',
            environment,
            tmp_path,
        )

    assert lines


def test_tracing_is_set_up_as_the_page_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an exporter that keeps its spans: the one of the page needs a collector."""
    exporters = ModuleType("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    monkeypatch.setattr(exporters, "OTLPSpanExporter", InMemorySpanExporter, raising=False)
    monkeypatch.setitem(sys.modules, exporters.__name__, exporters)
    made: dict[str, Any] = {}

    exec("\n".join(commands("monitor", fence="python")), made)

    made["provider"].shutdown()
    assert isinstance(made["tracing"], Middleware)


def test_every_reason_is_in_the_table() -> None:
    text = (PAGES / "troubleshoot.md").read_text()
    listed = re.findall(r"^\| .* \| \[(\w+)\]\(\.\./errors/(\w+)\.md\) \|$", text, re.MULTILINE)

    assert {name for name, _ in listed} == {page.stem for page in (ROOT / "docs/errors").glob("*.md")} - {"README"}
    assert {name for name, _ in listed} >= REASONS
    assert all(name == file for name, file in listed)
    assert len(listed) == len(set(listed))


def test_links_lead_somewhere() -> None:
    for page in PAGES.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_command_is_run() -> None:
    """By the test that RUN_BY names, which asks for them."""
    fences = {
        (indent + fence, page.stem)  # `commands` finds none that is indented
        for page in PAGES.glob("*.md")
        for indent, fence in re.findall(r"^( *)```(.*)\n(?:.*\n)*? *```$", page.read_text(), re.MULTILINE)
    }

    assert {(fence, page) for fence, page in fences if fence not in OTHERS} == {
        (fence, page) for fence, pages in RUN_BY for page in pages
    }
    for (_, pages), test in RUN_BY.items():
        for page in pages if pages != RUN_HERE else ():
            assert f'commands("{page}"' in (ROOT / test).read_text(), f"{page} in {test}"


def test_a_command_in_a_sentence_is_in_a_fence_as_well() -> None:
    """What names the namespace is meant to be typed."""
    fenced = {line for page in PAGES.glob("*.md") for line in commands(page.stem, fence="shell(?: needs=cluster)?")}
    for page in PAGES.glob("*.md"):
        prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        typed = {each for each in re.findall(r"`([^`\n]+)`", prose) if f" -n {NAMESPACE} " in f"{each} "}
        assert typed <= fenced, page.name
