"""Which lists merge by key, of which kind: the `patchMergeKey` of the Kubernetes API types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class MergeList:
    """
    A list whose elements have an identity.

    `key` is the strategic-merge key, empty for a set of plain values; `apply_keys` are the keys of
    server-side apply, where they differ.
    """

    key: str
    apply_keys: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of server-side apply."""
        return self.apply_keys or (self.key,)


Path: TypeAlias = tuple[str, ...]
"""Field names from the object down; list elements add nothing to it."""

_SET = MergeList("")
_CONTAINER: dict[str, MergeList] = {
    "ports": MergeList("containerPort", ("containerPort", "protocol")),
    "env": MergeList("name"),
    "volumeMounts": MergeList("mountPath"),
    "volumeDevices": MergeList("devicePath"),
}
_POD_SPEC: dict[Path, MergeList] = {
    ("containers",): MergeList("name"),
    ("initContainers",): MergeList("name"),
    ("ephemeralContainers",): MergeList("name"),
    ("volumes",): MergeList("name"),
    ("imagePullSecrets",): MergeList("name"),
    ("hostAliases",): MergeList("ip"),
    ("topologySpreadConstraints",): MergeList("topologyKey"),
    **{
        (holder, name): rule
        for holder in ("containers", "initContainers", "ephemeralContainers")
        for name, rule in _CONTAINER.items()
    },
}
_META: dict[Path, MergeList] = {
    ("metadata", "ownerReferences"): MergeList("uid"),
    ("metadata", "finalizers"): _SET,
    ("status", "conditions"): MergeList("type"),
}
_TEMPLATED = {("spec", "template", "spec", *path): rule for path, rule in _POD_SPEC.items()}
_KINDS: dict[str, dict[Path, MergeList]] = {
    "Pod": {
        **{("spec", *path): rule for path, rule in _POD_SPEC.items()},
        ("status", "podIPs"): MergeList("ip"),
        ("status", "hostIPs"): MergeList("ip"),
    },
    "Deployment": _TEMPLATED,
    "ReplicaSet": _TEMPLATED,
    "StatefulSet": _TEMPLATED,
    "DaemonSet": _TEMPLATED,
    "Service": {("spec", "ports"): MergeList("port", ("port", "protocol"))},
    "ServiceAccount": {
        ("secrets",): MergeList("name"),
        ("imagePullSecrets",): MergeList("name"),
    },
    "Node": {
        ("spec", "podCIDRs"): _SET,
        ("spec", "taints"): MergeList("key"),
        ("status", "addresses"): MergeList("type"),
    },
}


@cache
def merge_lists(kind: str) -> dict[Path, MergeList]:
    """Return the keyed lists of a kind by path; every other list is atomic."""
    return {**_META, **_KINDS.get(kind, {})}
