"""Pods of workers that are gone: their workers are buried at once, without waiting for their leases."""

from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import kopf

from romancy.base import log
from romancy.control.startup import WORKER_LABEL
from romancy.store.interface import Store, WorkerId

logger = log.get(__name__)

ENDED: Final = frozenset({"Failed", "Succeeded"})
"""Phases in which no container of a pod runs any more, or ever will."""


def is_gone(event_type: str | None, pod: dict[str, Any]) -> bool:
    """Whether nothing of this pod runs any more."""
    return event_type == "DELETED" or (pod.get("status") or {}).get("phase") in ENDED


def add_handlers(registry: kopf.OperatorRegistry, file: Callable[[str], None]) -> None:
    """Watch the pods of workers; `file` is called with the uid of each that is gone, in kopf's thread."""

    @kopf.on.event("", "v1", "pods", labels={WORKER_LABEL: kopf.PRESENT}, registry=registry)
    async def pod_seen(event: kopf.RawEvent, **_: Any) -> None:
        """File a pod that is gone. Twice is once (I6); never waits, never fails."""
        pod: dict[str, Any] = dict(event["object"])
        if is_gone(event["type"], pod):
            file(pod["metadata"]["uid"])


async def bury_workers_of(store: Store, pod_uid: str) -> dict[WorkerId, list[UUID]]:
    """Free the runs of every worker that lived in this pod. Returns who that was, and what they held."""
    if worker_ids := await store.workers_of_pod(pod_uid):
        logger.info("pod_gone", pod_uid=pod_uid, workers=worker_ids)
    return {worker_id: await store.bury_worker(worker_id, even_if_alive=True) for worker_id in worker_ids}
