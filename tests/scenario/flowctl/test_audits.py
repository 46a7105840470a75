"""Audits and dumps when one replica has many switches: one after the other, changes go first."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dunlin.events.intents import SwitchIntent
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin_flowctl.adapters.dump import Dump, dump
from dunlin_flowctl.adapters.session import Session
from dunlin_flowctl.handles import DUMPS
from dunlin_flowctl.level import Slots
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import (
    DPIDS,
    MAC,
    endpoint_intent,
    service_intent,
    switch_intent,
)

COUNT = 24


@dataclass
class Dumps:
    """What was dumped: by dpid in their order, and how many at one time."""

    order: list[int] = field(default_factory=list)
    now: int = 0
    most: int = 0


@pytest.fixture
def dumps(monkeypatch: pytest.MonkeyPatch) -> Dumps:
    """Every dump passes here, and takes a few turns of the loop."""
    seen = Dumps()

    async def counted(session: Session, at_most: int) -> Dump:
        seen.order.append(session.dpid)
        seen.now += 1
        seen.most = max(seen.most, seen.now)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
            return await dump(session, at_most)
        finally:
            seen.now -= 1

    monkeypatch.setattr("dunlin_flowctl.changes.dump", counted)
    return seen


@contextlib.asynccontextmanager
async def many_switches(**settings: Any) -> AsyncIterator[tuple[Cluster, Flowctl]]:
    """One replica, COUNT switches in step with their intents."""
    cluster = await Cluster().start()
    nodes = [f"n{number}" for number in range(COUNT)]
    for number, node in enumerate(nodes):
        intent = SwitchIntent(
            scope=node, key="pipeline", dpid=number + 1, router_mac=MAC, gateway_port=1
        )
        await cluster.intend(intent)
    await cluster.intend(service_intent("x", (1, 2)))
    await cluster.claim()
    replica = await Flowctl(cluster, **settings).start()
    switches = [FakeOpenFlowSwitch(FakeSwitch(dpid=number + 1)) for number in range(COUNT)]
    sessions = {asyncio.create_task(_connect(one, replica.port)) for one in switches}
    try:
        for node in nodes:
            await replica.synced(node)
        yield cluster, replica
    finally:
        await replica.stop()
        await asyncio.wait(sessions)


async def _connect(switch: FakeOpenFlowSwitch, port: int) -> None:
    await switch.connect("127.0.0.1", port)


async def test_switches_that_connect_at_once_are_read_a_few_at_a_time(dumps: Dumps) -> None:
    """Else each waits for the dumps of all others, hears nothing meanwhile, and hangs up."""
    async with many_switches():
        assert set(dumps.order) == set(range(1, COUNT + 1))
        assert 1 < dumps.most <= DUMPS


async def test_audits_come_one_after_the_other_and_forget_nobody(dumps: Dumps) -> None:
    """However overdue all switches are: one dump at a time, and nobody twice before all others."""
    async with many_switches(audit_interval_s=0.1, audit_share=0.9) as (_, replica):
        await until(lambda: replica.shell.auditor.overdue_s() > 0 and not dumps.now, "all overdue")
        dumps.order.clear()
        dumps.most = 0
        await until(lambda: len(dumps.order) >= 4 * COUNT, "every one some times")
        assert dumps.most == 1
        counts = Counter(dumps.order[: 4 * COUNT])
        assert set(counts) == set(range(1, COUNT + 1))
        assert max(counts.values()) - min(counts.values()) <= 2, counts


async def test_a_change_does_not_wait_for_audits(dumps: Dumps) -> None:
    """While one switch does not answer its audit, the others take a change, and so on."""
    async with many_switches(audit_interval_s=3600.0) as (cluster, replica):
        victim = replica.handles.runners["n0"]
        assert victim.changes is not None
        stuck = asyncio.Event()

        async def no_answer(session: Session, _at_most: int) -> Dump:
            stuck.set()
            raise await session.wait_closed()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dunlin_flowctl.changes.dump", no_answer)
            victim.changes.next_audit = 0.0
            turn = asyncio.create_task(replica.shell.auditor._turn(victim, victim.changes))
            await stuck.wait()
        seq = await cluster.intend(service_intent("y", (1, 2, 3), port=81))
        others = [runner for node, runner in replica.handles.runners.items() if node != "n0"]
        await until(lambda: all(runner.revision >= seq for runner in others), "all the others")
        assert victim.revision < seq
        victim.session.close("done")
        await turn


async def test_audits_take_their_share_of_the_time() -> None:
    """With a tenth of the time, nine times as long as an audit took passes before the next."""
    replica = Flowctl(await Cluster().start(), audit_share=0.1)
    assert replica.shell.auditor.pause_s(2.0) == pytest.approx(18.0)
    assert Flowctl(replica.cluster, audit_share=1.0).shell.auditor.pause_s(2.0) == 0.0


async def test_who_has_a_slot_too_long_keeps_nobody_waiting() -> None:
    """Two at a time; a third begins when one ends, or when one has had its time."""
    for limit_s, freed in ((3600.0, False), (0.0, True)):
        slots, inside, leave = Slots(2, limit_s), Counter[str](), asyncio.Event()

        async def use(slots: Slots, inside: Counter[str], leave: asyncio.Event) -> None:
            async with slots.one():
                inside["now"] += 1
                await leave.wait()

        tasks = [asyncio.create_task(use(slots, inside, leave)) for _ in range(3)]
        await until(lambda inside=inside: inside["now"] >= 2, "two")  # type: ignore[misc]
        if freed:
            await until(lambda inside=inside: inside["now"] == 3, "the third")  # type: ignore[misc]
        else:
            for _ in range(20):
                await asyncio.sleep(0)
            assert inside["now"] == 2
        leave.set()
        await asyncio.gather(*tasks)
        async with slots.one(), slots.one():
            assert inside["now"] == 3, "all slots are free again, and none is there twice"


async def test_compiling_for_a_switch_lets_others_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However much a switch needs that has just connected: the loop turns meanwhile."""
    monkeypatch.setattr("dunlin_flowctl.told.SLICE_S", -1.0)
    count = 300
    cluster = await Cluster().start()
    await cluster.intend(*(endpoint_intent("n1", f"p{n}", 4 + n) for n in range(count)))
    await cluster.intend(switch_intent("n1"))
    await cluster.claim()
    replica = await Flowctl(cluster).start()
    await until(lambda: replica.handles.caught_up, "all is read")
    switch = FakeOpenFlowSwitch(FakeSwitch(dpid=DPIDS["n1"]))
    session = asyncio.create_task(_connect(switch, replica.port))
    steps: set[int] = set()
    while (n1 := replica.handles.desired.switches.get("n1")) is None or not n1.made:
        await asyncio.sleep(0)
        steps |= {len(n1.own.effective)} if n1 is not None else set()
    assert len(steps) >= count
    await replica.synced("n1")
    await replica.stop()
    await asyncio.wait({session})
