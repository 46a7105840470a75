"""
Leases in a JetStream key-value bucket, and the helper that keeps one.

Whether somebody else's lease has expired is judged by the observer's own monotonic clock: its
revision has not changed for its time to live since this process first saw that revision. No two
clocks are compared. Every change is a compare-and-set on the key's revision.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import msgspec
import structlog

from dunlin.bus.base import (
    BusError,
    BusUnavailable,
    Lease,
    Leases,
    Message,
    Record,
    WrongLastSequence,
)
from dunlin.bus.nats_api import LEASES_PREFIX, LEASES_STREAM

if TYPE_CHECKING:
    from dunlin.bus.nats import NatsBus

log = structlog.get_logger(__name__)


class _Entry(msgspec.Struct, frozen=True):
    """What the bucket stores; `fencing` 0: the entry's own revision."""

    holder: str
    ttl_s: float
    fencing: int = 0


def key_of(name: str) -> str:
    """The bucket's key for a lease: `=XX` for what keys may not hold."""
    safe = quote(name, safe="-").replace(".", "%2E").replace("~", "%7E").replace("_", "%5F")
    return safe.replace("%", "=")


def name_of(key: str) -> str:
    """Inverse of `key_of`."""
    return unquote(key.replace("=", "%"))


class NatsLeases:
    """`Leases` in the bucket `dunlin.subjects.LEASES_BUCKET`."""

    def __init__(self, bus: "NatsBus", clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: monotonic seconds."""
        self.bus = bus
        self.clock = clock
        self._seen: dict[str, tuple[int, float]] = {}
        self._revisions: dict[tuple[str, int], int] = {}

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """The lease, if it is free, expired or already ours (then with a new fencing number)."""
        record = await self._read(name)
        if record is not None and not record.is_tombstone:
            entry = msgspec.json.decode(record.data, type=_Entry)
            if entry.holder != holder and not self._expired(name, record, entry):
                return None
        now = self.clock()
        revision = await self._write(name, _Entry(holder, ttl_s), record.seq if record else 0)
        if revision is None:
            return None
        self._revisions[name, revision] = revision
        return Lease(name, holder, revision, now + ttl_s)

    async def renew(self, lease: Lease, *, ttl_s: float) -> Lease | None:
        """The lease with a later end; None if it has been lost."""
        now = self.clock()
        expected = self._revisions.get((lease.name, lease.fencing))
        if expected is None:
            expected = await self._revision_of(lease)
            if expected is None:
                return None
        entry = _Entry(lease.holder, ttl_s, lease.fencing)
        revision = await self._write(lease.name, entry, expected)
        if revision is None:
            self._revisions.pop((lease.name, lease.fencing), None)
            # An earlier renewal of ours may have been stored although its answer was lost.
            expected = await self._revision_of(lease)
            if expected is None:
                return None
            revision = await self._write(lease.name, entry, expected)
            if revision is None:
                return None
        self._revisions[lease.name, lease.fencing] = revision
        return Lease(lease.name, lease.holder, lease.fencing, now + ttl_s)

    async def release(self, lease: Lease) -> None:
        """Give it back at once; nothing if it is not ours any more."""
        revision = await self._revision_of(lease)
        self._revisions.pop((lease.name, lease.fencing), None)
        if revision is not None:
            await self._write(lease.name, None, revision)

    async def holders(self, prefix: str) -> dict[str, str]:
        """
        Live leases whose name begins with `prefix`: name -> holder.

        One whose holder died counts as live until this process has seen it unchanged for its ttl.
        """
        live: dict[str, str] = {}
        for name, record in sorted((await self._read_all()).items()):
            if record.is_tombstone or not name.startswith(prefix):
                continue
            entry = msgspec.json.decode(record.data, type=_Entry)
            if not self._expired(name, record, entry):
                live[name] = entry.holder
        return live

    def _expired(self, name: str, record: Record, entry: _Entry) -> bool:
        now = self.clock()
        revision, since = self._seen.get(name, (0, now))
        if revision != record.seq:
            self._seen[name] = (record.seq, now)
            return False
        return now - since >= entry.ttl_s

    async def _revision_of(self, lease: Lease) -> int | None:
        """The key's revision while it is still this very holding of the lease."""
        record = await self._read(lease.name)
        if record is None or record.is_tombstone:
            return None
        entry = msgspec.json.decode(record.data, type=_Entry)
        same = (entry.fencing or record.seq) == lease.fencing and entry.holder == lease.holder
        return record.seq if same else None

    async def _read(self, name: str) -> Record | None:
        return await self.bus.api.last_message(LEASES_STREAM, f"{LEASES_PREFIX}.{key_of(name)}")

    async def _read_all(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        async for batch in self.bus.follow(LEASES_STREAM):
            for record in batch.records:
                found[name_of(record.subject.removeprefix(LEASES_PREFIX + "."))] = record
            if batch.caught_up:
                break
        return found

    async def _write(self, name: str, entry: _Entry | None, expected: int) -> int | None:
        """The new revision, None if somebody else wrote in between."""
        message = Message(
            subject=f"{LEASES_PREFIX}.{key_of(name)}",
            data=b"" if entry is None else msgspec.json.encode(entry),
            msg_id=secrets.token_hex(8),
            expected_seq=expected,
            headers={"KV-Operation": "DEL"} if entry is None else {},
        )
        try:
            return await self.bus.publish(message)
        except WrongLastSequence:
            return None


Changed = Callable[[Lease], Awaitable[None] | None]


class LeaseKeeper:
    """
    Tries to hold one lease for as long as `run` runs.

    `on_gained` is called with each lease that it gets, `on_lost` when it no longer has it: at the
    latest `margin_s` before the lease expires, when renewing did not work. Between both calls
    nobody else holds it. Callbacks may be coroutine functions; keep `on_lost` short.
    """

    def __init__(
        self,
        leases: Leases,
        name: str,
        holder: str,
        *,
        ttl_s: float,
        on_gained: Changed | None = None,
        on_lost: Changed | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.leases = leases
        self.name = name
        self.holder = holder
        self.ttl_s = ttl_s
        self.margin_s = ttl_s / 6
        self.clock = clock
        self.lease: Lease | None = None
        self._on_gained = on_gained
        self._on_lost = on_lost
        self._changed = asyncio.Event()
        self._failed = False

    @property
    def held(self) -> bool:
        """The lease is ours now, by our clock and not only by our bookkeeping."""
        return self.lease is not None and self.clock() < self.lease.expires_at

    async def run(self) -> None:
        """Until cancelled; gives the lease back then."""
        try:
            while True:
                if self.lease is None:
                    await self._try_acquire()
                else:
                    await self._renew()
                await asyncio.sleep(self._pause_s())
        finally:
            await self._give_back()

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["LeaseKeeper", None]:
        """Run in the background for as long as the context lasts."""
        task = asyncio.create_task(self.run(), name=f"lease-{self.name}")
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.wait({task})

    async def wait_held(self) -> Lease:
        """The lease, once it is ours."""
        while self.lease is None:
            await self._changed.wait()
        return self.lease

    def _pause_s(self) -> float:
        """A third of the time to live; sooner after a renewal that failed."""
        if self.lease is None:
            return self.ttl_s / 3
        left = self.lease.expires_at - self.margin_s - self.clock()
        soon = self.ttl_s / (12 if self._failed else 3)
        return max(0.0, min(soon, left))

    async def _try_acquire(self) -> None:
        try:
            lease = await self.leases.acquire(self.name, self.holder, ttl_s=self.ttl_s)
        except BusError as error:
            log.warning("lease not asked for", lease=self.name, error=str(error))
            return
        # Its answer may have taken longer than it is worth.
        if lease is None or lease.expires_at - self.margin_s <= self.clock():
            return
        await self._set(lease)
        log.info("lease gained", lease=self.name, fencing=lease.fencing)
        await _call(self._on_gained, lease)

    async def _renew(self) -> None:
        lease = self.lease
        assert lease is not None
        left = lease.expires_at - self.margin_s - self.clock()
        try:
            async with asyncio.timeout(max(0.0, left)):
                renewed = await self.leases.renew(lease, ttl_s=self.ttl_s)
        except (BusUnavailable, TimeoutError) as error:
            self._failed = True
            if lease.expires_at - self.margin_s <= self.clock():
                await self._lose(lease, f"not renewed in time: {error}")
            return
        self._failed = False
        if renewed is None:
            await self._lose(lease, "somebody else holds it")
        else:
            await self._set(renewed)

    async def _lose(self, lease: Lease, reason: str) -> None:
        self._failed = False
        log.warning("lease lost", lease=self.name, fencing=lease.fencing, reason=reason)
        await self._set(None)
        await _call(self._on_lost, lease)

    async def _set(self, lease: Lease | None) -> None:
        self.lease = lease
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    async def _give_back(self) -> None:
        lease = self.lease
        if lease is None:
            return
        await self._set(None)
        await _call(self._on_lost, lease)
        try:
            async with asyncio.timeout(1):
                await self.leases.release(lease)
        except (BusError, TimeoutError) as error:
            log.info("lease not given back", lease=self.name, error=str(error))


async def _call(callback: Changed | None, lease: Lease) -> None:
    if callback is not None:
        result = callback(lease)
        if result is not None:
            await result
