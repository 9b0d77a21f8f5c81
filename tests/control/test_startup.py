"""kopf, embedded: what it must not do to our process and to our objects."""

import asyncio
import signal
import time

import kopf
import pytest

from romancy.base.settings import ControlSettings
from romancy.control import engine, runs, startup
from romancy.control.runs import Seen
from tests.control.conftest import eventually, is_gone
from tests.control.objects import ENGINES, a_run, create, delete, path_of, read
from tests.controlplane.plane import ControlPlane


def test_what_kopf_is_told() -> None:
    """Names that kopf may change: a setting that it does not know any more would be taken without a word."""
    settings = startup.kopf_settings()
    plain = kopf.OperatorSettings()

    assert settings.scanning.disabled
    assert not settings.posting.enabled
    assert settings.peering.standalone
    assert settings.process.ultimate_exiting_timeout is None
    assert plain.process.ultimate_exiting_timeout is not None
    assert settings.watching.field_selectors["workflowruns"] == (
        "status.phase!=Succeeded,status.phase!=Failed,status.phase!=Cancelled"
    )
    for part, names in {
        "scanning": ["disabled"],
        "networking": ["error_backoffs", "request_timeout", "connect_timeout"],
        "watching": ["connect_timeout", "inactivity_timeout", "chunk_size", "field_selectors", "label_selectors"],
        "queueing": ["idle_timeout", "exit_timeout", "worker_limit"],
    }.items():
        assert all(hasattr(getattr(plain, part), name) for name in names)


def test_timers_need_no_finalizer() -> None:
    """Private names of kopf are used for this: here it is seen when they change."""
    settings = ControlSettings()
    ours, theirs = startup.registry_without_finalizers(), kopf.OperatorRegistry()
    for registry in (ours, theirs):
        engine.add_handlers(registry, settings, tick=_nothing, missed=lambda: None)

    assert isinstance(ours._spawning, startup.NoFinalizerTimers)
    assert isinstance(ours._spawning, type(theirs._spawning))
    [handler] = theirs._spawning.get_all_handlers()
    assert handler.requires_finalizer  # kopf's own would hold the object back
    assert [each.id for each in ours._spawning.get_all_handlers()] == [handler.id]
    assert ours._spawning.requires_finalizer(None) is False  # type: ignore[arg-type]


@pytest.mark.kube
async def test_an_object_is_seen_and_left_as_it_is(cluster: ControlPlane, namespace: str) -> None:
    """No finalizer, no annotation, no request of kopf's but lists and watches; our tasks and signals stay ours."""
    seen: list[Seen] = []
    before = signal.getsignal(signal.SIGTERM)
    settings = ControlSettings(kubeconfig=str(cluster.kubeconfig), namespace=namespace)
    bystander = asyncio.create_task(asyncio.Event().wait())
    running = asyncio.create_task(
        startup.run_kopf("test", runs.registry(seen.append), settings, namespaces=(namespace,))
    )

    create(cluster, namespace, a_run("order"))
    await eventually(lambda: [each for each in seen if each.name == "order"], "it is seen")
    shown = read(cluster, namespace, "order")
    delete(cluster, namespace, "order")
    await eventually(lambda: [each for each in seen if each.is_gone], "its deletion is seen")
    began = time.monotonic()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert time.monotonic() - began < 1
    assert running.cancelled()
    assert not bystander.done()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "finalizers" not in shown["metadata"]
    assert "annotations" not in shown["metadata"]
    verbs = {each.verb for each in cluster.requests_of("kopf", namespace=namespace)}
    assert verbs == {"list", "watch"}
    bystander.cancel()


@pytest.mark.kube
@pytest.mark.parametrize("poison", [SystemExit, KeyboardInterrupt])
async def test_whatever_ends_kopf_is_an_error_here(
    cluster: ControlPlane, namespace: str, poison: type[BaseException]
) -> None:
    """It must not end the loop of the leader, to which it is handed over."""
    settings = ControlSettings(kubeconfig=str(cluster.kubeconfig), namespace=namespace)
    registry = kopf.OperatorRegistry()

    @kopf.on.event("romancy.dev", "v1alpha1", "workflowruns", registry=registry)
    async def fail(**_: object) -> None:
        raise poison

    create(cluster, namespace, a_run("order"))
    with pytest.raises(startup.KopfDiedError, match=poison.__name__):
        await startup.run_kopf("test", registry, settings, namespaces=(namespace,))


@pytest.mark.kube
async def test_a_finished_run_leaves_the_watch(cluster: ControlPlane, namespace: str) -> None:
    """As if it were deleted: which is why a DELETED event alone decides nothing."""
    seen: list[Seen] = []
    settings = ControlSettings(kubeconfig=str(cluster.kubeconfig), namespace=namespace)
    running = asyncio.create_task(
        startup.run_kopf("test", runs.registry(seen.append), settings, namespaces=(namespace,))
    )
    create(cluster, namespace, a_run("order"))
    await eventually(lambda: [each for each in seen if each.name == "order"], "it is seen")

    cluster.call("PATCH", path_of(namespace, name="order", sub="status"), {"status": {"phase": "Succeeded"}})
    [left] = await eventually(lambda: [each for each in seen if each.is_gone], "it has left")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert not left.is_certain
    assert not is_gone(cluster, path_of(namespace, name="order"))


@pytest.mark.kube
async def test_a_timer_ticks_without_a_finalizer_and_ends_with_its_object(
    cluster: ControlPlane, namespace: str
) -> None:
    ticks: list[float] = []
    missed: list[float] = []

    async def tick() -> None:
        ticks.append(time.monotonic())

    settings = ControlSettings(kubeconfig=str(cluster.kubeconfig), namespace=namespace, bury_seconds=0.1)
    registry = startup.registry_without_finalizers()
    engine.add_handlers(registry, settings, tick=tick, missed=lambda: missed.append(time.monotonic()))
    running = asyncio.create_task(startup.run_kopf("test", registry, settings, namespaces=(namespace,)))
    body = {"apiVersion": "romancy.dev/v1alpha1", "kind": "WorkflowEngine"}
    for name in ("romancy", "somebody-elses"):
        cluster.call("POST", path_of(namespace, ENGINES), {**body, "metadata": {"name": name}, "spec": {}})
    await eventually(lambda: len(ticks) >= 3, "it ticks")
    shown = cluster.call("GET", path_of(namespace, ENGINES, "romancy"))

    cluster.call("DELETE", path_of(namespace, ENGINES, "romancy"))
    await eventually(lambda: missed, "its deletion is seen")
    gone_at = time.monotonic()
    cluster.call("POST", path_of(namespace, ENGINES), {**body, "metadata": {"name": "romancy"}, "spec": {}})
    await eventually(lambda: [each for each in ticks if each > gone_at + 0.3], "the new one ticks")
    began = time.monotonic()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert time.monotonic() - began < 1  # a timer that was left alone would be waited for: 5 s
    assert "finalizers" not in shown["metadata"]
    assert "annotations" not in shown["metadata"]
    later = [each for each in ticks if each > gone_at]
    assert len(later) <= (later[-1] - gone_at) / 0.1 + 3  # one timer, not two
    assert cluster.requests_of("kopf", "patch", namespace=namespace) == []


async def _nothing() -> None:
    pass
