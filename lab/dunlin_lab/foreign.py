"""Somebody's cluster (`--kubeconfig`): what a lab left there is taken back, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from dunlin_lab.api import KubeconfigError, client
from dunlin_lab.kubelet_nodes import LAB_LABEL

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_NOW = {"gracePeriodSeconds": "0"}
_TIMEOUT_S = 5.0


def leave(kubeconfig: Path, lab: str) -> str:
    """
    Delete the lab's namespaces, Nodes and their leases, and forget the Pods that ran there.

    Pods of a controller come again and wait for another node: they are the cluster's.

    Returns:
        "" or why something may have stayed; a cluster that is away must not keep a lab here.
    """
    try:
        with client(kubeconfig, _TIMEOUT_S) as api:
            for namespace in _ours(api, "/api/v1/namespaces", lab):
                _delete(api, f"/api/v1/namespaces/{namespace}")
            for node in _ours(api, "/api/v1/nodes", lab):
                # First the Node: nothing is bound to it any more.
                _delete(api, f"/api/v1/nodes/{node}")
                _delete(api, f"{_LEASES}/{node}")
                _forget_pods(api, node)
    except (httpx.HTTPError, KubeconfigError, ValueError) as error:
        return f"{kubeconfig}: Nodes labelled {LAB_LABEL}={lab} may still be there: {error}"
    return ""


def _ours(api: httpx.Client, path: str, lab: str) -> list[str]:
    found = _list(api, path, labelSelector=f"{LAB_LABEL}={lab}")
    return [item["metadata"]["name"] for item in found]


def _forget_pods(api: httpx.Client, node: str) -> None:
    for pod in _list(api, "/api/v1/pods", fieldSelector=f"spec.nodeName={node}"):
        metadata = pod["metadata"]
        _delete(api, f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}", _NOW)


def _list(api: httpx.Client, path: str, **query: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = api.get(path, params=query).raise_for_status().json()["items"]
    return items


def _delete(api: httpx.Client, path: str, query: dict[str, str] | None = None) -> None:
    answer = api.delete(path, params=query)
    if answer.status_code != httpx.codes.NOT_FOUND:
        answer.raise_for_status()
