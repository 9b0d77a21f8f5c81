"""The wheel, installed into a clean venv outside of the checkout."""

import os
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Installed:
    """A venv with the wheel, and how to run things in it."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def romancy(self) -> Path:
        return self.folder / "bin" / "romancy"

    def environment(self, **more: str) -> Mapping[str, str]:
        """That of a user: nothing of the checkout in it."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("ROMANCY_", "PYTHON", "DATABASE_URL"))
        }
        return {**kept, **more}

    @classmethod
    def make(cls, folder: Path) -> "Installed":
        """Build the wheel and install it as a user would, with its dependencies."""
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT],
            check=True,
            capture_output=True,
        )
        [wheel] = (folder / "dist").glob("*.whl")
        venv.create(folder / "venv", with_pip=False)
        made = cls(folder / "venv", wheel)
        subprocess.run(
            [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", made.python, f"{wheel}[dev]"],
            check=True,
            capture_output=True,
        )
        return made
