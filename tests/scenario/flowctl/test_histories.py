"""Random histories through whole replicas, the bus and switches that refuse what OVS refuses."""

import asyncio
import random
from typing import Any

import pytest

from dunlin.bus.base import NoResponder
from dunlin.events.intents import AnyIntent
from dunlin.events.rpc import BarrierReply
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.digest import UNKNOWN, Digests, take_digests
from dunlin_flowctl.core.program import Key
from dunlin_flowctl.writer import digests_after
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import (
    DPIDS,
    NODES,
    Change,
    FakeCompiler,
    endpoint_intent,
    route_intent,
    service_intent,
    switch_intent,
)
from tests.unit.flowctl.test_delta import from_scratch, play


class World:
    """Two switches, one or two replicas, and a random history."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test
        self.cluster = cluster
        self.history: list[Change] = []
        self.replicas: dict[str, Flowctl] = {}
        self.switches = {node: FakeSwitch(dpid=DPIDS[node]) for node in NODES}
        self.sessions: dict[tuple[str, str], FakeOpenFlowSwitch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, name: str, bundle_max: int = 5) -> None:
        """Start a replica and connect both switches to it."""
        self.replicas[name] = await Flowctl(
            self.cluster, name, bundle_max=bundle_max, lease_ttl_s=1.0
        ).start()
        for node in NODES:
            self.connect(name, node)

    def connect(self, name: str, node: str) -> None:
        """A switch connects to a replica."""
        fake = self.sessions[name, node] = FakeOpenFlowSwitch(self.switches[node])
        task = asyncio.create_task(fake.connect("127.0.0.1", self.replicas[name].port))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def reconnect(self, name: str, node: str) -> None:
        """The session ends, and its replica has noticed before the next one begins."""
        sessions = self.replicas[name].handles.sessions
        await until(lambda: DPIDS[node] in sessions, "connected")
        self.sessions[name, node].close()
        await until(lambda: DPIDS[node] not in sessions, "noticed")
        self.connect(name, node)

    async def stop(self, name: str) -> None:
        """Stop a replica."""
        await self.replicas.pop(name).stop()
        for node in NODES:
            self.sessions.pop((name, node)).close()

    async def close(self) -> None:
        """Stop everything."""
        for name in list(self.replicas):
            await self.stop(name)
        if self._tasks:
            await asyncio.wait(self._tasks)

    def intent(self) -> AnyIntent:
        """Few names, few values: collisions are common, also intents that nobody can use."""
        pick = self.random.choice
        ports = tuple(sorted(self.random.sample([1, 2, 3, 666], self.random.randint(0, 3))))
        ip = pick(["10.0.0.2", "10.0.0.3"])
        choices: list[AnyIntent] = [
            switch_intent(pick(NODES), gateway_port=pick([1, 2])),
            endpoint_intent(pick(NODES), pick("abc"), pick([4, 5, 6]), ip=ip),
            route_intent(pick(NODES), pick([1, 2])),
            service_intent(pick("xyz"), ports, port=pick([80, 81, 82])),
        ]
        return pick(choices)

    async def publish(self) -> int:
        """One more message of the intent stream."""
        intent = self.intent()
        gone = self.random.random() < 0.3 and not intent.id.endswith("/switch/pipeline")
        self.history.append(Change(intent, gone))
        return await (self.cluster.withdraw(intent) if gone else self.cluster.intend(intent))

    def holding(self, node: str) -> tuple[dict[Key, Any], Digests]:
        """What a switch holds, and what it says of that."""
        fake = self.switches[node]
        flows = {key: entry.flow for key, entry in fake.flows.items()}
        said = take_digests(flows)
        held: dict[Key, Any] = dict(flows.items())
        held.update(fake.groups.items())
        return held, said

    async def settled(self, seq: int) -> None:
        """Both switches hold everything, and nothing else."""
        await self.cluster.claim()
        await until(
            lambda: {n for r in self.replicas.values() for n in r.handles.runners} == set(NODES),
            "owned",
        )
        for node in NODES:
            reply = await self._barrier(node, seq)
            assert reply.applied, reply
            held, said = self.holding(node)
            assert held == from_scratch(self.history, node), node
            assert said in {UNKNOWN, *self.digests(node)}, node

    def digests(self, node: str) -> set[Digests]:
        """
        What it may say: by ones that read nothing but the newest intents.

        Its own part may be said to be made from older ones, where the same came of them.
        """
        latest = {change.intent.id: change for change in self.history}
        desired = Desired(FakeCompiler())
        play(desired, list(latest.values()))
        switch = desired.manage(node)
        assert switch is not None
        newest = digests_after(desired, switch)
        return {newest._replace(source=source) for source in self._sources(node, newest.own)}

    def _sources(self, node: str, own: int) -> set[int]:
        """What this has come of so far."""
        desired, sources = Desired(FakeCompiler()), set()
        for revision, change in enumerate(self.history, 1):
            play(desired, [change], revision)
            switch = desired.switches.get(node) or desired.manage(node)
            if switch is not None and switch.own.totals.digest == own:
                sources.add(desired.source(switch))
        return sources

    async def _barrier(self, node: str, seq: int) -> BarrierReply:
        """
        Asked again while the switch changes hands, as whoever waits does.

        On a busy machine a replica is silent for longer than its time to live at any moment.
        """
        while True:
            try:
                reply = await self.cluster.barrier(node, seq, swept=True, timeout_ms=15_000)
            except NoResponder:
                await asyncio.sleep(0.02)
                continue
            if reply.applied or "given up" not in reply.reason:
                return reply

    async def something(self) -> None:
        """Something happens that changes nothing in what should stand."""
        name = self.random.choice(list(self.replicas))
        node = self.random.choice(NODES)
        match self.random.randint(0, 4):
            case 0:
                await self.reconnect(name, node)
            case 1:
                await self.stop(name)
                await self.start(name)
            case 2:
                # As a restart of vswitchd: all its sessions end.
                self.switches[node].flows.clear()
                self.switches[node].groups.clear()
                for replica in self.replicas:
                    await self.reconnect(replica, node)
            case _:
                await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(12))
async def test_switches_end_with_what_the_newest_intents_say(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost sessions, restarts, emptied switches in between: the end is the recompute."""
    if seed % 3 == 0:
        # Intents change at every step of compiling for a switch that has just connected.
        monkeypatch.setattr("dunlin_flowctl.told.SLICE_S", -1.0)
    world = World(await Cluster().start(), seed)
    for node in NODES:
        world.history.append(Change(switch_intent(node), gone=False))
        seq = await world.cluster.intend(switch_intent(node))
    await world.start("a")
    if seed % 2:
        await world.start("b")
    for _ in range(4):
        for _ in range(world.random.randint(1, 12)):
            seq = await world.publish()
            if world.random.random() < 0.1:
                await world.something()
        await world.settled(seq)
    await world.close()


async def test_two_switches_get_the_same_bytes_from_one_encoding() -> None:
    """A service change that both switches need is encoded once."""
    world = World(await Cluster().start(), 0)
    seq = await world.cluster.intend(*map(switch_intent, NODES))
    world.history = [Change(switch_intent(node), gone=False) for node in NODES]
    await world.start("a")
    await world.settled(seq)
    replica = world.replicas["a"]
    for runner in replica.handles.runners.values():
        assert runner.switch is not None
        assert runner.switch.synced
    cache = replica.handles.cache
    made, used = cache.shared_made, cache.shared_used
    world.history.append(Change(service_intent("x", (1, 2)), gone=False))
    seq = await world.cluster.intend(service_intent("x", (1, 2)))
    await world.settled(seq)
    assert (cache.shared_made - made, cache.shared_used - used) == (1, 2)
    await world.close()


async def test_empty_switches_get_everything_from_one_encoding() -> None:
    """Two switches that hold nothing, more than a bundle to write: compared and encoded once."""
    world = World(await Cluster().start(), 0)
    services = [service_intent(f"s{n}", (1, 2), port=100 + n) for n in range(20)]
    world.history = [
        *(Change(switch_intent(node), gone=False) for node in NODES),
        *(Change(service, gone=False) for service in services),
    ]
    seq = await world.cluster.intend(*map(switch_intent, NODES), *services)
    await world.start("a")
    await world.settled(seq)
    cache = world.replicas["a"].handles.cache
    assert len(services) > world.replicas["a"].handles.settings.bundle_max
    assert (cache.shared_made, cache.shared_used) == (1, 4)
    await world.close()
