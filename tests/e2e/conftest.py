"""Operator processes on a real API server and a real PostgreSQL."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from romancy.base.settings import DatabaseSettings
from tests.chaos.fleet import Fleet, all_holds
from tests.controlplane.plane import ControlPlane
from tests.e2e.kubernetes import Kubernetes


def engine_options(plane: ControlPlane, namespace: str) -> dict[str, str]:
    """The environment of processes that watch one namespace, with short times."""
    return {
        "ROMANCY_CONTROL__ENABLED": "true",
        "ROMANCY_CONTROL__KUBECONFIG": str(plane.kubeconfig),
        "ROMANCY_CONTROL__NAMESPACE": namespace,
        "ROMANCY_CONTROL__WATCH_NAMESPACES": namespace,
        "ROMANCY_CONTROL__LEASE_SECONDS": "2",
        "ROMANCY_CONTROL__RENEW_DEADLINE_SECONDS": "1.4",
        "ROMANCY_CONTROL__RETRY_SECONDS": "0.3",
        "ROMANCY_CONTROL__BURY_SECONDS": "0.5",
    }


@pytest.fixture
async def engine(
    cluster: ControlPlane, namespace: str, database: DatabaseSettings, tmp_path: Path
) -> AsyncIterator[Fleet]:
    """Processes that watch this test's namespace; none is started yet."""
    modules = "tests.e2e.flows,workflows.order_saga"
    async with Fleet(database, tmp_path, workflows=modules, options=engine_options(cluster, namespace)) as fleet:
        yield fleet
    await all_holds(database)


@pytest.fixture
def kube(cluster: ControlPlane, namespace: str) -> Kubernetes:
    """The runs of this test's namespace."""
    return Kubernetes(cluster, namespace)
