"""The bus goes and comes back; another controller grabs a switch; garbage among the intents."""

import asyncio
import time
from contextlib import AbstractAsyncContextManager

from dunlin import subjects
from dunlin.bus.base import Message
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin.pipeline.layout import Table
from tests.scenario.flowctl.scenes import Scene, one_switch, restarted
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import endpoint_intent, service_intent, switch_intent


def scene() -> AbstractAsyncContextManager[Scene]:
    """Node n1 with a Pod and a service in force."""
    return one_switch(
        (switch_intent("n1"), endpoint_intent("n1", "a", 4), service_intent("web", (1,))),
        lease_ttl_s=1.0,
    )


async def test_the_bus_may_go_and_come_back() -> None:
    """Without the bus its last owner keeps a switch, also one that restarts; then it goes on."""
    async with scene() as (cluster, flowctl, fake):
        applied = fake.switch.applied
        cluster.server.stop()
        owners = flowctl.handles.ownership.owners
        await until(lambda: not owners.hearing(time.monotonic()), "the outage is noticed")
        assert "n1" in flowctl.handles.runners
        assert fake.switch.applied == applied
        flows = dict(fake.switch.flows)
        async with restarted(flowctl, fake):
            assert fake.switch.flows.keys() == flows.keys()
            applied = fake.switch.applied
            cluster.server.start()
            await until(lambda: owners.hearing(time.monotonic()), "the bus is back")
            assert "n1" in flowctl.handles.runners
            assert fake.switch.applied == applied
            seq = await cluster.intend(endpoint_intent("n1", "b", 5, ip="10.0.0.3"))
            barrier = subjects.rpc("flowctl", "barrier", "n1")
            await until(
                lambda: any(served.pattern == barrier for served in cluster.server.served),
                "barriers are served again",
            )
            assert (await cluster.barrier("n1", seq)).applied
            # Two flows, and what the switch says of its own from then on.
            assert fake.switch.applied == applied + 3


async def test_garbage_on_an_intent_changes_nothing() -> None:
    """What does not parse is reported by name and deletes nothing, also not after a restart."""
    async with scene() as (cluster, flowctl, fake):
        flows = {key: flow for key, flow in fake.switch.flows.items() if key[0] != Table.DIGEST}
        subject = service_intent("web", ()).subject
        seq = await cluster.bus.publish(Message(subject, b'{"kind": "service", "port": "x"}'))
        other = endpoint_intent("n1", "b", 5, ip="10.0.0.3")
        assert (await cluster.barrier("n1", await cluster.intend(other))).applied
        await until(lambda: flowctl.handles.applied["n1"].errors, "reported")
        (error,) = flowctl.handles.applied["n1"].errors
        assert error.intent == "all/service/default/web:/TCP"
        assert "does not parse" in error.reason
        again = await Flowctl(cluster, "flowctl-1").start()
        switch = asyncio.create_task(fake.connect("127.0.0.1", again.port))
        await flowctl.shell.listener.close()
        await cluster.claim()
        runner = await again.synced("n1")
        await until(lambda: runner.swept, "compared, with permission to delete")
        assert fake.switch.flows.items() >= flows.items()
        assert len(fake.switch.groups) == 1
        await again.stop()
        await asyncio.wait({switch})
        assert seq


async def test_intents_of_a_later_version_are_left_out() -> None:
    """A kind that this version does not know is counted and stops nobody."""
    async with scene() as (cluster, _flowctl, _fake):
        subject = "dunlin.v1.intent.all.teleport.x"
        await cluster.bus.publish(Message(subject, b'{"kind": "teleport", "scope": "all"}'))
        seq = await cluster.intend(endpoint_intent("n1", "b", 5, ip="10.0.0.3"))
        assert (await cluster.barrier("n1", seq)).applied


async def test_a_stuck_session_ends_and_its_successor_is_served() -> None:
    """A switch that hangs in a bundle is given up after its time; it comes back whole."""
    cluster = await Cluster().start()
    await cluster.intend(switch_intent("n1"))
    await cluster.claim()
    flowctl = await Flowctl(cluster, reply_timeout_s=0.3).start()
    fake = FakeOpenFlowSwitch(FakeSwitch(dpid=0x11))
    first = asyncio.create_task(fake.connect("127.0.0.1", flowctl.port))
    await flowctl.synced("n1")
    fake.stuck = True
    seq = await cluster.intend(service_intent("web", (1, 2)))
    await asyncio.wait_for(first, 10)
    await until(
        lambda: flowctl.sample("dunlin_openflow_errors_total", reason="no_reply") == 1, "counted"
    )
    fake.stuck = False
    second = asyncio.create_task(fake.connect("127.0.0.1", flowctl.port))
    await flowctl.synced("n1")
    assert (await cluster.barrier("n1", seq, swept=True)).applied
    assert len(fake.switch.groups) == 1
    await flowctl.stop()
    await asyncio.wait({second})
