"""Namespaces: what every one has, and the end of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller
from dunlin_lab.apiserver.deletion import DELETE, delete_all
from dunlin_lab.apiserver.resources import NAMESPACES, RESOURCES, SERVICEACCOUNTS
from dunlin_lab.apiserver.values import meta, thaw

if TYPE_CHECKING:
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change

_DEFAULT_ACCOUNT = "default"
_NAMESPACED = tuple(item for item in RESOURCES if item.namespaced)


class NamespaceController(Controller):
    """Gives a namespace its default service account; empties and ends one being deleted."""

    name = "namespace"

    def __init__(self, registry: Registry) -> None:
        """Look at every namespace once; follow them, and deletions in those that end."""
        super().__init__(registry)
        self._ending: set[str] = set()
        self.watch(NAMESPACES, lambda change: self.enqueue(change.latest.name))
        for resource in _NAMESPACED:
            self.watch(resource, self._on_content)
        for name in self.store.of(NAMESPACES).items:
            self.enqueue(name)

    def _on_content(self, change: Change) -> None:
        if change.new is None and change.latest.namespace in self._ending:
            self.enqueue(change.latest.namespace)

    def sync(self, key: str) -> None:
        """Bring one namespace on."""
        found = self.store.of(NAMESPACES).get("", key)
        if found is None:
            self._ending.discard(key)
            return
        if "deletionTimestamp" not in meta(found.obj):
            if self.store.of(SERVICEACCOUNTS).get(key, _DEFAULT_ACCOUNT) is None:
                account = {"metadata": {"name": _DEFAULT_ACCOUNT}}
                self.registry.create(SERVICEACCOUNTS, key, account)
            return
        self._ending.add(key)
        left = 0
        for resource in _NAMESPACED:
            items = list(self.store.of(resource).within(key))
            fresh = [item for item in items if "deletionTimestamp" not in meta(item.obj)]
            delete_all(self.registry, resource, fresh, DELETE)
            left += len(list(self.store.of(resource).within(key)))
        if not left:
            obj = thaw(found.obj)
            obj["spec"] = {}
            self.registry.update(NAMESPACES, "", key, obj, subresource="finalize")
