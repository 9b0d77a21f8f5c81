"""A run keeps the Python minor that it began on; still, programs should replay the same on each, and what differs is listed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.replay.minors import digests

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAMS = 300
MINORS = ("3.12", "3.13", "3.14")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


def interpreter(minor: str) -> Path | None:
    """The newest interpreter of that minor on PATH or in pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    on_path = shutil.which(f"python{minor}")
    candidates = [*([Path(on_path)] if on_path else []), *sorted(pyenv.glob(f"{minor}.*/bin/python"))]
    return next(
        (path for path in candidates if subprocess.run([path, "-c", "import ssl"], check=False).returncode == 0), None
    )


@pytest.mark.parametrize("minor", [minor for minor in MINORS if minor != HERE])
@pytest.mark.timeout(300)
def test_programs_are_the_same_on_another_minor(minor: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    python = interpreter(minor)
    if python is None:
        pytest.skip(f"there is no Python {minor} on this machine: compared with {HERE} alone")
    folder = tmp_path_factory.mktemp("minor") / "venv"
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", python, folder], check=True)
    subprocess.run([*uv, "pip", "install", "-q", "--python", folder, "-e", ROOT], check=True, capture_output=True)
    done = subprocess.run(
        [folder / "bin" / "python", "-m", "tests.replay.minors", str(PROGRAMS)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", "PYTHONHASHSEED": "77"},
    )
    here, there = digests(PROGRAMS), json.loads(done.stdout)

    assert [seed for seed in here if here[seed] != there[seed]] == [], f"seeds that differ between {HERE} and {minor}"
