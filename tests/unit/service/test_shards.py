"""Shards by lease: fair shares, failover, and two that believe the same."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from dunlin.bus.memory import MemoryLeases, MemoryServer
from dunlin.service.shards import ShardLeases


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def member(server: MemoryServer, name: str, count: int = 16) -> ShardLeases:
    """A replica that takes its turns when the test says so."""
    return ShardLeases(MemoryLeases(server), "planner", name, count, ttl_s=3.0, clock=server.clock)


async def test_shares_are_fair_and_move_little() -> None:
    """One has all; a second takes half, and what stays was not moved; a third makes it 6, 5, 5."""
    server = MemoryServer(Clock())
    one, two, three = (member(server, name) for name in ("a", "b", "c"))
    await one.turn()
    assert one.owned() == frozenset(range(16))
    for _ in range(2):
        await two.turn()
        await one.turn()
    await two.turn()
    assert len(one.owned()) == len(two.owned()) == 8
    assert one.owned() == frozenset(range(8))
    for _ in range(3):
        for replica in (three, one, two):
            await replica.turn()
    assert sorted(len(r.owned()) for r in (one, two, three)) == [5, 5, 6]
    assert one.owned() | two.owned() | three.owned() == frozenset(range(16))


async def test_the_dead_are_replaced() -> None:
    """Who takes no turns loses its shards by time, and knows it before anybody takes them."""
    clock = Clock()
    server = MemoryServer(clock)
    one, two = member(server, "a"), member(server, "b")
    for _ in range(3):
        await one.turn()
        await two.turn()
    assert len(one.owned()) == 8
    clock.now += 2.6
    assert one.owned() == frozenset(), "by its own clock, with a margin"
    await two.turn()
    assert len(two.owned()) == 8, "not yet anybody else's"
    clock.now += 1.0
    await two.turn()
    assert len(two.owned()) == 16


async def test_a_lease_that_lapsed_and_nobody_took_is_still_held() -> None:
    """Nothing may be written meanwhile, but nothing is given up either: the next turn renews it."""
    clock = Clock()
    one = member(MemoryServer(clock), "a")
    await one.turn()
    told: list[int] = []
    one.on_change = lambda: told.append(len(one.held()))
    clock.now += 100.0
    assert one.owned() == frozenset()
    assert one.held() == frozenset(range(16))
    before = one.fencing()
    await one.turn()
    assert one.owned() == frozenset(range(16))
    assert (told, one.fencing()) == ([], before), "it is one and the same holding"


async def test_a_lease_that_lapsed_and_that_somebody_took_is_lost() -> None:
    """Who was stopped longer than its leases last finds out with its next turn."""
    clock = Clock()
    server = MemoryServer(clock)
    one, two = member(server, "a"), member(server, "b")
    await one.turn()
    clock.now += 100.0
    await two.turn()
    assert len(two.owned()) == 16
    assert one.held() == frozenset(range(16)), "it cannot know yet"
    assert one.owned() == frozenset()
    await one.turn()
    assert not one.held() & two.held()


async def test_changes_are_told() -> None:
    """Gained and lost shards call `on_change`; a quiet turn does not."""
    clock = Clock()
    server = MemoryServer(clock)
    one = member(server, "a")
    told: list[int] = []
    one.on_change = lambda: told.append(len(one.owned()))
    await one.turn()
    await one.turn()
    assert told == [16]
    server.leases["planner/3"].fencing += 1000
    await one.turn()
    assert told[1:] == [15, 16], "somebody else took it; it is free at once here"


@asynccontextmanager
async def running(replica: ShardLeases) -> AsyncIterator[ShardLeases]:
    """In the background."""
    task = asyncio.create_task(replica.run())
    # A task that is cancelled before its first step has nothing to give back.
    await asyncio.sleep(0)
    try:
        yield replica
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_clean_stop_gives_back_at_once() -> None:
    """The other need not wait for the time to live."""
    server = MemoryServer()
    async with AsyncExitStack() as stack:
        two = member(server, "b")
        async with running(member(server, "a")) as one:
            await one.turn()
            assert len(one.owned()) == 16
        await stack.enter_async_context(running(two))
        await two.turn()
        assert len(two.owned()) == 16
