"""What docs/operate says, on real pods, from nothing to nothing left; its page on upgrades is test_upgrade.py's."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.test_operate import NAMESPACE, commands, run, tools
from tests.pods import database
from tests.pods.conftest import CHART, DEFINITIONS, Pods, Release

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]

ON_PODS, ANY = "shell needs=cluster", "shell(?: needs=cluster)?"
PLACES = {"PASSWORD": "se-cret", "HOST": database.HOST}
"""What the page leaves to its reader."""


@pytest.fixture
def release(pods: Pods) -> Iterator[Release]:
    """A namespace that is not there yet: the page makes it."""
    release = Release(pods, f"t-{uuid.uuid4().hex[:8]}", database_pod=database.HOST)
    yield release
    with contextlib.suppress(AssertionError):
        pods.kubectl("delete", "namespace", release.namespace, "--wait=false")


def tools_of_the_database(release: Release, folder: Path) -> dict[str, str]:
    """kubectl and helm; psql and its like in the database's own pod, which has them in the server's version."""
    environment = tools(folder, release.pods.kubeconfig)
    for name in ("psql", "pg_dump", "pg_restore"):
        inside = f'kubectl -n {release.namespace} exec {database.HOST} -- sh -c \'cd /tmp && exec "$0" "$@"\' {name}'
        (folder / name).write_text(f'#!/bin/sh\nexec {inside} "$@"\n')
    return {**environment, "DATABASE_URL": "postgresql:///romancy?host=/var/run/postgresql&user=romancy"}


def test_install_look_back_up_restore_and_uninstall(release: Release, tmp_path: Path) -> None:
    """Each command as it stands, but for the namespace and what the page leaves open."""
    pods = release.pods
    pods.kubectl("delete", "crd", *DEFINITIONS, "--ignore-not-found", "--timeout=60s")  # of another test's release
    folder = tmp_path / "bin"
    folder.mkdir()
    (tmp_path / "charts").symlink_to(CHART.parent)
    environment = tools_of_the_database(release, folder)

    def do(line: str) -> str:
        line = line.replace(f"-n {NAMESPACE}", f"-n {release.namespace}")
        for name, value in PLACES.items():
            line = line.replace(name, value)
        print(line)
        out = run(line, environment, tmp_path)
        print(out)
        return out

    namespace, *secrets, install, engines, runs, uninstall, no_definitions, no_data = commands("install", fence=ON_PODS)
    do(namespace.replace(f"namespace {NAMESPACE}", f"namespace {release.namespace}"))
    database.make(release, tmp_path)
    for line in (*secrets, install):
        do(line)
    release.apply("onboarding-1", "user_onboarding", user_id="1", email="a@example.com")
    assert release.end("onboarding-1")["phase"] == "Succeeded"
    assert "True" in do(engines)
    assert "Succeeded" in do(runs)

    log, verify = commands("troubleshoot", fence=ON_PODS)
    assert "run_finished" in do(log)
    assert "all holds: 1 runs" in do(verify)

    dump, scale_down, wait, drop, restore, scale_up, wait_up, verify, lost = commands("backup", fence=ANY)
    do(dump)
    release.apply("onboarding-2", "user_onboarding", user_id="2", email="b@example.com")
    release.end("onboarding-2")
    for line in (scale_down, wait, drop, restore, scale_up, wait_up):
        do(line)
    assert "all holds: 1 runs" in do(verify)
    assert do(lost) == ""  # onboarding-2 had ended: its object stays as it is
    release.apply("onboarding-3", "user_onboarding", user_id="3", email="c@example.com")
    assert release.end("onboarding-3")["phase"] == "Succeeded"

    for line in (uninstall, no_definitions, no_data):
        do(line)
    assert not set(pods.kubectl("get", "crd", "-o", "name").split()) & {
        f"customresourcedefinition.apiextensions.k8s.io/{name}" for name in DEFINITIONS
    }
    assert release.sql("select nspname from pg_namespace where nspname = 'romancy'") == []
