"""Objects that no API server would take, put where watchers see them all the same."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.lab_cluster import LabCluster

_STORED = {"services": "services/specs"}
"""Where etcd has a resource, if not under its own name."""


def spoil(cluster: LabCluster, path: str, changes: dict[str, Any]) -> None:
    """
    Merge `changes` into a stored object, valid or not.

    The embedded API stores what it is told to store unseen; a real one refuses always, so there the
    object is changed in etcd, from where the API server serves it to everybody who watches.
    """
    etcd = _etcd(cluster)
    if etcd:
        _write(cluster, etcd, path, changes)
        return
    status = "/status" if "status" in changes else ""
    cluster.patch(f"{path}{status}", changes, **{"dunlin-validate": "false"})


def _etcd(cluster: LabCluster) -> str:
    """URL of the lab's etcd; "" where it has none."""
    for item in cluster.status()["services"]:
        if item["service"] == "etcd":
            words = Path(f"/proc/{item['pid']}/cmdline").read_text().split("\0")
            option = "--listen-client-urls="
            return next(word.removeprefix(option) for word in words if word.startswith(option))
    return ""


def _write(cluster: LabCluster, etcd: str, path: str, changes: dict[str, Any]) -> None:
    """Store JSON: the API server reads it as well as its own protobuf."""
    obj = cluster.api.get(path).raise_for_status().json()
    for part, change in changes.items():
        obj[part] = {**obj.get(part, {}), **change}
    del obj["metadata"]["resourceVersion"]
    _, _, _, _, namespace, resource, name = path.split("/")
    key = f"/registry/{_STORED.get(resource, resource)}/{namespace}/{name}"
    body = {"key": _base64(key), "value": _base64(json.dumps(obj))}
    httpx.post(f"{etcd}/v3/kv/put", json=body, trust_env=False).raise_for_status()


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
