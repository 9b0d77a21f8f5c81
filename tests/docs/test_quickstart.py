"""docs/quickstart.md: its files are written, its commands are run, by the installed wheel."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.packaging.installed import ROOT, Installed

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs/quickstart.md").read_text()
FILES = {match[1]: match[2] for match in re.finditer(r"```python\n# file: (\S+)\n(.*?)```", PAGE, re.DOTALL)}
COMMANDS = [line for block in re.findall(r"```shell\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def command(begin: str) -> str:
    """The one command of the page that begins so."""
    [found] = [line for line in COMMANDS if line.startswith(begin)]
    return found


class Dev:
    """`romancy dev` in the background, and what it prints."""

    def __init__(self, installed: Installed, folder: Path, line: str) -> None:
        self._out = folder / "dev.out"
        path = f"{installed.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        with self._out.open("wb") as out:
            self.popen = subprocess.Popen(
                ["bash", "-c", f"exec {line}"],
                cwd=folder,
                env=installed.environment(PATH=path),
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def text(self) -> str:
        return re.sub(r"\x1b\[[0-9;]*m", "", self._out.read_text())

    def until(self, pattern: str, *, seconds: float = 60) -> re.Match[str]:
        end = time.monotonic() + seconds
        while (found := re.search(pattern, self.text())) is None:
            assert time.monotonic() < end, f"never printed {pattern!r}:\n{self.text()}"
            assert self.popen.poll() is None, self.text()
            time.sleep(0.05)
        return found

    def stop(self) -> int:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)
        return self.popen.wait(20)


@pytest.fixture
def dev(installed: Installed, tmp_path: Path) -> Iterator[Dev]:
    """The third step of the page, running."""
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    made = Dev(installed, tmp_path, command("romancy dev"))
    yield made
    made.stop()


def run(installed: Installed, folder: Path, line: str, **more: str) -> subprocess.CompletedProcess[str]:
    path = f"{installed.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=installed.environment(PATH=path, **more),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_dev_runs_the_workflow_and_prints_one_line_a_change_of_state(
    dev: Dev, installed: Installed, tmp_path: Path
) -> None:
    dev.until(r"user_onboarding/\S+ started")
    dev.until(r"activity create_user_profile#1 completed: \"profile-u1\"")
    dev.until(r"activity send_welcome_email#2 completed: true")
    dev.until(r"user_onboarding/\S+ Succeeded")

    second = run(installed, tmp_path, command("romancy run"))

    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout) == {"status": "onboarded", "user_id": "u2", "email_sent": True}
    assert re.search(r"default/user-onboarding-\w+ [0-9a-f-]{36}", second.stderr)
    assert "u2" in COMMANDS[[line.startswith("romancy run") for line in COMMANDS].index(True)]

    unknown = run(installed, tmp_path, "romancy run user_onbording --no-wait")
    assert "did you mean user_onboarding?" in unknown.stderr

    assert dev.stop() == 0


def test_dev_goes_on_after_kill_9_and_starts_anew_on_save(dev: Dev, installed: Installed, tmp_path: Path) -> None:
    first = int(dev.until(r"ready: .*\(pid (\d+);")[1])
    os.kill(first, signal.SIGKILL)
    dev.until(r"the worker ended with -9")
    dev.until(rf"ready: .*\(pid (?!{first})(\d+);")
    before = dev.text().count("ready:")
    source = (tmp_path / "onboarding.py").read_text()
    (tmp_path / "onboarding.py").write_text(source.replace('"onboarded"', '"welcome"'))
    dev.until(r"saved: starting anew")
    dev.until(r"(?s)" + "ready:.*" * (before + 1))

    again = run(installed, tmp_path, command("romancy run"))

    assert json.loads(again.stdout)["status"] == "welcome"


def test_dev_replays_what_ended_with_another_hash_seed(dev: Dev, installed: Installed, tmp_path: Path) -> None:
    """Code that can't be replayed is found before the first crash."""
    dev.until(r"ready:")
    source = (tmp_path / "onboarding.py").read_text()
    changed = source.replace(
        "    await create_user_profile(user_id, email)\n",
        "    for letter in {'a', 'b', 'c', 'd', 'e', 'f'}:\n        await create_user_profile(letter, email)\n",
    )
    assert changed != source
    (tmp_path / "onboarding.py").write_text(changed)
    dev.until(r"(?s)saved: starting anew.*ready:")

    assert run(installed, tmp_path, command("romancy run")).returncode == 0
    dev.until(r"user_onboarding/\S+ does not replay: ")


async def test_a_program_of_one_s_own(installed: Installed, postgres_server: postgres.Server, tmp_path: Path) -> None:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    url = postgres_server.url(await postgres_server.create_database())

    line = command("DATABASE_URL=").partition(" ")[2]
    done = run(installed, tmp_path, line, DATABASE_URL=url)
    twice = run(installed, tmp_path, line, DATABASE_URL=url)

    assert done.returncode == 0, done.stderr
    assert "result: {'status': 'onboarded', 'user_id': 'u3', 'email_sent': True}" in done.stdout
    assert re.search(r"id: [0-9a-f-]{36}", done.stdout)
    assert re.findall(r"id: .*", done.stdout) == re.findall(r"id: .*", twice.stdout)


def test_the_example_of_the_page_is_the_example_of_the_repository() -> None:
    """Code between the page and workflows/onboarding.py is the same, but for docstrings and comments."""

    def bare(text: str) -> list[str]:
        text = re.sub(r'^\s*""".*?"""\n', "", text, flags=re.MULTILINE | re.DOTALL)
        return [line.partition("  #")[0].rstrip() for line in text.splitlines() if line.strip()]

    assert bare(FILES["onboarding.py"]) == bare((ROOT / "workflows/onboarding.py").read_text())
