"""Meters of Pods: there before the flows that name them, gone after them, as the intents say."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from dunlin.events.intents import AnyIntent, EndpointIntent
from dunlin.openflow.fake import FakeSwitch, Refused
from dunlin.openflow.fake_session import FakeOpenFlowSwitch, FakeSession
from dunlin.openflow.flow import Meter, meters_referred
from dunlin.pipeline.bandwidth import meters
from dunlin.pipeline.layout import DENY_METER, EGRESS_METERS, INGRESS_METERS
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from tests.scenario.flowctl.scenes import one_switch, restarted
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import endpoint_intent, switch_intent

EGRESS, INGRESS = EGRESS_METERS | 4, INGRESS_METERS | 4


def limited(egress: int = 0, ingress: int = 0) -> EndpointIntent:
    """A Pod on port 4."""
    pod = endpoint_intent("n1", "a", 4)
    return msgspec.structs.replace(pod, egress_bps=egress, ingress_bps=ingress)


METER_MOD = 29
BOTH = limited(20_000_000, 50_000_000)
FREE = limited()


def of_pods(switch: FakeSwitch) -> dict[int, Meter]:
    """Without the one of denied packets."""
    return {one: meter for one, meter in switch.meters.items() if one != DENY_METER}


def named(switch: FakeSwitch) -> set[int]:
    """By flows."""
    return {one for e in switch.flows.values() for one in meters_referred(e.flow)}


def wanted(intent: EndpointIntent) -> dict[int, Meter]:
    """Its meters by id."""
    return {meter.meter_id: meter for meter in meters(intent)}


def scene(
    *intents: AnyIntent, **settings: Any
) -> AbstractAsyncContextManager[tuple[Cluster, Flowctl, FakeOpenFlowSwitch]]:
    """Node n1 with the real pipeline."""
    return one_switch((switch_intent("n1"), *intents), compiler=PipelineCompiler(), **settings)


async def change(cluster: Cluster, intent: EndpointIntent) -> None:
    """In force on the switch; what it has made superfluous goes in the same piece of work."""
    seq = await cluster.intend(intent)
    assert (await cluster.barrier("n1", seq)).applied


async def test_a_limit_comes_changes_and_goes() -> None:
    """A new rate modifies the meter and writes no flow; without limits nothing is left."""
    async with scene(FREE) as (cluster, _flowctl, fake):
        switch = fake.switch
        assert (of_pods(switch), named(switch)) == ({}, set())
        await change(cluster, BOTH)
        assert of_pods(switch) == wanted(BOTH)
        assert named(switch) == {EGRESS, INGRESS}
        applied = switch.applied
        faster = limited(30_000_000, 50_000_000)
        await change(cluster, faster)
        assert of_pods(switch) == wanted(faster)
        assert switch.applied == applied, "flows and connections are as they were"
        half = limited(30_000_000)
        await change(cluster, half)
        assert (of_pods(switch), named(switch)) == (wanted(half), {EGRESS})
        await change(cluster, FREE)
        assert (of_pods(switch), named(switch)) == ({}, set())
        assert switch.flows, "no flow went with a meter"


async def test_a_pod_that_goes_takes_its_meters_along() -> None:
    """With its flows."""
    async with scene(BOTH) as (cluster, _flowctl, fake):
        seq = await cluster.withdraw(BOTH)
        assert (await cluster.barrier("n1", seq)).applied
        await until(lambda: of_pods(fake.switch) == {}, "deleted after its flows")


async def test_an_audit_puts_them_right() -> None:
    """Changed, missing, or nobody's: found and counted; a stranger that flows name stays."""
    async with scene(BOTH, audit_interval_s=0.2) as (_cluster, flowctl, fake):
        switch = fake.switch
        stranger = EGRESS_METERS | 99
        switch.meters[EGRESS] = Meter(EGRESS, 1, 1, "kbps")
        switch.meters[stranger] = Meter(stranger, 1, 1, "kbps")
        switch.meters[77] = Meter(77, 1, 1)
        expected = {**wanted(BOTH), 77: Meter(77, 1, 1)}
        await until(lambda: of_pods(switch) == expected, "as the intents say; 77 is not ours")
        assert flowctl.sample("dunlin_drift_total", node="n1", kind="meter") >= 1


async def test_a_restarted_switch_gets_them_back() -> None:
    """With its flows, meters first: the fake refuses a flow whose meter is missing."""
    async with scene(BOTH) as (_cluster, flowctl, fake):
        flows = set(fake.switch.flows)
        async with restarted(flowctl, fake):
            assert of_pods(fake.switch) == wanted(BOTH)
            assert fake.switch.flows.keys() == flows


async def test_another_flowctl_changes_nothing() -> None:
    """What stands is read, and is as it should be: no meter is touched, no bucket filled anew."""
    async with scene(BOTH) as (cluster, flowctl, fake):
        before = dict(fake.switch.meters)
        again = await Flowctl(cluster, "flowctl-1", PipelineCompiler()).start()
        await flowctl.shell.listener.close()
        other = FakeOpenFlowSwitch(fake.switch)
        switch = asyncio.create_task(other.connect("127.0.0.1", again.port))
        runner = await again.synced("n1")
        await cluster.claim()
        await until(lambda: runner.swept, "compared, with permission to delete")
        assert fake.switch.meters == before
        assert other.session is not None
        written = [kind for kind in other.session.received if kind == METER_MOD]
        assert len(written) <= 2, "that of denied packets alone: added, and so modified"
        await again.stop()
        await asyncio.wait({switch})


async def test_a_meter_that_is_refused_refuses_its_pod_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Named like any refusal; others go on, and it is asked again."""
    meter = FakeSession._meter
    full = True

    def refuse(session: FakeSession, data: bytes, xid: int) -> list[bytes]:
        if full and int.from_bytes(data[12:16], "big") != DENY_METER:
            raise Refused("OFPMMFC_INVALID_METER", "out of meters")
        return meter(session, data, xid)

    monkeypatch.setattr(FakeSession, "_meter", refuse)
    other = endpoint_intent("n1", "b", 5, ip="10.0.0.3")
    async with scene(BOTH, other, audit_interval_s=0.2) as (_cluster, flowctl, fake):
        assert fake.switch.flows
        assert named(fake.switch) == set()
        (error,) = flowctl.handles.desired.errors("n1")
        assert error[0] == BOTH.id
        full = False
        await until(lambda: of_pods(fake.switch) == wanted(BOTH), "it is asked again")
        await until(lambda: named(fake.switch) == {EGRESS, INGRESS}, "and its flows are there")
