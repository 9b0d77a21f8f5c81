"""Tools of the Kubernetes world that no package registry for Python has, built by Go once a machine into ~/.cache/romancy."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


class BuildError(RuntimeError):
    """It can't be built; the message says what to look at."""


@dataclass(frozen=True)
class Tool:
    """One binary.

    Args:
        name: of the binary.
        what: is built and how long it takes, for whoever waits.
        module: folder with go.mod and go.sum.
        sources: the files in it that decide what is built.
        package: to build, from that folder.
        linker_flags: a build with others compiles everything a second time.
        tags: build tags.
    """

    name: str
    what: str
    module: Path
    sources: Sequence[str]
    package: str = "."
    linker_flags: str = "-s -w"
    tags: str = ""

    def cached(self) -> Path:
        """Where the binary of these sources belongs, built or not."""
        digest = hashlib.sha256(b"".join((self.module / name).read_bytes() for name in self.sources))
        digest.update(self.tags.encode())
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "romancy" / "kube" / digest.hexdigest()[:16] / self.name

    def build(self) -> Path:
        """Return the binary, built if the cache lacks it.

        Raises:
            BuildError: there is no Go, or the build failed.
        """
        binary = self.cached()
        if binary.exists():
            return binary
        binary.parent.mkdir(parents=True, exist_ok=True)
        with (binary.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second session waits for the first one's build
            if not binary.exists():
                self._compile(binary)
        return binary

    def _compile(self, binary: Path) -> None:
        if not (go := shutil.which("go")):
            raise BuildError(f"{self.name} is built with Go (1.25 or newer), and there is no `go` in PATH")
        print(f"building {self.what}", file=sys.stderr)
        unfinished = binary.with_name(f"{self.name}.{os.getpid()}")
        command = [go, "build", "-v", "-trimpath", "-tags", self.tags, "-ldflags", self.linker_flags]
        began = shown = time.monotonic()
        tail: list[str] = []
        with subprocess.Popen(
            [*command, "-o", str(unfinished), self.package],
            cwd=self.module,
            env={**os.environ, "CGO_ENABLED": "0"},
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            for packages, line in enumerate(process.stderr, start=1):
                tail = [*tail[-19:], line]
                if time.monotonic() - shown >= 10:
                    shown = time.monotonic()
                    print(f"  {shown - began:4.0f} s, {packages} packages, {line.strip()}", file=sys.stderr)
        if process.returncode:
            unfinished.unlink(missing_ok=True)
            raise BuildError(f"go build ended with {process.returncode}:\n{''.join(tail)}")
        unfinished.rename(binary)
        print(f"built {binary} in {time.monotonic() - began:.0f} s", file=sys.stderr)
