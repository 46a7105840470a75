"""The garbage collector: what is owned goes with its owners."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller, split_key
from dunlin_lab.apiserver.controllers.index import OwnerIndex
from dunlin_lab.apiserver.deletion import (
    DELETE,
    FOREGROUND,
    ORPHAN,
    DeleteOptions,
    delete,
    remove_finalizer,
)
from dunlin_lab.apiserver.resources import (
    BY_KIND,
    BY_QUALIFIED,
    EVENTS,
    LEASES,
    RESOURCES,
    Resource,
)
from dunlin_lab.apiserver.values import Obj, meta, thaw

if TYPE_CHECKING:
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change, Stored

_WATCHED = tuple(item for item in RESOURCES if item not in (EVENTS, LEASES))


class GarbageCollector(Controller):
    """Deletes what has owners and none of them left; ends foreground and orphan deletions."""

    name = "garbage"

    def __init__(self, registry: Registry) -> None:
        """Follow every kind but events and leases, which own nothing and change often."""
        super().__init__(registry)
        self._owners = OwnerIndex(self.store, _WATCHED)
        for resource in _WATCHED:
            self.watch(resource, self._on_change)
            for item in self.store.of(resource).items.values():
                self._look_at(resource, item)

    def _on_change(self, change: Change) -> None:
        if change.new is not None:
            self._look_at(change.resource, change.new)
            return
        gone = meta(change.latest.obj)
        for resource, item in self._owners.dependents(gone["uid"]):
            self.enqueue(f"{resource.qualified}|{item.key}")
        for reference in gone.get("ownerReferences") or ():
            place = self._owners.place(reference["uid"])  # one waiting in the foreground
            if place is not None:
                self.enqueue(f"{place[0].qualified}|{place[1]}")

    def _look_at(self, resource: Resource, item: Stored) -> None:
        metadata = meta(item.obj)
        if "ownerReferences" in metadata or "deletionTimestamp" in metadata:
            self.enqueue(f"{resource.qualified}|{item.key}")

    def sync(self, key: str) -> None:
        """Delete one object if it lost its owners, or end its deletion if that waits for us."""
        qualified, _, place = key.partition("|")
        resource = BY_QUALIFIED[qualified]
        found = self.store.of(resource).get(*split_key(place))
        if found is None:
            return
        metadata = meta(found.obj)
        finalizers = metadata.get("finalizers") or ()
        if "deletionTimestamp" in metadata:
            if FOREGROUND in finalizers:
                self._finish_foreground(resource, found)
            elif ORPHAN in finalizers:
                self._finish_orphan(resource, found)
            return
        references = metadata.get("ownerReferences") or []
        present = [item for item in references if self._is_there(item)]
        if references and not present:
            delete(self.registry, resource, found.namespace, found.name)
        elif len(present) < len(references):
            self._keep_owners(resource, found, present)

    def _is_there(self, reference: Obj) -> bool:
        """Tell whether an owner exists; one of a kind that is not watched counts as there."""
        resource = BY_KIND.get((reference["apiVersion"], reference["kind"]))
        return resource not in _WATCHED or self._owners.exists(reference["uid"])

    def _finish_foreground(self, resource: Resource, owner: Stored) -> None:
        waiting = False
        for kind, item in self._owners.dependents(meta(owner.obj)["uid"]):
            if "deletionTimestamp" not in meta(item.obj):
                nested = bool(self._owners.dependents(meta(item.obj)["uid"]))
                options = DeleteOptions(propagation="Foreground") if nested else DELETE
                delete(self.registry, kind, item.namespace, item.name, options)
            still = self.store.of(kind).get(item.namespace, item.name)
            waiting |= still is not None and _blocks(still.obj, meta(owner.obj)["uid"])
        if not waiting:
            remove_finalizer(self.registry, resource, owner, FOREGROUND)

    def _finish_orphan(self, resource: Resource, owner: Stored) -> None:
        uid = meta(owner.obj)["uid"]
        for kind, item in self._owners.dependents(uid):
            references = meta(item.obj)["ownerReferences"]
            self._keep_owners(kind, item, [ref for ref in references if ref["uid"] != uid])
        remove_finalizer(self.registry, resource, owner, ORPHAN)

    def _keep_owners(self, resource: Resource, item: Stored, references: list[Obj]) -> None:
        obj = thaw(item.obj)
        if references:
            obj["metadata"]["ownerReferences"] = references
        else:
            obj["metadata"].pop("ownerReferences", None)
        self.registry.update(resource, item.namespace, item.name, obj)


def _blocks(obj: Obj, uid: str) -> bool:
    return any(
        reference["uid"] == uid and reference.get("blockOwnerDeletion")
        for reference in meta(obj).get("ownerReferences") or ()
    )
