"""A database of one's own beside a release: a PostgreSQL with TLS, and the Secrets that tell of it."""

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tests.pods.conftest import Release

HOST: Final = "orders-db"
OWN: Final = {
    "demo.enabled": "false",
    "database.existingSecret": HOST,
    "database.urlKey": "connection",
    "database.tls.existingSecret": f"{HOST}-ca",
}
"""The values that name it."""
_MANIFEST: Final = """
apiVersion: v1
kind: Service
metadata: {name: orders-db}
spec:
  selector: {app: orders-db}
  ports: [{port: 5432}]
---
apiVersion: v1
kind: Pod
metadata: {name: orders-db, labels: {app: orders-db}}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 999, runAsGroup: 999, fsGroup: 999, seccompProfile: {type: RuntimeDefault}}
  containers:
    - name: postgres
      image: IMAGE
      imagePullPolicy: IfNotPresent
      args: [-c, ssl=on, -c, ssl_cert_file=/tls/tls.crt, -c, ssl_key_file=/tls/tls.key]
      securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
      env:
        - {name: POSTGRES_USER, value: romancy}
        - {name: POSTGRES_DB, value: romancy}
        - {name: POSTGRES_PASSWORD, valueFrom: {secretKeyRef: {name: orders-db, key: password}}}
        - {name: PGDATA, value: /var/lib/postgresql/data/pgdata}
      readinessProbe: {exec: {command: [pg_isready, -U, romancy, -h, 127.0.0.1]}, periodSeconds: 1}
      volumeMounts:
        - {name: data, mountPath: /var/lib/postgresql/data}
        - {name: run, mountPath: /var/run/postgresql}
        - {name: tls, mountPath: /tls}
  volumes:
    - {name: data, emptyDir: {}}
    - {name: run, emptyDir: {}}
    - {name: tls, secret: {secretName: orders-db-tls, defaultMode: 0440}}
"""


def _openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def _authority(folder: Path, name: str) -> None:
    key = f"-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout {name}.key"
    _openssl(folder, f"req -x509 {key} -days 2 -subj /CN={name} -out {name}.crt")


def make(release: "Release", folder: Path) -> None:
    """A PostgreSQL whose certificate is of an authority that nobody knows yet, and the Secrets that tell of both."""
    _authority(folder, "ca")
    _authority(folder, "another")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout server.key"
    _openssl(folder, f"req -new {key} -subj /CN={HOST} -addext subjectAltName=DNS:{HOST} -out server.csr")
    _openssl(folder, "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -days 2 -copy_extensions copy -out server.crt")

    def secret(name: str, *parts: str) -> None:
        release.kubectl("create", "secret", "generic", name, *parts)

    url = (
        f"postgresql://romancy:se-cret@{HOST}:5432/romancy?sslmode=verify-full&sslrootcert=/etc/romancy/database/ca.crt"
    )
    secret(HOST, "--from-literal=password=se-cret", f"--from-literal=connection={url}")
    secret(f"{HOST}-tls", f"--from-file=tls.crt={folder}/server.crt", f"--from-file=tls.key={folder}/server.key")
    secret(f"{HOST}-ca", f"--from-file=ca.crt={folder}/ca.crt")
    secret("another-ca", f"--from-file=ca.crt={folder}/another.crt")
    release.kubectl("apply", "-f", "-", stdin=_MANIFEST.replace("IMAGE", release.pods.postgres_image))
    release.kubectl("wait", "--for=condition=Ready", f"pod/{HOST}", "--timeout=60s")
    release.database_pod = HOST
