"""Desired intents reach the stream, and a watermark is claimed for what is really owned."""

import asyncio
import sys
from collections.abc import Callable
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any

import msgspec

from dunlin import subjects, wire
from dunlin.bus.memory import MemoryBus
from dunlin.events.intents import AnyIntent, RouteIntent
from dunlin.events.state import Progress
from dunlin.model.addresses import MacAddress
from dunlin.service.intent_writer import IntentWriter, Role, Watermark

ROUTE = RouteIntent(
    scope="all", key="n1", cidrs=(), addresses=(), router_mac=MacAddress("0a:00:00:00:00:01")
)
CIDR = ip_network("198.18.0.0/24")
MARK = Watermark("facts", 7, complete=True)
SHARDS = frozenset({0, 1})


@asynccontextmanager
async def writing(
    bus: MemoryBus,
    owned: Callable[[], frozenset[int]],
    **options: Any,
) -> Any:
    """A writer of routes that knows what stands."""
    await bus.ensure_streams()
    role = Role("planner", "me", 2, lambda _subject: 0, owned, **options)
    writer = IntentWriter(bus, (f"{subjects.PREFIX}.intent.*.route.*",), role, lambda: None)
    task = asyncio.create_task(writer.follow())
    try:
        yield writer
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()


async def claim_of(bus: MemoryBus) -> Progress | None:
    """What this replica claims."""
    record = await bus.get_last(subjects.progress("planner", "me"))
    return wire.decode(record.data, Progress) if record else None


async def test_difference_is_written_once_and_claimed() -> None:
    """A second flush of the same desire writes nothing."""
    bus = MemoryBus()
    async with writing(bus, lambda: SHARDS) as writer:
        writer.want({ROUTE.subject: ROUTE})
        assert await writer.flush(MARK, SHARDS)
        assert await writer.flush(MARK, SHARDS)
        record = await bus.get_last(ROUTE.subject)
        assert record is not None
        intent: AnyIntent = wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]
        assert intent == ROUTE
        assert writer.published == 1
        claim = await claim_of(bus)
        assert claim is not None
        assert (claim.fact_seq, claim.shards, claim.complete) == (7, (0, 1), True)


async def test_a_lease_away_for_a_moment_is_told() -> None:
    """What is not owned at that moment is not claimed, and the caller learns to claim it again."""
    bus = MemoryBus()
    owned = [frozenset({0})]
    async with writing(bus, lambda: owned[0]) as writer:
        assert not await writer.flush(MARK, SHARDS)
        claim = await claim_of(bus)
        assert claim is not None
        assert claim.shards == (0,)
        owned[0] = SHARDS
        assert await writer.flush(MARK, SHARDS)
        claim = await claim_of(bus)
        assert claim is not None
        assert claim.shards == (0, 1)


async def test_what_was_to_be_written_while_the_lease_was_away_is_written_after() -> None:
    """Not forgotten, and not claimed before: though the same shards are owned before and after."""
    bus = MemoryBus()
    owned: list[frozenset[int]] = [frozenset()]
    async with writing(bus, lambda: owned[0]) as writer:
        writer.want({ROUTE.subject: ROUTE})
        await writer.write()
        assert not await writer.flush(MARK, SHARDS)
        assert await claim_of(bus) is None
        owned[0] = SHARDS
        assert await writer.flush(MARK, SHARDS)
        assert await bus.get_last(ROUTE.subject) is not None


async def test_a_lease_that_blinks_during_a_flush_claims_nothing_of_its_shard() -> None:
    """Away while the messages are made, back when the claim is: the next flush claims it."""
    bus = MemoryBus()
    asked: list[int] = []

    def owned() -> frozenset[int]:
        asked.append(1)
        return frozenset({1}) if len(asked) == 1 else SHARDS

    async with writing(bus, owned) as writer:
        await writer.flush(MARK, frozenset())
        writer.want({ROUTE.subject: ROUTE})
        asked.clear()
        assert not await writer.flush(MARK, SHARDS)
        claim = await claim_of(bus)
        assert claim is not None
        assert claim.shards == (1,)
        assert await writer.flush(MARK, SHARDS)
        claim = await claim_of(bus)
        assert claim is not None
        assert claim.shards == (0, 1)
        assert await bus.get_last(ROUTE.subject) is not None


async def test_held_intents_hold_the_claim() -> None:
    """While an intent may not begin, nothing is claimed, and the caller learns to try again."""
    bus = MemoryBus()
    may = [False]
    async with writing(bus, lambda: SHARDS, may_begin=lambda _subject: may[0]) as writer:
        writer.want({ROUTE.subject: ROUTE})
        assert not await writer.flush(MARK, SHARDS)
        assert await claim_of(bus) is None
        may[0] = True
        assert await writer.flush(MARK, SHARDS)
        assert await claim_of(bus) is not None


async def test_what_was_written_once_costs_nothing_later() -> None:
    """A set that held 20,000 intents is looked at whole, empty or not: it is small again."""
    bus = MemoryBus()
    async with writing(bus, lambda: SHARDS) as writer:
        routes = [msgspec.structs.replace(ROUTE, key=f"n{number}") for number in range(20_000)]
        writer.want({route.subject: route for route in routes})
        full = sys.getsizeof(writer.pending)
        assert await writer.flush(MARK, SHARDS)
        assert writer.published == len(routes)
        writer.want({ROUTE.subject: msgspec.structs.replace(ROUTE, cidrs=(CIDR,))})
        assert await writer.flush(MARK, SHARDS)
        assert sys.getsizeof(writer.pending) < full / 1000
