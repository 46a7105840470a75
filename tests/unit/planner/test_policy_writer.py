"""How a change of policy reaches the stream: numbered, committed, then withdrawn."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from dunlin import subjects, wire
from dunlin.bus.base import Message, Record
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.intents import (
    AnyIntent,
    PolicyCommitIntent,
    PolicyDirection,
    PolicyGenerationIntent,
    PolicyPeerIntent,
    PolicySubjectIntent,
)
from dunlin.events.state import Applied
from dunlin.service.intent_writer import IntentWriter, Role, Watermark
from dunlin_planner.acknowledgements import Acknowledgements
from dunlin_planner.fences import Fences
from dunlin_planner.policy_writer import COMMIT_SUBJECT, PolicyWriter
from tests.scenario.policy.test_changes import stream

MARK = Watermark("facts", 7, complete=True)
SHARDS = frozenset({0})
NODES = ("n1", "n2")


def peer(name: str, class_id: int = 1) -> PolicyPeerIntent:
    """A Pod as a peer."""
    return PolicyPeerIntent(scope="all", key=f"x/{name}", ips=(), class_id=class_id)


def subject(name: str, class_id: int = 1, host: int = 1) -> PolicySubjectIntent:
    """What lifts the fence of a Pod of node n1."""
    ips = (ip_address(f"10.1.0.{host}"),)
    return PolicySubjectIntent(scope="n1", key=f"x/{name}", ips=ips, egress_class=class_id)


def generation(number: int) -> PolicyGenerationIntent:
    """A generation."""
    return PolicyGenerationIntent(scope="all", key="all", generation=number)


class Writer:
    """A planner's writers, and all that was ever published."""

    def __init__(self, bus: MemoryBus, wait_s: float, fence_s: float) -> None:
        self.bus = bus
        role = Role(
            "planner",
            "me",
            1,
            lambda _subject: 0,
            lambda: SHARDS,
            may_withdraw=lambda subject: self.policy.may_withdraw(subject),  # noqa: PLW0108 - later
        )
        self.nudge = asyncio.Event()
        self.generation = 100
        self.now = 1000.0
        self.facts = 10
        self.registry = CollectorRegistry()
        filters = (f"{subjects.PREFIX}.intent.>",)
        self.intents = IntentWriter(bus, filters, role, lambda: None)
        self.acknowledged = Acknowledgements(
            bus, NODES.__contains__, self.nudge.set, self.registry, wait_s=wait_s, settle_s=0.0
        )
        self.fences = Fences(
            bus, NODES.__contains__, self.nudge.set, self.registry, wait_s=fence_s, settle_s=0.0
        )
        self.policy = PolicyWriter(
            bus,
            self.intents,
            self.acknowledged,
            self.fences,
            self._renew,
            clock=lambda: self.now,
        )
        self.log: list[Record] = []

    def _renew(self) -> dict[str, AnyIntent | None]:
        self.generation += 1
        wanted = generation(self.generation)
        return {wanted.subject: wanted}

    async def follow(self) -> None:
        """For ever."""
        async for batch in self.bus.follow(subjects.INTENTS_STREAM):
            self.log += batch.records

    async def write(
        self,
        *wanted: AnyIntent,
        gone: tuple[AnyIntent, ...] = (),
        turned: tuple[PolicyDirection, ...] = (),
        fenced: tuple[AnyIntent, ...] = (),
    ) -> None:
        """One change, or as much of it as may be written now."""
        changes: dict[str, AnyIntent | None] = {i.subject: i for i in (*wanted, *fenced)}
        changes |= {i.subject: None for i in gone}
        self.policy.want(changes, turned, {i.subject: self.facts for i in fenced})
        self.facts += 1
        await self.go_on()

    async def go_on(self) -> None:
        """As the shell, whenever it is nudged."""
        self.nudge.clear()
        await self.policy.write(complete=True)
        await self.intents.flush(MARK, SHARDS)

    async def nudged(self) -> None:
        """The acknowledgements are there: go on."""
        async with asyncio.timeout(10.0):
            await self.nudge.wait()
        await self.go_on()

    async def acknowledge(self, node: str, prepared: int, **changes: Any) -> None:
        """Say for the switch of a node what it has prepared."""
        said = Applied(node=node, dpid=1, revision=1, epoch=self.intents.epoch, connected=True,
            prepared=prepared, at_ms=time.time_ns() // 1_000_000)  # fmt: skip
        said = msgspec.structs.replace(said, **changes)
        await self.bus.publish(Message(said.subject, wire.encode(said)))

    async def hold(self, revision: int, *nodes: str) -> None:
        """Say that the switches of these nodes hold everything up to this revision."""
        for node in nodes:
            await self.acknowledge(node, 0, revision=revision)

    async def said(self, count: int) -> list[tuple[str, AnyIntent | None]]:
        """The first `count` messages, as subject and intent."""
        async with asyncio.timeout(5.0):
            while len(self.log) < count:
                await asyncio.sleep(0.005)
        assert len(self.log) == count
        return [(r.subject, None if r.is_tombstone else read(r)) for r in self.log]


def read(record: Record) -> AnyIntent:
    """The intent in a message."""
    return wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]


@asynccontextmanager
async def writing(
    server: MemoryServer, wait_s: float = 20.0, fence_s: float = 20.0
) -> AsyncIterator[Writer]:
    """One that knows what stands and has adopted it."""
    bus = MemoryBus(server)
    await bus.ensure_streams()
    writer = Writer(bus, wait_s, fence_s)
    tasks = [asyncio.create_task(w) for w in (writer.intents.follow(), writer.follow())]
    try:
        while not writer.intents.caught_up:
            await asyncio.sleep(0.005)
        await writer.policy.adopt()
        yield writer
    finally:
        for task in tasks:
            task.cancel()
        writer.acknowledged.stop()
        writer.fences.forget()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.close()


async def test_numbers_then_commit_then_tombstones() -> None:
    """As `stream` of the scenarios has it; a change that changes nothing writes nothing."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        await writer.write(peer("a"), peer("b"))
        await writer.write(peer("c"), generation(2), gone=(peer("b"),))
        first = stream({i.subject: i for i in (peer("a"), peer("b"))}, 1)
        second = stream(
            {
                **{i.subject: i for i in (peer("c"), generation(2))},
                peer("b").subject: None,
            },
            2,
        )
        assert await writer.said(len(first) + len(second)) == [*first, *second]


async def test_who_takes_over_completes_the_change() -> None:
    """A successor finds half a change: it commits under a later number, and names what is stale."""
    server = MemoryServer()
    async with writing(server) as writer:
        await writer.write(peer("a"), peer("stale"))
        writer.policy.want({i.subject: i for i in (peer("b"), peer("c"))})
        await writer.intents.write()
    async with writing(server) as successor:
        await successor.write(peer("a"), peer("b"), peer("c"), peer("d"))
        await successor.nudged()
        *_, d, prepared, renewed, commit, stale = await successor.said(10)
        assert d == (peer("d").subject, PolicyPeerIntent(
            scope="all", key="x/d", ips=(), class_id=1, change=2))  # fmt: skip
        # What the dead one meant is not known: it may open here and close there.
        assert said_by(prepared) == (1, 2, ("all/policypeer/x/stale",))
        assert renewed[1] == msgspec.structs.replace(generation(101), change=3)
        assert said_by(commit) == (3, 0, ("all/policypeer/x/stale",))
        assert stale == (peer("stale").subject, None)


async def test_a_change_that_was_written_but_not_committed_is_committed() -> None:
    """The planner died between the last intent and the commit: its successor has nothing to add."""
    server = MemoryServer()
    async with writing(server) as writer:
        await writer.write(peer("a"))
        writer.policy.want({peer("b").subject: peer("b")})
        await writer.intents.write()
    async with writing(server) as successor:
        await successor.write(peer("a"), peer("b"))
        await successor.nudged()
        *_, prepared, _renewed, commit = await successor.said(6)
        assert (said_by(prepared), said_by(commit)) == ((1, 2, ()), (3, 0, ()))
    async with writing(server) as third:
        await third.write(peer("a"), peer("b"), generation(101))
        assert len(await third.said(4)) == 4


BOTH: tuple[PolicyDirection, ...] = ("ingress", "egress")


async def test_both_directions_go_in_two_steps() -> None:
    """Nothing is committed before every switch that is there holds both versions."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        for node in NODES:
            await writer.acknowledge(node, 0)
        await writer.write(peer("c"), gone=(peer("b"),), turned=BOTH)
        await writer.acknowledge("n1", 2)
        # Nobody knows this node: it is not waited for.
        await writer.acknowledge("n9", 0)
        await writer.go_on()
        *_, prepared = await writer.said(5)
        assert said_by(prepared) == (1, 2, ("all/policypeer/x/b",))
        await writer.acknowledge("n2", 2)
        await writer.nudged()
        *_, renewed, commit, gone = await writer.said(8)
        assert renewed[1] == msgspec.structs.replace(generation(101), change=3)
        assert said_by(commit) == (3, 0, ("all/policypeer/x/b",))
        assert gone == (peer("b").subject, None)


@pytest.mark.parametrize("turned", [(), ("ingress",), ("egress",)])
async def test_one_direction_goes_at_once(turned: tuple[PolicyDirection, ...]) -> None:
    """Two switches cannot contradict each other about it."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.acknowledge("n1", 0)
        await writer.write(peer("b"), turned=turned)
        *_, commit = await writer.said(4)
        assert said_by(commit) == (2, 0, ())


async def test_the_other_direction_soon_after_is_no_single_step() -> None:
    """A switch may be two changes behind: it would hold the first while another holds the third."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.acknowledge("n1", 0)
        await writer.write(peer("b"), turned=("ingress",))
        await writer.write(peer("c"), turned=("egress",))
        *_, prepared = await writer.said(6)
        assert said_by(prepared) == (2, 3, ())


async def test_what_comes_meanwhile_waits_then_joins() -> None:
    """It is not claimed while it waits; what a later change takes back is not named any more."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        await writer.acknowledge("n1", 0)
        await writer.write(peer("c"), gone=(peer("b"),), turned=BOTH)
        await writer.write(peer("b"), peer("d"))
        assert writer.policy.waiting
        writer.now += 1.0
        await writer.go_on()
        assert not writer.policy.waiting
        *_, d, prepared = await writer.said(7)
        assert d[0] == peer("d").subject
        assert said_by(prepared) == (1, 3, ())
        # It opens nothing that the first did not: the first one's answers will do.
        await writer.acknowledge("n1", 2)
        await writer.nudged()
        *_, commit = await writer.said(9)
        assert said_by(commit) == (4, 0, ())


async def test_a_successor_goes_on_with_what_is_prepared() -> None:
    """It waits for the same switches, and commits; nothing is withdrawn meanwhile."""
    server = MemoryServer()
    async with writing(server) as writer:
        await writer.write(peer("a"), peer("b"))
        await writer.acknowledge("n1", 0)
        await writer.write(peer("c"), gone=(peer("b"),), turned=BOTH)
    async with writing(server) as successor:
        await successor.write(peer("a"), peer("c"))
        # Of each subject the last message.
        assert len(await successor.said(4)) == 4
        await successor.acknowledge("n1", 2)
        await successor.nudged()
        *_, commit, gone = await successor.said(7)
        assert said_by(commit) == (3, 0, ("all/policypeer/x/b",))
        assert gone == (peer("b").subject, None)


async def test_a_silent_switch_is_not_waited_for_for_ever() -> None:
    """One is connected and says nothing; one is away since long, which is no reason to wait."""
    async with writing(MemoryServer(), wait_s=0.3) as writer:
        await writer.write(peer("a"))
        await writer.acknowledge("n1", 0)
        await writer.acknowledge("n2", 0, connected=False, at_ms=1)
        await writer.write(peer("b"), turned=BOTH)
        await writer.nudged()
        assert said_by((await writer.said(6))[-1]) == (3, 0, ())
        assert value(writer.registry, "overdue") == 1
        await writer.acknowledge("n1", 4)
        await writer.write(peer("c"), turned=BOTH)
        await writer.nudged()
        assert value(writer.registry, "overdue") == 1


def value(registry: CollectorRegistry, result: str) -> float | None:
    """How many changes ended so."""
    name = "dunlin_planner_policy_changes_total"
    return registry.get_sample_value(name, {"result": result})


def said_by(message: tuple[str, AnyIntent | None]) -> tuple[int, int, tuple[str, ...]]:
    """What a commit says."""
    subject, intent = message
    assert subject == COMMIT_SUBJECT
    assert isinstance(intent, PolicyCommitIntent)
    return intent.committed, intent.prepared, intent.gone


async def test_nothing_is_withdrawn_before_everything_is_known() -> None:
    """Without `complete` what is not desired stays, and no commit names it."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        writer.policy.want({peer("a").subject: None})
        await writer.policy.write(complete=False)
        await writer.intents.flush(Watermark("facts", 8, complete=False), SHARDS)
        assert len(await writer.said(3)) == 3
        await writer.policy.write(complete=True)
        await writer.intents.flush(MARK, SHARDS)
        *_, commit, tombstone = await writer.said(5)
        assert isinstance(commit[1], PolicyCommitIntent)
        assert commit[1].gone == ("all/policypeer/x/a",)
        assert tombstone == (peer("a").subject, None)


# --- new Pods that a rule denies by their labels: ADR 0039 ----------------------------------------


async def test_a_fence_is_lifted_when_every_switch_knows_the_pod() -> None:
    """First what others know it by; after their answers what lifts the fence."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("new"), fenced=(subject("new"),))
        assert writer.fences.floor == 11
        *_, known, commit = await writer.said(4)
        assert (known[0], said_by(commit)) == (peer("new").subject, (2, 0, ()))
        await writer.hold(4, "n1")
        await writer.hold(3, "n2")
        await writer.go_on()
        assert len(await writer.said(4)) == 4
        # Nobody knows this node: it is not waited for.
        await writer.hold(1, "n9")
        await writer.hold(4, "n2")
        await writer.nudged()
        *_, lifts, commit = await writer.said(6)
        assert lifts[0] == subject("new").subject
        assert said_by(commit) == (3, 0, ())
        assert writer.fences.floor is None
        assert lifted(writer.registry, "everywhere") == 1


async def test_pods_that_nobody_denies_wait_for_nobody() -> None:
    """While another Pod is fenced, they are written and committed at once."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("new"), fenced=(subject("new"),))
        await writer.write(peer("other"), subject("other"))
        *_, commit = await writer.said(7)
        assert said_by(commit) == (3, 0, ())
        await writer.write(peer("next"), fenced=(subject("next"),))
        await writer.hold(4, *NODES)
        assert writer.fences.floor == 11, "the oldest that waits"
        await writer.nudged()
        assert writer.fences.floor == 13
        assert (await writer.said(11))[-2][0] == subject("new").subject


async def test_a_fence_does_not_wait_for_switches_that_are_away() -> None:
    """Without a session it has been told nothing anyway; one that is silent is named and left."""
    async with writing(MemoryServer(), fence_s=0.3) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, "n1")
        await writer.acknowledge("n2", 0, revision=1, connected=False, at_ms=1)
        await writer.write(peer("new"), fenced=(subject("new"),))
        await writer.hold(4, "n1")
        await writer.nudged()
        assert lifted(writer.registry, "everywhere") == 1
        await writer.write(peer("next"), fenced=(subject("next"),))
        await writer.nudged()
        assert lifted(writer.registry, "overdue") == 1
        assert (await writer.said(10))[-2][0] == subject("next").subject


async def test_a_fenced_pod_that_changes_or_goes() -> None:
    """With other labels it waits anew; one that goes is never let go."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("new"), peer("brief"), fenced=(subject("new"), subject("brief")))
        await writer.write(peer("new", 2), subject("new", 2), gone=(subject("brief"),))
        await writer.hold(5, *NODES)
        await writer.go_on()
        assert len(await writer.said(7)) == 7, "the second commit is not in force yet"
        await writer.hold(7, *NODES)
        await writer.nudged()
        *_, lifts, _commit = await writer.said(9)
        assert isinstance(lifts[1], PolicySubjectIntent)
        assert lifts[1].egress_class == 2


async def test_a_fence_and_a_change_in_both_directions() -> None:
    """A Pod that comes while one is prepared waits until that is committed, then for its own."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("b"), turned=BOTH)
        await writer.write(peer("new"), fenced=(subject("new"),))
        for node in NODES:
            await writer.acknowledge(node, 2, revision=2)
        await writer.nudged()
        written = [where for where, _ in await writer.said(8)]
        assert peer("new").subject in written
        assert subject("new").subject not in written
        await writer.hold(8, *NODES)
        await writer.nudged()
        *_, lifts, commit = await writer.said(10)
        assert lifts[0] == subject("new").subject
        assert said_by(commit)[1] == 0


async def test_a_fenced_pod_that_changes_while_it_is_let_go() -> None:
    """The change is prepared when the answers come: what it was is not written over what it is."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("new"), fenced=(subject("new"),))
        await writer.write(peer("b"), turned=BOTH)
        await writer.write(peer("new", 2), subject("new", 2))
        await writer.hold(4, *NODES)
        await writer.nudged()
        assert subject("new").subject not in [where for where, _ in await writer.said(6)]
        for node in NODES:
            await writer.acknowledge(node, 3, revision=6)
        await writer.nudged()
        assert len(await writer.said(10)) == 10
        await writer.hold(10, *NODES)
        await writer.nudged()
        lifts = [i for _, i in await writer.said(12) if isinstance(i, PolicySubjectIntent)]
        assert [i.egress_class for i in lifts] == [2]


async def test_a_successor_prepares_what_was_fenced() -> None:
    """It does not know who waited: no switch acts on what differs before all of them hold it."""
    server = MemoryServer()
    async with writing(server) as writer:
        await writer.write(peer("a"))
        await writer.hold(2, *NODES)
        await writer.write(peer("new"), fenced=(subject("new"),))
    async with writing(server) as successor:
        await successor.write(peer("a"), peer("new"), fenced=(subject("new"),))
        *_, lifts, prepared = await successor.said(5)
        assert lifts[0] == subject("new").subject
        assert said_by(prepared) == (2, 3, ())


def lifted(registry: CollectorRegistry, result: str) -> float | None:
    """How many Pods were let go so."""
    return registry.get_sample_value("dunlin_planner_fences_total", {"result": result})
