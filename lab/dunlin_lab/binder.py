"""
Binds Pods to the lab's nodes where the API comes without a scheduler; the embedded API needs none.

It follows Nodes and Pods and decides by binding.choose, as the embedded API does. With a scheduler
beside it the first of the two binds, and the other is told 409.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from dunlin_lab.apiserver.values import Obj, condition, meta
from dunlin_lab.binding import FINISHED, SCHEDULER_NAME, choose
from dunlin_lab.kubeapi import ApiError, Change, KubeApi
from dunlin_lab.kubelet_core import rfc3339

_RETRY_S = 0.5
_GONE = (404, 409)


class Binder:
    """One for all nodes of a lab."""

    def __init__(self, api: KubeApi, nodes: frozenset[str], default_max_pods: int) -> None:
        self._api = api
        self._ours = nodes
        self._default_max_pods = default_max_pods
        self._nodes: dict[str, Obj] = {}
        self._pods: dict[str, Obj] = {}
        self._bound: dict[str, str] = {}
        """Node of each Pod that we bound and have not yet seen bound."""
        self._said: dict[str, str] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow("/api/v1/nodes", self._nodes, "name"))
            group.create_task(self._follow("/api/v1/pods", self._pods, "uid"))
            while True:
                await self._changed.wait()
                self._changed.clear()
                await self._bind_all()

    async def _follow(self, path: str, into: dict[str, Obj], key: str) -> None:
        """Keep a collection in memory."""
        async for change in self._api.follow(path):
            take(change, into, key)
            self._changed.set()

    def _counts(self) -> Counter[str]:
        """Pods on each node, with those that we have just bound."""
        for uid in [u for u in self._bound if _node(self._pods.get(u)) or u not in self._pods]:
            del self._bound[uid]
        running = (pod for pod in self._pods.values() if _phase(pod) not in FINISHED)
        counts = Counter(node for pod in running if (node := _node(pod)))
        counts.update(self._bound.values())
        return counts

    async def _bind_all(self) -> None:
        """Every Pod that has no node; the counts grow as we go."""
        counts = self._counts()
        nodes = [node for name, node in sorted(self._nodes.items()) if name in self._ours]
        self._said = {uid: why for uid, why in self._said.items() if uid in self._pods}
        for uid, pod in list(self._pods.items()):
            if uid in self._bound or not _wants_node(pod):
                continue
            node, why = choose(pod, nodes, counts, self._default_max_pods)
            try:
                if node is None:
                    await self._say(pod, why)
                    continue
                await self._api.create(f"{_path(pod)}/binding", _binding(pod, node))
            except ApiError as error:
                self._failed(pod, error)
                continue
            self._bound[uid] = node
            counts[node] += 1

    async def _say(self, pod: Obj, why: str) -> None:
        """Unschedulable, once for each reason."""
        uid = meta(pod)["uid"]
        if why in (self._said.get(uid), (condition(pod, "PodScheduled") or {}).get("message")):
            return
        said = {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": why, "lastTransitionTime": rfc3339(),
        }  # fmt: skip
        await self._api.patch(f"{_path(pod)}/status", {"status": {"conditions": [said]}})
        self._said[uid] = why

    def _failed(self, pod: Obj, error: ApiError) -> None:
        """A Pod that is gone or bound is no matter; else a line, and again in a moment."""
        if error.code in _GONE:
            return
        print(f"binder: {meta(pod)['namespace']}/{meta(pod)['name']}: {error}", flush=True)
        asyncio.get_running_loop().call_later(_RETRY_S, self._changed.set)


def take(change: Change, into: dict[str, Obj], key: str) -> None:
    """Bring a collection up to date."""
    found = {str(meta(obj).get(key)): obj for obj in change.objects}
    if change.kind == "listed":
        into.clear()
    if change.kind == "deleted":
        for name in found:
            into.pop(name, None)
    else:
        into.update(found)


def _wants_node(pod: Obj) -> bool:
    spec = pod.get("spec") or {}
    ours = spec.get("schedulerName", SCHEDULER_NAME) == SCHEDULER_NAME
    gated = bool(spec.get("schedulingGates"))
    return ours and not gated and not _node(pod) and not meta(pod).get("deletionTimestamp")


def _node(pod: Obj | None) -> str:
    return str(((pod or {}).get("spec") or {}).get("nodeName") or "")


def _phase(pod: Obj) -> str:
    return str((pod.get("status") or {}).get("phase") or "")


def _path(pod: Obj) -> str:
    return f"/api/v1/namespaces/{meta(pod)['namespace']}/pods/{meta(pod)['name']}"


def _binding(pod: Obj, node: str) -> Obj:
    return {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": meta(pod)["name"], "uid": meta(pod)["uid"]},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }
