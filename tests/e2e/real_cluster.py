"""
Machines of a real cluster: a network namespace each, with containerd and kubelet.

The first one carries Kubernetes' control plane, as kubeadm makes it: RBAC, ServiceAccounts and the
admission plugins of a cluster, no kube-proxy, no network plugin. Executables are those of
$KUBEBUILDER_ASSETS, containerd and runc are Debian's, images come from the Docker engine that
runs. Addresses are those of k8s/overlays/production, so that its files go in as they are.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

import pytest
import yaml

from dunlin_lab import links, netns
from dunlin_lab.hugepages import HugepageError, Hugepages
from tests.e2e.lab_cluster import REPOSITORY, eventually
from tests.e2e.real_kubelet import containerd_config, image, kubelet_config

HERE = Path(__file__).parent / "cluster"
ASSETS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
PROGRAMS = (
    *("containerd", "containerd-shim-runc-v2", "ctr", "runc", "gcc", "docker", "kubectl"),
    *("nsenter", "unshare", "setpriv", "openssl"),
)
IMAGES = ("watcher", "ipam", "planner", "flowctl", "metrics", "agent", "cni", "ovs")
NATS = "nats:2.15.1-alpine"
GATEWAY = IPv4Interface("192.0.2.1/24")
FIRST_HOST = 10
START_TIMEOUT_S = 240.0
LOG_TAIL = 3000
"""Characters of each log of a machine that the failure of its start shows."""
SOCKET = "/run/containerd/containerd.sock"
AS_KUBEADM = {
    "authentication": {
        "anonymous": {"enabled": False},
        "webhook": {"enabled": True},
        "x509": {"clientCAFile": "/run/node/pki/ca.crt"},
    },
    "authorization": {"mode": "Webhook"},
    "clusterDNS": ["10.96.0.10"],
    "clusterDomain": "cluster.local",
}
"""Who may ask a kubelet, and where Pods find names, as kubeadm writes it."""
HUGE_PAGES = 256
"""Of 2 MiB, for Open vSwitch with DPDK."""
CONTAINERS = (
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/node/containerd/io.containerd.grpc.v1.cri/containers",
    "/run/node/containerd/io.containerd.grpc.v1.cri/sandboxes",
)
"""Where containerd has a folder for each that runs, that has ended, and each Pod's."""


def why_no_cluster() -> str:
    """Why there can be none here; "" if there can."""
    if os.geteuid() != 0:
        return "needs root"
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    lacking = [name for name in ASSETS if not (Path(assets) / name).is_file()]
    if not assets or lacking:
        return f"KUBEBUILDER_ASSETS ({assets or 'not set'}) has no {', '.join(lacking)}"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"no {', '.join(missing)}"
    for name in (*(f"dunlin/{name}:dev" for name in IMAGES), NATS):
        command = ["docker", "image", "inspect", name]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return f"no image {name} (tools/base-images && tools/images)"
    return ""


@dataclass(frozen=True, slots=True)
class Machine:
    """One node: what it is called, where it is, and the folder of its own files."""

    name: str
    address: IPv4Interface
    netns: Path
    folder: Path


class RealCluster:
    """`with RealCluster(folder, 3).running():` a cluster without a network."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.prefix = f"dl-rc-{os.getpid()}"
        self.admin = folder / "pki" / "admin.kubeconfig"
        self._first: dict[str, int] = {}
        self.machines = [self._machine(index) for index in range(1, size + 1)]

    def _machine(self, index: int) -> Machine:
        name = f"node-{index}"
        host = IPv4Interface(f"{GATEWAY.network[FIRST_HOST + index - 1]}/24")
        path = netns.path_of(f"{self.prefix}-{name}")
        return Machine(name, host, path, self.folder / name)

    # --- what a person does with it ---

    def kubectl(
        self, *words: str, stdin: str = "", check: bool = True, timeout_s: float = 120
    ) -> str:
        """As the administrator, on the first machine: what it says."""
        done = self.kubectl_done(*words, stdin=stdin, timeout_s=timeout_s)
        assert not check or done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def kubectl_done(
        self, *words: str, stdin: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """As `kubectl`, whatever comes out."""
        return self.run(self.machines[0], self._kubectl(*words), stdin=stdin, timeout_s=timeout_s)

    @contextmanager
    def kubectl_running(self, *words: str) -> Iterator[subprocess.Popen[str]]:
        """A kubectl that goes on meanwhile."""
        command = self._inside(self.machines[0], self._kubectl(*words))
        pipe = subprocess.PIPE
        running = subprocess.Popen(
            command, text=True, env=self._environment(), stdin=pipe, stdout=pipe, stderr=pipe
        )
        try:
            yield running
        finally:
            running.kill()
            running.wait()

    def _kubectl(self, *words: str) -> list[str]:
        return ["kubectl", f"--kubeconfig={self.admin}", *words]

    def _inside(self, machine: Machine, command: list[str]) -> list[str]:
        return ["nsenter", f"--net={machine.netns}", *command]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder)}

    def get(self, *words: str) -> Any:
        """`kubectl get … -o json`."""
        return json.loads(self.kubectl("get", *words, "-o", "json"))

    def run(
        self, machine: Machine, command: list[str], stdin: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in a machine's network namespace, in the repository."""
        return subprocess.run(
            self._inside(machine, command), input=stdin, capture_output=True, text=True,
            check=False, timeout=timeout_s, cwd=REPOSITORY, env=self._environment(),
        )  # fmt: skip

    def inside(self, machine: Machine, path: str) -> Path:
        """A path as the machine's processes see it."""
        parent = self._first[machine.name]
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        return Path(f"/proc/{children[0]}/root{path}")

    def node_ready(self, machine: Machine) -> bool:
        """The Node's condition Ready is True."""
        status = self.get("node", machine.name)["status"]
        return {c["type"]: c["status"] for c in status["conditions"]}.get("Ready") == "True"

    # --- its making ---

    @contextmanager
    def running(self) -> Iterator[RealCluster]:
        """All machines run and their Nodes are registered; at the end nothing is left."""
        with ExitStack() as stack:
            groups: set[str] = set()
            stack.callback(_remove_groups, groups)
            self._images()
            names = [machine.name for machine in self.machines]
            keys = [str(HERE / "keys"), str(self.folder / "pki"), str(self.machines[0].address.ip)]
            subprocess.run([*keys, *names], check=True)
            self._network(stack)
            for machine in self.machines:
                stack.enter_context(self._process(machine))
            try:
                eventually("the API server answers", self._answers, START_TIMEOUT_S)
                eventually("all Nodes are there", self._registered, START_TIMEOUT_S)
            except BaseException as error:
                for log in sorted(self.folder.glob("node-*/**/*.log")):
                    text = log.read_text(errors="replace")
                    error.add_note(f"--- {log.relative_to(self.folder)}\n{text[-LOG_TAIL:]}")
                raise
            try:
                yield self
            finally:
                for machine in self.machines:
                    for place in CONTAINERS:
                        groups |= {path.name for path in self.inside(machine, place).glob("*")}

    def _answers(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz", check=False) == "ok"

    def _registered(self) -> bool:
        return len(self.get("nodes")["items"]) == len(self.machines)

    def _network(self, stack: ExitStack) -> None:
        """One link for all machines; the bridge is the gateway, and nothing is beyond it."""
        fabric = f"{self.prefix}-fabric"
        stack.callback(netns.delete, fabric)
        path = netns.create(fabric)
        ports = []
        for machine in self.machines:
            stack.callback(netns.delete, machine.netns.name)
            netns.create(machine.netns.name)
            ports.append(f"to-{machine.name}")

        def plug() -> None:
            with links.route() as ipr:
                bridge = links.bridge(ipr, "br")
                links.up(ipr, "lo")
                links.up(ipr, "br", (GATEWAY,))
                for port, machine in zip(ports, self.machines, strict=True):
                    links.veth(ipr, port, "eth0", machine.netns, 1500)
                    links.enslave(ipr, port, bridge)
                    links.up(ipr, port)

        netns.run_in(path, plug)
        for machine in self.machines:
            netns.run_in(machine.netns, partial(_addresses, machine))

    @contextmanager
    def _process(self, machine: Machine) -> Iterator[None]:
        """The machine's first process; with it all others end, and so they do with this one."""
        self._files(machine)
        command = [
            *("setpriv", "--pdeathsig=KILL", "nsenter", f"--net={machine.netns}"),
            *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child=KILL"),
            *("--mount-proc", str(HERE / "node"), machine.name, str(machine.address.ip)),
            *(str(machine.folder), os.environ["KUBEBUILDER_ASSETS"]),
            *(["control-plane"] if machine is self.machines[0] else []),
        ]
        with (machine.folder / "node.log").open("wb") as log:
            started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        self._first[machine.name] = started.pid
        try:
            yield
        finally:
            started.kill()
            started.wait()

    def _files(self, machine: Machine) -> None:
        """Images, keys and configuration, before the machine starts."""
        machine.folder.mkdir()
        shutil.copytree(self.folder / "pki", machine.folder / "pki")
        # What is unpacked is never written again: the nodes share it; databases they do not.
        template, own = self.folder / "images", machine.folder / "containerd"
        subprocess.run(["cp", "-al", template, own], check=True)
        for database in template.glob("io.containerd.*/*.db"):
            copy = own / database.relative_to(template)
            copy.unlink()
            shutil.copy2(database, copy)
        toml = containerd_config("/run/node/containerd", "/run/containerd", SOCKET)
        (machine.folder / "containerd.toml").write_text(toml)
        kubelet = yaml.safe_dump(kubelet_config(SOCKET, AS_KUBEADM))
        (machine.folder / "kubelet.yaml").write_text(kubelet)

    def _images(self) -> None:
        """Unpack what Docker has built, once for all machines."""
        saved, socket = self.folder / "saved.tar", self.folder / "c.sock"
        names = [*(f"dunlin/{name}:dev" for name in IMAGES), NATS]
        subprocess.run(["docker", "save", "--output", saved, *names], check=True)
        toml = self.folder / "import.toml"
        config = containerd_config(f"{self.folder}/images", f"{self.folder}/state", str(socket))
        toml.write_text(config)
        with (self.folder / "import.log").open("wb") as log:
            containerd = subprocess.Popen(["containerd", "-c", toml], stdout=log, stderr=log)
        ctr = ["ctr", "--address", str(socket), "--namespace", "k8s.io"]
        try:

            def answers() -> bool:
                done = subprocess.run([*ctr, "version"], capture_output=True, check=False)
                return done.returncode == 0

            eventually("containerd answers", answers)
            for file in (saved, image(self.folder)):
                imported = [*ctr, "images", "import", str(file)]
                subprocess.run(imported, check=True, capture_output=True)
        finally:
            containerd.terminate()
            containerd.wait()
        saved.unlink()


@contextmanager
def hugepages(who: str) -> Iterator[None]:
    """Pages for one machine, given back; the folder that a volume makes in /dev goes, too."""
    pool, vfio = Hugepages(), Path("/dev/vfio")
    there = vfio.exists()
    try:
        pool.borrow(who, HUGE_PAGES)
    except HugepageError as error:
        pytest.skip(str(error))
    try:
        yield
    finally:
        pool.give_back(who)
        if not there and vfio.exists():
            vfio.rmdir()


def _remove_groups(identities: set[str]) -> None:
    """The control groups of these containers, once their processes are gone, and their parent."""
    parents = list(Path("/sys/fs/cgroup").glob("**/k8s.io"))
    groups = [parent / identity for parent in parents for identity in identities]
    eventually("control groups are empty", lambda: all(_removed(path) for path in groups))
    for parent in parents:
        # With something in it it is somebody else's too.
        with suppress(OSError):
            parent.rmdir()


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError as error:
        return error.errno == errno.ENOENT
    return True


def _addresses(machine: Machine) -> None:
    """What an administrator gives a machine before kubeadm: an address, a route, forwarding."""
    with links.route() as ipr:
        links.up(ipr, "lo")
        links.up(ipr, "eth0", (machine.address,))
        links.default_route(ipr, GATEWAY.ip)
    links.sysctl("ipv4/ip_forward", "1")
