"""
Objects by revision, in memory, as etcd and the watch cache hold them.

One counter numbers every write. Each collection keeps its latest changes, so that a watch can
resume and a paginated list can go on at the revision of its first page; what is older is
compacted (410). Nothing here knows what an object means.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from heapq import merge
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol

from dunlin_lab.apiserver.errors import expired
from dunlin_lab.apiserver.resources import RESOURCES, Resource
from dunlin_lab.apiserver.values import Obj, decode, encode, key_of, meta

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LAST = "\uffff"
"""Greater than any character of a name."""

HISTORY_MAX = 20_000
"""Changes kept of each kind; older ones are compacted."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """One version of one object. `body` is its JSON without kind and apiVersion."""

    key: str
    namespace: str
    name: str
    revision: int
    obj: Obj
    body: bytes

    def full(self, resource: Resource) -> bytes:
        """Its JSON with kind and apiVersion."""
        return head_of(resource) + self.body[1:]


def head_of(resource: Resource) -> bytes:
    """Return the opening of an object's JSON, up to and with the comma after apiVersion."""
    return f'{{"kind":"{resource.kind}","apiVersion":"{resource.api_version}",'.encode()


@dataclass(slots=True, eq=False)
class Change:
    """One write: created (no old), updated, or deleted (no new)."""

    resource: Resource
    revision: int
    old: Stored | None
    new: Stored | None
    _lines: dict[str, bytes] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The key of the object."""
        return self.latest.key

    @property
    def latest(self) -> Stored:
        """The object as it is, or was before its deletion."""
        found = self.new if self.new is not None else self.old
        assert found is not None, "a change has an old or a new version"
        return found

    def departed(self) -> Stored:
        """Return the old object with this change's revision, as a DELETED event shows it."""
        assert self.old is not None, "nothing can be DELETED that was not there"
        obj = decode(self.old.body)
        obj["metadata"]["resourceVersion"] = str(self.revision)
        return stored_of(obj, self.revision)

    def line(self, kind: str) -> bytes:
        """Return the watch event of this type, encoded once for all watchers."""
        found = self._lines.get(kind)
        if found is None:
            shown = self.departed() if kind == "DELETED" else self.latest
            found = event_line(kind, shown.full(self.resource))
            self._lines[kind] = found
        return found


def event_line(kind: str, body: bytes) -> bytes:
    """Frame one watch event."""
    return b'{"type":"%s","object":%s}\n' % (kind.encode(), body)


def stored_of(obj: Obj, revision: int) -> Stored:
    """Freeze an object; its kind and apiVersion are dropped, its collection knows them."""
    obj.pop("kind", None)
    obj.pop("apiVersion", None)
    metadata = meta(obj)
    namespace, name = metadata.get("namespace", ""), metadata["name"]
    ordered = {"metadata": obj.pop("metadata"), **obj}
    return Stored(key_of(namespace, name), namespace, name, revision, ordered, encode(ordered))


class Journal(Protocol):
    """Where changes are made durable, before anyone sees them."""

    def record(self, change: Change) -> None:
        """Write down one change."""


class Collection:
    """All objects of one kind, and the latest changes to them."""

    def __init__(self, resource: Resource, history_max: int = HISTORY_MAX) -> None:
        """Start empty."""
        self.resource = resource
        self.items: dict[str, Stored] = {}
        self.by_namespace: dict[str, dict[str, Stored]] = {}
        self.history: deque[Change] = deque()
        self.compacted = 0
        self.subscribers: list[Callable[[Change], None]] = []
        self._history_max = history_max
        self._sorted: list[str] | None = None

    def get(self, namespace: str, name: str) -> Stored | None:
        """Return the object, if there is one."""
        return self.items.get(key_of(namespace, name))

    def within(self, namespace: str) -> Iterable[Stored]:
        """Return the objects of a namespace, or all for the empty string, unordered."""
        if not namespace:
            return self.items.values()
        return self.by_namespace.get(namespace, {}).values()

    def apply(self, change: Change) -> None:
        """Take in one change, without telling anyone."""
        key, latest = change.key, change.latest
        if change.new is None:
            self.items.pop(key, None)
            self.by_namespace.get(latest.namespace, {}).pop(key, None)
            self._sorted = None
        else:
            if key not in self.items:
                self._sorted = None
            self.items[key] = change.new
            self.by_namespace.setdefault(latest.namespace, {})[key] = change.new
        self.history.append(change)
        if len(self.history) > self._history_max:
            self.compacted = self.history.popleft().revision

    def since(self, revision: int) -> list[Change]:
        """
        Return the changes after a revision, oldest first.

        Raises:
            ApiError: 410 when some of them are compacted.
        """
        if revision < self.compacted:
            message = f"too old resource version: {revision} ({self.compacted + 1})"
            raise expired(message)
        recent = takewhile(lambda change: change.revision > revision, reversed(self.history))
        return list(recent)[::-1]

    def _keys(self) -> list[str]:
        if self._sorted is None:
            self._sorted = sorted(self.items)
        return self._sorted

    def scan(self, revision: int, prefix: str, after: str) -> Iterator[Stored]:
        """
        Yield the objects as they stood at a revision, in key order.

        Args:
            prefix: only keys with this prefix (`namespace/`, or empty).
            after: only keys greater than this one.

        Raises:
            ApiError: 410 when that state can no longer be rebuilt.
        """
        past: dict[str, Stored | None] = {}
        for change in reversed(self.since(revision)):
            past[change.key] = change.old
        keys = self._keys()
        start = bisect_right(keys, max(after, prefix))
        bygone = sorted(key for key in past if key not in self.items and key > max(after, prefix))
        slice_ = (keys[index] for index in range(start, len(keys)))
        for key in merge(slice_, bygone) if bygone else slice_:
            if not key.startswith(prefix):
                break
            found = past[key] if key in past else self.items[key]
            if found is not None:
                yield found

    def count_after(self, revision: int, prefix: str, after: str) -> int:
        """
        Count what `scan` would yield, without walking it.

        Raises:
            ApiError: as `scan`.
        """
        keys, start = self._keys(), max(after, prefix)
        count = bisect_right(keys, prefix + _LAST) - bisect_right(keys, start)
        past: dict[str, Stored | None] = {}
        for change in reversed(self.since(revision)):
            past[change.key] = change.old
        for key, found in past.items():
            if key > start and key.startswith(prefix):
                count += (found is not None) - (key in self.items)
        return count


class Store:
    """All collections and the revision they share."""

    def __init__(self, journal: Journal | None = None, history_max: int = HISTORY_MAX) -> None:
        """Start empty at revision 1, as a new etcd does."""
        self.revision = 1
        self.journal = journal
        self._collections = {
            resource.qualified: Collection(resource, history_max) for resource in RESOURCES
        }

    def of(self, resource: Resource) -> Collection:
        """Return the collection of a kind."""
        return self._collections[resource.qualified]

    def put(self, resource: Resource, obj: Obj) -> Stored:
        """
        Create or replace an object; takes `obj` over and gives it its resourceVersion.

        Returns:
            The version stored.
        """
        collection = self.of(resource)
        revision = self.revision + 1
        obj["metadata"]["resourceVersion"] = str(revision)
        new = stored_of(obj, revision)
        self._commit(collection, Change(resource, revision, collection.items.get(new.key), new))
        return new

    def remove(self, resource: Resource, namespace: str, name: str) -> Stored:
        """Delete an object that exists; returns it with the revision of its deletion."""
        collection = self.of(resource)
        old = collection.items[key_of(namespace, name)]
        change = Change(resource, self.revision + 1, old, None)
        self._commit(collection, change)
        return change.departed()

    def _commit(self, collection: Collection, change: Change) -> None:
        if self.journal is not None:
            self.journal.record(change)
        self.revision = change.revision
        collection.apply(change)
        for subscriber in tuple(collection.subscribers):
            subscriber(change)

    def subscribe(
        self, resource: Resource, subscriber: Callable[[Change], None]
    ) -> Callable[[], None]:
        """Call back on every later change of a kind, within the write; returns how to stop."""
        subscribers = self.of(resource).subscribers
        subscribers.append(subscriber)
        return lambda: subscribers.remove(subscriber)

    def restore(self, resource: Resource, key: str, revision: int, obj: Obj | None) -> None:
        """Take in a change read back from the journal; None deletes."""
        collection = self.of(resource)
        old = collection.items.get(key)
        if obj is not None:
            collection.apply(Change(resource, revision, old, stored_of(obj, revision)))
        elif old is not None:
            collection.apply(Change(resource, revision, old, None))
        self.revision = max(self.revision, revision)

    def preload(self, resource: Resource, obj: Obj) -> None:
        """Take in an object of a snapshot: it is there, but has no history."""
        collection = self.of(resource)
        item = stored_of(obj, int(obj["metadata"]["resourceVersion"]))
        collection.items[item.key] = item
        collection.by_namespace.setdefault(item.namespace, {})[item.key] = item

    def compact_at(self, revision: int) -> None:
        """Say that nothing is known of changes up to this revision."""
        self.revision = max(self.revision, revision)
        for resource in RESOURCES:
            self.of(resource).compacted = revision
