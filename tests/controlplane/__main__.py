"""`python -m tests.controlplane build | start DIR | stop DIR`: the control plane for demos and by hand."""

import sys
from pathlib import Path

from tests.controlplane import plane


def main(arguments: list[str]) -> int:
    match arguments:
        case ["build"]:
            print(plane.build())
        case ["start", directory]:
            print(plane.ControlPlane.start(Path(directory)).kubeconfig)
        case ["stop", directory]:
            plane.ControlPlane.open(Path(directory)).stop()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


sys.exit(main(sys.argv[1:]))
