"""
The bus without a server, for tests and simulations in one process.

A `MemoryServer` plays nats-server: any number of `MemoryBus` connect to one, and a test can stop
it, start it and delete its streams.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from dunlin import subjects
from dunlin.bus.base import (
    BATCH_MAX,
    HISTORY_PER_SUBJECT,
    Batch,
    BusError,
    BusUnavailable,
    Handler,
    Lease,
    Message,
    NoResponder,
    Record,
    Subscription,
    WrongLastSequence,
)
from dunlin.bus.filters import matches, predicate, reduce_filters
from dunlin.bus.serving import answer

DUPLICATE_WINDOW_S = 120.0


@dataclass(eq=False)
class _Follower:
    """One `follow`: what waits for it, and how far the stream has passed by."""

    wanted: Callable[[str], bool]
    pending: deque[Record] = field(default_factory=deque)
    seq: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, record: Record) -> None:
        if self.wanted(record.subject):
            self.pending.append(record)
        self.seq = record.seq
        self.wake.set()


@dataclass(eq=False)
class _Stream:
    """One life of one stream."""

    name: str
    epoch: str
    per_subject: int
    seq: int = 0
    deleted: bool = False
    by_subject: dict[str, deque[Record]] = field(default_factory=dict)
    ids: dict[str, tuple[int, float]] = field(default_factory=dict)
    followers: set[_Follower] = field(default_factory=set)

    def last(self, subject: str) -> Record | None:
        stored = self.by_subject.get(subject)
        return stored[-1] if stored else None

    def store(self, message: Message, now: float) -> int:
        first = self._first_copy(message.msg_id, now)
        if message.expected_seq is not None:
            last = self.last(message.subject)
            actual = last.seq if last else 0
            if actual != message.expected_seq and (not first or first != actual):
                raise WrongLastSequence(message.subject, message.expected_seq, actual)
        if first:
            return first
        self.seq += 1
        record = Record(message.subject, message.data, self.seq, int(time.time() * 1000))
        self.by_subject.setdefault(message.subject, deque(maxlen=self.per_subject)).append(record)
        if message.msg_id is not None:
            self.ids[message.msg_id] = (self.seq, now)
        for follower in self.followers:
            follower.offer(record)
        return self.seq

    def _first_copy(self, msg_id: str | None, now: float) -> int:
        """Sequence of the message that had this msg_id within the window, 0 if none had."""
        seq, at = self.ids.get(msg_id or "", (0, now))
        return seq if now - at < DUPLICATE_WINDOW_S else 0

    def stored(self, wanted: Callable[[str], bool], *, history: bool) -> list[Record]:
        """What a newcomer reads first, by sequence."""
        found: list[Record] = []
        for subject, records in self.by_subject.items():
            if wanted(subject):
                found.extend(records if history else [records[-1]])
        return sorted(found, key=lambda record: record.seq)

    def purge(self, subject: str, up_to_seq: int | None) -> None:
        kept = [r for r in self.by_subject.pop(subject, ()) if r.seq > (up_to_seq or self.seq)]
        if kept:
            self.by_subject[subject] = deque(kept, maxlen=self.per_subject)


@dataclass(eq=False)
class _Served:
    """One `serve`: its pattern, queue group and handler; stopping takes it off the server."""

    server: "MemoryServer"
    pattern: str
    queue: str
    handler: Handler

    async def stop(self) -> None:
        """End it; idempotent."""
        if self in self.server.served:
            self.server.served.remove(self)


@dataclass
class _Held:
    """What the lease bucket stores of one lease."""

    holder: str
    fencing: int
    expires_at: float


class MemoryServer:
    """What nats-server would keep; `clock` is monotonic, in seconds (leases, duplicate window)."""

    _epochs = itertools.count(1)

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.up = True
        self.streams: dict[str, _Stream] = {}
        self.served: list[_Served] = []
        self.leases: dict[str, _Held] = {}
        self._fencing = itertools.count(1)
        self._changed = asyncio.Event()

    def stop(self) -> None:
        """Play a server that does not answer; what it stored stays."""
        self.up = False
        self.announce()

    def start(self) -> None:
        """End `stop`."""
        self.up = True
        self.announce()

    def delete_stream(self, name: str) -> None:
        """Delete a stream with all that it holds; nothing if there is none."""
        stream = self.streams.pop(name, None)
        if stream is not None:
            stream.deleted = True
            for follower in stream.followers:
                follower.wake.set()

    def ensure(self, name: str) -> None:
        """Make a stream if it is missing."""
        if name in self.streams:
            return
        depth = HISTORY_PER_SUBJECT[name]
        self.streams[name] = _Stream(name, f"{name}-{next(self._epochs)}", depth)
        self.announce()

    def next_fencing(self) -> int:
        """A number greater than all before it."""
        return next(self._fencing)

    async def changed(self) -> None:
        """Wait until the server starts, stops or has one stream more."""
        await self._changed.wait()

    def announce(self) -> None:
        """Wake whoever waits in `changed`."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()


class MemoryBus:
    """`Bus` on a `MemoryServer` (its own, if none is given)."""

    def __init__(self, server: MemoryServer | None = None) -> None:
        self.server = server or MemoryServer()
        self._closed = False
        self._turns = itertools.count()
        self._following: set[_Follower] = set()

    @property
    def connected(self) -> bool:
        """The server is up and this bus not closed."""
        return self.server.up and not self._closed

    def _need(self, what: str) -> None:
        if not self.connected:
            raise BusUnavailable(f"{what}: no connection")

    def _stream(self, name: str) -> _Stream:
        self._need(name)
        try:
            return self.server.streams[name]
        except KeyError:
            raise BusUnavailable(f"{name}: no such stream") from None

    def _stream_of(self, subject: str) -> _Stream:
        return self._stream(subjects.stream_of(subject))

    async def ensure_streams(self) -> None:
        """Make what is missing."""
        self._need("ensure_streams")
        for name in subjects.STREAM_SUBJECTS:
            self.server.ensure(name)

    async def epoch(self, stream: str) -> str:
        """Names this life of the stream."""
        return self._stream(stream).epoch

    async def last_seq(self, stream: str) -> int:
        """Sequence of the newest message, 0 if there is none."""
        return self._stream(stream).seq

    async def publish(self, message: Message) -> int:
        """Store one message; yields to the loop once, as a network would."""
        await asyncio.sleep(0)
        return self._stream_of(message.subject).store(message, self.server.clock())

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """One result a message, in order."""
        await asyncio.sleep(0)
        results: list[int | BusError] = []
        for message in messages:
            try:
                stream = self._stream_of(message.subject)
                results.append(stream.store(message, self.server.clock()))
            except BusError as error:
                results.append(error)
        return results

    async def get_last(self, subject: str) -> Record | None:
        """The newest message of one subject."""
        return self._stream_of(subject).last(subject)

    async def purge(self, stream: str, subject: str, *, up_to_seq: int | None = None) -> None:
        """Forget a subject, or what it holds up to a sequence."""
        self._stream(stream).purge(subject, up_to_seq)

    async def follow(
        self, stream: str, filters: Sequence[str] = (), *, history: bool = False
    ) -> AsyncGenerator[Batch, None]:
        """The state now, then every change."""
        wanted = predicate(reduce_filters(filters))
        epoch: str | None = None
        while True:
            life = await self._life(stream)
            with self._register(life, wanted, history=history) as follower:
                reset = epoch is not None
                epoch = life.epoch
                async for batch in self._drain(life, follower, reset=reset):
                    yield batch

    async def _life(self, stream: str) -> _Stream:
        """The stream, once it exists and can be reached."""
        while not (self.connected and stream in self.server.streams):
            if self._closed:
                raise BusUnavailable(f"{stream}: the bus is closed")
            await self.server.changed()
        return self.server.streams[stream]

    @contextmanager
    def _register(
        self, life: _Stream, wanted: Callable[[str], bool], *, history: bool
    ) -> Iterator[_Follower]:
        pending = deque(life.stored(wanted, history=history))
        follower = _Follower(wanted, pending, life.seq)
        follower.wake.set()
        life.followers.add(follower)
        self._following.add(follower)
        try:
            yield follower
        finally:
            self._following.discard(follower)
            life.followers.discard(follower)

    async def _drain(
        self, life: _Stream, follower: _Follower, *, reset: bool
    ) -> AsyncGenerator[Batch, None]:
        """Batches until the stream is deleted."""
        while not life.deleted:
            await follower.wake.wait()
            await asyncio.sleep(0)
            if self._closed:
                raise BusUnavailable(f"{life.name}: the bus is closed")
            if life.deleted:
                return
            count = min(len(follower.pending), BATCH_MAX)
            records = tuple(follower.pending.popleft() for _ in range(count))
            caught_up = not follower.pending
            if caught_up:
                follower.wake.clear()
            seq = follower.seq if caught_up else records[-1].seq
            yield Batch(records, life.epoch, seq, caught_up=caught_up, reset=reset)
            reset = False

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:
        """One request, one reply; members of one queue group take turns."""
        self._need(subject)
        serving = [served for served in self.server.served if matches(served.pattern, subject)]
        if not serving:
            raise NoResponder(f"{subject}: nobody serves it")
        chosen = serving[next(self._turns) % len(serving)]
        try:
            async with asyncio.timeout(timeout_s):
                return await answer(chosen.handler, subject, data)
        except TimeoutError:
            raise BusUnavailable(f"{subject}: no reply within {timeout_s} s") from None

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Answer requests on `subject`."""
        self._need(subject)
        served = _Served(self.server, subject, queue, handler)
        self.server.served.append(served)
        return served

    async def close(self) -> None:
        """Disconnect; idempotent."""
        self._closed = True
        for follower in self._following:
            follower.wake.set()
        self.server.announce()


class MemoryLeases:
    """`Leases` on a `MemoryServer`; expiry by the server's own clock."""

    def __init__(self, server: MemoryServer) -> None:
        self.server = server

    def _now(self) -> float:
        if not self.server.up:
            raise BusUnavailable("leases: no connection")
        return self.server.clock()

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """The lease, if it is free, expired or already ours (then with a new fencing number)."""
        now = self._now()
        held = self.server.leases.get(name)
        if held is not None and held.holder != holder and held.expires_at > now:
            return None
        held = _Held(holder, self.server.next_fencing(), now + ttl_s)
        self.server.leases[name] = held
        return Lease(name, holder, held.fencing, held.expires_at)

    async def renew(self, lease: Lease, *, ttl_s: float) -> Lease | None:
        """The lease with a later end; None if it has been lost."""
        now = self._now()
        held = self.server.leases.get(lease.name)
        if held is None or held.fencing != lease.fencing:
            return None
        held.expires_at = now + ttl_s
        return Lease(lease.name, lease.holder, lease.fencing, held.expires_at)

    async def release(self, lease: Lease) -> None:
        """Give it back at once; nothing if it is not ours any more."""
        self._now()
        held = self.server.leases.get(lease.name)
        if held is not None and held.fencing == lease.fencing:
            del self.server.leases[lease.name]

    async def holders(self, prefix: str) -> dict[str, str]:
        """Live leases whose name begins with `prefix`: name -> holder."""
        now = self._now()
        return {
            name: held.holder
            for name, held in sorted(self.server.leases.items())
            if name.startswith(prefix) and held.expires_at > now
        }
