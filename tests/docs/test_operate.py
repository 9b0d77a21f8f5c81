"""docs/operate: its commands are run, against a real API server with an operator process and a real PostgreSQL.

A fence `shell` is run; `shell needs=cluster` needs pods that run. The page about backups is played by tests/e2e/test_restore.py.
"""

import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
NAMESPACE = "romancy"  # of the pages


def commands(page: str, *, fence: str = "shell") -> list[str]:
    """The lines of the fences of that sort: `shell` for what can be run here."""
    text = (PAGES / f"{page}.md").read_text()
    return [
        line
        for block in re.findall(rf"^```{fence}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]


def tools(folder: Path, kubeconfig: Path) -> dict[str, str]:
    """An environment in which the pages' commands are found."""
    binaries = postgres.embedded_binaries()
    for name, command in {
        "kubectl": " ".join([*kubectl(), f"--kubeconfig={kubeconfig}"]),
        "helm": str(helm()),
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


def test_every_fence_is_run_or_says_why_not() -> None:
    for page in (*RUN_HERE, "backup"):
        fences = re.findall(r"^```(\w.*)$", (PAGES / f"{page}.md").read_text(), re.MULTILINE)
        assert set(fences) <= {"shell", "shell needs=cluster", "yaml", "lua"}, page
