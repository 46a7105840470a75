"""Keeping a lease: acquire it, renew it, and know in time when it is lost."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from dunlin.bus.base import BusError, BusUnavailable, Lease, Leases

log = logging.getLogger("dunlin.bus")

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
            log.warning("lease not asked for lease=%s: %s", self.name, error)
            return
        # Its answer may have taken longer than it is worth.
        if lease is None or lease.expires_at - self.margin_s <= self.clock():
            return
        await self._set(lease)
        log.info("lease gained lease=%s fencing=%s", self.name, lease.fencing)
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
        log.warning("lease lost lease=%s fencing=%s: %s", self.name, lease.fencing, reason)
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
            log.info("lease not given back lease=%s: %s", self.name, error)


async def _call(callback: Changed | None, lease: Lease) -> None:
    if callback is not None:
        result = callback(lease)
        if result is not None:
            await result
