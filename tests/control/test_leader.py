"""The elector against the real Lease API."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID

import pytest

from romancy.base.settings import ControlSettings
from romancy.control.kube import Kube, Target
from romancy.control.leader import Elector, LeaderStuckError
from tests.control.objects import RUNS, a_run, path_of
from tests.controlplane.plane import ControlPlane

pytestmark = pytest.mark.kube


class Candidate:
    """An elector whose body says when it leads; `crash` ends it as a killed process would: nothing is released."""

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        identity: str,
        *,
        lease_seconds: float = 2,
        body: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.is_fit = True
        self.elector = Elector(
            kube,
            namespace=namespace,
            name="romancy",
            identity=identity,
            lease_seconds=lease_seconds,
            renew_deadline_seconds=lease_seconds * 0.7,
            retry_seconds=0.2,
            end_seconds=0.3,
            is_fit=lambda: self.is_fit,
        )
        self.leads, self.ended = asyncio.Event(), asyncio.Event()
        self.began_at = self.ended_at = 0.0
        self.lives = 0
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.elector.run(body or self.body, self.stop))

    async def body(self) -> None:
        self.lives += 1
        self.began_at = time.monotonic()
        self.ended.clear()
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended_at = time.monotonic()
            self.leads.clear()
            self.ended.set()


@pytest.fixture
async def kubes(cluster: ControlPlane) -> AsyncIterator[list[Kube]]:
    """Two connections of their own, as of two processes."""
    async with AsyncExitStack() as stack:
        settings = ControlSettings(kubeconfig=str(cluster.kubeconfig))
        yield [await stack.enter_async_context(Kube.open(settings)) for _ in range(2)]


async def test_a_release_is_taken_over_at_once(kubes: list[Kube], namespace: str, cluster: ControlPlane) -> None:
    one = Candidate(kubes[0], namespace, "one")
    await asyncio.wait_for(one.leads.wait(), 5)
    two = Candidate(kubes[1], namespace, "two")
    await _follows(two)

    one.stop.set()
    await one.task
    await asyncio.wait_for(two.leads.wait(), 5)

    assert one.ended_at < two.began_at
    assert two.began_at - one.ended_at < 0.3  # 10 to 30 ms on a quiet machine
    assert _lease(cluster, namespace)["holderIdentity"] == "two"
    assert _lease(cluster, namespace)["leaseTransitions"] == 1
    two.stop.set()
    await two.task
    assert _lease(cluster, namespace)["holderIdentity"] == ""


async def test_an_unfit_leader_is_relieved_as_soon_as_anybody_is_better(
    kubes: list[Kube], namespace: str, cluster: ControlPlane
) -> None:
    one = Candidate(kubes[0], namespace, "one", lease_seconds=3)
    await asyncio.wait_for(one.leads.wait(), 5)
    two = Candidate(kubes[1], namespace, "two", lease_seconds=3)
    await _follows(two)
    one.is_fit = two.is_fit = False

    await _until(lambda: "romancy.dev/unfit" in _annotations(cluster, namespace))
    renewed = _lease(cluster, namespace)["renewTime"]
    await _until(lambda: _lease(cluster, namespace)["renewTime"] != renewed)  # nobody is better: it goes on
    assert one.leads.is_set()
    two.is_fit = True
    await asyncio.wait_for(two.leads.wait(), 5)
    await asyncio.wait_for(one.ended.wait(), 5)

    lease = _lease(cluster, namespace)
    assert (lease["holderIdentity"], lease["leaseTransitions"]) == ("two", 1)
    assert "romancy.dev/unfit" not in _annotations(cluster, namespace)
    one.is_fit = True  # and stays a candidate
    two.stop.set()
    await two.task
    await asyncio.wait_for(one.leads.wait(), 5)
    one.stop.set()
    await one.task


async def test_a_crashed_leader_is_replaced_after_its_lease(
    cluster: ControlPlane, kubes: list[Kube], namespace: str
) -> None:
    doomed = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.control.candidate", str(cluster.kubeconfig), namespace),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert doomed.stdout is not None
    while b"leads" not in (line := await asyncio.wait_for(doomed.stdout.readline(), 20)):
        assert line
    heir = Candidate(kubes[0], namespace, "heir")
    await _follows(heir)

    doomed.kill()
    killed_at = time.monotonic()
    await doomed.communicate()
    await asyncio.wait_for(heir.leads.wait(), 10)

    assert heir.began_at - killed_at < 2 + 0.5  # its lease, and a little
    heir.stop.set()
    await heir.task


async def test_no_leader_outlives_its_api_server(cluster: ControlPlane, kubes: list[Kube], namespace: str) -> None:
    candidates = [Candidate(kube, namespace, name) for kube, name in zip(kubes, ("one", "two"), strict=True)]
    await _any_leads(candidates)
    [leader] = [each for each in candidates if each.leads.is_set()]

    cluster.kill_apiserver()
    killed_at = time.monotonic()
    await asyncio.wait_for(leader.ended.wait(), 5)
    stopped_at = time.monotonic()
    await asyncio.to_thread(cluster.start_apiserver)
    await _any_leads(candidates)

    assert stopped_at - killed_at < 2  # the renew deadline, not the lease
    assert sum(each.leads.is_set() for each in candidates) == 1
    for each in candidates:
        each.stop.set()
        await each.task


async def test_a_body_that_fails_gives_the_lease_away_and_is_tried_again(kubes: list[Kube], namespace: str) -> None:
    tries = 0
    again = asyncio.Event()

    async def body() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError("broken")
        again.set()
        await asyncio.Event().wait()

    candidate = Candidate(kubes[0], namespace, "one", body=body)
    await asyncio.wait_for(again.wait(), 10)

    assert candidate.elector.is_leader
    candidate.stop.set()
    await candidate.task


async def test_a_body_that_does_not_end_is_an_error(kubes: list[Kube], namespace: str) -> None:
    begun, let_go = asyncio.Event(), asyncio.Event()

    async def body() -> None:
        begun.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    candidate = Candidate(kubes[0], namespace, "one", lease_seconds=1, body=body)
    await asyncio.wait_for(begun.wait(), 5)
    candidate.stop.set()

    with pytest.raises(LeaderStuckError):
        await candidate.task
    let_go.set()


async def test_a_lease_taken_by_force_ends_the_leader(cluster: ControlPlane, kubes: list[Kube], namespace: str) -> None:
    one = Candidate(kubes[0], namespace, "one")
    await asyncio.wait_for(one.leads.wait(), 5)

    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/romancy"
    cluster.call("PATCH", path, {"spec": {"holderIdentity": "somebody"}})
    await asyncio.wait_for(one.ended.wait(), 5)
    assert not one.elector.is_leader
    await asyncio.wait_for(one.leads.wait(), 10)  # somebody gave no sign of life

    assert one.lives == 2
    one.stop.set()
    await one.task


async def test_who_may_not_lead_any_more_writes_nothing(
    cluster: ControlPlane, namespace: str, kubes: list[Kube]
) -> None:
    """A process that was stopped goes on in the middle of a write: it must not send what another has overtaken."""
    now = asyncio.get_running_loop().time
    until = now() + 60
    kube = kubes[0].while_leading(lambda: until)
    made = await kube.call("POST", path_of(namespace), a_run("order"))
    target = Target(RUNS, namespace, "order", UUID(made["metadata"]["uid"]))

    until = now()
    writing = asyncio.create_task(kube.patch_status(target, {"phase": "Running"}))
    read = await kube.call("GET", path_of(namespace, name="order"))
    done, _ = await asyncio.wait({writing}, timeout=0.2)  # it would have been answered in a tenth of that
    writing.cancel()

    assert not done
    assert read["metadata"]["uid"] == made["metadata"]["uid"]
    assert cluster.requests_of("romancy/", "patch", namespace=namespace) == []


async def test_a_renewal_that_is_heard_too_late_ends_the_leader(
    kubes: list[Kube], namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process stood still while it was answered. What had looked in between, whether it leads, waits for the end of the body:
    the leader went on, and took no object in any more."""
    write = Elector._write
    late = [0.9]  # past the deadline that held until then; not past the one that this renewal would give
    renewals: list[float] = []  # since it was heard too late

    async def standing_still(self: Elector, lease: Any, *, is_new: bool) -> Any:
        if not late and not is_new:
            renewals.append(time.monotonic())
        written = await write(self, lease, is_new=is_new)
        if candidate.leads.is_set() and late:
            time.sleep(late.pop())  # noqa: ASYNC251 - the whole process stands still
        return written

    monkeypatch.setattr(Elector, "_write", standing_still)
    candidate = Candidate(kubes[0], namespace, "a")
    async with asyncio.timeout(10):
        await candidate.leads.wait()
        await candidate.ended.wait()
        tried_again = list(renewals)
        await candidate.leads.wait()

    assert late == []
    assert candidate.lives == 2
    assert tried_again == []  # it ended for that answer, and not when the next renewal found it too late
    candidate.stop.set()
    await candidate.task


async def _follows(candidate: Candidate) -> None:
    """Wait until it has read the Lease: it watches from that version on, so nothing is missed from here."""
    async with asyncio.timeout(5):
        while not candidate.elector.holder:  # noqa: ASYNC110 - the elector tells nobody what it has seen
            await asyncio.sleep(0.01)


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - only the server knows
            await asyncio.sleep(0.05)


async def _any_leads(candidates: list[Candidate]) -> None:
    waiting = [asyncio.create_task(each.leads.wait()) for each in candidates]
    done, pending = await asyncio.wait(waiting, timeout=15, return_when=asyncio.FIRST_COMPLETED)
    for each in pending:
        each.cancel()
    assert done


def _annotations(cluster: ControlPlane, namespace: str) -> dict[str, str]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/romancy"
    found: dict[str, str] = cluster.call("GET", path)["metadata"].get("annotations") or {}
    return found


def _lease(cluster: ControlPlane, namespace: str) -> dict[str, object]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/romancy"
    spec: dict[str, object] = cluster.call("GET", path)["spec"]
    return spec
