"""A database of one's own: its URL in a Secret that somebody else has made, and TLS that is verified."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.pods.conftest import Release

pytestmark = [pytest.mark.pods, pytest.mark.timeout(600)]

HOST = "orders-db"
MANIFEST = """
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


def openssl(folder: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def authority(folder: Path, name: str) -> None:
    key = f"-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout {name}.key"
    openssl(folder, f"req -x509 {key} -days 2 -subj /CN={name} -out {name}.crt")


@pytest.fixture
def database(release: Release, tmp_path: Path) -> Release:
    """A PostgreSQL whose certificate is of an authority that nobody knows yet, and the Secrets that tell of both."""
    authority(tmp_path, "ca")
    authority(tmp_path, "another")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout server.key"
    openssl(tmp_path, f"req -new {key} -subj /CN={HOST} -addext subjectAltName=DNS:{HOST} -out server.csr")
    openssl(tmp_path, "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -days 2 -copy_extensions copy -out server.crt")

    def secret(name: str, *parts: str) -> None:
        release.kubectl("create", "secret", "generic", name, *parts)

    url = (
        f"postgresql://romancy:se-cret@{HOST}:5432/romancy?sslmode=verify-full&sslrootcert=/etc/romancy/database/ca.crt"
    )
    secret(HOST, "--from-literal=password=se-cret", f"--from-literal=connection={url}")
    secret(f"{HOST}-tls", f"--from-file=tls.crt={tmp_path}/server.crt", f"--from-file=tls.key={tmp_path}/server.key")
    secret(f"{HOST}-ca", f"--from-file=ca.crt={tmp_path}/ca.crt")
    secret("another-ca", f"--from-file=ca.crt={tmp_path}/another.crt")
    release.kubectl("apply", "-f", "-", stdin=MANIFEST.replace("IMAGE", release.pods.postgres_image))
    release.kubectl("wait", "--for=condition=Ready", f"pod/{HOST}", "--timeout=60s")
    release.database_pod = HOST
    return release


def test_a_url_of_ones_own_secret_over_verified_tls(database: Release) -> None:
    own = {"demo.enabled": "false", "database.existingSecret": HOST, "database.urlKey": "connection"}
    database.install(**own, **{"database.tls.existingSecret": f"{HOST}-ca"})
    database.apply("over-tls", "steps", run="over-tls", count=3, seconds=0.1)

    assert database.end("over-tls")["output"] == 3
    connections = database.sql(
        "select ssl from pg_stat_ssl join pg_stat_activity using (pid) where application_name like 'romancy%'"
    )
    assert set(connections) == {"t"}

    # The certificate of another authority: the new pods say so and do not become ready; the old ones go on.
    other = database.get("secret", "another-ca")["data"]["ca.crt"]
    database.kubectl("patch", "secret", f"{HOST}-ca", "--type=merge", "-p", json.dumps({"data": {"ca.crt": other}}))
    before = {
        each["metadata"]["name"] for each in database.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
    }
    database.kubectl("rollout", "restart", "deployment/romancy")

    def new_pods() -> list[str]:
        found = database.get("pods", "-l", "app.kubernetes.io/name=romancy")["items"]
        return [each["metadata"]["name"] for each in found if each["metadata"]["name"] not in before]

    database.until(new_pods, "a new pod is made")
    [pod] = new_pods()
    database.kubectl("wait", f"pod/{pod}", "--for=jsonpath={.status.phase}=Running", "--timeout=60s")
    database.until(lambda: "CERTIFICATE_VERIFY_FAILED" in database.kubectl("logs", pod), "it says what is wrong")
    assert "se-cret" not in database.kubectl("logs", pod)
    database.apply("still", "steps", run="still", count=1, seconds=0.1)
    assert database.end("still")["output"] == 1
