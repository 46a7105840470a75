"""Nodes: Pod CIDRs, the not-ready taint, and Pods of nodes that are gone."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller
from dunlin_lab.apiserver.deletion import DELETE_NOW, delete
from dunlin_lab.apiserver.resources import NODES, PODS
from dunlin_lab.apiserver.strategies.cluster import NOT_READY_TAINT
from dunlin_lab.apiserver.values import Obj, is_ready, thaw

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dunlin_lab.apiserver.allocators import Network
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change

ORPHAN_SECONDS = 40.0
"""How long Pods of a node that is gone are kept, as the real Pod garbage collector does."""


def free_cidr(pool: Network, prefix_length: int, used: Iterable[Network]) -> Network | None:
    """Return the first block of a pool that overlaps none in use, None when there is none."""
    taken = [item for item in used if item.version == pool.version]
    block: Network
    for block in pool.subnets(new_prefix=prefix_length):
        if not any(_overlap(block, item) for item in taken):
            return block
    return None


def _overlap(one: Network, other: Network) -> bool:
    if one.prefixlen > other.prefixlen:
        one, other = other, one
    return other.network_address in one


def tainted(node: Obj) -> list[Obj]:
    """Return the taints a node shall have: not-ready exactly while its Ready is not True."""
    taints = list(node["spec"].get("taints") or ())
    key = NOT_READY_TAINT["key"]
    present = any(item.get("key") == key for item in taints)
    if is_ready(node):
        return [item for item in taints if item.get("key") != key]
    return taints if present else [*taints, dict(NOT_READY_TAINT)]


class NodeController(Controller):
    """Keeps the spec of every node; `pools` empty leaves Pod CIDRs to somebody else."""

    name = "node"

    def __init__(
        self, registry: Registry, pools: Sequence[Network], prefix_lengths: dict[int, int]
    ) -> None:
        """Look at every node once, and follow nodes. `prefix_lengths` is by IP version."""
        super().__init__(registry)
        self._pools = pools
        self._prefix_lengths = prefix_lengths
        self.watch(NODES, self._on_node)
        self.watch(PODS, self._on_pod)
        for name in self.store.of(NODES).items:
            self.enqueue(name)
        for item in self.store.of(PODS).items.values():
            self.enqueue_orphan(item.obj)

    def _on_node(self, change: Change) -> None:
        self.enqueue(change.key)
        if change.new is None:
            self.enqueue_after(f"orphans|{change.key}", ORPHAN_SECONDS)

    def _on_pod(self, change: Change) -> None:
        if change.new is not None and change.old is None:
            self.enqueue_orphan(change.new.obj)

    def enqueue_orphan(self, pod: Obj) -> None:
        """Look after a while whether a Pod's node has come to be."""
        node = pod["spec"].get("nodeName")
        key = f"orphans|{node}"
        if node and self.store.of(NODES).get("", node) is None and key not in self._timers:
            self.enqueue_after(key, ORPHAN_SECONDS)

    def sync(self, key: str) -> None:
        """Bring one node up to date, or remove the Pods of one that is gone."""
        kind, _, gone = key.partition("|")
        if gone:
            self._timers.pop(key, None)
            self._remove_orphans(gone)
            return
        found = self.store.of(NODES).get("", kind)
        if found is None:
            return
        obj = thaw(found.obj)
        taints = tainted(obj)
        if taints:
            obj["spec"]["taints"] = taints
        else:
            obj["spec"].pop("taints", None)
        if self._pools and not obj["spec"].get("podCIDRs"):
            obj["spec"]["podCIDRs"] = [str(item) for item in self._allocate()]
        self.registry.update(NODES, "", kind, obj)

    def _allocate(self) -> list[Network]:
        used = []
        for item in self.store.of(NODES).items.values():
            used += [ip_network(cidr) for cidr in item.obj["spec"].get("podCIDRs") or ()]
        found = []
        for pool in self._pools:
            block = free_cidr(pool, self._prefix_lengths[pool.version], used)
            if block is not None:
                found.append(block)
        return found

    def _remove_orphans(self, node: str) -> None:
        if self.store.of(NODES).get("", node) is not None:
            return
        for item in list(self.store.of(PODS).items.values()):
            if item.obj["spec"].get("nodeName") == node:
                delete(self.registry, PODS, item.namespace, item.name, DELETE_NOW)
