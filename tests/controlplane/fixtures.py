"""pytest fixtures: one control plane a session, a namespace a test. Import them in a conftest.py that needs them."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import yaml

from tests.controlplane.plane import ApiError, ControlPlane, wait_until

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A running control plane with our CRDs, for the whole session: tests that break it must mend it."""
    plane = ControlPlane.start(tmp_path_factory.mktemp("kube"))
    try:
        install_crds(plane)
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def namespace(cluster: ControlPlane) -> Iterator[str]:
    """A fresh namespace. Its deletion is not waited for: it takes 5 s."""
    with new_namespace(cluster) as name:
        yield name


@pytest.fixture
def another_namespace(cluster: ControlPlane) -> Iterator[str]:
    """A second one."""
    with new_namespace(cluster) as name:
        yield name


@contextmanager
def new_namespace(plane: ControlPlane) -> Iterator[str]:
    """A namespace that is deleted at the end, unless it is gone already."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    try:
        plane.call("DELETE", f"/api/v1/namespaces/{name}")
    except ApiError as error:
        if error.code not in {404, 409}:  # the test may have deleted it itself
            raise


def install_crds(plane: ControlPlane) -> None:
    """Create our CustomResourceDefinitions; returns when they are served."""
    for file in sorted(CRDS.glob("*.yaml")):
        definition = yaml.safe_load(file.read_text())
        plane.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        path = f"/apis/romancy.dev/v1alpha1/{definition['spec']['names']['plural']}"
        wait_until(partial(plane.answers, path), f"{path} is served")
