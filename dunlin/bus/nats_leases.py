"""
Leases in a JetStream key-value bucket.

Whether somebody else's lease has expired is judged by the observer's own monotonic clock: its
revision has not changed for its time to live since this process first saw that revision. No two
clocks are compared. Every change is a compare-and-set on the key's revision.
"""

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import msgspec

from dunlin import wire
from dunlin.bus.base import Lease, Message, Record, WrongLastSequence
from dunlin.bus.nats_api import LEASES_PREFIX, LEASES_STREAM

log = logging.getLogger("dunlin.bus")

if TYPE_CHECKING:
    from dunlin.bus.nats import NatsBus


class _Entry(msgspec.Struct, frozen=True):
    """What the bucket stores; `fencing` 0: the entry's own revision."""

    holder: str
    ttl_s: float
    fencing: int = 0


def _entry_of(name: str, record: Record) -> _Entry | None:
    """None for what no holder writes: it holds nothing, or one message would stop every service."""
    try:
        return wire.decode(record.data, _Entry)
    except msgspec.DecodeError as error:
        log.warning("lease %s: %s: taken for free", name, error)
        return None


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
            entry = _entry_of(name, record)
            if entry and entry.holder != holder and not self._expired(name, record, entry):
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
            entry = _entry_of(name, record)
            if entry and not self._expired(name, record, entry):
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
        entry = _entry_of(lease.name, record)
        if entry is None:
            return None
        same = (entry.fencing or record.seq) == lease.fencing and entry.holder == lease.holder
        return record.seq if same else None

    async def _read(self, name: str) -> Record | None:
        return await self.bus.api.last_message(LEASES_STREAM, f"{LEASES_PREFIX}.{key_of(name)}")

    async def _read_all(self) -> dict[str, Record]:
        found: dict[str, Record] = {}
        async with aclosing(self.bus.follow(LEASES_STREAM)) as batches:
            async for batch in batches:
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
