"""Leases on switches: one replica writes to a switch at a time."""

import contextlib
from collections.abc import AsyncIterator, Callable

from dunlin.bus.base import Lease, Leases
from dunlin.bus.lease_keeper import LeaseKeeper
from dunlin_flowctl.level import Signal

LOOK_S = 1.0
"""How often one who waits for a lease looks whether it is still wanted."""


class Held:
    """A lease while it is kept alive; `valid` must be true whenever something is written."""

    def __init__(self, keeper: LeaseKeeper, lease: Lease) -> None:
        self._keeper = keeper
        self.fencing = lease.fencing

    @property
    def valid(self) -> bool:
        """Still the same holding of the lease."""
        lease = self._keeper.lease
        return self._keeper.held and lease is not None and lease.fencing == self.fencing


class Ownership:
    """Takes and keeps leases for this replica."""

    def __init__(self, leases: Leases, holder: str, ttl_s: float) -> None:
        self._leases = leases
        self._holder = holder
        self._ttl_s = ttl_s

    @contextlib.asynccontextmanager
    async def hold(
        self, name: str, wanted: Callable[[], bool], signal: Signal
    ) -> AsyncIterator[Held | None]:
        """
        Waits for the lease while `wanted`; None when it is not wanted any more. Gives it back.

        `signal` is notified when the lease is gained or lost.
        """
        keeper = LeaseKeeper(
            self._leases,
            name,
            self._holder,
            ttl_s=self._ttl_s,
            on_gained=lambda _lease: signal.notify(),
            on_lost=lambda _lease: signal.notify(),
        )
        async with keeper.running():
            while wanted() and keeper.lease is None:
                await signal.wait_for(lambda: keeper.lease is not None or not wanted(), LOOK_S)
            lease = keeper.lease
            yield Held(keeper, lease) if lease is not None and wanted() else None
