"""The control plane by hand, as `make demo` uses it; the fixtures are used by every other test."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.controlplane import plane
from tests.controlplane.plane import ControlPlane, PlaneError


def test_the_binary_is_kept_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = plane.cached_binary()
    monkeypatch.setattr(plane, "MODULE", tmp_path)
    for name in ("go.mod", "go.sum", "main.go", "kubectl.go"):
        (tmp_path / name).write_text(name)

    there = plane.cached_binary()

    assert here.is_relative_to(tmp_path / "romancy" / "kube")
    assert here != there
    assert not there.exists()


@pytest.mark.kube
async def test_one_process_starts_it_and_another_stops_it(tmp_path: Path) -> None:
    directory = tmp_path / "plane"

    started = await _command("start", str(directory))
    opened = ControlPlane.open(directory)
    namespaces = opened.call("GET", "/api/v1/namespaces")["items"]
    requests = opened.requests_of("admin", "list", "namespaces")
    await _command("stop", str(directory))

    assert started.strip() == str(opened.kubeconfig)
    assert "default" in {each["metadata"]["name"] for each in namespaces}
    assert [each.code for each in requests][-1] == 200
    assert not opened.answers("/readyz")
    with pytest.raises(PlaneError, match="there is no control plane"):
        ControlPlane.open(directory)


async def _command(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.controlplane", *arguments),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    return output.decode()
