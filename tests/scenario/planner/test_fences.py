"""The whole planner and a Pod that a rule denies by its labels: what waits for whom (ADR 0039)."""

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Message
from dunlin.events.state import Applied, Progress
from tests.fixtures.worlds import World
from tests.scenario.planner.test_shell import FACTS, SYNC, Ipam, Reader, ipam, running
from tests.scenario.policy.oracle import Pod
from tests.scenario.policy.test_new_pods import against
from tests.scenario.policy.walk import attachment, facts, pod_fact
from tests.scenario.worlds import meanwhile, tell, until

__all__ = ["ipam"]  # A fixture.

CLUSTER = against("Deny", "ingress")
BEFORE = replace(CLUSTER, pods=CLUSTER.pods[:1])
EVIL = CLUSTER.pods[1]
GOOD = Pod("x", "good", {"app": "good"}, "n1", 11)
PEER = subjects.intent("all", "policypeer", "x/new")
LIFTS = subjects.intent("n2", "policysubject", "x/new")


class Claims(Reader):
    """Beside acknowledgements."""

    async def read_progress(self, bus: Bus) -> None:
        """Follow the claims alone."""
        filters = [f"{subjects.PREFIX}.progress.planner.>"]
        async for batch in bus.follow(subjects.STATE_STREAM, filters):
            for record in batch.records:
                claim = wire.decode(record.data, Progress)
                self.progress[claim.replica] = claim


@pytest.fixture
async def claims(bus: Bus, ipam: Ipam) -> AsyncIterator[Claims]:
    """Reads intents and claims meanwhile."""
    assert ipam
    made = Claims()
    async with meanwhile(made.read_intents(bus), made.read_progress(bus)):
        yield made


async def holds(bus: Bus, node: str, revision: int) -> None:
    """The switch of a node says that it holds everything up to this revision."""
    said = Applied(
        node=node,
        dpid=1,
        revision=revision,
        epoch=await bus.epoch(subjects.INTENTS_STREAM),
        connected=True,
        at_ms=time.time_ns() // 1_000_000,
    )
    await bus.publish(Message(said.subject, wire.encode(said)))


async def test_a_denied_pod_waits_and_holds_up_nothing_older(
    world: World, bus: Bus, claims: Claims
) -> None:
    """
    Its fence stays until the switch says that it knows the Pod; so does the claim of its facts.

    What came before is claimed meanwhile, and another Pod's fence is lifted.
    """
    async with running(world, policy_fence_s=60.0) as shell:
        assert shell.fences.floor is None
        first = await tell(bus, *FACTS, *facts(BEFORE), SYNC)
        await until(lambda: claims.claims(first))
        await holds(bus, "n1", 0)
        before = await tell(bus, pod_fact(EVIL))
        await until(lambda: shell.seq == before)
        await tell(bus, attachment(EVIL))
        await until(lambda: PEER in claims.intents)
        last = await tell(bus, pod_fact(GOOD), attachment(GOOD))
        await until(lambda: subjects.intent("n1", "policysubject", "x/good") in claims.intents)
        await until(lambda: claims.claims(before))
        assert LIFTS not in claims.intents
        assert not claims.claims(before + 1)
        await holds(bus, "n1", 1 << 40)
        await until(lambda: LIFTS in claims.intents)
        await until(lambda: claims.claims(last))


async def test_pods_that_come_all_the_time(world: World, bus: Bus, claims: Claims) -> None:
    """The next one comes before the last is let go; those that the switches know are claimed."""
    async with running(world, policy_fence_s=60.0, policy_settle_s=0.02) as shell:
        first = await tell(bus, *FACTS, *facts(BEFORE), SYNC)
        await until(lambda: claims.claims(first))
        await holds(bus, "n1", 1 << 40)
        seqs: list[int] = []
        while not (seqs and claims.claims(seqs[0])):
            pod = Pod("x", f"evil-{len(seqs)}", {"role": "evil"}, "n2", 20 + len(seqs) % 200)
            seqs.append(await tell(bus, pod_fact(pod), attachment(pod)))
            await until(lambda: shell.seq >= seqs[-1])
        await until(lambda: claims.claims(seqs[-1]))
        assert shell.fences.floor is None
