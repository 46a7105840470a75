"""A real kubelet and containerd in a node of a lab, with an image made here."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dunlin_lab import netns
from dunlin_lab.hugepages import unmount
from tests.e2e.lab_cluster import REPOSITORY, LabCluster, eventually, why_not

IMAGE = "dunlin.test/pod:1"
PROGRAMS = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "gcc", "nsenter")
CNI = REPOSITORY / "build" / "bin" / "dunlin-cni"
LOOPBACK = """#!/bin/sh
# containerd before 2.0 calls a plugin of this name for each sandbox; kubernetes-cni brings one.
[ "$CNI_COMMAND" != ADD ] || nsenter --net="$CNI_NETNS" ip link set lo up
echo '{"cniVersion": "0.3.1"}'
"""


def why_no_kubelet() -> str:
    """Why there can be none here; "" if there can."""
    if reason := why_not():
        return reason
    assets = os.environ.get("KUBEBUILDER_ASSETS", "")
    if not assets or not (Path(assets) / "kubelet").is_file():
        return f"no kubelet in KUBEBUILDER_ASSETS ({assets or 'not set'})"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"no {', '.join(missing)}" if missing else ""


class Runtime:
    """containerd with a root, a state and a socket of its own, and the kubelet that uses it."""

    def __init__(self, folder: Path, lab: LabCluster, node: dict[str, Any]) -> None:
        self.folder = folder
        self.lab = lab
        self.node = node
        self.socket = folder / "containerd.sock"

    def ctr(self, *arguments: str) -> str:
        """`ctr` on this containerd, in kubelet's namespace of it."""
        command = ["ctr", "--address", str(self.socket), "--namespace", "k8s.io", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def install_cni(self) -> None:
        """As the init container of the agent does it: the same script."""
        loopback = self.folder / "bin" / "loopback"
        loopback.parent.mkdir(exist_ok=True)
        loopback.write_text(LOOPBACK)
        loopback.chmod(0o755)
        state = self.lab.status()
        socket = Path(state["kubeconfig"]).parent / "agent" / f"{self.node['name']}.sock"
        env = {
            **os.environ,
            "CNI_BIN_DIR": str(self.folder / "bin"),
            "CNI_CONF_DIR": str(self.folder / "net.d"),
            "CNI_EXECUTABLE": str(CNI),
            "DUNLIN_AGENT_SOCKET": str(socket),
        }
        subprocess.run(
            ["sh", str(REPOSITORY / "images" / "install-cni")],
            env=env, check=True, capture_output=True,
        )  # fmt: skip

    def pid_of(self, name: str) -> int:
        """Process of a Pod's container."""
        for line in self.ctr("containers", "ls").splitlines()[1:]:
            identity = line.split()[0]
            labels = json.loads(self.ctr("containers", "info", identity))["Labels"]
            kind = labels.get("io.cri-containerd.kind")
            if labels.get("io.kubernetes.pod.name") == name and kind == "container":
                tasks = [row.split() for row in self.ctr("tasks", "ls").splitlines()[1:]]
                return next(int(row[1]) for row in tasks if row[0] == identity)
        raise AssertionError(f"no container of Pod {name}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Both processes, in the node's network namespace; everything of them goes at the end."""
        kubelet = Path(os.environ["KUBEBUILDER_ASSETS"]) / "kubelet"
        with ExitStack() as stack:
            stack.callback(self._clean)
            stack.enter_context(self._process("containerd", ["containerd", "-c", self._toml()]))
            eventually("containerd answers", self._answers)
            self.ctr("images", "import", str(image(self.folder)))
            command = [
                str(kubelet),
                f"--config={self._yaml()}",
                f"--kubeconfig={self.lab.status()['kubeconfig']}",
                f"--hostname-override={self.node['name']}",
                f"--node-ip={','.join(self.node['ips'])}",
                f"--root-dir={self.folder / 'kubelet'}",
                f"--cert-dir={self.folder / 'pki'}",
            ]
            stack.enter_context(self._process("kubelet", command))
            yield

    def _answers(self) -> bool:
        with suppress(subprocess.CalledProcessError):
            self.ctr("version")
            return True
        return False

    @contextmanager
    def _process(self, name: str, command: list[str]) -> Iterator[None]:
        with (self.folder / f"{name}.log").open("wb") as log:
            started = netns.run_in(
                self.node["netns"],
                lambda: subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT),
            )
            try:
                yield
            finally:
                started.terminate()
                try:
                    started.wait(20)
                except subprocess.TimeoutExpired:
                    started.kill()
                    started.wait()
                # Shown by pytest where a test failed.
                log_text = (self.folder / f"{name}.log").read_text(errors="replace")
                told = [line for line in log_text.splitlines() if "rror" in line or "CNI" in line]
                print(f"--- {name}", *told[-25:], sep="\n")

    def _toml(self) -> str:
        path = self.folder / "containerd.toml"
        folder = self.folder
        path.write_text(
            containerd_config(f"{folder}/root", f"{folder}/state", str(self.socket))
            + f"""
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{self.folder}/bin"
    conf_dir = "{self.folder}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
        )
        return str(path)

    def _yaml(self) -> str:
        path = self.folder / "kubelet.yaml"
        own = {
            "podLogsDir": str(self.folder / "logs"),
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
        }
        path.write_text(yaml.safe_dump(kubelet_config(str(self.socket), own)))
        return str(path)

    def _clean(self) -> None:
        """Shims outlive containerd; mounts outlive everybody."""
        mark = str(self.folder).encode()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if command.startswith((b"/usr/bin/containerd-shim", b"containerd-shim")) and (
                    mark in command
                ):
                    os.kill(int(entry.name), signal.SIGKILL)
        mounts = Path("/proc/self/mounts").read_text().splitlines()
        below = [
            line.split()[1] for line in mounts if line.split()[1].startswith(f"{self.folder}/")
        ]
        for place in sorted(below, key=len, reverse=True):
            unmount(Path(place))
        # containerd's parent groups; with something in them they are somebody else's.
        for group in Path("/sys/fs/cgroup").glob("*/k8s.io"):
            with suppress(OSError):
                group.rmdir()


def containerd_config(root: str, state: str, socket: str) -> str:
    """TOML of containerd: its folders, its socket, what stands for the pause image."""
    return f"""version = 2
root = "{root}"
state = "{state}"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # A test machine may not let us lower the score (no CAP_SYS_RESOURCE).
  restrict_oom_score_adj = true
"""


def kubelet_config(socket: str, own: dict[str, Any]) -> dict[str, Any]:
    """A KubeletConfiguration for any test machine: cgroup v1, swap, no name server."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{socket}",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failCgroupV1": False,
        "failSwapOn": False,
        # Its disk may be one that cannot be measured.
        "localStorageCapacityIsolation": False,
        "evictionHard": {"memory.available": "1Mi"},
        "resolvConf": "",
        **own,
    }


def image(folder: Path) -> Path:
    """A tarball as `docker save` writes it, with one static program in it."""
    program = folder / "pod"
    source = Path(__file__).parent / "kubelet" / "pod.c"
    subprocess.run(["gcc", "-Os", "-static", "-o", program, source], check=True)
    layer = _tar({"pod": program.read_bytes()})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pod"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"],
            },
            "history": [],
        }
    ).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    files = {name: config, "layer.tar": layer, "manifest.json": json.dumps(manifest).encode()}
    path = folder / "image.tar"
    path.write_bytes(_tar(files))
    return path


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return made.getvalue()
