"""Node binding: Pods without a node are spread over the nodes that may take them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller, split_key
from dunlin_lab.apiserver.resources import NODES, PODS
from dunlin_lab.apiserver.subresources import bind
from dunlin_lab.apiserver.values import Obj, condition, meta, thaw, timestamp
from dunlin_lab.binding import FINISHED, SCHEDULER_NAME, choose

if TYPE_CHECKING:
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change


class Scheduler(Controller):
    """Binds Pods; says Unschedulable on those that fit nowhere, and tries when nodes change."""

    name = "scheduler"

    def __init__(self, registry: Registry, default_max_pods: int) -> None:
        """Look at every Pod once. `default_max_pods` is for nodes that do not say."""
        super().__init__(registry)
        self._default_max_pods = default_max_pods
        self._counts: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self.watch(PODS, self._on_pod)
        self.watch(NODES, lambda _: self._retry_waiting())
        for item in self.store.of(PODS).items.values():
            self._count(item.obj, 1)
            self.enqueue(item.key)

    def _count(self, pod: Obj, by: int) -> None:
        node = pod["spec"].get("nodeName")
        if node and pod["status"].get("phase") not in FINISHED:
            self._counts[node] += by

    def _on_pod(self, change: Change) -> None:
        if change.old is not None:
            self._count(change.old.obj, -1)
        if change.new is not None:
            self._count(change.new.obj, 1)
            if change.old is None:
                self.enqueue(change.key)
        else:
            self._waiting.discard(change.key)
            if change.latest.obj["spec"].get("nodeName"):
                self._retry_waiting()

    def _retry_waiting(self) -> None:
        for key in self._waiting:
            self.enqueue(key)

    def sync(self, key: str) -> None:
        """Bind one Pod, or say why not."""
        namespace, name = split_key(key)
        found = self.store.of(PODS).get(namespace, name)
        self._waiting.discard(key)
        if found is None or found.obj["spec"].get("nodeName"):
            return
        ours = found.obj["spec"].get("schedulerName") == SCHEDULER_NAME
        if not ours or "deletionTimestamp" in meta(found.obj):
            return
        nodes = [item.obj for item in self.store.of(NODES).items.values()]
        node, why = choose(found.obj, nodes, self._counts, self._default_max_pods)
        if node is not None:
            bind(self.registry, namespace, name, node)
            return
        self._waiting.add(key)
        self._say_unschedulable(found.obj, why)

    def _say_unschedulable(self, pod: Obj, why: str) -> None:
        before = condition(pod, "PodScheduled") or {}
        if before.get("message") == why:
            return
        obj = thaw(pod)
        said = {
            "type": "PodScheduled", "observedGeneration": meta(pod).get("generation", 1),
            "status": "False", "lastProbeTime": None,
            "lastTransitionTime": before.get("lastTransitionTime")
            or timestamp(self.registry.clock()),
            "reason": "Unschedulable", "message": why,
        }  # fmt: skip
        conditions = obj["status"].setdefault("conditions", [])
        conditions[:] = [item for item in conditions if item.get("type") != "PodScheduled"]
        conditions.append(said)
        where = (meta(pod)["namespace"], meta(pod)["name"])
        self.registry.update(PODS, *where, obj, subresource="status")
