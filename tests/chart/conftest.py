"""The chart as users get it: rendered by Helm, and taken by the real API server."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.helm import helm

CHART = Path(__file__).parents[2] / "charts/romancy"
DATABASE = ("--set", "database.existingSecret=shop-database")
Template = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="session")
def helm_binary() -> Path:
    return helm()


@pytest.fixture
def run_helm(helm_binary: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run helm; its exit code is the test's to judge."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([helm_binary, *arguments], capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.fixture
def template(run_helm: Callable[..., subprocess.CompletedProcess[str]]) -> Template:
    """The objects of a release `shop` in namespace `here`, with a database of its own unless values are given."""

    def render(*arguments: str, namespace: str = "here") -> list[dict[str, Any]]:
        done = run_helm("template", "shop", str(CHART), "--namespace", namespace, *(arguments or DATABASE))
        assert done.returncode == 0, done.stderr
        return [each for each in yaml.safe_load_all(done.stdout) if each]

    return render
