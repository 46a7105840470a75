"""
What a kubeconfig's current context says, for every HTTP client of the lab.

Tokens (also by `tokenFile`, read again for each request, since such tokens are renewed on disk) and
client certificates. Source: kubeconfig (v1 Config). An `exec` plugin is an error, never ignored.
"""

from __future__ import annotations

import base64
import binascii
import ssl
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

_FILES = {
    "cluster": ("certificate-authority",),
    "user": ("client-certificate", "client-key", "tokenFile"),
}
_FOREIGN = ("exec", "auth-provider", "username")


class KubeconfigError(Exception):
    """The kubeconfig cannot be used; the message names the file and field."""


class _Bearer(httpx.Auth):
    """`Authorization: Bearer …`."""

    def __init__(self, token: str, file: Path | None) -> None:
        self._token = token
        self._file = file

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Put the token on; a file is read anew, so an error of reading it is the request's."""
        token = self._token
        if self._file is not None:
            try:
                token = self._file.read_text().strip()
            except OSError as error:
                raise httpx.RequestError(f"tokenFile {self._file}: {error}") from error
        request.headers["Authorization"] = f"Bearer {token}"
        yield request


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is and how to get in."""

    server: str
    auth: httpx.Auth | None
    verify: ssl.SSLContext | bool


def access(path: Path) -> Access:
    """
    Read the current context.

    Raises:
        KubeconfigError: no such file, context, cluster or user; or a way in that is not supported.
    """
    cluster, user, _ = _entries(path)
    token, file = str(user.get("token") or ""), user.get("tokenFile")
    # As client-go: the file wins over the token beside it.
    auth = _Bearer(token, path.parent / file if file else None) if token or file else None
    server = str(cluster["server"])
    try:
        verify = _tls(cluster, user, path.parent) if server.startswith("https:") else True
    except (OSError, KeyError, ValueError, binascii.Error) as error:
        raise KubeconfigError(f"kubeconfig {path}: certificates: {error!r}") from error
    return Access(server, auth, verify)


def flatten(path: Path) -> str:
    """
    The current context alone, as a kubeconfig that works from any directory.

    Raises:
        KubeconfigError: as `access`.
    """
    cluster, user, namespace = _entries(path)
    for kind, entry in (("cluster", cluster), ("user", user)):
        for field in _FILES[kind]:
            if entry.get(field):
                entry[field] = str((path.parent / entry[field]).absolute())
    context = {"cluster": "lab", "user": "lab"} | ({"namespace": namespace} if namespace else {})
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": context}],
    }
    return yaml.safe_dump(config)


def _entries(path: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    """(cluster, user, namespace) of the current context."""
    try:
        config = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise KubeconfigError(f"kubeconfig {path}: {error}") from error
    if not isinstance(config, dict):
        raise KubeconfigError(f"kubeconfig {path}: not a mapping")
    context = _entry(config, path, "context", config.get("current-context"))
    cluster = _entry(config, path, "cluster", context.get("cluster"))
    user = _entry(config, path, "user", context.get("user"))
    if not cluster.get("server"):
        raise KubeconfigError(f"kubeconfig {path}: cluster {context.get('cluster')!r}: no server")
    for field in _FOREIGN:
        if user.get(field):
            raise KubeconfigError(
                f"kubeconfig {path}: user {context.get('user')!r}: {field}: not supported; "
                "use token, tokenFile or a client certificate"
            )
    return cluster, user, str(context.get("namespace") or "")


def _entry(config: dict[str, Any], path: Path, kind: str, name: Any) -> dict[str, Any]:
    """What a list such as `clusters` has under `name`."""
    entries = config.get(f"{kind}s")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(kind) or {}
            if isinstance(found, dict):
                return dict(found)
    raise KubeconfigError(f"kubeconfig {path}: {kind}s: no {name!r}")


def _tls(cluster: dict[str, Any], user: dict[str, Any], base: Path) -> ssl.SSLContext:
    """Trust and identity; paths in a kubeconfig are relative to it."""
    authority = cluster.get("certificate-authority")
    context = ssl.create_default_context(
        cafile=str(base / authority) if authority else None,
        cadata=_text(cluster.get("certificate-authority-data")),
    )
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if user.get("client-certificate-data"):
        # The ssl module reads certificates from files only.
        with tempfile.TemporaryDirectory() as directory:
            certificate, key = Path(directory, "crt"), Path(directory, "key")
            key.touch(mode=0o600)
            certificate.write_text(_text(user["client-certificate-data"]) or "")
            key.write_text(_text(user["client-key-data"]) or "")
            context.load_cert_chain(certificate, key)
    elif user.get("client-certificate"):
        context.load_cert_chain(base / user["client-certificate"], base / user["client-key"])
    return context


def _text(data: str | None) -> str | None:
    return None if data is None else base64.b64decode(data).decode()
