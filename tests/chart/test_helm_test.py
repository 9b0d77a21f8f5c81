"""The program of `helm test`: what it asks, and that it says no. On real pods it is run by tests/pods/test_pods.py."""

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from tests.chart.conftest import CHART, DATABASE, Template
from tests.chart.test_chart import find
from tests.control.objects import ENGINES, path_of
from tests.control.rights import allow, make_account
from tests.controlplane.plane import ControlPlane

SOURCE = CHART / "files/test.py"
MAY_READ = {"apiGroups": ["romancy.dev"], "resources": [ENGINES], "verbs": ["get"]}


@pytest.fixture
def program() -> ModuleType:
    """It runs nothing until it is asked."""
    spec = importlib.util.spec_from_file_location("helm_test", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def answering(code: int, body: str) -> Iterator[str]:
    """A server that answers /healthz/ready so. Yields its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code if self.path == "/healthz/ready" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_words: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_worker_that_is_not_ready_is_said(program: ModuleType) -> None:
    with answering(200, "ready") as url:
        assert program.health(url) == ""
    assert "Connection refused" in program.health(url)
    with answering(503, "draining") as url:
        assert program.health(url) == f"{url}/healthz/ready: 503 draining"


def test_an_engine_that_is_not_ready_is_said(
    program: ModuleType, cluster: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, _, port = cluster.server.removeprefix("https://").partition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    monkeypatch.setattr(program, "ACCOUNT", tmp_path)
    [user] = json.loads(make_account(cluster, namespace))["users"]
    (tmp_path / "token").write_text(user["user"]["token"])
    (tmp_path / "ca.crt").write_bytes(cluster.ca_file.read_bytes())

    assert "403" in program.engine(namespace, "romancy")
    allow(cluster, namespace, [MAY_READ])
    assert "404" in program.engine(namespace, "romancy")
    body = {"apiVersion": "romancy.dev/v1alpha1", "kind": "WorkflowEngine", "metadata": {"name": "romancy"}}
    cluster.call("POST", path_of(namespace, ENGINES), body)
    assert program.engine(namespace, "romancy") == "WorkflowEngine romancy: it has no status"
    show(cluster, namespace, "False", "no worker lives")
    assert program.engine(namespace, "romancy") == "WorkflowEngine romancy: no worker lives"
    show(cluster, namespace, "True", "3 workers")
    assert program.engine(namespace, "romancy") == ""


def show(cluster: ControlPlane, namespace: str, status: str, message: str) -> None:
    condition = {"type": "Ready", "status": status, "reason": "Told", "message": message}
    conditions = [{**condition, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    cluster.call("PATCH", path_of(namespace, ENGINES, "romancy", "status"), {"status": {"conditions": conditions}})


def test_it_is_asked_of_the_engine_that_is_installed(template: Template) -> None:
    def asked(*values: str) -> list[str]:
        [container] = find(template(*DATABASE, *values), "Pod", "shop-romancy-test")["spec"]["containers"]
        assert container["command"][:3] == ["python", "-c", SOURCE.read_text()]
        found: list[str] = container["command"][3:]
        return found

    assert asked() == ["http://shop-romancy:8080", "here", "romancy"]
    assert asked("--set", "settings.control.engine=orders")[2] == "orders"
