"""What can be wrong around the engine: each look is one line, with what to do."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from romancy.cli.backend import Reach
from romancy.errors import RomancyError, SchemaVersionError, SettingsError

SKEW_SECONDS_MAX: Final = 2.0
"""Between this machine's clock and the database's: engines count by the database's, but people compare both."""
KUBECTL_SECONDS: Final = 15.0
_RIGHTS: Final = (
    ("get", "workflowruns"),
    ("list", "workflowruns"),
    ("watch", "workflowruns"),
    ("create", "workflowruns"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One look. `advice` is what to do if it is not ok."""

    what: str
    is_ok: bool
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, Any]:
        """With camelCase names."""
        shown = asdict(self)
        return {"isOk": shown.pop("is_ok"), **shown}


def look(reach: Reach, *, namespace: str, kubeconfig: str | None) -> Iterator[Finding]:
    """All that can be looked at from here, one after the other."""
    looked = False
    for finding in _database():
        looked = True
        yield finding
    if reach.url is not None:
        looked = True
        yield from _api(reach)
    for finding in _kubernetes(namespace, kubeconfig):
        looked = True
        yield finding
    if not looked:
        yield Finding(
            "engine",
            False,
            "there is nothing to look at",
            "set DATABASE_URL, name the HTTP API (--server, ROMANCY_API__URL), or have kubectl reach a cluster",
        )


# --- the database -----------------------------------------------------------------------------------------------------


def _database() -> Iterator[Finding]:
    from romancy.cli import direct

    try:
        options = direct.database()
    except SettingsError as error:
        yield Finding("settings", False, error.message, error.hint)
        return
    if not options.url.get_secret_value():
        return
    yield from asyncio.run(_all_of(_of_database(options)))


async def _of_database(options: Any) -> AsyncIterator[Finding]:
    from romancy.store.migrate import schema_version
    from romancy.store.postgres import PostgresStore

    store = PostgresStore(options)
    try:
        await store.open(is_migrating=False)
    except SchemaVersionError as error:
        yield Finding("database", True, "it can be reached")
        yield Finding("schema", False, error.message, error.hint or "romancy db migrate")
        return
    except RomancyError as error:
        advice = (
            "see that host, port, user and password of DATABASE_URL are right, and that it can be reached from here"
        )
        yield Finding("database", False, error.message, advice)
        return
    try:
        yield Finding("database", True, "it can be reached")
        yield Finding("schema", True, f"version {schema_version()}")
        before = time.time()
        now = (await store.now()).timestamp()
        skew = max(now - time.time(), before - now, 0.0)
        yield Finding(
            "clock",
            skew <= SKEW_SECONDS_MAX,
            f"{skew:.1f} s between this machine and the database",
            "set both by NTP; the engine counts by the database's, so only what people compare is wrong",
        )
        workers = await store.list_workers()
        live = [worker for worker in workers if not worker.is_expired]
        expired = len(workers) - len(live)
        names = {name for worker in live for name in worker.workflows}
        yield Finding(
            "workers",
            bool(live),
            f"{len(live)} live with {len(names)} workflows" + (f", {expired} expired" if expired else ""),
            "start one: romancy operator, or App(...) in a program of yours; see the logs of those that ended",
        )
        backlog = await store.backlog()
        yield Finding(
            "runs",
            backlog.blocked == 0,
            f"{backlog.open} open, {backlog.due} due, {backlog.blocked} blocked",
            "romancy list -A --phase Blocked, and romancy why RUN",
        )
    except RomancyError as error:
        yield Finding("database", False, error.message, error.hint or "see that it stays reachable")
    finally:
        await store.close()


async def _all_of(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


# --- the HTTP API -----------------------------------------------------------------------------------------------------


def _api(reach: Reach) -> Iterator[Finding]:
    try:
        began = time.monotonic()
        with reach.backend() as backend:
            found = backend.workers()
        live = sum(not worker["isExpired"] for worker in found)
        took = time.monotonic() - began
        yield Finding("API", True, f"{reach.url} answers in {1000 * took:.0f} ms; {live} live workers")
    except RomancyError as error:
        yield Finding("API", False, error.message, error.hint or "see --server and --token-file")


# --- Kubernetes -------------------------------------------------------------------------------------------------------


def _kubernetes(namespace: str, kubeconfig: str | None) -> Iterator[Finding]:
    kubectl = shutil.which("kubectl")
    config = Path(kubeconfig or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or Path.home() / ".kube/config")
    if kubectl is None or not config.exists():
        return
    base = [kubectl, f"--kubeconfig={config}", f"--request-timeout={KUBECTL_SECONDS:.0f}s"]
    version = _run([*base, "version", "-o", "json"])
    if version is None or version.returncode != 0:
        yield Finding("Kubernetes", False, _last_line(version), f"see that the cluster of {config} can be reached")
        return
    with contextlib.suppress(ValueError, KeyError):
        git = json.loads(version.stdout)["serverVersion"]["gitVersion"]
        yield Finding("Kubernetes", True, f"the API server is {git}")
    kinds = _run([*base, "get", "crd", "workflowruns.romancy.dev", "workflowengines.romancy.dev", "-o", "name"])
    yield Finding(
        "definitions",
        kinds is not None and kinds.returncode == 0,
        "WorkflowRun and WorkflowEngine are there"
        if kinds is not None and kinds.returncode == 0
        else _last_line(kinds),
        "install the chart, or kubectl apply -f crds/; without a right on CRDs this can't be seen",
    )
    for verb, kind in _RIGHTS:
        asked = _run([*base, "auth", "can-i", verb, f"{kind}.romancy.dev", "-n", namespace])
        may = asked is not None and asked.returncode == 0
        yield Finding(
            f"right to {verb} {kind} in {namespace}",
            may,
            "yes" if may else "no",
            "bind the ClusterRole view or edit (the chart adds its kinds to both), or name another namespace with -n",
        )


def _run(command: list[str]) -> "subprocess.CompletedProcess[str] | None":
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=2 * KUBECTL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None


def _last_line(done: "subprocess.CompletedProcess[str] | None") -> str:
    if done is None:
        return "kubectl gave no answer"
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"kubectl ended with {done.returncode}"
