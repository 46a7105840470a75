"""
A real Kubernetes control plane from a folder of executables, as envtest's setup tool lays it out.

etcd, kube-apiserver and kube-controller-manager listen on loopback only. The user `dunlin-lab`
(group system:masters) has a token; the certificate of the API server is made by itself. There is no
scheduler in that folder: the node runner binds Pods.
"""

from __future__ import annotations

import secrets
import subprocess
from pathlib import Path

import yaml

from dunlin_lab.catalogue import Spec
from dunlin_lab.plan import POD_CIDRS, SERVICE_CIDRS, Site, networks
from dunlin_lab.state import write_atomically

EXECUTABLES = ("etcd", "kube-apiserver", "kube-controller-manager")


class AssetsError(Exception):
    """The folder cannot be used; the message names it and what is missing."""


def specs(site: Site, folder: Path) -> list[Spec]:
    """
    The three processes; the kubeconfig is written at once.

    Raises:
        AssetsError: an executable is missing, or no key can be made.
    """
    for name in EXECUTABLES:
        if not (folder / name).is_file():
            raise AssetsError(f"{folder}: no {name}; it must hold {', '.join(EXECUTABLES)}")
    base = site.paths.run_dir / "kube"
    base.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    tokens = base / "tokens.csv"
    _private(tokens, f'{token},dunlin-lab,dunlin-lab,"system:masters"\n')
    key = base / "service-account.key"
    _make_key(key)
    client, peer, secure = (site.port("127.0.0.1") for _ in range(3))
    _write_kubeconfig(site.kubeconfig, f"https://127.0.0.1:{secure}", token)
    return [
        _etcd(folder, base, client, peer),
        _apiserver(folder, base, client, secure),
        _controller_manager(site, folder, key),
    ]


def _etcd(folder: Path, base: Path, client: int, peer: int) -> Spec:
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    argv = (
        str(folder / "etcd"),
        f"--data-dir={base / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=default={peer_url}",
        "--unsafe-no-fsync",
    )
    return Spec("etcd", "0", argv)


def _apiserver(folder: Path, base: Path, client: int, secure: int) -> Spec:
    key = base / "service-account.key"
    argv = (
        str(folder / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{client}",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        f"--secure-port={secure}",
        f"--cert-dir={base / 'certs'}",
        f"--token-auth-file={base / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-cluster-ip-range={networks(SERVICE_CIDRS)}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--disable-admission-plugins=ServiceAccount",
        "--endpoint-reconciler-type=none",
    )
    return Spec("apiserver", "0", argv)


def _controller_manager(site: Site, folder: Path, key: Path) -> Spec:
    argv = (
        str(folder / "kube-controller-manager"),
        f"--kubeconfig={site.kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={site.port('127.0.0.1')}",
        f"--service-account-private-key-file={key}",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={networks(POD_CIDRS)}",
        "--node-cidr-mask-size-ipv4=24",
        "--node-cidr-mask-size-ipv6=64",
        f"--service-cluster-ip-range={networks(SERVICE_CIDRS)}",
        "--leader-elect=false",
    )
    return Spec("kube-controller-manager", "0", argv)


def _write_kubeconfig(path: Path, server: str, token: str) -> None:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [
            {"name": "lab", "cluster": {"server": server, "insecure-skip-tls-verify": True}}
        ],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    _private(path, yaml.safe_dump(config))


def _private(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
    path.chmod(0o600)


def _make_key(path: Path) -> None:
    argv = ["openssl", "genrsa", "-out", str(path), "2048"]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise AssetsError(f"{error} (Debian: openssl)") from error
    if done.returncode != 0:
        raise AssetsError(f"openssl genrsa: {done.stderr}")
    path.chmod(0o600)
