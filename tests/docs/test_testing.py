"""docs/testing.md and docs/events.md: their tests are run as they stand, by pytest with nothing but the package's fixture."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/testing.md").read_text()


@pytest.mark.parametrize("page", ["testing", "events"])
def test_the_tests_of_the_page_pass(page: str, tmp_path: Path) -> None:
    text = (ROOT / f"docs/{page}.md").read_text()
    [code] = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "test_orders.py").write_text(code)
    (tmp_path / "workflows").symlink_to(ROOT / "workflows")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{code.count('def test_')} passed" in done.stdout


def test_each_method_is_one_of_the_simulation() -> None:
    from romancy.testing import Simulation

    named = set(re.findall(r"^\| `sim\.(\w+)", PAGE, re.MULTILINE))
    public = {name for name in vars(Simulation) if not name.startswith("_")}

    assert named <= public
    shown = {
        "run",
        "start",
        "fake",
        "fail",
        "calls",
        "advance",
        "kill",
        "crash_everywhere",
        "send_event",
        "emitted",
        "offer",
        "play",
    }
    assert shown == named
