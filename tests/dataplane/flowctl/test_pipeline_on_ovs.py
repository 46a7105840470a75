"""The real pipeline in a real Open vSwitch: what is dumped equals what was meant."""

import asyncio
from typing import Any

import msgspec
import pytest

from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from tests.dataplane.flowctl.ovs import Ovs
from tests.dataplane.flowctl.real_intents import endpoint, everything, service, switch
from tests.unit.flowctl.harness import Cluster, Flowctl, until

pytestmark = [pytest.mark.ovs]

KINDS = ("groups_put", "flows_put", "flows_deleted", "groups_deleted")


async def start(ovs: Ovs, cluster: Cluster, **settings: Any) -> Flowctl:
    """A replica with the real pipeline."""
    flowctl = await Flowctl(cluster, compiler=PipelineCompiler(), **settings).start()
    target = f"tcp:127.0.0.1:{flowctl.port}"
    await asyncio.to_thread(ovs.controllers, "br-n1", target)
    await flowctl.synced("n1")
    return flowctl


async def test_a_dump_equals_what_was_written(ovs: Ovs, cluster: Cluster) -> None:
    """Every kind of intent: nothing refused, audits find no drift, a restart writes nothing."""
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, "tcp:127.0.0.1:9")
    seq = await cluster.intend(*everything())
    await cluster.claim()
    flowctl = await start(ovs, cluster, audit_interval_s=0.2)
    reply = await cluster.barrier("n1", seq, swept=True)
    assert (reply.applied, reply.missing) == (True, ())
    assert flowctl.handles.desired.errors("n1") == []
    await until(
        lambda: flowctl.sample("dunlin_flowctl_audits_total", cause="audit") >= 2, "two audits"
    )
    written = [flowctl.sample("dunlin_flowctl_messages_total", kind=kind) for kind in KINDS]
    assert written[0] > 0
    assert written[2:] == [0, 0]
    runner = flowctl.handles.runners["n1"]
    assert runner.switch is not None
    assert written[:2] == [runner.switch.groups, runner.switch.flows], "audits wrote something"
    before = await asyncio.to_thread(ovs.flows, "br-n1")
    await flowctl.stop()
    again = await start(ovs, cluster)
    assert [again.sample("dunlin_flowctl_messages_total", kind=kind) for kind in KINDS] == [0] * 4
    assert await asyncio.to_thread(ovs.flows, "br-n1") == before
    await again.stop()
    assert ovs.log_without_connections() == ""


async def test_every_change_and_back_leaves_what_was(ovs: Ovs, cluster: Cluster) -> None:
    """Endpoints and the switch intent change and change back: the flows are as before."""
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, "tcp:127.0.0.1:9")
    intents = everything()
    await cluster.intend(*intents)
    await cluster.claim()
    flowctl = await start(ovs, cluster)
    before = (
        await asyncio.to_thread(ovs.flows, "br-n1"),
        await asyncio.to_thread(ovs.groups, "br-n1"),
    )
    for count in (0, 2, 70, 300, 1, 0):
        seq = await cluster.intend(service(4, count), endpoint(1, 9))
        assert (await cluster.barrier("n1", seq, swept=True)).missing == ()
    await cluster.intend(msgspec.structs.replace(switch(1, 0x11), gateway_port=7))
    for intent in intents[3:]:
        await cluster.withdraw(intent)
    await cluster.withdraw(endpoint(1, 9))
    seq = await cluster.intend(*intents)
    assert (await cluster.barrier("n1", seq, swept=True)).missing == ()
    after = (
        await asyncio.to_thread(ovs.flows, "br-n1"),
        await asyncio.to_thread(ovs.groups, "br-n1"),
    )
    assert after == before
    await flowctl.stop()
