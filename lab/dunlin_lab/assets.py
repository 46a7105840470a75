"""
A real Kubernetes control plane from a folder of executables, as envtest's setup tool lays it out.

etcd and kube-controller-manager listen on loopback, kube-apiserver on the management network, which
the host and the nodes see. The user `dunlin-lab` (group system:masters) has a token; certificates
are of an authority of the lab's own, and everybody verifies them. The folder need not hold a
scheduler: the node runner binds Pods, by the rules of the embedded API.

The admission plugin ServiceAccount is off: it refuses a Pod until kube-controller-manager has made
the new namespace's ServiceAccount, so `create namespace; create pod` would be a race that the
embedded API does not have. Tokens can be had all the same (`kubectl create token`).
"""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

import yaml

from dunlin_lab.apiserver.certificates import Certificates, certificates_in, signing_key_in
from dunlin_lab.catalogue import CONTROLLER_MANAGER, Spec
from dunlin_lab.plan import Cidrs, Site, networks
from dunlin_lab.state import write_atomically

EXECUTABLES = ("etcd", "kube-apiserver", "kube-controller-manager")


class AssetsError(Exception):
    """The folder cannot be used; the message names it and what is missing."""


def check(folder: Path) -> None:
    """
    See that all executables are there.

    Raises:
        AssetsError: one is not, or cannot be run.
    """
    for name in EXECUTABLES:
        path = folder / name
        if not path.is_file():
            wanted = ", ".join(EXECUTABLES)
            raise AssetsError(f"--kube-assets {folder}: no {name} there; it must hold {wanted}")
        if not os.access(path, os.X_OK):
            raise AssetsError(f"--kube-assets {folder}: {name} is not executable")


def specs(site: Site, folder: Path) -> tuple[list[Spec], list[Spec]]:
    """
    What to start at once, and what to start when the API answers; the kubeconfig is written now.

    kube-controller-manager gives up when the API server is not there within ten seconds.

    Raises:
        AssetsError: an executable is missing.
    """
    check(folder)
    base = _base(site)
    base.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(16)
    write_atomically(
        base / "tokens.csv", f'{token},dunlin-lab,dunlin-lab,"system:masters"\n'.encode()
    )
    trust = certificates_in(base, site.mgmt_ip)
    signing_key = signing_key_in(base)
    client, peer = (site.port("127.0.0.1") for _ in range(2))
    apiserver = _apiserver(site, folder, client, trust, signing_key)
    _write_kubeconfig(site.kubeconfig, apiserver.url, token, trust.authority)
    first = [_etcd(folder, base, client, peer), apiserver]
    return first, [_controller_manager(site, folder, trust, signing_key)]


def _base(site: Site) -> Path:
    return site.paths.run_dir / "kube"


def authority(site: Site) -> Path:
    """The authority that the control plane's certificates are of."""
    return certificates_in(_base(site), site.mgmt_ip).authority


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


def _apiserver(
    site: Site, folder: Path, etcd_port: int, trust: Certificates, signing_key: Path
) -> Spec:
    base, port = trust.authority.parent, site.port(site.mgmt_ip)
    argv = (
        str(folder / "kube-apiserver"),
        f"--etcd-servers=http://127.0.0.1:{etcd_port}",
        f"--bind-address={site.mgmt_ip}",
        f"--advertise-address={site.mgmt_ip}",
        f"--secure-port={port}",
        f"--tls-cert-file={trust.certificate}",
        f"--tls-private-key-file={trust.key}",
        f"--cert-dir={base / 'certs'}",
        f"--token-auth-file={base / 'tokens.csv'}",
        "--authorization-mode=RBAC",
        f"--service-cluster-ip-range={networks(site.service_cidrs)}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={signing_key}",
        f"--service-account-signing-key-file={signing_key}",
        "--allow-privileged=true",
        "--disable-admission-plugins=ServiceAccount",
        # No Pod reaches the management network; the embedded API has no such endpoint either.
        "--endpoint-reconciler-type=none",
    )
    return Spec("apiserver", "0", argv, url=f"https://{site.mgmt_ip}:{port}")


def _controller_manager(site: Site, folder: Path, trust: Certificates, signing_key: Path) -> Spec:
    port = site.port("127.0.0.1")
    argv = (
        str(folder / CONTROLLER_MANAGER),
        f"--kubeconfig={site.kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={trust.certificate}",
        f"--tls-private-key-file={trust.key}",
        f"--root-ca-file={trust.authority}",
        f"--service-account-private-key-file={signing_key}",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={networks(site.pod_cidrs)}",
        *_mask_sizes(site.pod_cidrs),
        f"--service-cluster-ip-range={networks(site.service_cidrs)}",
        "--leader-elect=false",
    )
    return Spec(CONTROLLER_MANAGER, "0", argv, health=f"https://127.0.0.1:{port}/healthz")


def _mask_sizes(cidrs: Cidrs) -> list[str]:
    """/24 and /64 for a node; of a smaller network a part."""
    wanted = {4: 24, 6: 64}
    return [
        f"--node-cidr-mask-size-ipv{cidr.version}="
        f"{min(cidr.max_prefixlen - 2, max(cidr.prefixlen, wanted[cidr.version]))}"
        for cidr in cidrs
    ]


def _write_kubeconfig(path: Path, server: str, token: str, authority: Path) -> None:
    data = base64.b64encode(authority.read_bytes()).decode()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [
            {"name": "lab", "cluster": {"server": server, "certificate-authority-data": data}}
        ],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }
    write_atomically(path, yaml.safe_dump(config).encode())
