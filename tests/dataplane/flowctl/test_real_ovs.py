"""flowctl against a real Open vSwitch."""

import asyncio

import pytest

from tests.dataplane.flowctl.ovs import Ovs
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import endpoint_intent, route_intent, service_intent, switch_intent

pytestmark = [pytest.mark.ovs]


async def start(ovs: Ovs, cluster: Cluster, **settings: object) -> Flowctl:
    """One replica, and node n1's bridge connected to it."""
    flowctl = await Flowctl(cluster, **settings).start()
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"tcp:127.0.0.1:{flowctl.port}")
    return flowctl


async def test_intents_become_flows_and_are_acknowledged(ovs: Ovs, cluster: Cluster) -> None:
    """Flows and groups of every kind of intent stand after the barrier, changes are minimal, deletes follow."""
    await cluster.intend(switch_intent("n1"), route_intent("n2", 2))
    await cluster.claim()
    flowctl = await start(ovs, cluster)
    await flowctl.synced("n1")
    seq = await cluster.intend(endpoint_intent("n1", "a", 1), service_intent("web", (1, 2)))
    reply = await cluster.barrier("n1", seq)
    assert reply.applied
    assert reply.missing == ()
    flows = await asyncio.to_thread(ovs.flows, "br-n1")
    assert len(flows) == 7
    groups = await asyncio.to_thread(ovs.groups, "br-n1")
    assert len(groups) == 1
    seq = await cluster.withdraw(service_intent("web", (1, 2)))
    assert (await cluster.barrier("n1", seq, swept=True)).applied
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 4
    assert await asyncio.to_thread(ovs.groups, "br-n1") == []
    await flowctl.stop()
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 4
