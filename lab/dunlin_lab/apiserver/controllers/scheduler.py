"""Node binding: Pods without a node are spread over the nodes that may take them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller, split_key
from dunlin_lab.apiserver.resources import NODES, PODS
from dunlin_lab.apiserver.subresources import bind
from dunlin_lab.apiserver.values import (
    Obj,
    condition,
    is_ready,
    labels_of,
    meta,
    thaw,
    timestamp,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change

SCHEDULER_NAME = "default-scheduler"
_FINISHED = ("Failed", "Succeeded")
_REPELLING = ("NoSchedule", "NoExecute")


def tolerates(toleration: Obj, taint: Obj) -> bool:
    """Whether a toleration covers a taint."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("value", "") == taint.get("value", ""))


def why_not(pod: Obj, node: Obj, count: int, default_max_pods: int) -> str | None:
    """Return why a node cannot take a Pod, None if it can; `count` Pods are there already."""
    spec = node["spec"]
    if spec.get("unschedulable"):
        return "node(s) were unschedulable"
    if not is_ready(node):
        return "node(s) were not ready"
    wanted = pod["spec"].get("nodeSelector") or {}
    if not wanted.items() <= labels_of(node).items():
        return "node(s) didn't match Pod's node affinity/selector"
    tolerations = pod["spec"].get("tolerations") or ()
    for taint in spec.get("taints") or ():
        repels = taint.get("effect") in _REPELLING
        if repels and not any(tolerates(item, taint) for item in tolerations):
            return "node(s) had untolerated taint(s)"
    room = (node["status"].get("allocatable") or {}).get("pods", default_max_pods)
    return "Too many pods" if count >= int(room) else None


def choose(
    pod: Obj, nodes: Iterable[Obj], counts: Mapping[str, int], default_max_pods: int
) -> tuple[str | None, str]:
    """Return (the node with fewest Pods that takes this one, or None; why the others do not)."""
    reasons: Counter[str] = Counter()
    fitting: list[str] = []
    for node in nodes:
        name = meta(node)["name"]
        why = why_not(pod, node, counts.get(name, 0), default_max_pods)
        if why is None:
            fitting.append(name)
        else:
            reasons[why] += 1
    best = min(fitting, key=lambda name: (counts.get(name, 0), name), default=None)
    listed = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
    total = len(fitting) + sum(reasons.values())
    return best, f"0/{total} nodes are available: {listed}." if total else "no nodes available"


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
        if node and pod["status"].get("phase") not in _FINISHED:
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
