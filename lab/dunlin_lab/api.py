"""The Kubernetes API as the lab's own commands need it: a kubeconfig and plain HTTP."""

from __future__ import annotations

import base64
import ssl
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml


class KubeconfigError(Exception):
    """The kubeconfig cannot be used; the message names the file and field."""


def client(kubeconfig: Path, timeout_s: float = 10.0) -> httpx.Client:
    """
    An HTTP client for the current context of a kubeconfig: token or client certificate.

    Raises:
        KubeconfigError: no such file, context, cluster or user.
    """
    config = _load(kubeconfig)
    context = _named(config, "contexts", config.get("current-context", ""), kubeconfig)["context"]
    cluster = _named(config, "clusters", context["cluster"], kubeconfig)["cluster"]
    user = _named(config, "users", context["user"], kubeconfig).get("user") or {}
    headers = {"Authorization": f"Bearer {user['token']}"} if user.get("token") else {}
    server = cluster["server"]
    verify = _tls(cluster, user) if server.startswith("https") else True
    return httpx.Client(
        base_url=server, headers=headers, verify=verify, timeout=timeout_s, trust_env=False
    )


def _load(kubeconfig: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(kubeconfig.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise KubeconfigError(f"{kubeconfig}: {error}") from error
    if not isinstance(config, dict):
        raise KubeconfigError(f"{kubeconfig}: not a kubeconfig")
    return config


def _named(config: dict[str, Any], kind: str, name: str, path: Path) -> dict[str, Any]:
    for entry in config.get(kind) or ():
        if entry.get("name") == name:
            return dict(entry)
    raise KubeconfigError(f"{path}: {kind}: no {name!r}")


def _tls(cluster: dict[str, Any], user: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(
        cafile=cluster.get("certificate-authority"),
        cadata=_text(cluster.get("certificate-authority-data")),
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if user.get("client-certificate"):
        context.load_cert_chain(user["client-certificate"], user.get("client-key"))
    elif user.get("client-certificate-data"):
        with tempfile.TemporaryDirectory() as directory:
            pair = Path(directory) / "pair.pem"
            pair.touch(mode=0o600)
            pair.write_text(
                (_text(user["client-certificate-data"]) or "")
                + (_text(user.get("client-key-data")) or "")
            )
            context.load_cert_chain(pair)
    return context


def _text(data: str | None) -> str | None:
    return None if data is None else base64.b64decode(data).decode()
