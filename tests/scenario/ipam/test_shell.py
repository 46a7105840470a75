"""The whole of ipam on a bus: requests, endpoint intents, restarts, lost streams, bad input."""

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_network
from typing import Any

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Message
from dunlin.events.facts import SyncFact
from dunlin.events.intents import EndpointIntent
from dunlin.events.rpc import Allocated, Blocks, BlocksRequest, Failure, Released
from dunlin_ipam.core.violations import violations
from dunlin_ipam.usage import block_usage, pool_usage
from tests.fixtures.worlds import World
from tests.scenario import worlds
from tests.scenario.ipam.replicas import ask, insist, replica
from tests.scenario.worlds import forget, meanwhile, tell, until
from tests.unit.ipam.build import attachment, ips, node, pod, release_of, request, switch

SYNC = SyncFact(name="watcher")
FACTS = (node("n1", "10.244.1.0/24", "fd00:10:244:1::/64"), node("n2"))


class Reader(worlds.Reader[EndpointIntent]):
    """What ipam publishes."""

    def __init__(self) -> None:
        super().__init__(EndpointIntent, "ipam", 16)

    @property
    def pods(self) -> list[str]:
        """Whose endpoints stand."""
        return sorted(intent.pod_name for intent in self.intents.values())


@pytest.fixture
async def reader(bus: Bus) -> AsyncIterator[Reader]:
    """Reads intents and claims meanwhile."""
    made = Reader()
    async with meanwhile(made.read_intents(bus), made.read_progress(bus)):
        yield made


async def add(bus: Bus, name: str, on: str = "n1", **changes: Any) -> list[str]:
    """ADD: addresses, then the attachment."""
    reply = await insist(bus, "allocate", request(name, on))
    assert isinstance(reply, Allocated), reply
    found = [str(ip) for ip in reply.ips]
    await tell(bus, attachment(name, *found, namespace=on, **changes))
    return found


async def test_add_and_del(world: World, bus: Bus, reader: Reader) -> None:
    """Blocks, addresses, an endpoint intent, a claim that covers it; and all of it back."""
    await tell(bus, *FACTS, SYNC, switch("n1"))
    async with replica(world) as running:
        blocks = await insist(bus, "blocks", BlocksRequest(node="n1"))
        assert isinstance(blocks, Blocks)
        assert [str(gateway) for gateway in blocks.gateways] == ["10.244.1.1", "fd00:10:244:1::1"]
        assert await add(bus, "web") == ["10.244.1.2", "fd00:10:244:1::2"]
        seq = await bus.last_seq(subjects.FACTS_STREAM)
        await until(lambda: reader.claims(seq))
        (intent,) = reader.intents.values()
        assert intent.id == "n1/endpoint/default/web/eth0"
        assert all(claim.complete for claim in reader.progress.values())
        await forget(bus, attachment("web"))
        reply = await insist(bus, "release", release_of(request("web")))
        assert reply == Released(ips=ips("10.244.1.2", "fd00:10:244:1::2"))
        assert await insist(bus, "release", release_of(request("web"))) == Released()
        await until(lambda: not reader.intents)
        state = running.shell.view.state
        assert violations(state) == []
        usage = {str(use.cidr): use for use in block_usage(state, running.shell.view.now_ms())}
        assert (usage["10.244.1.0/24"].cooling, usage["10.244.1.0/24"].free) == (1, 252)
        (v4, _v6) = pool_usage(state, running.shell.view.now_ms())
        assert (v4.blocks, v4.allocated, v4.cooling) == (1, 0, 1)


async def test_a_thousand_pods_at_once(world: World, bus: Bus, reader: Reader) -> None:
    """One line and one intent each, and not a claim for each."""
    await tell(bus, node("n1", "10.244.0.0/20"), SYNC, switch("n1"))
    async with replica(world):
        await until(lambda: bool(reader.progress))
        pool = ip_network("10.244.0.0/20")
        facts = [attachment(f"p{number}", str(pool[2 + number])) for number in range(1_000)]
        before = await bus.last_seq(subjects.STATE_STREAM)
        results = await bus.publish_many([Message(f.subject, wire.encode(f)) for f in facts])
        last = results[-1]
        assert isinstance(last, int), last
        await until(lambda: reader.claims(last) and len(reader.intents) == 1_000)
        assert reader.writes == 1_000
        assert await bus.last_seq(subjects.FACTS_STREAM) <= last + 1_000
        assert await bus.last_seq(subjects.STATE_STREAM) - before <= 100


async def test_a_restart_changes_nothing(world: World, bus: Bus, reader: Reader) -> None:
    """The state is the log: same answers, no write, and the next address is the next."""
    await tell(bus, *FACTS, SYNC, switch("n1"), pod("web"), pod("b"))
    async with replica(world):
        first = await add(bus, "web")
        seq = await bus.last_seq(subjects.FACTS_STREAM)
        await until(lambda: reader.claims(seq) and reader.writes == 1)
    async with replica(world, replica="i2"):
        reply = await insist(bus, "allocate", request("web"))
        assert [str(ip) for ip in reply.ips] == first
        assert await bus.last_seq(subjects.FACTS_STREAM) == seq
        await until(lambda: "i2" in reader.progress)
        assert await add(bus, "b") == ["10.244.1.3", "fd00:10:244:1::3"]
        assert reader.writes <= 2


async def test_nothing_is_given_before_the_cluster_is_known(world: World, bus: Bus) -> None:
    """A Pod's status may hold the address: the agent is told to ask again."""
    await tell(bus, *FACTS)
    async with replica(world) as running:
        await until(lambda: running.shell.view.caught_up)
        reply = await ask(bus, "allocate", request())
        assert isinstance(reply, Failure)
        assert reply.retry
        await tell(bus, pod("old", "10.244.1.2"), SYNC)
        reply = await insist(bus, "allocate", request())
        assert str(reply.ips[0]) == "10.244.1.3"


async def test_all_streams_are_lost(world: World, bus: Bus, reader: Reader) -> None:
    """Watcher and agents publish what they see; the ledger and the intents come out the same."""
    await tell(bus, *FACTS, SYNC, switch("n1"), pod("web"), pod("b", node="n2"))
    async with replica(world) as running:
        one = await add(bus, "web")
        two = await add(bus, "b", "n2")
        await tell(bus, switch("n2", "10.244.0.1", "fd00:10:244::1"))
        await until(lambda: reader.pods == ["b", "web"])
        before = sorted(map(wire.encode, reader.intents.values()))
        for stream in subjects.STREAM_SUBJECTS:
            await world.delete_stream(stream)
        await bus.ensure_streams()
        await tell(bus, *FACTS, pod("web", one[0]), pod("b", two[0], node="n2"), SYNC)
        await tell(bus, attachment("b", *two, namespace="n2"), switch("n2", "10.244.0.1"))
        third = await insist(bus, "allocate", request("third", "n2"))
        assert str(third.ips[0]) == "10.244.0.3", "what the others have was known before"
        await tell(bus, attachment("web", *one), switch("n1"))
        await until(lambda: reader.pods == ["b", "web"])
        assert sorted(map(wire.encode, reader.intents.values())) == before
        await until(lambda: not running.shell.view.touched)
        assert violations(running.shell.view.state) == []


async def test_the_fact_stream_alone_is_lost(world: World, bus: Bus, reader: Reader) -> None:
    """Standing endpoint intents stay until the node's agent has published what stands there."""
    await tell(bus, *FACTS, SYNC, switch("n1"), pod("web"), pod("b"))
    async with replica(world):
        one, two = await add(bus, "web"), await add(bus, "b")
        await until(lambda: reader.pods == ["b", "web"])
        writes = reader.writes
        await world.delete_stream(subjects.FACTS_STREAM)
        await bus.ensure_streams()
        epoch = await bus.epoch(subjects.FACTS_STREAM)
        seq = await tell(bus, *FACTS, pod("web", one[0]), pod("b", two[0]), SYNC)
        await until(
            lambda: (
                reader.progress["i1"].fact_epoch == epoch and reader.progress["i1"].fact_seq >= seq
            )
        )
        await tell(bus, attachment("web", *one))
        assert (reader.pods, reader.writes) == (["b", "web"], writes)
        await tell(bus, switch("n1"))
        await until(lambda: reader.pods == ["web"])


async def test_orphans_are_collected(world: World, bus: Bus, reader: Reader) -> None:
    """No DEL ever came: interface and Pod are gone, after the grace the address is, too."""
    await tell(bus, *FACTS, SYNC, switch("n1"), pod("web"))
    async with replica(world, orphan_grace_s=0.3) as running:
        await add(bus, "web")
        await until(lambda: reader.pods == ["web"])
        await forget(bus, pod("web"))
        await forget(bus, attachment("web"))
        state = running.shell.view.state
        await until(lambda: not any(line.is_allocated for line in state.lines.values()))
        await until(lambda: not reader.intents)


async def test_bad_input(world: World, bus: Bus, reader: Reader) -> None:
    """Garbage as a request and as facts: named, counted, and everybody else is served."""
    await tell(bus, *FACTS, SYNC, switch("n1"), pod("web"))
    async with replica(world) as running:
        subject = subjects.rpc("ipam", "allocate")
        for data, word in (
            (b"\x00garbage", "rpc.ipam.allocate"),
            (b'{"node":"n1"}', "container_id"),
            (wire.encode(request(ifname="")), "$.ifname"),
            (
                wire.encode(request(in_use=ips("10.0.0.30"))).replace(b"0.30", b"0.300"),
                "$.in_use[0]",
            ),
        ):
            reply = wire.decode(await bus.request(subject, data, timeout_s=2), Failure)
            assert word in reply.reason
            assert not reply.retry
        await add(bus, "web")
        await until(lambda: reader.pods == ["web"])
        line = running.shell.view.state.lines[ips("10.244.1.2")[0]].fact
        for subject in (line.subject, FACTS[0].subject, subjects.fact("pod", "x", "y")):
            await bus.publish(Message(subject, b"not json"))
        odd = pod("odd", "192.0.2.300"[:-2])
        seq = await tell(bus, odd)
        await until(lambda: reader.claims(seq))
        assert len(running.shell.view.reader.bad) == 3
        assert [f.object for f in running.shell.findings()] == ["Pod default/odd"]
        assert reader.pods == ["web"]
        assert (await insist(bus, "release", release_of(request("web")))).ips[0] == line.ip
        assert await add(bus, "next") == ["10.244.1.3", "fd00:10:244:1::3"]


async def test_two_replicas_share_nodes(world: World, bus: Bus, reader: Reader) -> None:
    """Both answer, each writes the intents of its nodes, nothing twice."""
    nodes = [node(f"node-{n}", f"10.244.{n}.0/24") for n in range(20)]
    agents = [switch(fact.name) for fact in nodes]
    pods = [pod(f"p{n}", node=f"node-{n}") for n in range(20)]
    await tell(bus, *nodes, *agents, *pods, SYNC)
    async with replica(world) as one, replica(world, replica="i2") as two:
        await until(lambda: len(one.shell.working) == len(two.shell.working) == 8)
        await asyncio.gather(*(add(bus, f"p{n}", f"node-{n}") for n in range(20)))
        await until(lambda: len(reader.intents) == 20)
        seq = await bus.last_seq(subjects.FACTS_STREAM)
        await until(lambda: reader.claims(seq))
        assert reader.writes == 20
        assert violations(one.shell.view.state) == violations(two.shell.view.state) == []


async def test_a_pool_for_many_nodes(world: World, bus: Bus) -> None:
    """Two replicas carve at the same time: every node gets a block of its own."""
    names = [f"n{n}" for n in range(12)]
    await tell(bus, *(node(name) for name in names), SYNC)
    pools = (ip_network("10.9.0.0/24"),)
    many: dict[str, Any] = {"pod_cidrs": pools, "block_prefix_v4": 28}
    async with replica(world, **many) as one, replica(world, replica="i2", **many):
        replies = await asyncio.gather(
            *(insist(bus, "blocks", BlocksRequest(node=name)) for name in names)
        )
        assert all(isinstance(reply, Blocks) for reply in replies)
        found = [cidr for reply in replies for cidr in reply.cidrs]
        assert len(set(found)) == len(found) >= 12
        seq = await bus.last_seq(subjects.FACTS_STREAM)
        await one.shell.view.reach(seq)
        assert violations(one.shell.view.state) == []
