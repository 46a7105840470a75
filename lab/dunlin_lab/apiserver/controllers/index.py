"""Indexes kept beside the store, so that a controller finds its objects without a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.resources import SERVICES
from dunlin_lab.apiserver.values import controller_of, labels_of, meta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.store import Change, Store, Stored


class LabelIndex:
    """Objects of one kind by namespace and label."""

    def __init__(self, store: Store, resource: Resource) -> None:
        """Index what is there, and follow changes; make it before the controllers that read it."""
        self._by_label: dict[tuple[str, str, str], dict[str, Stored]] = {}
        self._collection = store.of(resource)
        for item in self._collection.items.values():
            self._add(item)
        store.subscribe(resource, self._on_change)

    def _add(self, item: Stored) -> None:
        for key, value in labels_of(item.obj).items():
            self._by_label.setdefault((item.namespace, key, value), {})[item.key] = item

    def _on_change(self, change: Change) -> None:
        if change.old is not None:
            for key, value in labels_of(change.old.obj).items():
                place = (change.old.namespace, key, value)
                found = self._by_label.get(place, {})
                found.pop(change.key, None)
                if not found:
                    self._by_label.pop(place, None)
        if change.new is not None:
            self._add(change.new)

    def select(self, namespace: str, labels: Mapping[str, str]) -> list[Stored]:
        """Return the objects that have all these labels; no labels select nothing."""
        if not labels:
            return []
        candidates = [self._by_label.get((namespace, *pair), {}) for pair in labels.items()]
        smallest = min(candidates, key=len)
        return [
            item for item in smallest.values()
            if labels.items() <= labels_of(item.obj).items()
        ]  # fmt: skip


class OwnerIndex:
    """Objects of some kinds by the uid of each of their owners, and where every uid lives."""

    def __init__(self, store: Store, resources: Iterable[Resource]) -> None:
        """Index what is there, and follow changes."""
        self._dependents: dict[str, dict[tuple[str, str], tuple[Resource, Stored]]] = {}
        self._place: dict[str, tuple[Resource, str]] = {}
        for resource in resources:
            for item in store.of(resource).items.values():
                self._add(resource, item)
            store.subscribe(resource, self._on_change)

    def _add(self, resource: Resource, item: Stored) -> None:
        metadata = meta(item.obj)
        self._place[metadata["uid"]] = (resource, item.key)
        for reference in metadata.get("ownerReferences") or ():
            found = self._dependents.setdefault(reference["uid"], {})
            found[resource.qualified, item.key] = (resource, item)

    def _on_change(self, change: Change) -> None:
        if change.old is not None:
            metadata = meta(change.old.obj)
            if change.new is None:
                self._place.pop(metadata["uid"], None)
            for reference in metadata.get("ownerReferences") or ():
                found = self._dependents.get(reference["uid"], {})
                found.pop((change.resource.qualified, change.key), None)
                if not found:
                    self._dependents.pop(reference["uid"], None)
        if change.new is not None:
            self._add(change.resource, change.new)

    def dependents(self, uid: str) -> list[tuple[Resource, Stored]]:
        """Return what an object owns."""
        return list(self._dependents.get(uid, {}).values())

    def exists(self, uid: str) -> bool:
        """Whether an object of this uid is there."""
        return uid in self._place

    def place(self, uid: str) -> tuple[Resource, str] | None:
        """Return the kind and the store key of a uid."""
        return self._place.get(uid)


class ControlledIndex:
    """Objects of one kind by the uid of their controlling owner."""

    def __init__(self, store: Store, resource: Resource) -> None:
        """Index what is there, and follow changes."""
        self._found: dict[str, dict[str, Stored]] = {}
        for item in store.of(resource).items.values():
            self._put(item)
        store.subscribe(resource, self._on_change)

    def _put(self, item: Stored) -> None:
        owner = controller_of(item.obj)
        if owner is not None:
            self._found.setdefault(owner["uid"], {})[item.key] = item

    def _on_change(self, change: Change) -> None:
        owner = controller_of(change.old.obj) if change.old is not None else None
        if owner is not None:
            found = self._found.get(owner["uid"], {})
            found.pop(change.key, None)
            if not found:
                self._found.pop(owner["uid"], None)
        if change.new is not None:
            self._put(change.new)

    def of(self, uid: str) -> list[Stored]:
        """Return what an object controls."""
        return list(self._found.get(uid, {}).values())


class ServiceIndex:
    """Services by one label of their selector, to find those that select a Pod."""

    def __init__(self, store: Store) -> None:
        """Index what is there, and follow changes."""
        self._by_label: dict[tuple[str, str, str], dict[str, Mapping[str, str]]] = {}
        for item in store.of(SERVICES).items.values():
            self._put(item)
        store.subscribe(SERVICES, self._on_change)

    @staticmethod
    def _place(item: Stored) -> tuple[str, str, str] | None:
        pairs = sorted((item.obj["spec"].get("selector") or {}).items())
        return (item.namespace, *pairs[-1]) if pairs else None

    def _put(self, item: Stored) -> None:
        place = self._place(item)
        if place is not None:
            self._by_label.setdefault(place, {})[item.key] = item.obj["spec"]["selector"]

    def _on_change(self, change: Change) -> None:
        place = self._place(change.old) if change.old is not None else None
        if place is not None:
            self._by_label.get(place, {}).pop(change.key, None)
            if not self._by_label.get(place):
                self._by_label.pop(place, None)
        if change.new is not None:
            self._put(change.new)

    def selecting(self, pod: Stored) -> list[str]:
        """Return the keys of the Services whose selector a Pod satisfies."""
        labels = labels_of(pod.obj)
        found = []
        for pair in labels.items():
            for key, selector in self._by_label.get((pod.namespace, *pair), {}).items():
                if selector.items() <= labels.items():
                    found.append(key)
        return found
