"""What a node is made of, built by Go once a machine."""

from pathlib import Path
from typing import Final

from tests import gobuild
from tests.controlplane import plane

_HERE: Final = Path(__file__).parent


def kubernetes() -> Path:
    """The control plane with scheduler, kubelet and kube-proxy in one binary (half a minute more than without)."""
    return gobuild.Tool(
        name="kubernetes",
        what="the control plane with kubelet, scheduler and kube-proxy; once a machine, 1 to 6 minutes on two cores",
        module=plane.MODULE,
        sources=("go.mod", "go.sum", "main.go", "kubectl.go", "node.go"),
        linker_flags=plane.LINKER_FLAGS,
        tags=" ".join(["node", plane.tags()]).strip(),
    ).build()


def coredns() -> Path:
    """A CoreDNS of three plugins: kopf calls the API server by name."""
    return gobuild.Tool(
        name="coredns",
        what="CoreDNS; once a machine, about a minute",
        module=_HERE / "coredns",
        sources=("go.mod", "go.sum", "main.go"),
    ).build()


def pause() -> Path:
    """What holds a pod's namespaces."""
    return gobuild.Tool(
        name="pause", what="pause", module=_HERE / "pause", sources=("go.mod", "go.sum", "main.go")
    ).build()
