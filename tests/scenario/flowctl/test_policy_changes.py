"""Changes of policy through whole replicas and sessions: a switch never holds part of one."""

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest

from dunlin.bus.base import TOMBSTONE
from dunlin.bus.base import Message as BusMessage
from dunlin.events.intents import AnyIntent, EndpointIntent
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.fake import FakeSwitch, Mod
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin.pipeline.layout import POLICY_TABLES
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_planner.core.step import step
from dunlin_planner.state import State
from tests.fixtures import cluster as nodes
from tests.scenario.policy.oracle import Cluster as Objects
from tests.scenario.policy.test_changes import CLIENT, Message, Switches, shop, stream
from tests.scenario.policy.test_two_switches import in_two_steps
from tests.scenario.policy.walk import change, endpoint
from tests.unit.flowctl.harness import Cluster, Flowctl, until

NODE = 2
Held = frozenset[Any]
WORLDS = (shop("b", "c"), shop("c"), shop("b", port="http"), shop(), shop("b", port=""), Objects())


class Watched(FakeSwitch):
    """A switch that remembers what its policy tables held after each bundle."""

    def __init__(self) -> None:
        super().__init__(dpid=nodes.switch(NODE).dpid)
        self.states: list[Held] = []

    def apply_bundle(self, mods: Iterable[Mod]) -> None:
        """As OVS: all or nothing."""
        super().apply_bundle(mods)
        self.states.append(policy_flows(self))


def policy_flows(switch: FakeSwitch) -> Held:
    """The content of its policy tables, but for what the switch intent and fences put there."""
    entries = [entry.flow for entry in switch.flows.values()]
    return frozenset(flow for flow in entries if flow.table in POLICY_TABLES and policy(flow))


def policy(flow: Any) -> bool:
    """Its cookie names an intent of a kind that changes of policy have."""
    return bool(5 <= flow.cookie >> 48 & 0xFF <= 11)


class Scene:
    """A planner's stream, one flowctl, one switch."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)  # noqa: S311 - a test
        self.switch = Watched()
        self.state, self.objects = State(), Objects()
        self.number, self.seq = 0, 0
        self.model = Switches().manage()
        self.complete: set[Held] = {frozenset(), self.modelled()}
        self.flowctl: Flowctl | None = None
        self.session: FakeOpenFlowSwitch | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def modelled(self) -> Held:
        """What the switch should hold now."""
        return frozenset(flow for flow in self.model.flows(NODE).values()
            if flow.table in POLICY_TABLES and policy(flow))  # fmt: skip

    async def start(self) -> None:
        """flowctl, and the switch connects."""
        self.flowctl = await Flowctl(
            self.cluster, compiler=PipelineCompiler(), bundle_max=5, lease_ttl_s=1.0
        ).start()
        await self.connect()

    async def connect(self) -> None:
        """A new session."""
        assert self.flowctl is not None
        sessions = self.flowctl.handles.sessions
        if self.session is not None:
            await until(lambda: self.switch.dpid in sessions, "connected")
            self.session.close()
            await until(lambda: self.switch.dpid not in sessions, "noticed")
        self.session = FakeOpenFlowSwitch(self.switch)
        port = self.flowctl.port
        self._tasks.append(asyncio.create_task(self.session.connect("127.0.0.1", port)))

    async def stop(self) -> None:
        """Flowctl is gone."""
        assert self.flowctl is not None
        assert self.session is not None
        await self.flowctl.stop()
        self.session.close()
        self.session = None

    def next_change(self, target: Objects | None = None) -> list[Message]:
        """The messages of a change to another cluster; the model has taken it over."""
        target = target or self.random.choice(WORLDS)
        wanted = step(self.state, change(self.objects, target)).intents
        self.objects = target
        self.number += 1
        messages = stream(wanted, self.number)
        self.model.read(messages)
        self.complete.add(self.modelled())
        return messages

    async def say(self, message: Message) -> None:
        """One message."""
        _, intent = message
        if intent is not None:
            self.seq = await self.cluster.intend(intent)
            return
        self.seq = await self.cluster.bus.publish(BusMessage(message[0], TOMBSTONE))

    async def settled(self) -> None:
        """The switch holds the last change."""
        assert self.flowctl is not None
        await self.cluster.claim()
        await self.flowctl.synced(f"n{NODE}")
        reply = await self.cluster.barrier(f"n{NODE}", self.seq, swept=True, timeout_ms=15_000)
        assert reply.applied, reply
        assert policy_flows(self.switch) == self.modelled()


@pytest.mark.parametrize("seed", range(12))
async def test_after_each_bundle_a_switch_holds_whole_changes(seed: int) -> None:
    """Small bundles, new sessions and restarts in the middle of changes: nothing is ever half."""
    scene = Scene(await Cluster().start(), seed)
    await scene.cluster.intend(nodes.switch(NODE))
    await scene.start()
    for _ in range(6):
        for message in scene.next_change():
            await scene.say(message)
            happens = scene.random.random()
            if happens < 0.04:
                await scene.stop()
                await scene.start()
            elif happens < 0.1:
                await scene.connect()
            elif happens < 0.3:
                await asyncio.sleep(0.002)
        await scene.settled()
    assert len(scene.switch.states) > 6
    for held in scene.switch.states:
        assert held in scene.complete
    await scene.stop()


async def test_a_change_between_two_that_were_missed_is_not_guessed() -> None:
    """
    A switch was away for one change; flowctl restarts in the middle of the next.

    What stood between them is known to nobody: the switch keeps what it has until the commit.
    """
    scene = Scene(await Cluster().start(), 1)
    await scene.cluster.intend(nodes.switch(NODE))
    await scene.start()
    for message in scene.next_change(shop("b", "c")):
        await scene.say(message)
    await scene.settled()
    first = scene.modelled()
    await scene.stop()
    for message in scene.next_change(shop("c")):
        await scene.say(message)
    *change_, commit = scene.next_change(shop("b", port=""))
    for message in change_[: len(change_) // 2]:
        await scene.say(message)
    await scene.start()
    assert scene.flowctl is not None
    await scene.flowctl.synced(f"n{NODE}")
    assert (scene.flowctl.handles.desired.held.incomplete, policy_flows(scene.switch)) == (
        True,
        first,
    )
    assert not (await scene.cluster.barrier(f"n{NODE}", 1, timeout_ms=100)).applied
    for message in (*change_[len(change_) // 2 :], commit):
        await scene.say(message)
    await scene.settled()
    assert set(scene.switch.states) <= {frozenset(), first, scene.modelled()}
    await scene.stop()


async def test_a_change_without_its_commit_waits_and_holds_nobody_up() -> None:
    """What comes after it is in force; barriers say what they wait for; the commit releases it."""
    cluster = await Cluster().start()
    await cluster.intend(nodes.switch(1))
    flowctl = await Flowctl(cluster, compiler=PipelineCompiler(), bundle_max=5).start()
    switch = FakeSwitch(dpid=nodes.switch(1).dpid)
    fake = FakeOpenFlowSwitch(switch)
    task = asyncio.create_task(fake.connect("127.0.0.1", flowctl.port))
    await cluster.claim()
    await flowctl.synced("n1")
    *change_, commit = stream(step(State(), change(Objects(), shop("b"))).intents, 1)
    for _, intent in change_:
        assert intent is not None
        await cluster.intend(intent)
    other: EndpointIntent = endpoint(CLIENT)
    seq = await cluster.intend(other)
    cookies = {entry.flow.cookie for entry in switch.flows.values()}
    await until(lambda: holds(switch, other), "an endpoint is not held up")
    new = {entry.flow.cookie for entry in switch.flows.values()} - cookies
    assert new == {entry.flow.cookie for entry in switch.flows.values() if is_endpoint(entry)}
    reply = await cluster.barrier("n1", seq, timeout_ms=100)
    assert not reply.applied
    assert reply.reason == f"a change of policy is not complete: {len(change_)} intents wait"
    assert commit[1] is not None
    seq = await cluster.intend(commit[1])
    assert (await cluster.barrier("n1", seq)).applied
    assert policy_flows(switch)
    await flowctl.stop()
    fake.close()
    await task


async def test_a_prepared_change_is_both_versions_until_its_commit() -> None:
    """
    The switch says that it holds both; a new session finds the same; barriers tell the two apart.

    A flowctl that starts now does not know the old one: it says nothing, and leaves policy alone.
    """
    scene = Scene(await Cluster().start(), 1)
    await scene.cluster.intend(nodes.switch(NODE))
    await scene.start()
    for message in scene.next_change(shop("b", "c")):
        await scene.say(message)
    await scene.settled()
    old = scene.modelled()
    first, second = in_two_steps(scene.next_change(shop("c", port="http")))
    for message in first:
        await scene.say(message)

    async def applied() -> int:
        said = await scene.cluster.applied(f"n{NODE}")
        return said.prepared if said is not None else 0

    async def barrier(*, prepared: bool) -> bool:
        return (
            await scene.cluster.barrier(f"n{NODE}", scene.seq, prepared=prepared, timeout_ms=200)
        ).applied

    async with asyncio.timeout(20.0):
        while await applied() != scene.number:
            await asyncio.sleep(0.01)
    both = policy_flows(scene.switch)
    assert both not in (old, scene.modelled())
    assert (await barrier(prepared=True), await barrier(prepared=False)) == (True, False)
    await scene.connect()
    assert scene.flowctl is not None
    await scene.flowctl.synced(f"n{NODE}")
    assert policy_flows(scene.switch) == both
    await scene.stop()
    await scene.start()
    await scene.flowctl.synced(f"n{NODE}")
    assert policy_flows(scene.switch) == both
    assert not await barrier(prepared=True)
    for message in second:
        await scene.say(message)
    await scene.settled()
    await scene.stop()


def is_endpoint(entry: Any) -> bool:
    """A flow of an endpoint intent."""
    return bool(entry.flow.cookie >> 48 & 0xFF == 2)


def holds(switch: FakeSwitch, intent: AnyIntent) -> bool:
    """Some flow of this intent."""
    return any(e.flow.cookie == cookie_of(intent.id) for e in switch.flows.values())
