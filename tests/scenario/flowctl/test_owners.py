"""Several replicas of flowctl share the switches; two that believe in the same do no harm."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import TOMBSTONE, BusError, Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.intents import SwitchIntent
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin_flowctl.core.owners import ranked
from dunlin_flowctl.level import Signal
from dunlin_flowctl.ownership import ClaimBody, Heartbeat, Ownership
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import MAC, endpoint_intent

MINUTE_S, HOUR_S = 60.0, 3600.0
ALIVE = subjects.rpc("flowctl", "alive", "b")
DPIDS = {f"n{number}": number for number in range(1, 13)}


def switch_intent(node: str) -> SwitchIntent:
    """The switch of a node."""
    return SwitchIntent(
        scope=node, key="pipeline", dpid=DPIDS[node], router_mac=MAC, gateway_port=1
    )


class World:
    """Twelve switches that connect to every replica, as bridges do to all their controllers."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.switches = {node: FakeSwitch(dpid=dpid) for node, dpid in DPIDS.items()}
        self.replicas: dict[str, Flowctl] = {}
        self._sessions: set[asyncio.Task[None]] = set()

    async def add(self, name: str) -> Flowctl:
        """One replica more."""
        replica = self.replicas[name] = await Flowctl(self.cluster, name, lease_ttl_s=1.0).start()
        for switch in self.switches.values():
            self._sessions.add(
                asyncio.create_task(_connect(FakeOpenFlowSwitch(switch), replica.port))
            )
        return replica

    async def remove(self, name: str) -> None:
        """As SIGTERM does."""
        await self.replicas.pop(name).stop()

    def owners(self) -> dict[str, str]:
        """Node -> the replica that serves it now."""
        return {node: name for name, r in self.replicas.items() for node in r.handles.runners}

    async def settled(self) -> dict[str, str]:
        """Every switch is served by its first choice, and nobody else serves it."""

        def reached() -> bool:
            runners = [r for s in self.replicas.values() for r in s.handles.runners.values()]
            served = sum(r.switch is not None and r.switch.synced for r in runners)
            wanted = {node: ranked(self.replicas, dpid)[0] for node, dpid in DPIDS.items()}
            return self.owners() == wanted and served == len(runners) == len(DPIDS)

        await until(reached, "every switch is served by its first choice")
        return self.owners()

    async def close(self) -> None:
        """The end."""
        for name in list(self.replicas):
            await self.remove(name)
        await asyncio.wait(self._sessions)


async def _connect(switch: FakeOpenFlowSwitch, port: int) -> None:
    await switch.connect("127.0.0.1", port)


@contextlib.asynccontextmanager
async def world() -> AsyncIterator[World]:
    """Two replicas and a claim of completeness."""
    cluster = await Cluster().start()
    await cluster.intend(*(switch_intent(node) for node in DPIDS))
    await cluster.claim()
    made = World(cluster)
    await made.add("a")
    await made.add("b")
    try:
        yield made
    finally:
        await made.close()


async def test_one_more_and_one_less_move_only_their_share() -> None:
    """A third replica takes its own switches only; when it leaves, only those move."""
    async with world() as scene:
        before = await scene.settled()
        written = {node: switch.applied for node, switch in scene.switches.items()}
        await scene.add("c")
        with_three = await scene.settled()
        moved = {node for node in DPIDS if before[node] != with_three[node]}
        assert moved
        assert {with_three[node] for node in moved} == {"c"}
        await scene.remove("c")
        assert await scene.settled() == before
        assert {node: s.applied for node, s in scene.switches.items()} == written


async def test_a_change_while_switches_move_arrives_once() -> None:
    """Changes published while owners change are acknowledged, and written once."""
    async with world() as scene:
        await scene.settled()
        written = {node: switch.applied for node, switch in scene.switches.items()}
        joining = asyncio.create_task(scene.add("c"))
        seq = 0
        for node in DPIDS:
            seq = await scene.cluster.intend(endpoint_intent(node, "a", 4))
        await joining
        await scene.settled()

        def acknowledged() -> bool:
            runners = [r for s in scene.replicas.values() for r in s.handles.runners.values()]
            return len(runners) == len(DPIDS) and all(r.revision >= seq for r in runners)

        await until(acknowledged, "all changes are in force")
        added = {node: s.applied - written[node] for node, s in scene.switches.items()}
        # Two flows, and what the switch says of its own from then on.
        assert set(added.values()) == {3}


async def test_a_replica_that_hears_nothing_does_no_harm() -> None:
    """Cut off from the bus an owner believes on; the switch refuses it once another has it."""
    async with world() as scene:
        owners = await scene.settled()
        node = next(node for node, name in owners.items() if name == "a")
        deaf = scene.replicas["a"]
        own = deaf.handles.ownership
        # As if the process had been stopped: its heartbeats end, and it reads nothing.
        own.owners.heard = lambda *_arguments: None  # type: ignore[method-assign]
        own.owners.note = lambda *_arguments: False  # type: ignore[method-assign]
        own._bus = _Silent()  # type: ignore[assignment]
        await until(lambda: node in scene.replicas["b"].handles.runners, "the other one takes it")
        assert node in deaf.handles.runners
        assert not deaf.handles.ownership.owners.hearing(time.monotonic())
        seq = await scene.cluster.intend(endpoint_intent(node, "a", 4))
        taken = scene.replicas["b"].handles.runners[node]
        await until(lambda: taken.revision >= seq, "the new owner has written")
        await until(
            lambda: deaf.sample("dunlin_openflow_errors_total", reason="notmaster") >= 1,
            "the deaf one was refused",
        )
        assert node not in deaf.handles.runners


class _Silent:
    """A bus that takes nothing."""

    async def publish(self, _message: object) -> int:
        await asyncio.Event().wait()
        return 0


async def test_a_dead_owners_switches_are_taken_once_and_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By their first choice, however long they had their owner; all claims go out in one batch."""
    monkeypatch.setattr("dunlin_flowctl.core.owners.STEP_S", MINUTE_S)
    clock = _Clock()
    monkeypatch.setattr("dunlin_flowctl.ownership.time", clock)
    server, dpids = MemoryServer(), list(range(1, 41))
    buses = {name: _Counting(server) for name in "abz"}
    await buses["z"].ensure_streams()
    await buses["z"].publish(Message(subjects.owner_member("z"), wire.encode(Heartbeat(HOUR_S))))
    for dpid in dpids:
        claim = Message(subjects.owner_switch(dpid), wire.encode(ClaimBody("z")))
        await buses["z"].publish(claim)
    heirs = {name: Ownership(buses[name], name, HOUR_S) for name in "ab"}
    work = [heir.follow() for heir in heirs.values()] + [heir.beat() for heir in heirs.values()]
    tasks = [asyncio.create_task(one) for one in work]
    stop = asyncio.Event()
    got: list[tuple[str, int]] = []

    async def wait_for(name: str, dpid: int) -> None:
        async with heirs[name].hold(dpid, lambda: not stop.is_set(), Signal()) as held:
            if held is not None:
                got.append((name, dpid))
            await stop.wait()

    tasks += [asyncio.create_task(wait_for(name, dpid)) for name in heirs for dpid in dpids]
    try:
        now = clock.monotonic
        for heir in heirs.values():
            await until(lambda heir=heir: heir.owners.live(now()) == {*"abz"}, "all are heard")  # type: ignore[misc]
            await until(lambda heir=heir: len(heir.owners.claims) == len(dpids), "and read")  # type: ignore[misc]
        clock.ahead_s = 2 * MINUTE_S
        await buses["z"].publish(Message(subjects.owner_member("z"), TOMBSTONE))
        await until(lambda: len(got) >= len(dpids), "taken")
        assert {dpid: name for name, dpid in got} == {d: ranked("ab", d)[0] for d in dpids}
        batches = [size for name in heirs for size in buses[name].batches]
        assert sum(batches) == len(dpids), "one claim for each"
        assert len(batches) <= 4
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


class _Clock:
    """Monotonic seconds, of which some may be skipped."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        """Now."""
        return time.monotonic() + self.ahead_s


class _Counting(MemoryBus):
    """Remembers how many messages were published together, where it was more than a heartbeat."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.batches: list[int] = []

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """As ever."""
        self.batches.append(len(messages))
        return await super().publish_many(messages)


async def test_a_replica_that_has_ended_is_dead_before_its_time_is_over() -> None:
    """Nobody serves its subject any more: the others need not wait. One that is slow lives on."""
    server = MemoryServer()
    buses = {name: MemoryBus(server) for name in "ab"}
    await buses["a"].ensure_streams()
    one, other = (Ownership(bus, name, ttl_s=HOUR_S) for name, bus in buses.items())
    tasks = [asyncio.create_task(work) for work in (one.follow(), one.beat())]
    alive = asyncio.create_task(other.watch())
    await until(lambda: one.owners.hearing(time.monotonic()), "it hears itself")
    try:
        heard_at = time.monotonic() - 0.6 * HOUR_S
        one.owners.heard("b", HOUR_S, heard_at)
        one.owners._hearing_since = heard_at - HOUR_S
        await until(lambda: ALIVE in {served.pattern for served in server.served}, "it serves")
        await one.look_for_silent()
        assert one.owners.live(time.monotonic()) == {"a", "b"}, "silent, but it answers"
        alive.cancel()
        await asyncio.wait({alive})
        await one.look_for_silent()
        assert one.owners.live(time.monotonic()) == {"a"}
    finally:
        for task in (*tasks, alive):
            task.cancel()
        await asyncio.wait({*tasks, alive})
