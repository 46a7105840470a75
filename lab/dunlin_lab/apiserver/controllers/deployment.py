"""Deployments: carries out what `rollout` plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller, split_key
from dunlin_lab.apiserver.controllers.index import ControlledIndex
from dunlin_lab.apiserver.controllers.rollout import (
    DESIRED,
    MAXIMUM,
    REVISION,
    current_of,
    limits_of,
    new_replicaset,
    plan_rollout,
    revision_of,
    status_of,
)
from dunlin_lab.apiserver.deletion import delete
from dunlin_lab.apiserver.resources import DEPLOYMENTS, REPLICASETS
from dunlin_lab.apiserver.values import Obj, controller_of, meta, thaw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change, Stored


class DeploymentController(Controller):
    """Keeps the ReplicaSets of every Deployment."""

    name = "deployment"

    def __init__(self, registry: Registry) -> None:
        """Look at every Deployment once, and follow them and their ReplicaSets."""
        super().__init__(registry)
        self._replicasets = ControlledIndex(self.store, REPLICASETS)
        self.watch(DEPLOYMENTS, lambda change: self.enqueue(change.key))
        self.watch(REPLICASETS, self._on_replicaset)
        for key in self.store.of(DEPLOYMENTS).items:
            self.enqueue(key)

    def _on_replicaset(self, change: Change) -> None:
        owner = controller_of(change.latest.obj)
        if owner is not None and owner["kind"] == "Deployment":
            self.enqueue(f"{change.latest.namespace}/{owner['name']}")

    def _owned(self, deployment: Stored) -> list[Obj]:
        found = self._replicasets.of(meta(deployment.obj)["uid"])
        return [item.obj for item in found]

    def sync(self, key: str) -> None:
        """Take one Deployment one step on."""
        namespace, name = split_key(key)
        found = self.store.of(DEPLOYMENTS).get(namespace, name)
        if found is None or "deletionTimestamp" in meta(found.obj):
            return
        owned = self._owned(found)
        current = current_of(found.obj, owned)
        if current is None and not found.obj["spec"].get("paused"):
            current = self._begin(found, owned)
        old = [item for item in owned if current is None or meta(item) != meta(current)]
        if current is not None:
            current = self._number(namespace, current, old)
            rollout = plan_rollout(found.obj, current, old)
            for replicaset, size in rollout.sizes.items():
                self._resize(namespace, replicaset, size, found.obj)
            for replicaset in rollout.delete:
                delete(self.registry, REPLICASETS, namespace, replicaset)
        self._write_status(key, current)

    def _begin(self, deployment: Stored, owned: Sequence[Obj]) -> Obj:
        revision = max(map(revision_of, owned), default=0) + 1
        wanted = thaw(new_replicaset(deployment.obj, revision))
        return self.registry.create(REPLICASETS, deployment.namespace, wanted).obj

    def _number(self, namespace: str, current: Obj, old: Sequence[Obj]) -> Obj:
        """Give the current ReplicaSet the highest revision: after a rollback it had a lower one."""
        highest = max(map(revision_of, old), default=0)
        if revision_of(current) > highest:
            return current
        obj = thaw(current)
        obj["metadata"].setdefault("annotations", {})[REVISION] = str(highest + 1)
        name = meta(current)["name"]
        return self.registry.update(REPLICASETS, namespace, name, obj).stored.obj

    def _resize(self, namespace: str, name: str, size: int, deployment: Obj) -> None:
        obj = thaw(self.registry.get(REPLICASETS, namespace, name).obj)
        wanted = deployment["spec"]["replicas"]
        obj["spec"]["replicas"] = size
        obj["metadata"].setdefault("annotations", {}).update(
            {DESIRED: str(wanted), MAXIMUM: str(wanted + limits_of(deployment)[0])}
        )
        self.registry.update(REPLICASETS, namespace, name, obj)

    def _write_status(self, key: str, current: Obj | None) -> None:
        namespace, name = split_key(key)
        found = self.registry.get(DEPLOYMENTS, namespace, name)
        owned = self._owned(found)
        uid = meta(current)["uid"] if current is not None else ""
        present = next((item for item in owned if meta(item)["uid"] == uid), None)
        old = [item for item in owned if meta(item)["uid"] != uid]
        obj = thaw(found.obj)
        if present is not None:
            number = str(revision_of(present))
            obj["metadata"].setdefault("annotations", {})[REVISION] = number
        obj["status"] = status_of(found.obj, present, old, self.registry.clock())
        self.registry.update(DEPLOYMENTS, namespace, name, obj, subresource="status")
