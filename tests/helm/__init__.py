"""Helm, built from the Go module proxy: `helm()` is its binary."""

from pathlib import Path
from typing import Final

from tests import gobuild

_CHARTUTIL: Final = "helm.sh/helm/v3/pkg/chartutil"
# Without these `helm template` and `lint` think that they speak to Kubernetes 1.20.
_FLAGS: Final = f"-s -w -X {_CHARTUTIL}.k8sVersionMajor=1 -X {_CHARTUTIL}.k8sVersionMinor=34"


def helm() -> Path:
    """The binary, built if the cache lacks it (a minute or two, once a machine)."""
    return gobuild.Tool(
        name="helm",
        what="helm; once a machine, 1 to 2 minutes",
        module=Path(__file__).parent,
        sources=("go.mod", "go.sum"),
        package="helm.sh/helm/v3/cmd/helm",
        linker_flags=_FLAGS,
    ).build()
