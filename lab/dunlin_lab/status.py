"""`dunlin lab status`: what the lab is now, as people and as programs read it."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from dunlin_lab import procs
from dunlin_lab.api import KubeconfigError, client
from dunlin_lab.catalogue import OVS_PROCESSES, split_process
from dunlin_lab.kubelet import sandboxes
from dunlin_lab.paths import LabPaths, netns_path
from dunlin_lab.state import LabState, load_state


def status(paths: LabPaths) -> dict[str, Any]:
    """
    The lab as `lab status --json` prints it.

    Raises:
        NoLabError: there is none.
    """
    state = load_state(paths)
    return {
        "name": state.name,
        "kubeconfig": state.kubeconfig,
        "nats": state.nats,
        "datapath": state.datapath,
        "nodes": [_node(node) for node in state.nodes],
        "pods": pods(paths, state),
        "services": services(paths, state),
        "outside": {"netns": state.outside.netns, "ips": list(state.outside.ips)},
    }


def _node(node: Any) -> dict[str, Any]:
    return {
        "name": node.name,
        "netns": node.netns,
        "ips": list(node.ips),
        "ovs_rundir": node.ovs_rundir,
        "dpid": node.dpid,
    }


def services(paths: LabPaths, state: LabState) -> list[dict[str, Any]]:
    """Every process but OVS's own."""
    return [
        {
            "service": split_process(record.name)[0],
            "replica": split_process(record.name)[1],
            "pid": record.pid,
            "url": state.extra.get(f"url:{record.name}", ""),
            "up": procs.is_alive(record),
        }
        for record in procs.Processes(paths).all()
        if split_process(record.name)[0] not in OVS_PROCESSES
    ]


def pods(paths: LabPaths, state: LabState) -> list[dict[str, Any]]:
    """The Pods with a sandbox in this lab; readiness as the Kubernetes API has it."""
    ready = _readiness(state)
    return [
        {
            "namespace": sandbox.namespace,
            "name": sandbox.name,
            "node": sandbox.node,
            "ips": [str(ip) for ip in sandbox.ips],
            "netns": str(netns_path(sandbox.netns)),
            "ready": ready.get((sandbox.namespace, sandbox.name), False),
        }
        for sandbox in sandboxes(paths)
    ]


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodStatus(msgspec.Struct):
    conditions: list[_Condition] = []


class _ObjectMeta(msgspec.Struct):
    name: str
    namespace: str = ""


class _Pod(msgspec.Struct):
    metadata: _ObjectMeta
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _PodList(msgspec.Struct):
    items: list[_Pod]


def _readiness(state: LabState) -> dict[tuple[str, str], bool]:
    """Nobody is ready where the API does not answer: then nobody knows."""
    from pathlib import Path

    try:
        with client(Path(state.kubeconfig), timeout_s=5.0) as api:
            answer = api.get("/api/v1/pods").raise_for_status()
    except (httpx.HTTPError, KubeconfigError):
        return {}
    listed = msgspec.json.decode(answer.content, type=_PodList)
    return {
        (pod.metadata.namespace, pod.metadata.name): any(
            c.type == "Ready" and c.status == "True" for c in pod.status.conditions
        )
        for pod in listed.items
    }
