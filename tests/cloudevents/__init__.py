"""A sender of CloudEvents by the SDK of another language; built by Go."""

from pathlib import Path

from tests import gobuild


def sender() -> Path:
    """The binary, built if the cache lacks it (some seconds, once a machine): `sender URL TOKEN`."""
    return gobuild.Tool(
        name="sender",
        what="a sender by the CloudEvents SDK for Go; once a machine, under a minute",
        module=Path(__file__).parent,
        sources=("go.mod", "go.sum", "main.go"),
    ).build()
