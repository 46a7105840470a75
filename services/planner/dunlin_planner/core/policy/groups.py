"""Which Pods a group holds; one Pod's change looks only at what its labels lead to."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from dunlin_planner.core.policy.model import Group, Labels, Selector, selects

NAMESPACE_LABEL = "kubernetes.io/metadata.name"


class PodName(NamedTuple):
    """A namespace and a name."""

    namespace: str
    name: str


class _Bucket(NamedTuple):
    """
    Where a group waits for Pods.

    The Pod's namespace ("" any), and one label of the Pod (or, with `of_namespace`, of its
    namespace) that it must have; key "" for none.
    """

    namespace: str = ""
    key: str = ""
    value: str = ""
    of_namespace: bool = False


_Profile = frozenset[tuple[str, str]]
"""Labels as a key."""


class Groups:
    """
    Groups and their members.

    `labels`: of each Pod that can be a member; `namespaces`: labels of each namespace.
    """

    def __init__(self) -> None:
        self.labels: dict[PodName, Labels] = {}
        self.namespaces: dict[str, Labels] = {}
        self.members: dict[Group, set[PodName]] = {}
        self._groups_of: dict[PodName, set[Group]] = {}
        self._alike: dict[str, dict[_Profile, set[PodName]]] = defaultdict(dict)
        """Pods of a namespace by their labels: those of one ReplicaSet have the same."""
        self._buckets: dict[_Bucket, set[Group]] = defaultdict(set)

    def of(self, pod: PodName) -> frozenset[Group]:
        """Every group that holds this Pod."""
        return frozenset(self._groups_of.get(pod, ()))

    def pods_in(self, namespace: str) -> frozenset[PodName]:
        """Every known Pod of a namespace."""
        return frozenset().union(*self._alike.get(namespace, {}).values())

    # --- changes ----------------------------------------------------------------------------------

    def put_pod(self, pod: PodName, labels: Labels | None) -> bool:
        """
        Its labels from now on (None: it is no member of anything).

        Returns:
            Whether its groups changed.
        """
        old = self.labels.pop(pod, None)
        if old is not None:
            self._forget_labels(pod, frozenset(old.items()))
        if labels is not None:
            self.labels[pod] = labels
            alike = self._alike[pod.namespace]
            alike.setdefault(frozenset(labels.items()), set()).add(pod)
        return self._place(pod)

    def put_namespace(self, name: str, labels: Labels | None) -> set[PodName]:
        """Labels of a namespace (None: it is gone); the Pods whose groups changed."""
        if labels is None:
            self.namespaces.pop(name, None)
        else:
            self.namespaces[name] = labels
        return {pod for pod in self.pods_in(name) if self._place(pod)}

    def add(self, group: Group) -> None:
        """Keep its members from now on."""
        if group in self.members:
            return
        self.members[group] = set()
        for bucket in _buckets(group):
            self._buckets[bucket].add(group)
        for namespace in [group.namespace] if group.namespace else list(self._alike):
            if not self._namespace_fits(group, namespace):
                continue
            for labels, pods in self._alike.get(namespace, {}).items():
                if selects(group.pods, dict(labels)):
                    self.members[group] |= pods
                    for pod in pods:
                        self._groups_of.setdefault(pod, set()).add(group)

    def remove(self, group: Group) -> None:
        """Nobody needs it any more."""
        for pod in self.members.pop(group, set()):
            self._forget(pod, group)
        for bucket in _buckets(group):
            self._buckets[bucket].discard(group)
            if not self._buckets[bucket]:
                del self._buckets[bucket]

    # --- inside -----------------------------------------------------------------------------------

    def _forget_labels(self, pod: PodName, labels: _Profile) -> None:
        alike = self._alike[pod.namespace]
        alike[labels].discard(pod)
        if not alike[labels]:
            del alike[labels]
        if not alike:
            del self._alike[pod.namespace]

    def _forget(self, pod: PodName, group: Group) -> None:
        groups = self._groups_of[pod]
        groups.discard(group)
        if not groups:
            del self._groups_of[pod]

    def _place(self, pod: PodName) -> bool:
        old = self._groups_of.get(pod, set())
        new = set(self._matching(pod))
        if new == old:
            return False
        for group in old - new:
            self.members[group].discard(pod)
        for group in new - old:
            self.members[group].add(pod)
        if new:
            self._groups_of[pod] = new
        else:
            del self._groups_of[pod]
        return True

    def _matching(self, pod: PodName) -> Iterator[Group]:
        labels = self.labels.get(pod)
        if labels is None:
            return
        seen: set[Group] = set()
        for bucket in self._places(pod.namespace, labels):
            for group in self._buckets.get(bucket, ()):
                if group not in seen:
                    seen.add(group)
                    if self._namespace_fits(group, pod.namespace) and selects(group.pods, labels):
                        yield group

    def _places(self, namespace: str, labels: Labels) -> Iterator[_Bucket]:
        for scope in (namespace, ""):
            yield _Bucket(scope)
            for key, value in labels.items():
                yield _Bucket(scope, key, value)
        for key, value in self.namespaces.get(namespace, {}).items():
            yield _Bucket("", key, value, of_namespace=True)

    def _namespace_fits(self, group: Group, namespace: str) -> bool:
        if group.namespace:
            return group.namespace == namespace
        labels = self.namespaces.get(namespace)
        # A namespace that is not known yet: only what selects every namespace reaches it.
        return selects(group.namespaces, labels) if labels is not None else not group.namespaces


def _buckets(group: Group) -> tuple[_Bucket, ...]:
    """The buckets of a group: by one `In` of its Pods, else of its namespaces, else one for all."""
    key, values = _one_in(group.pods)
    if key:
        return tuple(_Bucket(group.namespace, key, value) for value in values)
    key, values = _one_in(group.namespaces)
    if key and not group.namespace:
        return tuple(_Bucket("", key, value, of_namespace=True) for value in values)
    return (_Bucket(group.namespace),)


def _one_in(selector: Selector) -> tuple[str, tuple[str, ...]]:
    """The requirement `In` with the fewest values; ("", ()) if there is none."""
    found = [r for r in selector if r.operator == "In"]
    best = min(found, key=lambda r: len(r.values), default=None)
    return (best.key, best.values) if best else ("", ())
