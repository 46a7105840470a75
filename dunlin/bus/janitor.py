"""
Forgetting what is gone: purges the subjects whose tombstone is old enough.

Tombstones must outlive every reader that could still need them, and a message's time to live
cannot end them: the tombstone alone would expire and the message before it would be the newest
again. One replica at a time does this, whoever holds the lease `janitor`.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import aclosing

from dunlin import subjects
from dunlin.bus.base import Bus, BusError, Leases
from dunlin.bus.lease_keeper import LeaseKeeper

log = logging.getLogger("dunlin.bus")

LEASE = "janitor"
LEASE_TTL_S = 15.0


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


class Janitor:
    """Cleans the streams of `dunlin.subjects` every `period_s`, while it holds the lease."""

    def __init__(
        self,
        bus: Bus,
        leases: Leases,
        holder: str,
        *,
        tombstone_age_s: float = 24 * 3600.0,
        period_s: float = 600.0,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        """`tombstone_age_s`: how old a tombstone must be; more than any reader is ever away."""
        self.bus = bus
        self.tombstone_age_s = tombstone_age_s
        self.period_s = period_s
        self.clock_ms = clock_ms
        self.keeper = LeaseKeeper(leases, LEASE, holder, ttl_s=LEASE_TTL_S)
        self.purged = 0

    async def run(self) -> None:
        """Until cancelled."""
        async with self.keeper.running():
            while True:
                await self.keeper.wait_held()
                await self._sweep_all()
                await asyncio.sleep(self.period_s)

    async def _sweep_all(self) -> None:
        for stream in subjects.STREAM_SUBJECTS:
            try:
                count = await self.sweep(stream)
            except BusError as error:
                log.warning("sweep failed stream=%s: %s", stream, error)
                continue
            if count:
                log.info("tombstones purged stream=%s subjects=%d", stream, count)

    async def sweep(self, stream: str) -> int:
        """Purge what is old enough in one stream; how many subjects. A younger message survives."""
        before_ms = self.clock_ms() - self.tombstone_age_s * 1000
        old: dict[str, int] = {}
        async with aclosing(self.bus.follow(stream)) as batches:
            async for batch in batches:
                for record in batch.records:
                    old.pop(record.subject, None)
                    if record.is_tombstone and record.time_ms < before_ms:
                        old[record.subject] = record.seq
                if batch.caught_up:
                    break
        for subject, seq in old.items():
            await self.bus.purge(stream, subject, up_to_seq=seq)
        self.purged += len(old)
        return len(old)
