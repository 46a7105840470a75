"""
The watcher's decisions: what is published, and when a fact may be deleted. Pure: no I/O, no clock.

    outcome = step(state, event)      # changes `state` in place; says what is wrong with the input
    messages = take(state, count)     # what to publish now; answer each with Published or Refused

Level-triggered: an object is dirty while what the API holds and what the stream holds differ,
so events may be repeated, reordered between objects or coalesced, and the same facts result.
"""

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

import msgspec

from dunlin import wire
from dunlin.bus.base import Message, Record
from dunlin.events.facts import AnyFact, Fact
from dunlin_watcher.events import (
    NOTHING,
    Bookmark,
    Event,
    Gone,
    LeadershipChanged,
    ListEnded,
    ListStarted,
    Published,
    Refused,
    Report,
    Seen,
    StreamRead,
)
from dunlin_watcher.kinds import describe
from dunlin_watcher.normalise import (
    Identity,
    Normalised,
    UnreadableError,
    explain,
    identify,
    normalise,
)
from dunlin_watcher.state import (
    ABSENT,
    Address,
    Entry,
    Mark,
    State,
    address_of,
    digest_of,
    subject_of,
)

TOMBSTONES_MAX = 50_000
"""
Sequences of tombstones remembered per kind; beyond it a re-made object costs one more round trip.
"""


def step(state: State, event: Event) -> Report:
    """Take one event in. The only function that changes a `State`, with `take`."""
    match event:
        case Seen():
            return _seen(state, event)
        case Gone():
            return _gone(state, event)
        case ListStarted():
            state.kinds[event.kind].listing += 1
        case ListEnded():
            _list_ended(state, event)
        case Bookmark():
            state.kinds[event.kind].version = event.version
        case StreamRead():
            return _stream_read(state, event)
        case Published():
            _published(state, event)
        case Refused():
            _refused(state, event)
        case LeadershipChanged():
            _leadership_changed(state)
        case _:
            assert_never(event)
    return NOTHING


def take(state: State, count: int) -> list[tuple[Address, Message]]:
    """
    At most `count` messages to publish now, oldest change first; none before the stream is known.

    An object whose message is under way waits until that one is answered.
    """
    if not state.stream_known:
        return []
    chosen: list[tuple[Address, Message]] = []
    for address in list(state.dirty):
        if len(chosen) == count:
            break
        if address in state.inflight:
            continue
        entry = state.entry(address)
        assert entry is not None
        state.inflight[address] = (entry.digest, state.dirty.pop(address))
        data = entry.data if entry.digest != ABSENT else ABSENT
        chosen.append((address, Message(subject_of(address), data, expected_seq=entry.seq)))
    return chosen


def missing(
    state: State, kind: str, listed: Mapping[str, tuple[str, str]], list_version: str
) -> list[str]:
    """
    The objects whose present state in the API this state does not cover yet, by key.

    Args:
        listed: key -> (uid, resourceVersion) of a complete list, made at `list_version`.
    """
    known = state.kinds[kind]
    behind = [key for key, seen in listed.items() if not _covers(known.entries.get(key), *seen)]
    if not reached(known.version, list_version):
        behind += [
            key
            for key, entry in known.entries.items()
            if key not in listed and entry.version and not reached(entry.version, list_version)
        ]
    return behind


def _covers(entry: Entry | None, uid: str, version: str) -> bool:
    if entry is None or not entry.version:
        return False
    if entry.uid == uid and entry.version == version:
        return True
    return reached(entry.version, version)


def reached(ours: str, theirs: str) -> bool:
    """
    Our resourceVersion is the same or later.

    Kubernetes >= 1.35 promises that versions compare as numbers, and older ones made by etcd do;
    versions that are no numbers are only equal or not.
    """
    if ours.isdecimal() and theirs.isdecimal():
        return int(ours) >= int(theirs)
    return ours == theirs


# --- from the API ---------------------------------------------------------------------------------


def _leadership_changed(state: State) -> None:
    state.dirty.clear()
    state.inflight.clear()
    for kind in state.kinds.values():
        kind.complete = False
        kind.version = ""
        for entry in kind.entries.values():
            entry.version = ""
    state.bad.clear()
    state.unsupported.clear()


def _seen(state: State, event: Seen) -> Report:
    try:
        found = normalise(event.kind, event.raw)
    except UnreadableError as error:
        return Report(event.kind, (("name", str(error)),))
    identity = found.identity
    kind = state.kinds[event.kind]
    entry = kind.entries.get(identity.key)
    if entry is None:
        entry = kind.entries[identity.key] = Entry(seq=kind.tombstones.pop(identity.key, 0))
    entry.uid, entry.listing = identity.uid, kind.listing
    # An object without a resourceVersion (no server of ours) still counts as seen.
    entry.version = identity.resource_version or "0"
    if found.fact is not None:
        digest = digest_of(found.fact, identity.uid)
        if digest != entry.digest:
            fact = msgspec.structs.replace(found.fact, meta=found.meta(event.now_ms))
            entry.data, entry.digest = wire.encode(fact), digest
    _compare(state, (event.kind, identity.key), entry, event.now_ms)
    return _judge(state, event.kind, identity, found)


def _judge(state: State, kind: str, identity: Identity, found: Normalised) -> Report:
    """Remember what is wrong with the object; report what was not wrong before."""
    address = (kind, identity.key)
    known, asked = state.bad.get(address, ()), state.unsupported.get(address, ())
    _remember(state.bad, address, found.problems)
    _remember(state.unsupported, address, found.unsupported)
    if not found.problems and not found.unsupported:
        return NOTHING
    return Report(
        kind,
        tuple((p.word, explain(kind, identity.key, p)) for p in found.problems if p not in known),
        tuple(
            (field, describe(kind, identity.key))
            for field in found.unsupported
            if field not in asked
        ),
    )


def _remember(
    table: dict[Address, tuple[Any, ...]], address: Address, value: tuple[Any, ...]
) -> None:
    if value:
        table[address] = value
    else:
        table.pop(address, None)


def _gone(state: State, event: Gone) -> Report:
    try:
        identity = identify(event.kind, event.raw)
    except UnreadableError as error:
        return Report(event.kind, (("name", str(error)),))
    _delete(state, (event.kind, identity.key), event.now_ms)
    return NOTHING


def _delete(state: State, address: Address, now_ms: int = 0) -> None:
    entry = state.entry(address)
    state.bad.pop(address, None)
    state.unsupported.pop(address, None)
    if entry is None:
        return
    entry.uid, entry.version, entry.data, entry.digest = "", "", b"", ABSENT
    _compare(state, address, entry, now_ms)


def _list_ended(state: State, event: ListEnded) -> None:
    kind = state.kinds[event.kind]
    kind.complete = True
    kind.version = event.version
    gone = [key for key, entry in kind.entries.items() if entry.listing != kind.listing]
    for key in gone:
        _delete(state, (event.kind, key))


def _compare(state: State, address: Address, entry: Entry, now_ms: int = 0) -> None:
    """Dirty or not; forgets an object that is nowhere."""
    kind = state.kinds[address[0]]
    if not entry.in_step:
        # Neither confirmed nor denied by the API yet: leave the stream as it is.
        if (entry.version or kind.complete) and address not in state.dirty:
            state.ticket += 1
            state.dirty[address] = Mark(state.ticket, now_ms)
        return
    state.dirty.pop(address, None)
    if entry.digest == ABSENT and not entry.version and address not in state.inflight:
        del kind.entries[address[1]]
        _remember_tombstone(kind.tombstones, address[1], entry.seq)


def _remember_tombstone(tombstones: dict[str, int], key: str, seq: int) -> None:
    tombstones.pop(key, None)
    if seq:
        tombstones[key] = seq
    if len(tombstones) > TOMBSTONES_MAX:
        del tombstones[next(iter(tombstones))]


# --- from and to the stream -----------------------------------------------------------------------


def _stream_read(state: State, event: StreamRead) -> Report:
    if event.reset or event.epoch != state.epoch:
        _forget_stream(state)
        state.epoch = event.epoch
    bad: list[tuple[str, str]] = []
    for record in event.records:
        address = address_of(record.subject)
        if address is not None:
            bad += _stored(state, address, record)
    if event.caught_up:
        state.stream_known = True
    return Report("fact", tuple(bad)) if bad else NOTHING


def _forget_stream(state: State) -> None:
    """Another life of the stream holds nothing of ours; what is under way is for the old one."""
    state.stream_known = False
    state.inflight.clear()
    for name, kind in state.kinds.items():
        kind.tombstones.clear()
        for key, entry in list(kind.entries.items()):
            entry.stored, entry.seq = ABSENT, 0
            _compare(state, (name, key), entry)


def _stored(state: State, address: Address, record: Record) -> Iterable[tuple[str, str]]:
    """One record; what the API has not confirmed is believed until a list is complete."""
    kind, key = state.kinds[address[0]], address[1]
    entry = kind.entries.get(key)
    if record.seq <= (entry.seq if entry else kind.tombstones.get(key, 0)):
        return ()
    if entry is None:
        if record.is_tombstone:
            _remember_tombstone(kind.tombstones, key, record.seq)
            return ()
        entry = kind.entries[key] = Entry()
        kind.tombstones.pop(key, None)
    entry.stored, fact, bad = _read(record)
    entry.seq = record.seq
    if not entry.version and not kind.complete:
        entry.digest = entry.stored or ABSENT
        entry.data = record.data if fact is not None else b""
        entry.uid = fact.meta.uid if fact is not None else ""
    _compare(state, address, entry)
    return bad


def _read(record: Record) -> tuple[bytes | None, Fact | None, tuple[tuple[str, str], ...]]:
    """(digest or None, fact or None, what is wrong with it)."""
    if record.is_tombstone:
        return ABSENT, None, ()
    try:
        fact: Fact = wire.decode(record.data, AnyFact)  # type: ignore[arg-type]
    except msgspec.DecodeError as error:
        return None, None, (("fact", f"{record.subject}: seq {record.seq}: {error}"),)
    return digest_of(fact, fact.meta.uid), fact, ()


def _published(state: State, event: Published) -> None:
    taken = state.inflight.pop(event.address, None)
    entry = state.entry(event.address)
    if taken is None or entry is None:
        return
    if event.seq >= entry.seq:
        entry.seq, entry.stored = event.seq, taken[0]
    _compare(state, event.address, entry)


def _refused(state: State, event: Refused) -> None:
    taken = state.inflight.pop(event.address, None)
    entry = state.entry(event.address)
    if taken is None or entry is None:
        return
    if event.looked_up:
        entry.seq = event.last.seq if event.last else 0
        entry.stored = _read(event.last)[0] if event.last else ABSENT
    _compare(state, event.address, entry)
    if event.address in state.dirty:
        # It has been waiting since it was taken, not since now.
        state.dirty[event.address] = taken[1]
