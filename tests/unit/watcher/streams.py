"""A fact stream that a test writes and reads, and how a watcher's state meets it."""

import json
from typing import Any

import msgspec

from dunlin.bus.base import Message, Record
from dunlin_watcher.core import step, take
from dunlin_watcher.events import (
    LeadershipChanged,
    ListEnded,
    ListStarted,
    Published,
    Refused,
    Seen,
    StreamRead,
)
from dunlin_watcher.state import State
from tests.scenario.watcher.objects import pod


def raw(name: str, version: int, ip: str = "10.0.0.1", uid: str = "") -> bytes:
    """A Pod as JSON."""
    obj = pod(name, ip)
    obj["metadata"] |= {"resourceVersion": str(version), "uid": uid or f"uid-{name}"}
    return json.dumps(obj).encode()


class Stream:
    """A fact stream that stores by compare-and-set, and shows its records."""

    def __init__(self) -> None:
        self.seq = 0
        self.last: dict[str, Record] = {}
        self.log: list[Record] = []

    def store(self, message: Message) -> int | None:
        """The sequence; None if the expected one is wrong."""
        last = self.last.get(message.subject)
        if message.expected_seq != (last.seq if last else 0):
            return None
        return self.write(message.subject, message.data)

    def write(self, subject: str, data: bytes) -> int:
        """Store whatever somebody writes."""
        self.seq += 1
        record = Record(subject, data, self.seq, 0)
        self.last[subject] = record
        self.log.append(record)
        return self.seq

    def alive(self) -> dict[str, Any]:
        """Name -> fact without meta."""
        found = {}
        for record in self.last.values():
            if not record.is_tombstone:
                fact = msgspec.json.decode(record.data)
                fact.pop("meta")
                found[fact["name"]] = fact
        return found


def publish(state: State, stream: Stream) -> list[Message]:
    """Publish until nothing is dirty; returns what was stored."""
    stored = []
    while chosen := take(state, 10):
        for address, message in chosen:
            seq = stream.store(message)
            if seq is None:
                step(state, Refused(address, stream.last.get(message.subject), looked_up=True))
            else:
                stored.append(message)
                step(state, Published(address, seq))
    return stored


def listed(state: State, *pods: bytes, version: int = 1000) -> None:
    """A complete list of Pods."""
    step(state, ListStarted("pod"))
    for item in pods:
        step(state, Seen("pod", item, 1))
    step(state, ListEnded("pod", str(version)))


def started(stream: Stream | None = None) -> State:
    """A state that knows its stream."""
    state = State()
    records = tuple(stream.last.values()) if stream else ()
    step(state, LeadershipChanged())
    step(state, StreamRead("e1", records, caught_up=True))
    return state
