"""flowctl against a real Open vSwitch."""

import asyncio
from typing import Any

import pytest

from tests.dataplane.flowctl.ovs import Ovs
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import endpoint_intent, route_intent, service_intent, switch_intent

pytestmark = [pytest.mark.ovs]


async def start(ovs: Ovs, cluster: Cluster, **settings: Any) -> Flowctl:
    """One replica, and node n1's bridge connected to it."""
    flowctl = await Flowctl(cluster, **settings).start()
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"tcp:127.0.0.1:{flowctl.port}")
    return flowctl


DIGESTS = 2
"""Flows that say what the others are."""


async def test_intents_become_flows_and_are_acknowledged(ovs: Ovs, cluster: Cluster) -> None:
    """Every kind of intent stands after the barrier; what is withdrawn goes."""
    await cluster.intend(switch_intent("n1"), route_intent("n2", 2))
    await cluster.claim()
    flowctl = await start(ovs, cluster)
    await flowctl.synced("n1")
    seq = await cluster.intend(endpoint_intent("n1", "a", 1), service_intent("web", (1, 2)))
    reply = await cluster.barrier("n1", seq)
    assert reply.applied
    assert reply.missing == ()
    flows = await asyncio.to_thread(ovs.flows, "br-n1")
    assert len(flows) == 7 + DIGESTS
    groups = await asyncio.to_thread(ovs.groups, "br-n1")
    assert len(groups) == 1
    seq = await cluster.withdraw(service_intent("web", (1, 2)))
    assert (await cluster.barrier("n1", seq, swept=True)).applied
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 4 + DIGESTS
    assert await asyncio.to_thread(ovs.groups, "br-n1") == []
    await flowctl.stop()
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 4 + DIGESTS


async def populated(ovs: Ovs, cluster: Cluster, **settings: Any) -> Flowctl:
    """Node n1 with an endpoint, a route and a service in force."""
    await cluster.intend(
        switch_intent("n1"),
        route_intent("n2", 2),
        endpoint_intent("n1", "a", 1),
        service_intent("web", (1, 2)),
    )
    await cluster.claim()
    flowctl = await start(ovs, cluster, **settings)
    await flowctl.synced("n1")
    return flowctl


def durations(ovs: Ovs) -> list[float]:
    """Ages of all flows in seconds."""
    text = ovs.ofctl("dump-flows", "br-n1")
    parts = [part for part in text.replace(",", " ").split() if part.startswith("duration=")]
    return [float(part.removeprefix("duration=").removesuffix("s")) for part in parts]


async def test_a_restart_changes_nothing(ovs: Ovs, cluster: Cluster) -> None:
    """A new flowctl finds all as it should be: no modification, flows keep their age."""
    flowctl = await populated(ovs, cluster)
    before = await asyncio.to_thread(ovs.flows, "br-n1")
    ages = await asyncio.to_thread(durations, ovs)
    await flowctl.stop()
    assert await asyncio.to_thread(ovs.flows, "br-n1") == before
    again = await Flowctl(cluster).start()
    await asyncio.to_thread(ovs.controllers, "br-n1", f"tcp:127.0.0.1:{again.port}")
    await again.synced("n1")
    for kind in ("groups_put", "flows_put", "flows_deleted", "groups_deleted"):
        assert again.sample("dunlin_flowctl_messages_total", kind=kind) == 0
    assert await asyncio.to_thread(ovs.flows, "br-n1") == before
    assert min(await asyncio.to_thread(durations, ovs)) > min(ages)
    await again.stop()


async def test_a_lost_stream_changes_nothing(ovs: Ovs, cluster: Cluster) -> None:
    """All streams deleted, all published again, little by little: same flows."""
    flowctl = await populated(ovs, cluster)
    before = await asyncio.to_thread(ovs.flows, "br-n1")
    for name in list(cluster.server.streams):
        cluster.server.delete_stream(name)
    await cluster.start()
    await until(lambda: "n1" not in flowctl.handles.runners, "the switch is given up")
    seq = await cluster.intend(switch_intent("n1"))
    await cluster.claim(complete=False)
    await flowctl.synced("n1")
    assert (await cluster.barrier("n1", seq)).applied
    assert await asyncio.to_thread(ovs.flows, "br-n1") == before
    seq = await cluster.intend(
        route_intent("n2", 2), endpoint_intent("n1", "a", 1), service_intent("web", (1, 2))
    )
    await cluster.claim()
    assert (await cluster.barrier("n1", seq, swept=True)).applied
    assert await asyncio.to_thread(ovs.flows, "br-n1") == before
    assert flowctl.sample("dunlin_flowctl_messages_total", kind="flows_deleted") == 0
    await flowctl.stop()


async def test_nothing_is_deleted_before_the_claims_are_complete(
    ovs: Ovs, cluster: Cluster
) -> None:
    """A flow of an intent that is gone stays until ipam and planner are complete, then it goes."""
    flowctl = await populated(ovs, cluster)
    await flowctl.stop()
    other = await Cluster().start()
    await other.intend(switch_intent("n1"))
    await other.claim(complete=False)
    again = await Flowctl(other).start()
    await asyncio.to_thread(ovs.controllers, "br-n1", f"tcp:127.0.0.1:{again.port}")
    await again.synced("n1")
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 7 + DIGESTS
    assert len(await asyncio.to_thread(ovs.groups, "br-n1")) == 1
    seq = await other.intend(service_intent("web", (1, 3)))
    assert (await other.barrier("n1", seq)).applied
    assert not (await other.barrier("n1", seq, swept=True, timeout_ms=100)).applied
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 8 + DIGESTS
    await other.claim()
    assert (await other.barrier("n1", seq, swept=True)).applied
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 4 + DIGESTS
    await again.stop()


async def test_a_refused_intent_stops_nobody(ovs: Ovs, cluster: Cluster) -> None:
    """The others are in force, the error names it, a fix heals it."""
    flowctl = await populated(ovs, cluster)
    seq = await cluster.intend(
        service_intent("x", (11,), port=81),
        service_intent("bad", (667,), port=82),
        service_intent("worse", (668,), port=83),
        service_intent("y", (13,), port=84),
    )
    reply = await cluster.barrier("n1", seq)
    assert reply.applied
    assert set(reply.missing) == {
        "all/service/default/bad:/TCP",
        "all/service/default/worse:/TCP",
    }
    assert len(await asyncio.to_thread(ovs.groups, "br-n1")) == 3
    await until(lambda: len(flowctl.handles.applied["n1"].errors) == 2, "errors published")
    refused = {error.intent: error for error in flowctl.handles.applied["n1"].errors}
    assert (
        refused["all/service/default/bad:/TCP"].reason == "switch refused it: OFPBAC_BAD_OUT_GROUP"
    )
    assert refused["all/service/default/bad:/TCP"].revision == seq - 2
    assert "priority" in refused["all/service/default/worse:/TCP"].reason or "1048576" in (
        refused["all/service/default/worse:/TCP"].reason
    )
    seq = await cluster.intend(
        service_intent("bad", (14,), port=82), service_intent("worse", (15,), port=83)
    )
    reply = await cluster.barrier("n1", seq, swept=True)
    assert (reply.applied, reply.missing) == (True, ())
    assert len(await asyncio.to_thread(ovs.groups, "br-n1")) == 5
    await flowctl.stop()


async def test_drift_is_repaired_and_counted(ovs: Ovs, cluster: Cluster) -> None:
    """Flows changed, removed and added by somebody else are put right within one audit."""
    flowctl = await populated(ovs, cluster, audit_interval_s=0.2)
    before = await asyncio.to_thread(ovs.flows, "br-n1")
    await asyncio.to_thread(ovs.ofctl, "add-flow", "br-n1", "table=9,priority=7,actions=drop")
    await asyncio.to_thread(ovs.ofctl, "mod-flows", "br-n1", "table=0,actions=drop")
    await asyncio.to_thread(ovs.ofctl, "del-groups", "br-n1")

    def counted() -> bool:
        kinds = ("flow_foreign", "flow_modified", "flow_missing", "group_missing")
        return all(flowctl.sample("dunlin_drift_total", node="n1", kind=kind) for kind in kinds)

    await until(counted, "drift counted")
    async with asyncio.timeout(10):
        while await asyncio.to_thread(ovs.flows, "br-n1") != before:
            await asyncio.sleep(0.05)
    await flowctl.stop()


async def test_a_removed_flow_is_noticed_at_once(ovs: Ovs, cluster: Cluster) -> None:
    """With audits an hour apart a deleted flow comes back: the switch says that it went."""
    flowctl = await populated(ovs, cluster)
    before = await asyncio.to_thread(ovs.flows, "br-n1")
    await asyncio.to_thread(ovs.ofctl, "del-flows", "br-n1", "table=1")
    await until(
        lambda: flowctl.sample("dunlin_drift_total", node="n1", kind="flow_missing") == 2, "noticed"
    )
    async with asyncio.timeout(10):
        while await asyncio.to_thread(ovs.flows, "br-n1") != before:
            await asyncio.sleep(0.05)
    await flowctl.stop()


async def test_large_changes_take_several_bundles(ovs: Ovs, cluster: Cluster) -> None:
    """More messages than a bundle may hold: groups first over all bundles, nothing refused."""
    flowctl = await populated(ovs, cluster, bundle_max=7)
    services = [service_intent(f"s{i}", (1000 + i, 2000 + i), port=1000 + i) for i in range(40)]
    seq = await cluster.intend(*services)
    assert (await cluster.barrier("n1", seq, swept=True)).missing == ()
    assert len(await asyncio.to_thread(ovs.groups, "br-n1")) == 41
    for service in services:
        seq = await cluster.withdraw(service)
    assert (await cluster.barrier("n1", seq, swept=True)).applied
    assert len(await asyncio.to_thread(ovs.groups, "br-n1")) == 1
    assert flowctl.sample("dunlin_flowctl_bundles_total", result="refused") == 0
    await flowctl.stop()


async def test_the_second_replica_takes_over(ovs: Ovs, cluster: Cluster) -> None:
    """One owns, one is slave; when the owner stops the other goes on, with no change."""
    first = await populated(ovs, cluster)
    second = await Flowctl(cluster, "flowctl-1").start()
    await asyncio.to_thread(
        ovs.controllers, "br-n1", f"tcp:127.0.0.1:{first.port}", f"tcp:127.0.0.1:{second.port}"
    )
    await until(lambda: second.handles.sessions, "second session")
    await until(lambda: len(first.handles.runners) + len(second.handles.runners) == 1, "one owner")
    owner, other = (first, second) if first.handles.runners else (second, first)
    await until(lambda: other.handles.sessions[0x11].role == "slave", "the other one is slave")
    await owner.stop()
    await other.synced("n1")
    seq = await cluster.intend(service_intent("db", (3,), port=90))
    assert (await cluster.barrier("n1", seq)).applied
    assert other.sample("dunlin_flowctl_messages_total", kind="flows_put") == 2
    assert other.handles.sessions[0x11].role == "master"
    await other.stop()


async def test_a_newer_generation_than_the_leases_know(ovs: Ovs, cluster: Cluster) -> None:
    """The switch remembers a generation of a lost bucket: the holder takes it anyway."""
    for _ in range(5):
        flowctl = await populated(ovs, cluster)
        await flowctl.stop()
        await asyncio.to_thread(ovs.vsctl, "del-br", "br-n1")
    flowctl = await populated(ovs, cluster)
    await flowctl.stop()
    other = await Cluster().start()
    await other.intend(switch_intent("n1"))
    again = await Flowctl(other).start()
    await asyncio.to_thread(ovs.controllers, "br-n1", f"tcp:127.0.0.1:{again.port}")
    await again.synced("n1")
    assert again.sample("dunlin_openflow_errors_total", reason="stale_generation") == 1
    await again.stop()


async def test_an_unknown_switch_is_left_alone(ovs: Ovs, cluster: Cluster) -> None:
    """A dpid without switch intent stays connected and untouched until the intent comes."""
    flowctl = await start(ovs, cluster)
    await asyncio.to_thread(ovs.ofctl, "add-flow", "br-n1", "priority=1,actions=drop")
    await until(lambda: flowctl.shell.count_switches()["unknown"] == 1, "connected")
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 1
    await cluster.intend(switch_intent("n1"))
    await flowctl.synced("n1")
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 2
    await cluster.claim()
    await until(lambda: flowctl.handles.runners["n1"].swept, "swept")
    assert len(await asyncio.to_thread(ovs.flows, "br-n1")) == 1 + DIGESTS
    await flowctl.stop()
