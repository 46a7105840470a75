"""
What the watcher knows: of each object what the Kubernetes API holds and what the fact stream holds.

Compact, because a cluster has 150,000 Pods: one `Entry` an object, the fact kept as the bytes that
are published. Changed in place by `dunlin_watcher.core.step` alone.
"""

import hashlib
from collections.abc import Iterator
from typing import TypeAlias

import msgspec

from dunlin import subjects, wire
from dunlin.events.facts import Fact, Meta
from dunlin_watcher.kinds import KINDS, describe, split_key
from dunlin_watcher.normalise import Problem

ABSENT = b""
"""Digest of an object that does not exist; also the payload of its tombstone."""

Address: TypeAlias = tuple[str, str]
"""(kind, key): names one object."""


class Entry(msgspec.Struct, gc=False):
    """
    One object.

    `version`: resourceVersion last seen in the API by this process as leader, "" if not seen yet.
    `data`: the fact to publish, with its meta; `digest`: of it without meta (`ABSENT`: to be
    deleted). `stored`: digest of what the stream holds, `ABSENT` for a tombstone or nothing, None
    if it cannot be read. `seq`: of the newest message on the subject, 0 if none is known.
    `listing`: number of the list that this object was last seen in.
    """

    uid: str = ""
    version: str = ""
    data: bytes = b""
    digest: bytes = ABSENT
    stored: bytes | None = ABSENT
    seq: int = 0
    listing: int = 0

    @property
    def in_step(self) -> bool:
        """The stream holds what it should."""
        return self.digest == self.stored


class KindState:
    """
    One kind: its objects by key, and how far its list and watch have come.

    `complete`: it has been listed to the end since this process leads. `version`: everything up to
    this resourceVersion has been seen. `tombstones`: sequence of what was deleted, newest last.
    """

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.tombstones: dict[str, int] = {}
        self.listing = 0
        self.complete = False
        self.version = ""

    @property
    def count(self) -> int:
        """Objects that have a fact."""
        return sum(entry.digest != ABSENT for entry in self.entries.values())


class Mark(msgspec.Struct, frozen=True, gc=False):
    """When an object became dirty: `ticket` counts, `since_ms` is Unix time (0: unknown)."""

    ticket: int
    since_ms: int


class State:
    """
    Everything; `dirty` names the objects whose entry and stream differ, in order of their change.

    `inflight`: digest and mark of what has been taken and not yet answered. `stream_known`: the
    stream has been read up to its end, so that it may be compared and written. `bad`,
    `unsupported`: what is wrong with which objects at the moment.
    """

    def __init__(self) -> None:
        self.kinds = {name: KindState() for name in KINDS}
        self.dirty: dict[Address, Mark] = {}
        self.inflight: dict[Address, tuple[bytes, Mark]] = {}
        self.ticket = 0
        self.epoch = ""
        self.stream_known = False
        self.bad: dict[Address, tuple[Problem, ...]] = {}
        self.unsupported: dict[Address, tuple[str, ...]] = {}

    def entry(self, address: Address) -> Entry | None:
        """One object, if anything is known of it."""
        return self.kinds[address[0]].entries.get(address[1])

    @property
    def complete(self) -> bool:
        """Every kind has been listed completely since this process leads."""
        return all(kind.complete for kind in self.kinds.values())

    @property
    def settled(self) -> bool:
        """Nothing waits to be published or acknowledged."""
        return not self.dirty and not self.inflight

    @property
    def oldest_ticket(self) -> int:
        """Everything that became dirty with a smaller ticket has been published."""
        waiting = [mark.ticket for mark in self.dirty.values()]
        waiting += [mark.ticket for _digest, mark in self.inflight.values()]
        return min(waiting, default=self.ticket + 1)

    def facts_of(self, kind: str) -> Iterator[bytes]:
        """The facts of one kind as JSON, as they are published."""
        for entry in self.kinds[kind].entries.values():
            if entry.digest != ABSENT:
                yield entry.data

    def bad_objects(self) -> dict[str, list[str]]:
        """`service default/x` -> what is wrong with it."""
        return {describe(*at): [str(p) for p in found] for at, found in sorted(self.bad.items())}

    def unsupported_objects(self) -> dict[str, list[str]]:
        """`service default/x` -> what it asks for in vain."""
        return {describe(*at): list(found) for at, found in sorted(self.unsupported.items())}


def digest_of(fact: Fact, uid: str) -> bytes:
    """
    16 bytes that are equal for facts that are equal but for `meta`, of one and the same object.

    The uid counts: a Pod that was deleted and made anew under its name is another Pod.
    """
    bare = msgspec.structs.replace(fact, meta=Meta(uid=uid))
    return hashlib.blake2b(wire.encode(bare), digest_size=16).digest()


def subject_of(address: Address) -> str:
    """Where facts of this object are published."""
    namespace, name = split_key(address[1])
    return subjects.fact(address[0], namespace, name)


def address_of(subject: str) -> Address | None:
    """The object that a fact subject belongs to; None for kinds that are not the watcher's."""
    match subjects.split(subject):
        case ["fact", kind, "", name] if kind in KINDS:
            return kind, name
        case ["fact", kind, namespace, name] if kind in KINDS:
            return kind, f"{namespace}/{name}"
    return None
