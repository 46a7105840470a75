"""Leases on switches: one replica writes to a switch at a time."""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable

import structlog

from dunlin.bus.base import BusError, Lease, Leases

log = structlog.get_logger(__name__)

MARGIN = 0.2
"""Writing stops this part of the time to live before the lease ends: messages are on their way."""


class Held:
    """A lease while it is kept alive; `valid` must be true whenever something is written."""

    def __init__(self, leases: Leases, lease: Lease, ttl_s: float) -> None:
        self._leases = leases
        self._ttl_s = ttl_s
        self.lease = lease
        self.lost = False

    @property
    def valid(self) -> bool:
        """Still ours, with a margin."""
        return not self.lost and time.monotonic() < self.lease.expires_at - MARGIN * self._ttl_s

    async def keep(self, on_loss: Callable[[], None]) -> None:
        """Renew until it is lost; `on_loss` is then called once."""
        while not self.lost:
            await asyncio.sleep(self._ttl_s / 3 * random.uniform(0.8, 1.0))  # noqa: S311 - jitter
            try:
                renewed = await self._leases.renew(self.lease, ttl_s=self._ttl_s)
            except BusError as error:
                log.warning("cannot renew lease", lease=self.lease.name, error=str(error))
                self.lost = not self.valid
                continue
            if renewed is None:
                self.lost = True
            else:
                self.lease = renewed
        log.warning("lease lost", lease=self.lease.name)
        on_loss()


class Ownership:
    """Takes and keeps leases `switch/<dpid in 16 hex digits>` for this replica."""

    def __init__(self, leases: Leases, holder: str, ttl_s: float) -> None:
        self._leases = leases
        self._holder = holder
        self._ttl_s = ttl_s

    async def _acquire(self, name: str) -> Lease | None:
        try:
            return await self._leases.acquire(name, self._holder, ttl_s=self._ttl_s)
        except BusError as error:
            log.warning("cannot take lease", lease=name, error=str(error))
            return None

    @contextlib.asynccontextmanager
    async def hold(
        self, name: str, wanted: Callable[[], bool], on_loss: Callable[[], None]
    ) -> AsyncIterator[Held | None]:
        """Waits for the lease while `wanted`; None when it is not wanted any more. Gives it back."""
        lease = None
        while wanted() and (lease := await self._acquire(name)) is None:
            await asyncio.sleep(self._ttl_s / 4 * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        if lease is None:
            yield None
            return
        held = Held(self._leases, lease, self._ttl_s)
        keeping = asyncio.create_task(held.keep(on_loss), name=f"lease {name}")
        try:
            yield held
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})
            if not held.lost:
                held.lost = True
                try:
                    await self._leases.release(held.lease)
                except BusError as error:
                    log.warning("cannot release lease", lease=name, error=str(error))
