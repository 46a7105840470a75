"""
The servers under contract: the lab's embedded one, and a real control plane where one is given.

The real one needs etcd, kube-apiserver, kube-controller-manager and kube-scheduler in
$KUBEBUILDER_ASSETS; without them its tests are skipped, saying so.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

START_SECONDS = 60.0
_TOKEN = "contract"
_SERVICE_CIDR = "10.96.0.0/16"


@dataclass(frozen=True)
class Server:
    """A running API server: where it is and how to get in."""

    name: str
    url: str
    token: str
    context: ssl.SSLContext

    def client(self, timeout_seconds: float = 30.0) -> httpx.Client:
        """Return a client with the token."""
        return httpx.Client(
            base_url=self.url, verify=self.context, timeout=timeout_seconds,
            headers={"Authorization": f"Bearer {self.token}"},
        )  # fmt: skip


@contextmanager
def process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends."""
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)  # noqa: S603
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(15)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def wait_until(what: str, check: Any, seconds: float = START_SECONDS) -> None:
    """Wait for a level; fails naming it."""
    end = time.monotonic() + seconds
    while not check():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds} s")
        time.sleep(0.05)


def embedded_command(directory: Path, *arguments: str) -> list[str]:
    """Return the command line of an embedded server."""
    return [
        sys.executable, "-m", "dunlin_lab.apiserver", "--port", "0", "--data-dir",
        str(directory / "data"), "--kubeconfig-out", str(directory / "kubeconfig"),
        "--service-cidr", _SERVICE_CIDR, *arguments,
    ]  # fmt: skip


def server_of(name: str, kubeconfig: Path) -> Server:
    """Read the kubeconfig an embedded server wrote."""
    config = json.loads(kubeconfig.read_text())
    cluster = config["clusters"][0]["cluster"]
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    token = config["users"][0]["user"]["token"]
    return Server(name, cluster["server"], token, context)


@contextmanager
def embedded(directory: Path, *arguments: str) -> Iterator[Server]:
    """Run the embedded server."""
    kubeconfig = directory / "kubeconfig"
    kubeconfig.unlink(missing_ok=True)
    log = directory / "log"
    with process(embedded_command(directory, *arguments), log) as running:
        wait_until(
            f"embedded server ({log})",
            lambda: kubeconfig.exists() or running.poll() is not None,
        )
        assert running.poll() is None, log.read_text()
        yield server_of("embedded", kubeconfig)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def real(directory: Path) -> Iterator[Server]:
    """Run a real control plane from $KUBEBUILDER_ASSETS."""
    assets = Path(os.environ.get("KUBEBUILDER_ASSETS", ""))
    needed = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
    missing = [name for name in needed if not (assets / name).is_file()]
    if not os.environ.get("KUBEBUILDER_ASSETS") or missing:
        where = os.environ.get("KUBEBUILDER_ASSETS") or "KUBEBUILDER_ASSETS is not set"
        pytest.skip(f"no real control plane here: {where}, missing {', '.join(missing)}")
    ports = [_free_port() for _ in range(3)]
    key = directory / "sa.key"
    subprocess.run(  # noqa: S603
        ["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True,  # noqa: S607
    )  # fmt: skip
    (directory / "tokens.csv").write_text(f"{_TOKEN},admin,admin,system:masters\n")
    etcd = f"http://127.0.0.1:{ports[0]}"
    server = Server("real", f"https://127.0.0.1:{ports[2]}", _TOKEN, _unverified())
    config = directory / "admin.kubeconfig"
    config.write_text(_admin_config(server))
    with ExitStack() as stack:
        for name, command in _real_commands(directory, etcd, ports, key, config).items():
            stack.enter_context(process([str(assets / name), *command], directory / f"{name}.log"))
            if name == "kube-apiserver":
                wait_until(f"kube-apiserver ({directory})", lambda: _is_ready(server))
        yield server


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _admin_config(server: Server) -> str:
    cluster = {"server": server.url, "insecure-skip-tls-verify": True}
    return json.dumps(
        {
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "c", "user": {"token": server.token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        }
    )  # fmt: skip


def _real_commands(
    directory: Path, etcd: str, ports: list[int], key: Path, config: Path
) -> dict[str, list[str]]:
    peer = f"http://127.0.0.1:{ports[1]}"
    return {
        "etcd": [
            f"--data-dir={directory / 'etcd'}", f"--listen-client-urls={etcd}",
            f"--advertise-client-urls={etcd}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ],
        "kube-apiserver": [
            f"--etcd-servers={etcd}", f"--secure-port={ports[2]}", "--bind-address=127.0.0.1",
            f"--cert-dir={directory / 'certs'}", f"--service-cluster-ip-range={_SERVICE_CIDR}",
            f"--token-auth-file={directory / 'tokens.csv'}",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}", f"--service-account-signing-key-file={key}",
            "--authorization-mode=AlwaysAllow", "--anonymous-auth=false",
        ],
        "kube-controller-manager": [
            f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0",
            f"--service-account-private-key-file={key}",
        ],
        "kube-scheduler": [f"--kubeconfig={config}", "--leader-elect=false", "--secure-port=0"],
    }  # fmt: skip


def _is_ready(server: Server) -> bool:
    try:
        with server.client(2.0) as client:
            namespace = client.get("/api/v1/namespaces/default")
            return client.get("/readyz").is_success and namespace.is_success
    except httpx.TransportError:
        return False


STARTERS = {
    # Nodes of the recording say nothing of allocatable Pods, so none fits: as the real scheduler.
    "embedded": lambda directory: embedded(directory, "--default-max-pods", "0"),
    "real": real,
}


@pytest.fixture(scope="module", params=list(STARTERS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A fresh server of each sort."""
    directory = tmp_path_factory.mktemp(request.param)
    with STARTERS[request.param](directory) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the server."""
    with server.client() as found:
        yield found
