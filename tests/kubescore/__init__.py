"""kube-score, built from the Go module proxy: `kube_score()` is its binary."""

from pathlib import Path

from tests import gobuild


def kube_score() -> Path:
    """The binary, built if the cache lacks it (a minute or two, once a machine)."""
    return gobuild.Tool(
        name="kube-score",
        what="kube-score; once a machine, 1 to 2 minutes",
        module=Path(__file__).parent,
        sources=("go.mod", "go.sum"),
        package="github.com/zegl/kube-score/cmd/kube-score",
        linker_flags="-s -w",
    ).build()
