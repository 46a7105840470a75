"""Leases: one holder at a time, fencing numbers that only grow."""

import asyncio
import time
from collections.abc import Callable

from dunlin.bus.base import Bus, Lease
from dunlin.bus.lease_keeper import LeaseKeeper
from tests.fixtures.worlds import World

DEADLINE_S = 15


async def wait_until(reached: Callable[[], bool]) -> None:
    """Wait for a level."""
    async with asyncio.timeout(DEADLINE_S):
        while not reached():
            await asyncio.sleep(0.01)


async def test_one_holder(bus: Bus, world: World) -> None:
    """Who comes second gets nothing; after a release it gets the lease, with a greater fence."""
    first, second = world.leases(bus), world.leases(bus)
    lease = await first.acquire("switch/node.1", "a", ttl_s=30)
    assert lease is not None
    assert await second.acquire("switch/node.1", "b", ttl_s=30) is None
    assert await second.holders("switch/") == {"switch/node.1": "a"}
    await first.release(lease)
    await first.release(lease)
    assert await second.holders("") == {}
    after = await second.acquire("switch/node.1", "b", ttl_s=30)
    assert after is not None
    assert after.fencing > lease.fencing
    assert await first.renew(lease, ttl_s=30) is None


async def test_renew(bus: Bus, world: World) -> None:
    """A renewal keeps the fence and moves the end, again and again, also by another object."""
    leases = world.leases(bus)
    lease = await leases.acquire("janitor", "a", ttl_s=10)
    assert lease is not None
    renewed = lease
    for _ in range(3):
        again = await leases.renew(renewed, ttl_s=20)
        assert again is not None
        renewed = again
    assert renewed.fencing == lease.fencing
    assert renewed.expires_at > lease.expires_at
    assert await world.leases(bus).renew(renewed, ttl_s=20) is not None
    assert await leases.renew(renewed, ttl_s=20) is not None


async def test_expiry(bus: Bus, world: World) -> None:
    """An unrenewed lease can be taken after its time, not before, and its holder learns it."""
    first, second = world.leases(bus), world.leases(bus)
    start = time.monotonic()
    lease = await first.acquire("x", "a", ttl_s=0.3)
    assert lease is not None
    taken: Lease | None = None
    async with asyncio.timeout(DEADLINE_S):
        while taken is None:
            taken = await second.acquire("x", "b", ttl_s=30)
            await asyncio.sleep(0.01)
    assert time.monotonic() - start >= 0.3
    assert taken.fencing > lease.fencing
    assert await first.renew(lease, ttl_s=30) is None
    await first.release(lease)
    assert await second.holders("") == {"x": "b"}


async def test_already_ours(bus: Bus, world: World) -> None:
    """A holder that restarts under its name takes over at once, fencing off its former self."""
    lease = await world.leases(bus).acquire("x", "a", ttl_s=30)
    again = await world.leases(bus).acquire("x", "a", ttl_s=30)
    assert lease is not None
    assert again is not None
    assert again.fencing > lease.fencing
    assert await world.leases(bus).renew(lease, ttl_s=30) is None


async def test_many_contenders(bus: Bus, world: World) -> None:
    """Of twenty that ask at once exactly one gets the lease."""
    contenders = [world.leases(bus) for _ in range(20)]
    results = await asyncio.gather(
        *(leases.acquire("x", f"h{i}", ttl_s=30) for i, leases in enumerate(contenders))
    )
    assert len([result for result in results if result is not None]) == 1


async def test_names_with_any_character(bus: Bus, world: World) -> None:
    """Names may hold dots, slashes, spaces and anything else, and come back as they were."""
    leases = world.leases(bus)
    names = ["a.b", "a/b", "a b", "a=2Eb", "ä", "a_b~%", "-"]
    for name in names:
        assert await leases.acquire(name, "me", ttl_s=30) is not None
    assert set(await leases.holders("")) == set(names)


async def test_keeper_hands_over(bus: Bus, world: World) -> None:
    """Of two keepers one holds; when it stops the other gains, and their times do not overlap."""
    events: list[str] = []

    def keeper(holder: str) -> LeaseKeeper:
        return LeaseKeeper(
            world.leases(bus),
            "x",
            holder,
            ttl_s=0.6,
            on_gained=lambda _lease: events.append(f"+{holder}"),
            on_lost=lambda _lease: events.append(f"-{holder}"),
        )

    async with keeper("b").running() as standby:
        async with keeper("a").running() as active:
            await wait_until(lambda: active.held or standby.held)
            if standby.held:
                return
            # Longer than the time to live: it must have been renewed meanwhile.
            held_since = time.monotonic()
            await wait_until(lambda: time.monotonic() - held_since > 1.0)
            assert active.held
            assert not standby.held
        await asyncio.wait_for(standby.wait_held(), DEADLINE_S)
    assert events == ["+a", "-a", "+b", "-b"]


async def test_keeper_stops_before_the_end_when_the_server_is_gone(bus: Bus, world: World) -> None:
    """Without a server a keeper loses its lease before the end, and gains it again afterwards."""
    lost_at: list[tuple[float, float]] = []
    keeper = LeaseKeeper(
        world.leases(bus),
        "x",
        "a",
        ttl_s=1.0,
        on_lost=lambda lease: lost_at.append((time.monotonic(), lease.expires_at)),
    )
    async with keeper.running():
        first = await asyncio.wait_for(keeper.wait_held(), DEADLINE_S)
        await world.outage()
        await wait_until(lambda: bool(lost_at))
        when, expires_at = lost_at[0]
        assert when < expires_at
        assert not keeper.held
        await world.back()
        again = await asyncio.wait_for(keeper.wait_held(), DEADLINE_S)
        assert again.fencing > first.fencing
