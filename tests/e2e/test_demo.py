"""`make demo` ends with 0 only if the run went on after both kills, and nothing finished was done again."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos.fleet import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.kube, pytest.mark.timeout(240)]


def demo(**more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", **more},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)


def test_the_demo_is_right() -> None:
    code, text = demo()

    assert code == 0, text
    assert "onboarding-1   user_onboarding   Succeeded" in text
    assert len(re.findall(r"kill -9 operator-\d", text)) == 2
    assert "FAIL" not in text
    assert "ok   each activity finished exactly once" in text


def test_without_recovery_the_demo_fails() -> None:
    code, text = demo(DEMO_BREAK="1")

    assert code == 1, text
    assert "in vain until another process goes on" in text


def test_without_go_and_docker_it_says_what_can_be_seen_all_the_same(tmp_path: Path) -> None:
    code, text = demo(PATH=str(tmp_path), XDG_CACHE_HOME=str(tmp_path))

    assert code == 1
    assert "there is neither Go" in text
    assert "romancy dev workflows/onboarding.py" in text
