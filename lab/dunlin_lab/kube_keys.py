"""
Keys, a token and a kubeconfig for Kubernetes' own API server in compose/: development only.

    python -m dunlin_lab.kube_keys --directory /shared --server https://172.30.99.10:6443

Writes DIRECTORY/kube/ (certificates, the key of service accounts, tokens.csv) and, last,
DIRECTORY/kubeconfig. What is there already stays: a second run changes nothing.
"""

from __future__ import annotations

import argparse
import base64
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from dunlin_lab.apiserver.certificates import certificates_in
from dunlin_lab.state import write_atomically

USER, GROUP = "dunlin-lab", "system:masters"


def write(directory: Path, server: str) -> None:
    """All files; `server` is the URL that clients use, and its host is in the certificate."""
    kubeconfig = directory / "kubeconfig"
    if kubeconfig.exists():
        return
    kube = directory / "kube"
    kube.mkdir(parents=True, exist_ok=True)
    made = certificates_in(kube, urlsplit(server).hostname or "")
    token = secrets.token_hex(16)
    write_atomically(kube / "tokens.csv", f'{token},{USER},{USER},"{GROUP}"\n'.encode())
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    write_atomically(kube / "service-account.key", pem)
    text = yaml.safe_dump(_kubeconfig(server, made.authority.read_bytes(), token))
    write_atomically(kubeconfig, text.encode())
    # The watcher is nobody in particular, and this is a token for development.
    kubeconfig.chmod(0o644)


def _kubeconfig(server: str, authority: bytes, token: str) -> dict[str, object]:
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--server", required=True)
    arguments = parser.parse_args()
    write(arguments.directory, arguments.server)


if __name__ == "__main__":
    main()
