"""kstatus, the library by which Flux and others tell the health of any object, and the Lua of Argo CD; built by Go."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import gobuild


def kstatus() -> Path:
    """The binary, built if the cache lacks it (under a minute, once a machine)."""
    return gobuild.Tool(
        name="kstatus",
        what="kstatus; once a machine, under a minute",
        module=Path(__file__).parent,
        sources=("go.mod", "go.sum", "main.go"),
    ).build()


def compute(objects: Sequence[dict[str, Any]], *, script: Path | None = None) -> list[str]:
    """What it makes of each: Current, InProgress, Failed; with a script of Lua for Argo CD, what that says."""
    lines = "".join(json.dumps(each) + "\n" for each in objects)
    done = subprocess.run(
        [kstatus(), *([script] if script else [])], input=lines, capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split()
