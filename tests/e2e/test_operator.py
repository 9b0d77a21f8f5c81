"""`kubectl apply` to the end, through real operator processes: what users see, also of what they do wrong."""

import asyncio
import signal
import subprocess
import time
from typing import Any

import pytest

from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import ROOT, Fleet
from tests.cli.test_main import romancy
from tests.e2e.kubernetes import Kubernetes

pytestmark = [pytest.mark.slow, pytest.mark.kube]

VERSIONS = ROOT / "tests/e2e/versions"


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    [found] = [each for each in status["conditions"] if each["type"] == kind]
    return dict(found)


async def test_short_runs_cost_one_status_write_each(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    count = 20
    for number in range(count):
        kube.apply(f"parcel-{number}", "send_parcel", input={"to": f"house {number}", "grams": number})
    statuses = [await kube.end(f"parcel-{number}") for number in range(count)]

    assert [status["output"] for status in statuses] == [f"{number} g to house {number}" for number in range(count)]
    assert sorted(engine.log()) == sorted(f"stamp house {number}" for number in range(count))
    writes = kube.plane.requests_of("romancy/", "patch", "workflowruns/status", kube.namespace)
    assert count <= len(writes) <= 1.1 * count
    made = kube.plane.call("GET", f"{kube.path}/parcel-0")
    assert "finalizers" not in made["metadata"]
    assert "annotations" not in made["metadata"]


async def test_input_that_does_not_fit(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    kube.apply("bad", "send_parcel", input={"to": "house 1", "grams": "many"})
    status = await kube.end("bad")

    assert (status["phase"], status["reason"]) == ("Failed", "InputInvalid")
    assert "parcel.grams: Input should be a valid integer" in condition(status, "Succeeded")["message"]
    assert condition(status, "Accepted")["status"] == "True"
    assert engine.log() == []


async def test_an_unknown_workflow_is_stalled_with_near_names_and_goes_on_when_a_worker_has_it(
    engine: Fleet, kube: Kubernetes
) -> None:
    await engine.start("a", ROMANCY_WORKFLOWS="workflows.order_saga")
    kube.apply("saga", "order_sage", input={})
    kube.apply("early", "send_parcel", input={"to": "house 1", "grams": 1})
    status = await kube.status("saga", lambda status: condition(status, "Stalled")["status"] == "True", "stalled")
    early = await kube.status("early", lambda status: condition(status, "Stalled")["status"] == "True", "stalled")

    assert (status["phase"], condition(status, "Stalled")["reason"]) == ("Pending", "WorkflowNotRegistered")
    assert "order_saga" in condition(status, "Stalled")["message"]
    assert condition(early, "Accepted")["status"] == "True"

    await engine.start("b")
    assert (await kube.end("early"))["output"] == "1 g to house 1"

    kube.plane.call("PATCH", f"{kube.path}/saga", {"spec": {"cancel": True}})
    ended = await kube.end("saga")  # though nobody will ever have it
    assert (ended["phase"], ended["reason"]) == ("Cancelled", "Cancelled")


async def test_a_workflow_that_raises(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    kube.apply("lost", "raises", input={"to": "house 0"})
    status = await kube.end("lost")

    assert (status["phase"], status["reason"]) == ("Failed", "WorkflowFailed")
    assert status["failure"]["type"] == "KeyError"
    assert "nobody lives at house 0" in status["failure"]["message"]
    assert 'raise KeyError(f"nobody lives at {to}")' in status["failure"]["trace"]


async def test_a_run_in_a_long_backoff_says_what_comes_next(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    kube.apply("patient", "retries")
    status = await kube.status("patient", lambda status: status["phase"] == "Waiting", "waiting")

    assert status["reason"] == "Retrying"
    assert status["message"].startswith("attempt 2 of activity 'never_there' at ")
    assert "ConnectionError: the post office is shut" in status["message"]


async def test_the_saga_whose_payment_fails(engine: Fleet, kube: Kubernetes) -> None:
    await engine.start("a")
    kube.apply("order-1", "order_saga", input={"id": "1", "sku": "teapot", "amount": 42, "card": "declined-1"})
    status = await kube.end("order-1")

    assert status["phase"] == "Failed"
    assert status["failure"]["type"].endswith("PaymentDeclinedError")
    run = await engine.client.handle(status["runId"]).info()
    history = await engine.client.store.read_history(run.id)
    assert [entry.name for entry in history][-2:] == ["cancel_parcel", "release_stock"]


async def test_changed_code_blocks_and_fitting_code_heals(engine: Fleet, kube: Kubernetes) -> None:
    def version(name: str) -> dict[str, str]:
        return {"ROMANCY_WORKFLOWS": "changing", "PYTHONPATH": f"{ROOT}/operator:{ROOT}:{VERSIONS / name}"}

    await engine.start("old", **version("old"))
    kube.apply("changing-1", "changing")
    await kube.status("changing-1", lambda status: status["phase"] == "Waiting", "waiting")
    engine.processes["old"].kill()
    await engine.start("new", **version("new"))
    status = await kube.status("changing-1", lambda status: status["phase"] == "Blocked", "blocked")

    assert condition(status, "Stalled")["reason"] == "NonDeterminism"
    message = condition(status, "Stalled")["message"]
    assert "at position 1 history says ActivityCompleted first#1, but the code asked for activity second#1" in message

    await engine.start("old again", **version("old"))
    assert (await kube.end("changing-1"))["output"] == 21


async def test_the_leader_s_sigterm_hands_over_at_once(engine: Fleet, kube: Kubernetes) -> None:
    for name in ("a", "b"):
        await engine.start(name)
    await engine.until(kube.leader, "somebody leads")
    first = kube.leader()
    kube.apply("slow", "takes_time", input={"seconds": 2})
    await engine.did("begin slow")

    engine.processes[first].signal(signal.SIGTERM)
    asked_at = time.monotonic()
    await engine.until(lambda: kube.leader() not in {"", first}, "another leads")
    took = time.monotonic() - asked_at
    status = await kube.end("slow")

    assert took < 2, f"another led after {took:.2f} s"
    assert status["output"] == "done"
    assert engine.log().count("begin slow") == 1
    assert engine.processes[first].popen.wait(15) == 0


async def test_a_run_that_failed_is_retried_and_its_object_is_shown_as_open_again(
    engine: Fleet, kube: Kubernetes, database: DatabaseSettings
) -> None:
    def retry() -> "subprocess.CompletedProcess[str]":
        return romancy("retry", "parcel", "-n", kube.namespace, DATABASE_URL=database.url.get_secret_value())

    await engine.start("a")
    uid = kube.apply("parcel", "post_parcel", input={"to": "house 1", "grams": 1})
    failed = await kube.end("parcel")
    assert (failed["phase"], condition(failed, "Completed")["status"]) == ("Failed", "True")

    (engine.folder / "open").touch()
    done = await asyncio.to_thread(retry)
    assert done.stdout == f"{kube.namespace}/parcel: goes on from its last checkpoint\n", done.stderr
    running = await kube.status("parcel", lambda status: status["phase"] == "Running", "running")
    (engine.folder / "go").touch()
    ended = await kube.status("parcel", lambda status: status["phase"] == "Succeeded", "succeeded")

    assert condition(running, "Completed")["status"] == "False"
    assert condition(running, "Succeeded")["status"] == "Unknown"
    assert condition(running, "Stalled")["status"] == "False"
    assert not {"completionTime", "failure"} & set(running)
    assert (ended["output"], ended["runId"]) == (["1 g to house 1", "posted"], uid)
    assert engine.log() == ["stamp house 1", "post office", "post office"]
    refused = await asyncio.to_thread(retry)
    assert (refused.returncode, refused.stderr.partition(":")[0]) == (1, "error (RetryRefused)")
