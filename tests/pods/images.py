"""Images as files that containerd takes, without a registry."""

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Final

from tests.pods import tools

ROOT: Final = Path(__file__).parents[2]
_VERSION: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MAKE: Final = ("make", "image")
"""The command of the README that makes the operator's image."""
# The node knows both by the names that the chart has for them, so that commands of the docs run as they stand.
OPERATOR: Final = f"romancy:{_VERSION}"
POSTGRES: Final = "postgres:18"
_POSTGRES_MADE: Final = "localhost/romancy-test-postgres:4"
PAUSE: Final = "localhost/pause:1"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"


def operator(folder: Path) -> Path:
    """The project's own image, by `make image`."""
    _run([*MAKE], PYTHON_IMAGE="local")
    return _saved(f"localhost/{OPERATOR}", OPERATOR, folder / "operator.tar")


def postgres(folder: Path) -> Path:
    """A PostgreSQL that starts as the official image does."""
    if subprocess.run(["buildah", "inspect", _POSTGRES_MADE], capture_output=True, check=False).returncode:
        base = _run([str(ROOT / "tools/base-image")]).strip()
        command = ["buildah", "bud", "-q", "--isolation", "chroot", "--pull-never", "--build-arg", f"BASE={base}"]
        _run([*command, "-t", _POSTGRES_MADE, str(Path(__file__).parent / "postgres")])
    return _saved(_POSTGRES_MADE, POSTGRES, folder / "postgres.tar")


def pause(folder: Path) -> Path:
    """One static binary as an image of one layer: an OCI image layout, made by hand."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        files.add(tools.pause(), arcname="pause")
    blobs: dict[str, bytes] = {}

    def blob(content: bytes) -> dict[str, object]:
        digest = hashlib.sha256(content).hexdigest()
        blobs[digest] = content
        return {"digest": f"sha256:{digest}", "size": len(content)}

    content = blob(layer.getvalue())
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [content["digest"]]},
    }
    described = blob(json.dumps(config).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **described},
        "layers": [{"mediaType": _LAYER, **content}],
    }
    entry = {"mediaType": manifest["mediaType"], **blob(json.dumps(manifest).encode())}
    index = {"schemaVersion": 2, "manifests": [{**entry, "annotations": {"io.containerd.image.name": PAUSE}}]}
    target = folder / "pause.tar"
    with tarfile.open(target, "w") as image:
        for name, data in [
            *((f"blobs/sha256/{digest}", data) for digest, data in blobs.items()),
            ("index.json", json.dumps(index).encode()),
            ("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            image.addfile(info, io.BytesIO(data))
    return target


def _saved(image: str, name: str, target: Path) -> Path:
    target.unlink(missing_ok=True)
    _run(["buildah", "push", "-q", image, f"docker-archive:{target}:{name}"])
    return target


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
