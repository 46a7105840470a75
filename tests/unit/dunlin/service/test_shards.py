"""Shards of work over replicas, when the bus is slow."""

import asyncio

import pytest

from dunlin.bus.base import Lease
from dunlin.bus.memory import MemoryLeases, MemoryServer
from dunlin.service.shards import ShardLeases


class StuckLeases(MemoryLeases):
    """The third shard's acquisition hangs."""

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the memory's, but for shard 2."""
        if name == "planner/2":
            await asyncio.Event().wait()
        return await super().acquire(name, holder, ttl_s=ttl_s)


async def test_a_turn_that_is_cut_short_says_what_it_gained() -> None:
    """Shards that were acquired before the time was over are announced: their work starts."""
    told: list[frozenset[int]] = []
    shards = ShardLeases(StuckLeases(MemoryServer()), "planner", "a", 4, ttl_s=5.0)
    shards.on_change = lambda: told.append(shards.owned())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await shards.turn()
    assert told == [{0, 1}]
