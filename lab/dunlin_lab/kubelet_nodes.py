"""The nodes' own part of a kubelet: Node objects, Leases, events, CNI garbage collection."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from dunlin_lab import cni
from dunlin_lab.kubeapi import ApiError, KubeApi
from dunlin_lab.kubelet_core import PodView, Sandbox, rfc3339
from dunlin_lab.sandboxes import Node

LAB_LABEL = "dunlin.dev/lab"
"""Whose node it is: `lab down` takes no others."""
HEARTBEAT_S = 10.0
LEASE_S = 40
PODS_MAX = 500
GC_FAILURES_MAX = 3
"""Then Pods are attached although nothing could be collected."""

_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_NOT_FOUND = 404
_CONFLICT = 409


async def keep_registered(api: KubeApi, node: Node) -> None:
    """Register the node, then renew its lease for ever; what fails is tried again next time."""
    registered = False
    while True:
        try:
            if not registered:
                await register(api, node)
                registered = True
            await _renew(api, node)
        except ApiError as error:
            registered = registered and error.code != _NOT_FOUND
            print(f"kubelet {node.name}: {error}", flush=True)
        await asyncio.sleep(HEARTBEAT_S if registered else 1.0)


async def register(api: KubeApi, node: Node) -> None:
    """
    Create the Node if need be and set its status.

    Raises:
        ApiError: the API refused or is away.
    """
    labels = {
        "kubernetes.io/hostname": node.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64" if platform.machine() == "x86_64" else platform.machine(),
        "topology.kubernetes.io/zone": node.zone,
        **({LAB_LABEL: node.lab} if node.lab else {}),
    }
    body = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": labels},
        "spec": {},
    }
    try:
        await api.create("/api/v1/nodes", body)
    except ApiError as error:
        if error.code != _CONFLICT:
            raise
        await api.patch(f"/api/v1/nodes/{node.name}", {"metadata": {"labels": labels}})
    # A strategic merge would join addresses by type and keep one InternalIP only.
    await api.patch(f"/api/v1/nodes/{node.name}/status", _status(node), kind="merge")


def _status(node: Node) -> dict[str, Any]:
    """A node that is ready, with room for the lab's Pods."""
    now = rfc3339()
    reasons = {
        "MemoryPressure": ("False", "KubeletHasSufficientMemory"),
        "DiskPressure": ("False", "KubeletHasNoDiskPressure"),
        "PIDPressure": ("False", "KubeletHasSufficientPID"),
        "Ready": ("True", "KubeletReady"),
    }
    room = {"cpu": "64", "memory": "256Gi", "pods": str(PODS_MAX)}
    addresses = [{"type": "InternalIP", "address": ip} for ip in node.ips]
    return {
        "status": {
            "addresses": [*addresses, {"type": "Hostname", "address": node.name}],
            "capacity": room,
            "allocatable": room,
            "conditions": [
                {
                    "type": kind,
                    "status": status,
                    "reason": reason,
                    "message": "dunlin lab",
                    "lastHeartbeatTime": now,
                    "lastTransitionTime": now,
                }
                for kind, (status, reason) in reasons.items()
            ],
            "nodeInfo": {
                "architecture": platform.machine(),
                "bootID": "",
                "containerRuntimeVersion": "dunlin-lab://1",
                "kernelVersion": platform.release(),
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.0-dunlin-lab",
                "machineID": "",
                "operatingSystem": "linux",
                "osImage": "dunlin lab",
                "systemUUID": "",
            },
        }
    }


async def _renew(api: KubeApi, node: Node) -> None:
    """The heartbeat."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": node.name, "leaseDurationSeconds": LEASE_S, "renewTime": now}
    try:
        await api.patch(f"{_LEASES}/{node.name}", {"spec": spec}, kind="merge")
    except ApiError as error:
        if error.code != _NOT_FOUND:
            raise
    else:
        return
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": node.name, "namespace": "kube-node-lease"},
        "spec": spec,
    }
    try:
        await api.create(_LEASES, lease)
    except ApiError as error:
        if error.code != _NOT_FOUND:
            raise
        namespace = {"apiVersion": "v1", "kind": "Namespace"}
        await api.create(
            "/api/v1/namespaces", {**namespace, "metadata": {"name": "kube-node-lease"}}
        )
        await api.create(_LEASES, lease)


async def collect(node: Node, valid: Callable[[], list[Sandbox]]) -> None:
    """
    CNI GC once, before the node's first ADD; tried again while the agent is not there yet.

    Args:
        valid: the node's sandboxes at the time of asking.
    """
    failures = 0
    while failures < GC_FAILURES_MAX:
        try:
            await node.plugin.collect(
                (box.id, cni.IFNAME) for box in valid() if not box.host_network
            )
            break
        except cni.CniError as error:
            failures += 1
            print(f"kubelet {node.name}: {error}", flush=True)
            await asyncio.sleep(0.5 * failures)
    node.collected.set()


async def emit(api: KubeApi, pod: PodView, reason: str, message: str) -> None:
    """A Warning event about a Pod; one that cannot be written is only printed."""
    now = rfc3339()
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{pod.name}.", "namespace": pod.namespace},
        "involvedObject": {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": pod.name,
            "namespace": pod.namespace,
            "uid": pod.uid,
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:1000],
        "source": {"component": "dunlin-lab-kubelet", "host": pod.node},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    print(f"kubelet {pod.node}: pod {pod.namespace}/{pod.name}: {reason}: {message}", flush=True)
    try:
        await api.create(f"/api/v1/namespaces/{pod.namespace}/events", event)
    except ApiError as error:
        print(f"kubelet {pod.node}: event not written: {error}", flush=True)
