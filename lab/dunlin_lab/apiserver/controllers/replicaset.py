"""ReplicaSets: as many Pods as asked for, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller, split_key
from dunlin_lab.apiserver.deletion import delete
from dunlin_lab.apiserver.resources import PODS, REPLICASETS
from dunlin_lab.apiserver.values import (
    Obj,
    condition,
    controller_of,
    is_ready,
    labels_of,
    meta,
    seconds_of,
    thaw,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dunlin_lab.apiserver.controllers.index import ControlledIndex
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change

_FINISHED = ("Failed", "Succeeded")


def is_active(pod: Obj) -> bool:
    """Whether a Pod counts towards the replicas."""
    return pod["status"].get("phase") not in _FINISHED and "deletionTimestamp" not in meta(pod)


def available_in(pod: Obj, min_ready_seconds: int, now: float) -> float | None:
    """Return in how many seconds a Pod is available: 0 is now, None is not before it is ready."""
    if not is_ready(pod):
        return None
    if not min_ready_seconds:
        return 0.0
    since = (condition(pod, "Ready") or {}).get("lastTransitionTime")
    if not since:
        return None
    return max(seconds_of(since) + min_ready_seconds - now, 0.0)


def deletion_order(pod: Obj) -> tuple[bool, bool, bool, str]:
    """Sort key: unassigned first, then not running, not ready, and the newest."""
    created = meta(pod)["creationTimestamp"]
    newest_first = "".join(chr(255 - ord(letter)) for letter in created)
    running = pod["status"].get("phase") == "Running"
    return bool(pod["spec"].get("nodeName")), running, is_ready(pod), newest_first


@dataclass(slots=True)
class ReplicaPlan:
    """How many Pods to create, which to delete, and the status; `again` is in seconds."""

    create: int = 0
    delete: list[str] = field(default_factory=list)
    status: Obj = field(default_factory=dict)
    again: float | None = None


def plan_replicas(replicaset: Obj, pods: Sequence[Obj], now: float) -> ReplicaPlan:
    """Compare a ReplicaSet with the Pods it controls."""
    spec, plan = replicaset["spec"], ReplicaPlan()
    active = [pod for pod in pods if is_active(pod)]
    wanted = spec.get("replicas", 1)
    if "deletionTimestamp" not in meta(replicaset):
        plan.create = max(wanted - len(active), 0)
        surplus = sorted(active, key=deletion_order)[: max(len(active) - wanted, 0)]
        plan.delete = [meta(pod)["name"] for pod in surplus]
    waits = [available_in(pod, spec.get("minReadySeconds", 0), now) for pod in active]
    plan.again = min((wait for wait in waits if wait), default=None)
    plan.status = _status(replicaset, active, len(pods) - len(active), waits)
    return plan


def _status(
    replicaset: Obj, active: Sequence[Obj], leaving: int, waits: Iterable[float | None]
) -> Obj:
    template = replicaset["spec"]["template"].get("metadata", {}).get("labels") or {}
    status: Obj = {"replicas": len(active)}
    counts = {
        "fullyLabeledReplicas": sum(template.items() <= labels_of(p).items() for p in active),
        "readyReplicas": sum(is_ready(pod) for pod in active),
        "availableReplicas": sum(wait == 0.0 for wait in waits),
        "terminatingReplicas": leaving,
    }
    for key, value in counts.items():
        if value or key == "terminatingReplicas":
            status[key] = value
    status["observedGeneration"] = meta(replicaset).get("generation", 1)
    return status


def pod_of(replicaset: Obj) -> Obj:
    """Return a new Pod of a ReplicaSet."""
    template, owner = replicaset["spec"]["template"], meta(replicaset)
    metadata = dict(template.get("metadata") or {})
    metadata["generateName"] = f"{owner['name']}-"
    metadata["ownerReferences"] = [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner["name"],
         "uid": owner["uid"], "controller": True, "blockOwnerDeletion": True}
    ]  # fmt: skip
    return thaw({"metadata": metadata, "spec": template["spec"]})


class ReplicaSetController(Controller):
    """Keeps the Pods of every ReplicaSet. Pods without an owner are not adopted."""

    name = "replicaset"

    def __init__(self, registry: Registry, pods: ControlledIndex) -> None:
        """Look at every ReplicaSet once, and follow them and their Pods."""
        super().__init__(registry)
        self._pods = pods
        self.watch(REPLICASETS, lambda change: self.enqueue(change.key))
        self.watch(PODS, self._on_pod)
        for key in self.store.of(REPLICASETS).items:
            self.enqueue(key)

    def _on_pod(self, change: Change) -> None:
        for version in (change.old, change.new):
            owner = controller_of(version.obj) if version is not None else None
            if version is not None and owner is not None and owner["kind"] == "ReplicaSet":
                self.enqueue(f"{version.namespace}/{owner['name']}")

    def sync(self, key: str) -> None:
        """Bring one ReplicaSet's Pods and status up to date."""
        namespace, name = split_key(key)
        found = self.store.of(REPLICASETS).get(namespace, name)
        if found is None:
            return
        pods = [item.obj for item in self._pods.of(meta(found.obj)["uid"])]
        plan = plan_replicas(found.obj, pods, self.registry.clock())
        if plan.again is not None:
            self.enqueue_after(key, plan.again)
        if plan.status != found.obj.get("status"):
            obj = {**thaw(found.obj), "status": plan.status}
            self.registry.update(REPLICASETS, namespace, name, obj, subresource="status")
        for _ in range(plan.create):
            self.registry.create(PODS, namespace, pod_of(found.obj))
        for pod in plan.delete:
            delete(self.registry, PODS, namespace, pod)
