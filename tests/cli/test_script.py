"""The installed scripts: what they import before they say something, and `kubectl romancy`."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from romancy.cli import runs
from romancy.model.run import Phase
from tests.cli.test_main import ROOT, romancy
from tests.controlplane.plane import kubectl

# What takes long to import, and what no command that asks needs.
NEVER = {"kopf", "kubernetes", "aiohttp", "rich", "yaml", "romancy.control", "romancy.gateway", "romancy.worker"}
OF_THE_ENGINE = {*NEVER, "asyncpg", "pydantic", "structlog", "romancy.client", "romancy.store", "romancy.sdk"}

_LOADED = """
import json, sys
from romancy.cli.main import main
try:
    main(sys.argv[1:], standalone_mode=False)
except SystemExit:
    pass
print(json.dumps(sorted(sys.modules)))
"""


def loaded(*arguments: str, **environment: str) -> set[str]:
    """The modules that a command has imported when it has ended."""
    done = subprocess.run(
        [sys.executable, "-c", _LOADED, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return set(found)


@pytest.mark.parametrize(
    ("arguments", "environment", "never"),
    [
        (("--help",), {}, OF_THE_ENGINE),
        (("get", "--help"), {}, OF_THE_ENGINE),
        (("completion", "bash"), {}, OF_THE_ENGINE),
        (("get", "x"), {"ROMANCY_API__URL": "http://127.0.0.1:1"}, OF_THE_ENGINE),
        (("list", "-o", "json"), {"ROMANCY_API__URL": "http://127.0.0.1:1"}, OF_THE_ENGINE),
    ],
)
def test_a_command_imports_nothing_that_it_does_not_need(
    arguments: tuple[str, ...], environment: dict[str, str], never: set[str]
) -> None:
    """First output comes in 0.1 s: the engine takes half a second to import."""
    assert not loaded(*arguments, **environment) & never


def test_what_asks_the_database_leaves_kubernetes_and_http_out(database: DatabaseSettings) -> None:
    found = loaded("get", "x", DATABASE_URL=database.url.get_secret_value())

    # structlog looks for rich by itself.
    assert not found & (NEVER - {"rich"})


def test_the_phases_of_the_options_are_those_of_the_model() -> None:
    assert tuple(Phase) == runs.PHASES
    assert tuple(phase for phase in Phase if phase.is_done) == runs.ENDED


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "said"),
    [
        (("get", "x"), {}, 2, "error (SettingsInvalid): no database is given"),
        (
            ("get", "x"),
            {"DATABASE_URL": "postgresql://a@127.0.0.1:1/x"},
            4,
            "error (StoreUnavailable): PostgreSQL gave no",
        ),
        (
            ("get", "x", "--server", "http://127.0.0.1:1"),
            {},
            4,
            "error (StoreUnavailable): the HTTP API gave no answer: http",
        ),
        (("get", "x", "--server", "localhost:80"), {}, 2, "error (SettingsInvalid): 'localhost:80' is no address"),
        (
            ("get", "x", "--server", "http://a", "--token-file", "/no"),
            {},
            2,
            "error (SettingsInvalid): the token can't be",
        ),
        (("get", "x"), {"ROMANCY_API__URI": "http://a", "DATABASE_URL": "x"}, 2, "there is no option ROMANCY_API__URI"),
        (("list", "-o", "xml"), {}, 2, "'xml' is not one of 'text', 'wide', 'name', 'json', 'yaml'"),
        (("run", "w", "-i", "{"), {}, 2, "the input is no JSON"),
        (("gett", "x"), {}, 2, "No such command 'gett'"),
    ],
)
def test_what_is_wrong_is_one_line_and_an_exit_code(
    arguments: tuple[str, ...], environment: dict[str, str], code: int, said: str
) -> None:
    done = romancy(*arguments, **environment)

    assert done.returncode == code
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    done = romancy("completion", shell)

    assert done.returncode == 0
    assert "_ROMANCY_COMPLETE" in done.stdout


@pytest.mark.kube
def test_kubectl_finds_the_plugin(tmp_path: Path, database: DatabaseSettings) -> None:
    """As installed: kubectl runs what is named kubectl-romancy on the PATH, with the arguments as they are."""
    scripts: dict[str, Any] = {"romancy": "", "kubectl-romancy": ""}
    for name in scripts:
        script = tmp_path / name
        script.write_text(f"#!{sys.executable}\nfrom romancy.cli.main import main\nmain()\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "operator"),
        "DATABASE_URL": database.url.get_secret_value(),
        "HOME": str(tmp_path),
    }
    binary = kubectl()

    def plugin(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*binary, "romancy", *arguments], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    listed = plugin("list", "-A", "-o", "json")
    assert json.loads(listed.stdout) == {"runs": [], "next": None}, listed.stderr
    missing = plugin("get", "nobody", "-n", "shop")
    assert missing.returncode == 3
    assert "there is no run shop/nobody" in missing.stderr
    assert shutil.which("kubectl-romancy", path=environment["PATH"])
