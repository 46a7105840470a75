"""The whole planner on a bus: what it publishes, and when; restarts, replicas, lost streams."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from dunlin import subjects, wire
from dunlin.bus import leases
from dunlin.bus.base import Bus, Message
from dunlin.events.facts import Fact, PodFact, SyncFact
from dunlin.events.intents import AnyIntent, ServicePortIntent
from dunlin.events.state import Progress
from dunlin.service.metrics import Metrics
from dunlin.service.shards import ShardLeases
from dunlin_planner import shell as shell_module
from dunlin_planner.config import PlannerSettings
from dunlin_planner.core.events import Event, Owned
from dunlin_planner.core.step import Changes, step
from dunlin_planner.observer import Observer
from dunlin_planner.shell import Shell
from dunlin_planner.state import SHARD_COUNT, State
from tests.fixtures.worlds import World
from tests.scenario import worlds
from tests.scenario.worlds import forget, meanwhile, tell, until
from tests.unit.planner.build import CLUSTER, endpoint, node, service, slice_of, switch

SETTINGS = PlannerSettings(
    replica="p1",
    pod_cidrs=CLUSTER.pod_cidrs,
    service_cidrs=CLUSTER.service_cidrs,
    lease_ttl_s=1.0,
    agents_grace_s=30.0,
)
SYNC = SyncFact(name="watcher")
NONSENSE = b"no intent at all"


@asynccontextmanager
async def running(world: World, **changes: Any) -> AsyncIterator[Shell]:
    """A replica until the context ends; leases are given back then, as by SIGTERM."""
    settings = replace(SETTINGS, **changes)
    bus = await world.bus()
    await bus.ensure_streams()
    metrics = Metrics("planner", "test")
    shards = ShardLeases(
        leases(bus), "planner", settings.replica, SHARD_COUNT, ttl_s=settings.lease_ttl_s
    )
    shell = Shell(bus, shards, settings, metrics, Observer(metrics.registry))
    shards.on_change = shell.nudge.set
    work = (
        shell.writer.follow(),
        shell.read(),
        shell.attend(),
        shards.run(),
        shell.claims.follow(),
    )
    async with meanwhile(*work):
        yield shell


class Reader(worlds.Reader[AnyIntent]):
    """What the planner publishes."""

    def __init__(self) -> None:
        super().__init__(AnyIntent, "planner", SHARD_COUNT, skip=NONSENSE)

    @property
    def services(self) -> dict[str, list[str]]:
        """Key -> endpoints of every ServicePort."""
        return {
            intent.key: [str(end.ip) for end in intent.endpoints]
            for intent in self.intents.values()
            if isinstance(intent, ServicePortIntent)
        }


class Ipam:
    """Claims whatever it has read, in the streams that there are; `silent`: nothing for now."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.silent = False
        self.read = ("", 0)

    async def read_facts(self) -> None:
        """Follow the facts."""
        async for batch in self.bus.follow(subjects.FACTS_STREAM):
            self.read = (batch.epoch, batch.seq)
            await self.claim()

    async def read_intents(self) -> None:
        """Notice a new stream of intents."""
        async for batch in self.bus.follow(subjects.INTENTS_STREAM):
            if batch.reset:
                await self.claim()

    async def claim(self) -> None:
        """Say how far."""
        if self.silent:
            return
        claim = Progress(
            service="ipam",
            replica="fake",
            fact_epoch=self.read[0],
            fact_seq=self.read[1],
            intent_epoch=await self.bus.epoch(subjects.INTENTS_STREAM),
            intent_seq=0,
            complete=True,
        )
        await self.bus.publish(Message(claim.subject, wire.encode(claim)))


@pytest.fixture
async def ipam(bus: Bus) -> AsyncIterator[Ipam]:
    """An ipam that is always done."""
    made = Ipam(bus)
    async with meanwhile(made.read_facts(), made.read_intents()):
        yield made


@pytest.fixture
async def reader(bus: Bus, ipam: Ipam) -> AsyncIterator[Reader]:
    """Reads intents and claims meanwhile."""
    made = Reader()
    async with meanwhile(made.read_intents(bus), made.read_progress(bus)):
        yield made


FACTS = (
    node("n1"),
    switch("n1"),
    service("a", "10.96.0.1"),
    service("b", "10.96.0.2"),
    slice_of("a", endpoint("10.244.1.5"), name="a-1"),
)


async def test_facts_become_intents(world: World, bus: Bus, reader: Reader) -> None:
    """From nothing to claimed intents; then one change is one message, and a claim covers it."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        assert reader.services == {"default/a:http/TCP": ["10.244.1.5"], "default/b:http/TCP": []}
        assert len(reader.intents) == 4
        assert all(claim.complete for claim in reader.progress.values())
        before = reader.writes
        seq = await tell(bus, slice_of("b", endpoint("10.244.1.6"), name="b-1", trigger_ms=123))
        await until(lambda: reader.claims(seq))
        claim = reader.progress["p1"]
        await until(lambda: reader.writes == before + 1)
        (changed,) = [i for i in reader.intents.values() if i.key == "default/b:http/TCP"]
        assert changed.trigger_ms == 123
        assert claim.intent_seq >= before + 1
        seq = await forget(bus, FACTS[3])
        await until(lambda: reader.claims(seq) and list(reader.services) == ["default/a:http/TCP"])


async def test_a_flapping_endpoint_coalesces(world: World, bus: Bus, reader: Reader) -> None:
    """A thousand changes at once of one slice are few intents; another Service does not wait."""
    async with running(world):
        await until_claimed(bus, reader, *FACTS, SYNC)
        before = reader.writes
        flaps = [
            slice_of("b", endpoint(f"10.244.1.{6 + number % 2}"), name="b-1", trigger_ms=number)
            for number in range(1_000)
        ]
        other = slice_of("a", endpoint("10.244.1.9"), name="a-1")
        news = [*flaps[:500], other, *flaps[500:]]
        results = await bus.publish_many([Message(f.subject, wire.encode(f)) for f in news])
        last = results[-1]
        assert isinstance(last, int), last
        await until(lambda: reader.claims(last))
        expected = {"default/a:http/TCP": ["10.244.1.9"], "default/b:http/TCP": ["10.244.1.7"]}
        await until(lambda: reader.services == expected)
        assert reader.writes - before <= len(news) / 10


async def until_claimed(bus: Bus, reader: Reader, *facts: Fact) -> None:
    """Tell, and wait for the planner's claims."""
    seq = await tell(bus, *facts)
    await until(lambda: reader.claims(seq))


async def test_nothing_before_the_watcher_is_done(world: World, bus: Bus, reader: Reader) -> None:
    """A Service whose slices are still to come is not published without endpoints."""
    async with running(world) as shell:
        seq = await tell(bus, *FACTS[:4])
        await until(lambda: shell.seq == seq)
        assert shell.not_ready() is not None
        await tell(bus, FACTS[4], SYNC)
        await until(lambda: len(reader.intents) == 4)
        assert reader.writes == 4, "each was written once, and whole"


async def test_a_restart_writes_only_differences(world: World, bus: Bus, reader: Reader) -> None:
    """Equal intents are left alone; what went meanwhile is withdrawn, what changed is written."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await until(lambda: reader.writes == 4)
    await forget(bus, FACTS[3])
    seq = await tell(bus, slice_of("a", endpoint("10.244.1.7"), name="a-1"))
    async with running(world, replica="p2"):
        await until(lambda: reader.claims(seq))
        await until(lambda: reader.services == {"default/a:http/TCP": ["10.244.1.7"]})
        assert reader.writes == 6


async def test_bad_facts_do_no_harm(world: World, bus: Bus, reader: Reader) -> None:
    """The last good state stays, before and after a restart; everything else goes on."""
    async with running(world) as shell:
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        for data in (b"\xff\xfe garbage", b'{"kind":"service","name":"a","ports":[{"port":0}]}'):
            await bus.publish(Message(FACTS[2].subject, data))
        await bus.publish(Message(f"{subjects.PREFIX}.fact.service.x.y.z", b"{}"))
        await bus.publish(Message(subjects.fact("service", "x", "y"), b"{}"))
        seq = await tell(bus, service("c", "10.96.0.3"))
        await until(lambda: reader.claims(seq) and len(reader.services) == 3)
        assert len(shell.reader.bad) == 3
        (reason,) = [r for s, r in shell.reader.bad.items() if s == FACTS[2].subject]
        assert "$" in reason, "the field is named"
    before = reader.writes
    async with running(world, replica="p2") as shell:
        await until(lambda: "p2" in reader.progress and shell.complete)
        assert len(reader.services) == 3
        assert reader.writes == before
        seq = await tell(bus, service("a", "10.96.0.9"))
        await until(lambda: reader.claims(seq) and FACTS[2].subject not in shell.reader.bad)


async def test_a_shard_is_planned_in_slices(
    world: World, bus: Bus, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many Pods: between two slices the loop turns, so leases are renewed meanwhile."""
    sizes: list[int] = []
    real = step

    def seen(state: State, events: Iterable[Event]) -> Changes:
        known = list(events)
        sizes.extend(len(e.units) for e in known if isinstance(e, Owned) and e.units is not None)
        return real(state, known)

    monkeypatch.setattr("dunlin_planner.shell.step", seen)
    count = 3 * shell_module.SLICE
    pods: list[Fact] = [PodFact(namespace="d", name=f"p{n}", node="n1") for n in range(count)]
    await tell(bus, *FACTS, *pods, SYNC)
    async with running(world):
        # Every Pod is a unit as a peer and as a subject.
        await until(lambda: sum(sizes) >= 2 * count)
    assert max(sizes) <= shell_module.SLICE


async def test_the_fact_stream_is_lost(world: World, bus: Bus, reader: Reader) -> None:
    """Nothing is withdrawn or changed before the new stream is whole; then the differences are."""
    async with running(world) as shell:
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await until(lambda: reader.writes == 4)
        await world.delete_stream(subjects.FACTS_STREAM)
        await bus.ensure_streams()
        epoch = await bus.epoch(subjects.FACTS_STREAM)
        seq = await tell(bus, *FACTS[:3])
        await until(lambda: (shell.epoch, shell.seq) == (epoch, seq))
        assert reader.writes == 4
        seq = await tell(bus, FACTS[4], SYNC)
        await until(lambda: reader.claims(seq) and reader.progress["p1"].fact_epoch == epoch)
        await until(lambda: list(reader.services) == ["default/a:http/TCP"])
        assert reader.writes == 5


async def test_the_intent_stream_is_lost(world: World, bus: Bus, reader: Reader) -> None:
    """Everything is written anew, and the claim names the new stream."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await until(lambda: len(reader.intents) == 4)
        before = dict(reader.intents)
        await world.delete_stream(subjects.INTENTS_STREAM)
        await bus.ensure_streams()
        epoch = await bus.epoch(subjects.INTENTS_STREAM)
        await until(lambda: reader.progress["p1"].intent_epoch == epoch)
        await until(lambda: reader.intents == before)


async def test_an_outage(world: World, bus: Bus, reader: Reader) -> None:
    """The server goes and comes back: what changed meanwhile is written after."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await world.outage()
        await asyncio.sleep(1.2)  # Longer than the leases live: they are lost, and taken again.
        await world.back()
        await until(lambda: bus.connected)
        seq = await tell(bus, service("late", "10.96.0.77"))
        await until(lambda: reader.claims(seq) and "default/late:http/TCP" in reader.services)


async def test_replicas_share_the_work(world: World, bus: Bus, reader: Reader) -> None:
    """
    Three replicas divide the shards.

    One dies silently, another takes over; nothing is written twice.
    """
    services = [service(f"s{n}", f"10.96.1.{n}") for n in range(1, 41)]
    async with AsyncExitStack() as stack:
        shells = [
            await stack.enter_async_context(running(world, replica=f"r{n}")) for n in range(3)
        ]
        seq = await tell(bus, *FACTS, *services, SYNC)
        await until(lambda: reader.claims(seq))
        await until(lambda: sorted(len(s.state.shards) for s in shells) == [5, 5, 6], "balance")
        seq = await tell(bus, service("more", "10.96.2.1"))
        await until(lambda: reader.claims(seq))
        await until(lambda: len(reader.services) == 43)
        assert reader.writes == 45
        assert {s for shell in shells for s in shell.state.shards} == set(range(SHARD_COUNT))


async def test_a_write_by_somebody_else_is_put_right(
    world: World, bus: Bus, reader: Reader
) -> None:
    """A stale replica, or anybody, overwrites an intent: it is noticed and written again."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await until(lambda: len(reader.services) == 2)
        (subject,) = [s for s, i in reader.intents.items() if i.key == "default/a:http/TCP"]
        good = reader.intents[subject]
        await bus.publish(Message(subject, b""))
        await until(lambda: reader.writes == 6 and reader.intents.get(subject) == good)
        await bus.publish(Message(subject, NONSENSE))
        await until(lambda: reader.writes == 8 and reader.intents.get(subject) == good)
        stray = subjects.intent("all", "service", "default/ghost:/TCP")
        ghost = ServicePortIntent(
            scope="all",
            key="default/ghost:/TCP",
            service_namespace="default",
            service_name="ghost",
            protocol=good.protocol,  # type: ignore[union-attr, arg-type]
            port=1,
            addresses=(),
        )
        await bus.publish(Message(stray, wire.encode(ghost)))
        await until(lambda: reader.writes == 10 and stray not in reader.intents)


async def test_a_silent_agent_holds_tombstones_back(world: World, bus: Bus, reader: Reader) -> None:
    """A ready node without its switch: intents go out, nothing is withdrawn."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
    await world.delete_stream(subjects.FACTS_STREAM)
    await bus.ensure_streams()
    await tell(bus, *(f for f in FACTS if f.name != "b"), node("n2", 2), service("c", "10.96.0.3"))
    async with running(world, replica="p2"):
        seq = await tell(bus, SYNC)
        await until(lambda: "p2" in reader.progress and reader.progress["p2"].fact_seq == seq)
        await until(lambda: "default/c:http/TCP" in reader.services)
        assert "default/b:http/TCP" in reader.services
        assert not reader.progress["p2"].complete
        await tell(bus, switch("n2", 2))
        await until(lambda: reader.progress["p2"].complete)
        await until(lambda: "default/b:http/TCP" not in reader.services)


async def test_a_new_switch_waits_for_ipam(
    world: World, bus: Bus, reader: Reader, ipam: Ipam
) -> None:
    """Its Pods' intents stand before its pipeline does; until then nothing is claimed."""
    ipam.silent = True
    async with running(world) as shell:
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: len(reader.intents) == 3)
        await until(lambda: shell.writer.held)
        assert reader.progress == {}
        ipam.silent = False
        await ipam.claim()
        await until(lambda: reader.claims(seq) and len(reader.intents) == 4)
        ipam.silent = True
        seq = await tell(bus, switch("n1", mtu=1400), switch("n1", uplink_port=9))
        await until(lambda: reader.claims(seq), "a pipeline that stands is changed at once")


async def test_the_state_stream_is_lost(world: World, bus: Bus, reader: Reader) -> None:
    """What was claimed is claimed again, though nothing happened."""
    async with running(world):
        seq = await tell(bus, *FACTS, SYNC)
        await until(lambda: reader.claims(seq))
        await world.delete_stream(subjects.STATE_STREAM)
        await bus.ensure_streams()
        await until(lambda: reader.resets == 1 and reader.claims(seq))


def test_settings_reach_the_core() -> None:
    """Pools and encapsulation come from the environment."""
    from dunlin.service.settings import load

    environ = {"DUNLIN_POD_CIDRS": "10.1.0.0/16", "DUNLIN_ENCAPSULATION": "vxlan"}
    cluster = load(PlannerSettings, environ=environ).cluster
    assert cluster.pod_cidrs == (ip_network("10.1.0.0/16"),)
    assert cluster.encapsulation == "vxlan"
