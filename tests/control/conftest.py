"""The real API server: see tests/controlplane."""

from tests.controlplane.fixtures import cluster, namespace

__all__ = ["cluster", "namespace"]
