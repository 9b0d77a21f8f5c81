"""Order sagas while pods of every kind, and the API server, are killed one after the other.

CHAOS_RUNS and CHAOS_SECONDS lengthen it: 300 and 180 are what the project promises.
"""

import contextlib
import json
import os
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.pods import ledger
from tests.pods.conftest import Pods, Release

pytestmark = [pytest.mark.pods, pytest.mark.timeout(900)]

RUNS = int(os.environ.get("CHAOS_RUNS", "60"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "45"))
PAUSE_SECONDS = 4
SHIPPED = ["reserve", "charge", "ship"]
TAKEN_BACK = ["reserve", "charge", "refund", "release"]
DATABASE = "romancy-demo-postgres-0"
RECOVERY = "database system was not properly shut down"


@pytest.fixture
def volume(pods: Pods, tmp_path: Path) -> Iterator[None]:
    """A volume that outlives the pod of the database."""
    data = tmp_path / "postgres"
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    spec = {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": str(data)}}
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "chaos"}, "spec": spec}
    pods.kubectl("apply", "-f", "-", stdin=json.dumps(volume))
    yield
    pods.kubectl("delete", "pv", "chaos", "--wait=false")


def keep_ledger(release: Release) -> None:
    """Have a pod commit row after row, and tell in its log which of them are committed."""
    release.sql("create table public.ledger (number int)")
    container = {
        "name": "ledger",
        "image": release.pods.operator_image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", Path(ledger.__file__).read_text()],
        "env": [
            {
                "name": "ROMANCY_DATABASE__URL",
                "valueFrom": {"secretKeyRef": {"name": "romancy-database", "key": "url"}},
            }
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "ledger"},
        "spec": {"containers": [container], "securityContext": security},
    }
    release.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    release.kubectl("wait", "--for=condition=Ready", "pod/ledger", "--timeout=60s")
    release.until(lambda: committed(release), "it commits")


def committed(release: Release) -> set[str]:
    return set(release.kubectl("logs", "ledger").splitlines())


def killers(release: Release) -> dict[str, Callable[[], object]]:
    """What is killed, by its name."""

    def delete(pod: str) -> None:
        release.kubectl("delete", "pod", pod, "--wait=false", "--grace-period=0", "--force", "--ignore-not-found")

    def crash_database() -> None:
        # An immediate shutdown: nothing more is written, and the next start is a recovery. (SIGKILL does not reach a process 1.)
        with contextlib.suppress(AssertionError):  # it may be away, and takes this shell with it
            release.kubectl("exec", DATABASE, "--", "sh", "-c", "kill -QUIT 1")

    def workers() -> list[str]:
        found = release.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
        return [each["metadata"]["name"] for each in found]

    def kill_worker() -> None:
        if pods := workers():  # all may be gone: who makes new ones has lost the API server as well
            delete(random.choice(pods))

    def kill_leader() -> None:
        if leader := release.leader():
            delete(leader)

    found: dict[str, Callable[[], object]] = {
        "database": crash_database,
        "worker": kill_worker,
        "database's pod": lambda: delete(DATABASE),  # by force: its successor comes while it still ends
        "leader": kill_leader,
    }
    if (plane := release.pods.control_plane) is not None:

        def restart_apiserver() -> None:
            plane.kill_apiserver()
            plane.start_apiserver()

        found["API server"] = restart_apiserver
    return found


def life_of_database(release: Release) -> str:
    """The id of its container while it is ready; else empty."""
    found = [each for each in release.get("pods")["items"] if each["metadata"]["name"] == DATABASE]
    containers = found[0]["status"].get("containerStatuses", []) if found else []
    return "".join(each["containerID"] for each in containers if each["ready"])


def verified(release: Release) -> str:
    """What `romancy db verify` says in a pod; nothing while the service of the database leads nowhere yet."""
    try:
        return release.kubectl("exec", "deploy/romancy", "--", "romancy", "db", "verify")
    except AssertionError as error:
        if "StoreUnavailable" in str(error):
            return ""
        raise


def all_have_ended(release: Release) -> bool:
    return all("completionTime" in each.get("status", {}) for each in release.get("wfr")["items"])


def test_sagas_end_right_whatever_is_killed(release: Release, volume: None) -> None:
    """Every run ends, what is done is taken back in order or not at all, and the database says that all holds.

    The ledger tells a broken engine from a broken database: what was committed must be there.
    """
    release.install(**{"demo.storage": "1Gi"})
    keep_ledger(release)
    for number in range(RUNS):
        release.apply(f"order-{number}", "saga", run=f"order-{number}", is_out_of_stock=number % 3 == 0)
    end = time.monotonic() + SECONDS
    kills = killers(release)
    names = list(kills)
    killed: list[str] = []
    while time.monotonic() < end:
        name = names[len(killed) % len(names)]
        kills[name]()
        killed.append(name)
        time.sleep(PAUSE_SECONDS)  # the beat of the chaos

    release.until(lambda: life_of_database(release), "the database is back")
    life = life_of_database(release)
    kills["database"]()  # the last one, so that the log of its recovery is there to be read
    release.until(lambda: life_of_database(release) not in {"", life}, "the database is back once more")
    assert RECOVERY in release.kubectl("logs", DATABASE)
    release.until(lambda: all_have_ended(release), "every run has ended", seconds=180)

    print(f"{RUNS} runs; killed: {', '.join(killed)}")
    promised = committed(release)
    lost = promised - set(release.sql("select number from public.ledger"))
    assert not lost, f"{len(lost)} of {len(promised)} rows were committed and are gone: it is the database that broke"
    statuses = {each["metadata"]["name"]: each["status"] for each in release.get("wfr")["items"]}
    assert len(statuses) == RUNS
    firsts: dict[str, list[str]] = defaultdict(list)
    for what in release.effects():
        run, _, step = what.partition(" ")
        if step not in firsts[run]:  # a step whose pod died may have had its effect twice, never out of order
            firsts[run].append(step)
    for number in range(RUNS):
        name, is_out_of_stock = f"order-{number}", number % 3 == 0
        status = statuses[name]
        assert status["phase"] == ("Failed" if is_out_of_stock else "Succeeded"), status
        assert firsts[name] == (TAKEN_BACK if is_out_of_stock else SHIPPED), name
        if is_out_of_stock:
            assert status["failure"]["type"].endswith("OutOfStockError")
    ended = (
        "select run_id, number from romancy.history where kind = 'ActivityCompleted' group by 1, 2 having count(*) > 1"
    )
    assert release.sql(ended) == []
    release.until(
        lambda: "all holds" in verified(release), "the database can be asked through its service", seconds=180
    )
