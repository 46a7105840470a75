"""Floods at flowctl: they coalesce, memory does not grow with them, nothing else waits for them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dunlin import wire
from dunlin.bus.base import Message
from dunlin.events.intents import AnyIntent
from dunlin_flowctl.runner import SwitchRunner
from tests.scenario.flowctl.test_histories import World
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import (
    NODES,
    Change,
    endpoint_intent,
    service_intent,
    switch_intent,
)

FLAPS = 1_000


@asynccontextmanager
async def a_world(bundle_max: int = 5_000) -> AsyncIterator[tuple[World, Flowctl]]:
    """Two switches in step with the intents, one replica."""
    world = World(await Cluster().start(), 0)
    await world.start("a", bundle_max=bundle_max)
    for node in NODES:
        world.history.append(Change(switch_intent(node), gone=False))
    await world.settled(await world.cluster.intend(*map(switch_intent, NODES)))
    try:
        yield world, world.replicas["a"]
    finally:
        await world.close()


async def flood(world: World, intents: list[AnyIntent]) -> int:
    """All at once; the sequence of the last."""
    world.history += [Change(intent, gone=False) for intent in intents]
    messages = [Message(intent.subject, wire.encode(intent)) for intent in intents]
    seq = (await world.cluster.bus.publish_many(messages))[-1]
    assert isinstance(seq, int), seq
    return seq


def committed(replica: Flowctl) -> float:
    """Bundles so far."""
    return replica.sample("dunlin_flowctl_bundles_total", result="committed")


async def test_a_flapping_endpoint_while_the_switches_are_slow() -> None:
    """What changed a thousand times is one thing to write; another Service goes with it."""
    async with a_world() as (world, replica):
        runners = [replica.handles.runners[node] for node in NODES]
        before = committed(replica)
        async with _stuck(runners):
            flaps = [service_intent("x", (1 + number % 2,)) for number in range(FLAPS)]
            half = FLAPS // 2
            other: AnyIntent = service_intent("y", (1, 2, 3), port=81)
            seq = await flood(world, [*flaps[:half], other, *flaps[half:]])
            await until(lambda: replica.handles.desired.revision >= seq, "all is read")
            for runner in runners:
                assert runner.switch is not None
                assert len(runner.switch.lacking) <= 2
            assert len(replica.handles.desired.intents) == len(NODES) + 2
        await world.settled(seq)
        # One piece of work may have been taken before all was read, and one after.
        assert committed(replica) - before <= 2 * 2
        assert len(replica.handles.cache._changes) <= replica.handles.cache.changes_max


@asynccontextmanager
async def _stuck(runners: list[SwitchRunner]) -> AsyncIterator[None]:
    """Switches that do not answer meanwhile."""
    for runner in runners:
        await runner.session._turn.acquire()
    try:
        yield
    finally:
        for runner in runners:
            runner.session._turn.release()


async def test_a_thousand_pods_at_once() -> None:
    """Their interfaces on one node are a few bundles, and the other node is not asked."""
    async with a_world() as (world, replica):
        before = committed(replica)
        ips = [f"10.1.{number // 250}.{number % 250}" for number in range(1_000)]
        pods: list[AnyIntent] = [
            endpoint_intent("n1", f"p{number}", 10 + number, ip=ip) for number, ip in enumerate(ips)
        ]
        other = endpoint_intent("n2", "alone", 10, ip="10.2.0.1")
        seq = await flood(world, [*pods[:500], other, *pods[500:]])
        reply = await world.cluster.barrier("n2", seq)
        assert reply.applied
        await world.settled(seq)
        assert committed(replica) - before <= 1_000 / 10


async def test_more_than_a_bundle_holds() -> None:
    """A flood is cut into bundles of the size that is set, no more of them than that takes."""
    async with a_world(bundle_max=100) as (world, replica):
        before = committed(replica)
        services: list[AnyIntent] = [
            service_intent(f"s{number}", (1, 2), port=1_000 + number) for number in range(500)
        ]
        async with _stuck([replica.handles.runners[node] for node in NODES]):
            seq = await flood(world, services)
            await until(lambda: replica.handles.desired.revision >= seq, "all is read")
        await world.settled(seq)
        messages = len(world.holding("n1")[0])
        # What a switch says of itself is taken back before, and said anew after it.
        assert committed(replica) - before <= 2 * (messages / 100 + 6 + 2)
