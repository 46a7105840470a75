"""A switch changes hands: its next owner takes its word, or looks when that is not enough."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.structs import replace

from dunlin import subjects, wire
from dunlin.bus.base import Message
from dunlin.events.intents import AnyIntent
from dunlin.events.state import Applied
from dunlin.openflow.fake import Mod
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin.openflow.flow import Flow, Meter, match
from dunlin.openflow.messages import InstalledFlow
from dunlin.pipeline.layout import DENY_METER, EGRESS_METERS, Table
from dunlin_flowctl.core.digest import UNKNOWN, Digests, take_digests
from dunlin_flowctl.core.program import FlowKey, Key
from tests.scenario.flowctl.scenes import one_switch
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import (
    Change,
    endpoint_intent,
    route_intent,
    service_intent,
    switch_intent,
)
from tests.unit.flowctl.test_delta import from_scratch

INTENTS = (
    switch_intent("n1"),
    endpoint_intent("n1", "a", 4),
    route_intent("n2", 2),
    service_intent("web", (1, 2)),
)
PUT = ("groups_put", "flows_put", "flows_deleted", "groups_deleted", "digests")


def said_by(fake: FakeOpenFlowSwitch) -> Digests:
    """The digests that the switch holds."""
    return take_digests({key: entry.flow for key, entry in fake.switch.flows.items()})


@asynccontextmanager
async def left_behind(
    more: Sequence[AnyIntent] = (), **settings: Any
) -> AsyncIterator[tuple[Cluster, Flowctl, FakeOpenFlowSwitch]]:
    """A switch whose owner is gone; a second replica has read all that there was."""
    async with one_switch((*INTENTS, *more), **settings) as (cluster, flowctl, fake):
        await until(lambda: flowctl.handles.runners["n1"].swept, "all explained")
        heir = await Flowctl(cluster, "flowctl-1", **settings).start()
        await until(lambda: heir.handles.may_delete, "caught up")
        await flowctl.shell.listener.close()
        fake.close()
        await until(lambda: not flowctl.handles.runners, "given up")
        yield cluster, heir, fake
        await heir.stop()


def address(heir: Flowctl) -> tuple[str, int]:
    """Where it listens."""
    return "127.0.0.1", heir.port


async def taken(heir: Flowctl, fake: FakeOpenFlowSwitch) -> asyncio.Task[None]:
    """The switch connects to the second replica, which serves it then."""
    task = asyncio.create_task(FakeOpenFlowSwitch(fake.switch).connect(*address(heir)))
    await heir.synced("n1")
    return task


def compared(heir: Flowctl) -> dict[str, float]:
    """How often by cause the replica has looked."""
    causes = ("told", "connect", "repair", "complete")
    found = {cause: heir.sample("dunlin_flowctl_audits_total", cause=cause) for cause in causes}
    return {cause: count for cause, count in found.items() if count}


async def test_nothing_has_changed() -> None:
    """No dump, no message, and nothing compiled: the switch says what it was made from."""
    async with left_behind() as (cluster, heir, fake):
        applied = fake.switch.applied
        await taken(heir, fake)
        assert compared(heir) == {"told": 1}
        assert fake.switch.applied == applied
        assert heir.handles.runners["n1"].swept
        assert not heir.handles.desired.switches["n1"].made
        state = heir.handles.runners["n1"].applied()
        assert (state.flows, state.groups) == (len(fake.switch.flows) - 2, len(fake.switch.groups))
        assert (await cluster.barrier("n1", heir.handles.desired.revision, swept=True)).applied


async def test_what_all_switches_hold_has_changed() -> None:
    """What nobody wrote meanwhile is written, and no more: one Service changed, one went."""
    async with left_behind() as (cluster, heir, fake):
        await cluster.intend(service_intent("db", (3,), port=90))
        await cluster.withdraw(service_intent("web", (1, 2)))
        seq = await cluster.intend(service_intent("db", (3, 4), port=90))
        await until(lambda: heir.handles.desired.revision >= seq, "read")
        await taken(heir, fake)
        assert (await cluster.barrier("n1", seq)).applied
        assert compared(heir) == {"told": 1}
        counts = [heir.sample("dunlin_flowctl_messages_total", kind=kind) for kind in PUT]
        assert counts == [1, 3, 3, 1, 1]


async def test_its_own_changes_before_it_has_been_compiled() -> None:
    """A Pod comes, another goes, and a Service: no dump, and what differs is written, no more."""
    async with left_behind() as (cluster, heir, fake):
        await taken(heir, fake)
        more = service_intent("db", (3,), port=90), endpoint_intent("n1", "b", 5, ip="10.0.0.3")
        await cluster.withdraw(INTENTS[1])
        seq = await cluster.intend(*more)
        assert (await cluster.barrier("n1", seq, swept=True)).applied
        assert compared(heir) == {"told": 1}
        flows = {key: entry.flow for key, entry in fake.switch.flows.items()}
        assert take_digests(flows).source
        held: dict[Key, Any] = dict(flows.items())
        held.update(fake.switch.groups.items())
        wanted: list[AnyIntent] = [INTENTS[0], *INTENTS[2:], *more]
        assert held == from_scratch([Change(intent, gone=False) for intent in wanted], "n1")
        state = heir.handles.runners["n1"].applied()
        assert (state.flows, state.groups) == (len(fake.switch.flows) - 2, len(fake.switch.groups))


@pytest.mark.parametrize("lie", [True, False])
async def test_an_audit_reads_all_of_it(*, lie: bool) -> None:
    """It compiles what has been taken at its word, and finds what is not as it was said to be."""
    async with left_behind() as (_, heir, fake):
        key = next(key for key in fake.switch.flows if key[0] == 0)
        flow = fake.switch.flows[key].flow
        if lie:
            # Somebody has changed it while nobody owned the switch, and kept the number.
            fake.switch.flows[key] = InstalledFlow(replace(flow, goto=2))
        await taken(heir, fake)
        assert compared(heir) == {"told": 1}
        runner = heir.handles.runners["n1"]
        assert runner.changes is not None
        runner.changes.audit_due = True
        runner.signal.notify()
        await until(lambda: heir.sample("dunlin_flowctl_audits_total", cause="audit"), "audited")
        await until(lambda: fake.switch.flows[key].flow == flow, "as it should be")
        drift = heir.sample("dunlin_drift_total", node="n1", kind="flow_modified")
        assert drift == lie


@pytest.mark.parametrize("what", ["version", "conflict", "meter"])
async def test_what_has_to_be_compiled_first(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other code, something that is not as asked for, a Pod's meter: no dump all the same."""
    more = [endpoint_intent("n1", "b", 4)] if what == "conflict" else []
    async with left_behind(more=more) as (_, heir, fake):
        if what == "version":
            monkeypatch.setattr(heir.handles.desired._sources, "_version", b"newer")
        elif what == "meter":
            # Nobody's: no flow names it.
            stranger = Meter(EGRESS_METERS | 99, 1, 1, "kbps")
            fake.switch.meters[stranger.meter_id] = stranger
        applied = fake.switch.applied
        await taken(heir, fake)
        assert compared(heir) == {"told": 1}
        assert heir.handles.desired.switches["n1"].made
        assert fake.switch.applied == applied
        errors = heir.handles.runners["n1"].applied().errors
        assert [error.intent for error in errors] == [intent.id for intent in more]
        await until(lambda: fake.switch.meters.keys() == {DENY_METER}, "deleted, as nobody's")


async def test_the_owner_has_the_last_word() -> None:
    """What an owner before says too late, of a switch that is not its own, does not stand."""
    async with one_switch(INTENTS) as (cluster, flowctl, _):
        await cluster.barrier("n1", flowctl.handles.desired.revision, swept=True)
        late = replace(flowctl.handles.runners["n1"].applied(), owner="flowctl-9", revision=0)
        seq = await cluster.bus.publish(Message(late.subject, wire.encode(late)))
        subject = subjects.applied("n1")
        async with asyncio.timeout(10):
            while (record := await cluster.bus.get_last(subject)) is None or record.seq <= seq:
                await asyncio.sleep(0.01)
        said = wire.decode(record.data, Applied)
        assert (said.owner, said.revision) == ("flowctl-0", flowctl.handles.desired.revision)


async def test_its_own_has_changed() -> None:
    """A Pod of this node came: only a dump tells whether its flows are there."""
    async with left_behind() as (cluster, heir, fake):
        seq = await cluster.intend(endpoint_intent("n1", "b", 5, ip="10.0.0.3"))
        await until(lambda: heir.handles.desired.revision >= seq, "read")
        await taken(heir, fake)
        assert compared(heir) == {"connect": 1}
        assert heir.sample("dunlin_flowctl_messages_total", kind="flows_put") == 2
        assert said_by(fake) != UNKNOWN


@pytest.mark.parametrize("how", ["lost", "added", "cleared", "unsaid"])
async def test_somebody_else_has_changed_it(how: str) -> None:
    """A flow fewer, one more, none at all, or no digest: the next owner looks, and mends."""
    async with left_behind() as (_, heir, fake):
        held = dict(fake.switch.flows)
        switch_cookie = next(iter(held.values())).flow.cookie
        strange = Flow(2, 7, match(in_port=77), cookie=switch_cookie)
        digest: FlowKey = (Table.DIGEST, 2, ())
        match how:
            case "lost":
                del fake.switch.flows[next(key for key in held if key[0] == 1)]
            case "added":
                fake.switch.flows[strange.key] = InstalledFlow(strange)
            case "cleared":
                fake.switch.flows.clear()
                fake.switch.groups.clear()
            case _:
                del fake.switch.flows[digest]
        await taken(heir, fake)
        assert compared(heir) == {"connect": 1}
        assert {k: e.flow for k, e in fake.switch.flows.items()} == {
            k: e.flow for k, e in held.items()
        }


async def test_an_owner_that_dies_in_a_large_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two bundles of one change the switch says nothing: the next owner looks."""
    async with left_behind(bundle_max=5) as (cluster, heir, fake):
        said: list[bool] = []
        apply = fake.switch.apply_bundle

        def watched(mods: Iterable[Mod]) -> None:
            apply(mods)
            said.append(said_by(fake).shared != 0)
            if len(said) == 3:
                # As if the owner had died here; the session knows no difference.
                heir.handles.sessions[0x11].close("dead")

        monkeypatch.setattr(fake.switch, "apply_bundle", watched)
        services = [service_intent(f"s{n}", (1, 2), port=100 + n) for n in range(10)]
        seq = await cluster.intend(*services)
        await until(lambda: heir.handles.desired.revision >= seq, "read")
        dying = asyncio.create_task(FakeOpenFlowSwitch(fake.switch).connect(*address(heir)))
        await until(lambda: len(said) == 3 and not heir.handles.runners, "gone in the middle")
        await asyncio.wait({dying})
        assert said == [False] * 3
        held = len(fake.switch.flows)
        await taken(heir, fake)
        assert (await cluster.barrier("n1", seq, swept=True)).applied
        assert compared(heir) == {"told": 1, "connect": 1}
        assert len(fake.switch.flows) > held
        assert said[3:] == [False] * (len(said) - 4) + [True]
        state = heir.handles.runners["n1"].applied()
        assert (state.flows, state.groups) == (len(fake.switch.flows) - 2, len(fake.switch.groups))
