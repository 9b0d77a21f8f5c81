"""`romancy doctor`: what is wrong is found, each with what to do; what is not named is not looked at."""

import json
import os
from pathlib import Path

import pytest

from romancy.base.settings import DatabaseSettings
from tests.cli.test_main import romancy
from tests.controlplane.plane import ControlPlane, kubectl

_KUBECTL = """#!/bin/sh
case "$*" in
  *version*) echo '{"serverVersion":{"gitVersion":"v1.34.0"}}' ;;
  *"get crd"*) echo "Error from server (NotFound): customresourcedefinitions workflowruns.romancy.dev not found" >&2; exit 1 ;;
  *"can-i list"*) echo no; exit 1 ;;
  *can-i*) echo yes ;;
esac
"""


@pytest.mark.kube
def test_a_real_cluster(cluster: ControlPlane, tmp_path: Path) -> None:
    """An administrator of it, with our definitions."""
    binary = tmp_path / "kubectl"
    binary.write_text(f'#!/bin/sh\nexec {" ".join(kubectl())} "$@"\n')
    binary.chmod(0o755)

    code, found = findings(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", KUBECONFIG=str(cluster.kubeconfig))

    assert code == 0, found
    assert {"Kubernetes", "definitions", "right to create workflowruns in shop"} <= set(found)


def findings(**environment: str) -> tuple[int, dict[str, dict[str, object]]]:
    done = romancy("doctor", "-o", "json", "-n", "shop", **environment)
    found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
    assert all(each["isOk"] or each["advice"] for each in found.values())
    return done.returncode, found


def test_a_database_without_workers(database: DatabaseSettings) -> None:
    code, found = findings(DATABASE_URL=database.url.get_secret_value(), HOME="/nowhere")

    assert code == 1
    assert {name for name, each in found.items() if not each["isOk"]} == {"workers"}
    assert set(found) == {"database", "schema", "clock", "workers", "runs"}


def test_a_database_that_can_not_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    code, found = findings(DATABASE_URL="postgresql://a@127.0.0.1:1/x", HOME="/nowhere")

    assert (code, list(found)) == (1, ["database"])


def test_a_schema_of_another_version(database: DatabaseSettings) -> None:
    code, found = findings(
        DATABASE_URL=database.url.get_secret_value(), ROMANCY_DATABASE__SCHEMA_NAME="other", HOME="/nowhere"
    )

    assert (code, found["database"]["isOk"], found["schema"]["isOk"]) == (1, True, False)


def test_an_api_that_does_not_answer() -> None:
    code, found = findings(ROMANCY_API__URL="http://127.0.0.1:1", HOME="/nowhere")

    assert (code, list(found)) == (1, ["API"])


def test_nothing_to_look_at() -> None:
    code, found = findings(HOME="/nowhere")

    assert (code, list(found)) == (1, ["engine"])


def test_rights_and_definitions_that_are_missing(tmp_path: Path) -> None:
    binary, config = tmp_path / "kubectl", tmp_path / "config"
    binary.write_text(_KUBECTL)
    binary.chmod(0o755)
    config.write_text("")

    code, found = findings(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", KUBECONFIG=str(config))

    assert code == 1
    assert found["Kubernetes"]["found"] == "the API server is v1.34.0"
    assert {name for name, each in found.items() if not each["isOk"]} == {
        "definitions",
        "right to list workflowruns in shop",
    }
