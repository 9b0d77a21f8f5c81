"""Builds, starts and ends etcd + kube-apiserver + kube-controller-manager on loopback; needs Go once, and openssl.

Data is thrown away, so everything is stopped by SIGKILL. Whoever may talk to it is in DIR/admin.kubeconfig; who has
talked to it is in DIR/audit.log, which tests count requests in.
"""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import gobuild

MODULE = Path(__file__).parent
VERSION = "v1.34.4"
_VERSION_PACKAGE = "k8s.io/component-base/version"
# Without these the API server calls itself v0.0.0-master, at which charts with a kubeVersion balk. A build with other
# flags compiles everything a second time.
LINKER_FLAGS = (
    f"-s -w -X {_VERSION_PACKAGE}.gitVersion={VERSION} "
    f"-X {_VERSION_PACKAGE}.gitMajor=1 -X {_VERSION_PACKAGE}.gitMinor=34"
)
START_SECONDS = 60.0
CLIENT = "extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n"
SERVER = "extendedKeyUsage=serverAuth\nkeyUsage=digitalSignature\nsubjectAltName="
ATTEMPTS = 3  # a port that was free may be taken by somebody else before we bind it


class PlaneError(RuntimeError):
    """The control plane can't be built or does not start; the message says what to look at."""


def cached_binary() -> Path:
    """Where the binary of these sources belongs, built or not."""
    return _tool().cached()


def _tool() -> gobuild.Tool:
    return gobuild.Tool(
        name="controlplane",
        what="etcd and Kubernetes for tests; once a machine, 3 to 5 minutes on two cores",
        module=MODULE,
        sources=("go.mod", "go.sum", "main.go", "kubectl.go"),
        linker_flags=LINKER_FLAGS,
        tags=tags(),
    )


def tags() -> str:
    """What is built in beside the control plane: kubectl (a minute more) only where the machine has none."""
    return "" if shutil.which("kubectl") else "kubectl"


def kubectl() -> list[str]:
    """The command: the machine's own, or the one that was built in."""
    return [found] if (found := shutil.which("kubectl")) else [str(cached_binary()), "kubectl"]


def build() -> Path:
    """Return the binary, built if the cache lacks it (3 to 5 minutes on two cores, once a machine)."""
    return _tool().build()


@dataclass(frozen=True, slots=True)
class Request:
    """A finished request, as the audit log has it."""

    user: str
    agent: str
    verb: str
    resource: str  # "workflowruns", or "workflowruns/status"
    namespace: str
    name: str
    code: int


class ControlPlane:
    """One running control plane, whose whole state is in a directory."""

    address = "127.0.0.1"
    extra_apiserver: tuple[str, ...] = ("--endpoint-reconciler-type=none",)  # else it complains of a loopback address
    extra_controllers: tuple[str, ...] = ()
    users: tuple[str, ...] = ("admin", "controller-manager")

    def __init__(self, directory: Path, ports: dict[str, int], pids: dict[str, int]) -> None:
        self.directory = directory
        self.kubeconfig = directory / "admin.kubeconfig"
        self._ports, self._pids = ports, pids
        self._processes: dict[str, subprocess.Popen[bytes]] = {}  # started here, and so to be waited for

    @property
    def server(self) -> str:
        """Address of the API server."""
        return f"https://{self.address}:{self._ports['apiserver']}"

    @property
    def ca_file(self) -> Path:
        """The authority that signed the API server's certificate."""
        return self.directory / "pki" / "ca.crt"

    @classmethod
    def start(cls, directory: Path) -> "ControlPlane":
        """Start a new control plane in `directory`; returns when it serves and its controllers work (3 s).

        Raises:
            PlaneError: it did not come up; the end of the failing part's log is in the message.
        """
        directory = directory.resolve()
        if (directory / "plane.json").exists():
            raise PlaneError(f"there is a control plane in {directory} already; stop it first")
        directory.mkdir(parents=True, exist_ok=True)
        cls.binary()
        _write_certificates(directory / "pki", cls.subjects())
        _write_audit_policy(directory / "audit.yaml")
        for attempt in range(ATTEMPTS):
            plane = cls(directory, dict(zip(("apiserver", "etcd", "peer"), free_ports(3), strict=True)), {})
            try:
                plane._start_all()
            except BaseException as error:
                plane.stop()
                if not isinstance(error, PlaneError) or attempt == ATTEMPTS - 1:
                    raise
            else:
                return plane
        raise AssertionError("unreachable")

    @classmethod
    def binary(cls) -> Path:
        """What its processes are."""
        return build()

    @classmethod
    def subjects(cls) -> Iterator[tuple[str, str, str]]:
        """What the authority signs: file name, subject, extensions."""
        yield (
            "apiserver",
            "/CN=kube-apiserver",
            SERVER + "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:localhost,"
            f"IP:127.0.0.1,IP:10.96.0.1,IP:{cls.address}\n",
        )
        yield "admin", "/O=system:masters/CN=admin", CLIENT
        yield "controller-manager", "/CN=system:kube-controller-manager", CLIENT

    def command(self, *arguments: str) -> list[str]:
        """How one of its programs is started."""
        return [str(self.binary()), *arguments]

    @classmethod
    def open(cls, directory: Path) -> "ControlPlane":
        """The control plane that was started in `directory`."""
        directory = directory.resolve()
        try:
            state = json.loads((directory / "plane.json").read_text())
        except FileNotFoundError:
            raise PlaneError(f"there is no control plane in {directory}") from None
        return cls(directory, state["ports"], state["pids"])

    def stop(self) -> None:
        """End all its processes, newest first. Twice is once."""
        for name in reversed(list(self._pids)):
            self._kill(name)
        (self.directory / "plane.json").unlink(missing_ok=True)
        shutil.rmtree(self.directory / "etcd", ignore_errors=True)

    def kill_apiserver(self) -> None:
        """As a crash: no connection is closed politely, nothing is released."""
        self._kill("kube-apiserver")

    def start_apiserver(self) -> None:
        """Bring it back on the same port; returns when it is ready."""
        pki = self.directory / "pki"
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._ports['etcd']}",
            f"--bind-address={self.address}",
            f"--advertise-address={self.address}",
            f"--secure-port={self._ports['apiserver']}",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={pki}/sa.key",
            f"--service-account-signing-key-file={pki}/sa.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={self.directory}/audit.yaml",
            f"--audit-log-path={self.directory}/audit.log",
            *(each.format(pki=pki) for each in self.extra_apiserver),
        )
        self._wait("kube-apiserver", lambda: self.call("GET", "/readyz", as_text=True) == "ok")

    def requests_of(self, who: str, verb: str = "", resource: str = "", namespace: str = "") -> list[Request]:
        """The finished requests of a user (exactly) or user agent (its beginning), oldest first; "" means any."""
        found = []
        with (self.directory / "audit.log").open() as lines:
            for line in lines:
                request = _request_of(line)
                if (
                    request
                    and (request.user == who or request.agent.startswith(who))
                    and verb in {"", request.verb}
                    and resource in {"", request.resource}
                    and namespace in {"", request.namespace}
                ):
                    found.append(request)
        return found

    def call(self, method: str, path: str, body: Any = None, *, kind: str = "", as_text: bool = False) -> Any:
        """One request as admin. Returns the answer's JSON.

        Args:
            method: an HTTP verb.
            path: path and query.
            body: sent as JSON.
            kind: content type; JSON if not given, a merge patch for PATCH.
            as_text: return the text instead.

        Raises:
            ApiError: the answer is not a 2xx.
            OSError: the server can't be reached.
        """
        context = ssl.create_default_context(cafile=self.ca_file)
        context.load_cert_chain(self.directory / "pki/admin.crt", self.directory / "pki/admin.key")
        connection = http.client.HTTPSConnection(self.address, self._ports["apiserver"], context=context, timeout=30)
        with contextlib.closing(connection):
            kind = kind or ("application/merge-patch+json" if method == "PATCH" else "application/json")
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": kind, "User-Agent": "test"})
            answer = connection.getresponse()
            content = answer.read().decode()
        if not 200 <= answer.status < 300:
            raise ApiError(answer.status, content)
        return content if as_text else json.loads(content)

    def answers(self, path: str) -> bool:
        """Whether a GET succeeds."""
        try:
            self.call("GET", path)
        except (ApiError, OSError):
            return False
        return True

    def _start_all(self) -> None:
        client, peer = (f"http://127.0.0.1:{self._ports[name]}" for name in ("etcd", "peer"))
        self._spawn(
            "etcd",
            f"--data-dir={self.directory}/etcd",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        for user in self.users:
            (self.directory / f"{user}.kubeconfig").write_text(self.kubeconfig_of(user))
        self.start_apiserver()
        config = f"{self.directory}/controller-manager.kubeconfig"
        pki = self.directory / "pki"
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={config}",
            "--secure-port=0",
            "--leader-elect=false",
            "--use-service-account-credentials",
            "--kube-api-qps=500",  # at the default of 20 it takes 6 s to start
            "--kube-api-burst=1000",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
            *self.extra_controllers,
        )
        self._wait(
            "kube-controller-manager",
            lambda: bool(self.call("GET", "/api/v1/namespaces/default/serviceaccounts/default")),
        )

    def kubeconfig_of(self, user: str) -> str:
        """A kubeconfig for the client certificate of that name. JSON is YAML."""
        pki = self.directory / "pki"

        def data(name: str) -> str:
            return base64.b64encode((pki / name).read_bytes()).decode()

        credentials = {"client-certificate-data": data(f"{user}.crt"), "client-key-data": data(f"{user}.key")}
        return self._kubeconfig(credentials)

    def kubeconfig_with(self, token: str) -> str:
        """A kubeconfig for a bearer token."""
        return self._kubeconfig({"token": token})

    def _kubeconfig(self, credentials: dict[str, str]) -> str:
        authority = base64.b64encode(self.ca_file.read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "local", "cluster": {"server": self.server, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "user", "user": credentials}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "user"}}],
            "current-context": "local",
        }
        return json.dumps(config, indent=1)

    def _spawn(self, name: str, *arguments: str) -> None:
        logs = self.directory / "log"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                self.command(name, *arguments),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pids[name] = process.pid
        self._processes[name] = process
        (self.directory / "plane.json").write_text(json.dumps({"ports": self._ports, "pids": self._pids}))

    def _kill(self, name: str) -> None:
        pid = self._pids.pop(name, None)
        if (process := self._processes.pop(name, None)) is not None:
            process.kill()
            process.wait()
        elif pid is not None and str(self.directory) in _command_of(pid):  # the number may be another's by now
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            wait_until(lambda: str(self.directory) not in _command_of(pid), f"{name} has ended")

    def _wait(self, name: str, is_ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, ApiError, http.client.HTTPException):
                if is_ready():
                    return
            if self._processes[name].poll() is not None or time.monotonic() > deadline:
                log = (self.directory / "log" / f"{name}.log").read_text(errors="replace")
                raise PlaneError(f"{name} did not start:\n{log[-3000:]}")
            time.sleep(0.05)  # another process's readiness can only be asked for


class ApiError(Exception):
    """An answer that is not a 2xx."""

    def __init__(self, code: int, content: str) -> None:
        try:
            self.message = str(json.loads(content).get("message", content))
        except ValueError:
            self.message = content
        super().__init__(f"{code}: {self.message}")
        self.code = code


def wait_until(is_so: Callable[[], Any], what: str, *, seconds: float = 20) -> Any:
    """Ask again and again, since another process's state can only be asked for. Returns the first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := is_so()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)
    return answer


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody has now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _command_of(pid: int) -> str:
    return subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout


def _request_of(line: str) -> Request | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None  # the last line may be half written
    if event["stage"] != "ResponseComplete":
        return None
    what = event.get("objectRef", {})
    resource = "/".join(part for part in (what.get("resource", ""), what.get("subresource", "")) if part)
    return Request(
        user=event["user"]["username"],
        agent=event.get("userAgent", ""),
        verb=event["verb"],
        resource=resource,
        namespace=what.get("namespace", ""),
        name=what.get("name", ""),
        code=event.get("responseStatus", {}).get("code", 0),
    )


def _write_audit_policy(path: Path) -> None:
    policy = {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "users": ["system:apiserver", "system:kube-controller-manager"]},
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata"},
        ],
    }
    path.write_text(json.dumps(policy))


def _write_certificates(directory: Path, subjects: Iterator[tuple[str, str, str]]) -> None:
    """An authority, and what it signs: the server, its clients; and the key of service-account tokens."""
    if (directory / "sa.key").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("ca", "sa"):
        _openssl(directory, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
    _openssl(
        directory,
        *("req", "-x509", "-new", "-key", "ca.key", "-subj", "/CN=romancy-test-ca", "-days", "30", "-out", "ca.crt"),
        *("-addext", "keyUsage=critical,keyCertSign,digitalSignature"),
    )
    for name, subject, extensions in subjects:
        _openssl(directory, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        _openssl(directory, "req", "-new", "-key", f"{name}.key", "-subj", subject, "-out", f"{name}.csr")
        (directory / f"{name}.ext").write_text(extensions)
        _openssl(
            directory,
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "30", "-out", f"{name}.crt", "-extfile", f"{name}.ext"),
        )


def _openssl(directory: Path, *arguments: str) -> None:
    done = subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PlaneError(f"openssl {arguments[0]} failed: {done.stderr}")
