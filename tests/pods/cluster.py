"""A cluster of one node with real pods, in a network namespace of its own that nothing can leave.

The control plane of tests/controlplane, and beside it scheduler, containerd, kubelet, kube-proxy and CoreDNS. Needs root, and
Debian's containerd, runc, containernetworking-plugins, iptables, conntrack and socat.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.controlplane import plane
from tests.controlplane.plane import CLIENT, SERVER, ControlPlane, wait_until
from tests.pods import tools

NAMESPACE: Final = "romancy-pods"
NODE: Final = "node1"
NODE_ADDRESS: Final = "10.99.0.1"
HOST_ADDRESS: Final = "10.99.0.254"
PODS: Final = "10.244.0.0/24"
SERVICES: Final = "10.96.0.0/16"
NEEDED: Final = ("containerd", "runc", "ctr", "ip", "iptables", "conntrack", "nsenter", "buildah", "debootstrap")
APT: Final = "containerd runc containernetworking-plugins iptables conntrack socat debootstrap buildah"
_LOCK: Final = Path("/run/lock/romancy-pods")
_TEMPLATES: Final = Path(__file__).parent / "node"


def missing() -> str:
    """Why there can be no real pods here; empty if there can."""
    if os.geteuid() != 0:
        return "real pods need root"
    if lacking := [name for name in NEEDED if shutil.which(name) is None]:
        return f"real pods need {', '.join(lacking)} (Debian: apt-get install --no-install-recommends {APT})"
    return ""


class PodCluster(ControlPlane):
    """The control plane in the namespace, and one node."""

    address = NODE_ADDRESS
    users = ("admin", "controller-manager", "scheduler", "proxy", NODE)
    extra_apiserver = (
        "--allow-privileged=true",
        "--kubelet-client-certificate={pki}/kubelet-client.crt",
        "--kubelet-client-key={pki}/kubelet-client.key",
        "--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",  # no name service knows the node
    )
    extra_controllers = ("--cluster-cidr=10.244.0.0/16", "--allocate-node-cidrs=false")

    @classmethod
    def binary(cls) -> Path:
        return tools.kubernetes()

    @classmethod
    def subjects(cls) -> Iterator[tuple[str, str, str]]:
        yield from super().subjects()
        yield "scheduler", "/CN=system:kube-scheduler", CLIENT
        yield "proxy", "/CN=system:kube-proxy", CLIENT
        yield NODE, f"/O=system:nodes/CN=system:node:{NODE}", CLIENT
        yield "kubelet-client", "/O=system:masters/CN=kubelet-client", CLIENT
        yield f"{NODE}-serving", f"/CN={NODE}", SERVER + f"DNS:{NODE},IP:{NODE_ADDRESS}\n"

    def command(self, *arguments: str) -> list[str]:
        return _inside(*super().command(*arguments))

    @property
    def _socket(self) -> str:
        return f"{self.directory}/containerd/c.sock"

    def start_node(self, images: Sequence[Path]) -> None:
        """Start what a node is; returns when it is Ready and has these images."""
        self._spawn(
            "kube-scheduler",
            f"--kubeconfig={self.directory}/scheduler.kubeconfig",
            "--secure-port=0",
            "--leader-elect=false",
        )
        for folder in ("containerd", "kubelet", "cni", "pod-logs"):
            (self.directory / folder).mkdir(exist_ok=True)
        for template in _TEMPLATES.iterdir():
            folder = self.directory / "cni" if template.suffix == ".conflist" else self.directory
            (folder / template.name).write_text(template.read_text().replace("@D@", str(self.directory)))
        self._run_daemon("containerd", "containerd", "--config", f"{self.directory}/containerd.toml")
        wait_until(lambda: self._ctr("version").returncode == 0, "containerd answers")
        for image in images:
            done = self._ctr("-n", "k8s.io", "images", "import", str(image))
            assert done.returncode == 0, done.stderr
        self._spawn(
            "kubelet",
            f"--config={self.directory}/kubelet.yaml",
            f"--kubeconfig={self.directory}/{NODE}.kubeconfig",
            f"--root-dir={self.directory}/kubelet",
            f"--hostname-override={NODE}",
            f"--node-ip={NODE_ADDRESS}",
        )
        self._run_daemon("coredns", str(tools.coredns()), "-conf", f"{self.directory}/Corefile")
        self.call(
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
            {
                "metadata": {"name": "kube-proxy"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "system:node-proxier",
                },
                "subjects": [{"kind": "User", "name": "system:kube-proxy"}],
            },
        )
        self._spawn("kube-proxy", f"--config={self.directory}/proxy.yaml", f"--hostname-override={NODE}")
        wait_until(self._is_ready, "the node is Ready", seconds=60)

    def stop_node(self) -> None:
        """End the pods, then what runs them.

        No process, mount or cgroup is left; a network namespace is, of a pod that did not end in time.
        """
        kinds = "deployments,statefulsets,jobs,replicasets,pods"
        command = [*plane.kubectl(), "--kubeconfig", str(self.kubeconfig), "delete", kinds, "-A", "--all"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, "--grace-period=1", "--timeout=30s"], capture_output=True, timeout=40, check=False
            )
        for name in ("kubelet", "kube-proxy", "coredns"):
            self._kill(name)
        for task in self._ctr("-n", "k8s.io", "tasks", "ls", "-q").stdout.split():
            self._ctr("-n", "k8s.io", "tasks", "rm", "-f", task)
        for container in self._ctr("-n", "k8s.io", "containers", "ls", "-q").stdout.split():
            self._ctr("-n", "k8s.io", "containers", "rm", container)
        for shim in _processes_with(self._socket):
            with contextlib.suppress(ProcessLookupError):
                os.kill(shim, signal.SIGKILL)
        self._kill("containerd")
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((each for each in mounts if each.startswith(f"{self.directory}/")), reverse=True):
            subprocess.run(["umount", "-l", mount], check=False)
        groups = Path("/sys/fs/cgroup")
        for group in (*groups.glob("*/kubepods"), *groups.glob("kubepods")):  # cgroup v1, v2
            subprocess.run(["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", "+"], check=False)

    def _run_daemon(self, name: str, *command: str) -> None:
        with (self.directory / "log" / f"{name}.log").open("ab") as out:
            process = subprocess.Popen(
                _inside(*command), stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._pids[name], self._processes[name] = process.pid, process

    def _ctr(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["ctr", "-a", self._socket, *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    def _is_ready(self) -> bool:
        path = f"/api/v1/nodes/{NODE}"
        if not self.answers(path):
            return False
        conditions = self.call("GET", path)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


@contextlib.contextmanager
def network() -> Iterator[None]:
    """The namespace, joined to the host by one pair of devices and without a default route; one at a time on a machine."""
    host, node = "rmcy-host", "rmcy-node"
    inside = ("ip", "-n", NAMESPACE)
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(_LOCK.open("w"))
        fcntl.flock(lock, fcntl.LOCK_EX)
        _network_down()  # what a session that was killed has left
        stack.callback(_network_down)
        for command in (
            ("ip", "netns", "add", NAMESPACE),
            ("ip", "link", "add", host, "type", "veth", "peer", "name", node, "netns", NAMESPACE),
            ("ip", "addr", "add", f"{HOST_ADDRESS}/24", "dev", host),
            ("ip", "link", "set", host, "up"),
            (*inside, "link", "set", "lo", "up"),
            (*inside, "addr", "add", f"{NODE_ADDRESS}/24", "dev", node),
            (*inside, "link", "set", node, "up"),
            (*inside, "route", "add", SERVICES, "dev", node),  # kube-proxy rewrites them before they are sent
            ("ip", "route", "add", PODS, "via", NODE_ADDRESS),
            ("ip", "route", "add", SERVICES, "via", NODE_ADDRESS),
            tuple(_inside("sysctl", "-qw", "net.ipv4.ip_forward=1")),
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        yield


def _network_down() -> None:
    for command in (("ip", "link", "del", "rmcy-host"), ("ip", "netns", "del", NAMESPACE)):
        subprocess.run(command, capture_output=True, check=False)


def _inside(*command: str) -> list[str]:
    # Not `ip netns exec`: that one hides the cgroups.
    return ["nsenter", f"--net=/run/netns/{NAMESPACE}", *command]


def _processes_with(word: str) -> Iterator[int]:
    """containerd's shims outlive it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                if word in line and "shim" in line:
                    yield int(entry.name)
