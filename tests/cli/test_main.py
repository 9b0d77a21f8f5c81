"""The command line: what it refuses, and how it says so."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from romancy.base import settings
from romancy.cli import main
from romancy.errors import SettingsError

ROOT = Path(__file__).parents[2]


def romancy(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ROMANCY_", "DATABASE_URL"))}
    return subprocess.run(
        [sys.executable, "-m", "romancy", *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": f"{ROOT / 'operator'}{os.pathsep}{ROOT}", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_no_database() -> None:
    done = romancy("operator", ROMANCY_WORKFLOWS="workflows.onboarding")

    assert done.returncode == 2
    assert "error (SettingsInvalid): no database is given" in done.stderr
    assert "hint: set ROMANCY_DATABASE__URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("no.such.module", "there is no module 'no'"),
        ("workflows", "no workflow is defined in workflows"),
        ("tests.cli.broken", "module 'tests.cli.broken' can't be imported: ZeroDivisionError"),
    ],
)
def test_modules_that_can_t_be_used(modules: str, message: str) -> None:
    done = romancy("operator", ROMANCY_WORKFLOWS=modules, DATABASE_URL="postgresql://nobody@127.0.0.1:1/none")

    assert done.returncode == 1
    assert f"error (DefinitionInvalid): {message}" in done.stderr


def test_an_input_that_is_no_object() -> None:
    done = romancy("run", "w", "-i", "[1]")

    assert done.returncode == 2
    assert "the input must be a JSON object, not list" in done.stderr


def test_an_option_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMANCY_WORKER__SLOT", "5")

    with pytest.raises(SettingsError, match="there is no option ROMANCY_WORKER__SLOT") as caught:
        settings.load()
    assert "ROMANCY_WORKER__SLOTS" in caught.value.hint


def test_an_option_out_of_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROMANCY_WORKER__SLOTS", "0")

    with pytest.raises(SettingsError, match="ROMANCY_WORKER__SLOTS: Input should be greater than or equal to 1"):
        settings.load()


def test_what_kubernetes_sets_beside_a_service_is_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ROMANCY_SERVICE_HOST", "ROMANCY_PORT", "ROMANCY_PORT_8080_TCP_ADDR", "ROMANCY_DB_SERVICE_PORT_HTTP"):
        monkeypatch.setenv(name, "x")

    settings.load()


def test_a_secret_is_not_shown() -> None:
    loaded = settings.load(database={"url": "postgresql://me:hunter2@db/app"})

    assert "hunter2" not in repr(loaded)


def test_the_hash_seed_is_fixed_by_starting_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets of strings must iterate alike wherever a run is replayed."""
    started: list[Any] = []
    monkeypatch.delenv("ROMANCY_HASHSEED_SET", raising=False)
    monkeypatch.setattr(main, "_is_hash_random", lambda: True)

    main.with_fixed_hash_seed(lambda *arguments: started.append(arguments))

    [(executable, arguments, environment)] = started
    assert executable == sys.executable
    assert arguments[:3] == [sys.executable, "-m", "romancy"]
    assert environment["PYTHONHASHSEED"] == "0"
