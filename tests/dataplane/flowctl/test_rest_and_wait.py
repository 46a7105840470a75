"""REST and `dunlin wait` against a real Open vSwitch."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dunlin import subjects, wire
from dunlin.events.facts import SwitchFact
from dunlin.events.rpc import Synced, WaitReply, WaitRequest
from dunlin_flowctl import rest
from tests.dataplane.flowctl.ovs import Ovs
from tests.unit.flowctl.harness import Cluster, Flowctl, until
from tests.unit.flowctl.programs import DPIDS, MAC, endpoint_intent, service_intent, switch_intent

pytestmark = [pytest.mark.ovs]


@dataclass
class Scene:
    """One replica, one switch, REST."""

    cluster: Cluster
    ovs: Ovs
    flowctl: Flowctl
    client: httpx.AsyncClient

    async def get(self, path: str, **query: Any) -> Any:
        """JSON of a successful GET."""
        response = await self.client.get(path, params=query)
        assert response.status_code == 200, response.text
        return response.json()


@pytest.fixture
async def scene(ovs: Ovs, cluster: Cluster) -> AsyncIterator[Scene]:
    """Node n1 with an endpoint and a service; node n2 has a switch intent only."""
    await cluster.intend(
        switch_intent("n1"), endpoint_intent("n1", "a", 1), service_intent("web", (2, 3))
    )
    await cluster.claim()
    flowctl = await Flowctl(cluster).start()
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"tcp:127.0.0.1:{flowctl.port}")
    await flowctl.synced("n1")
    app = FastAPI()
    app.include_router(rest.router(flowctl.handles, flowctl.waiter))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://flowctl"
    ) as client:
        yield Scene(cluster, ovs, flowctl, client)
    await flowctl.stop()


async def watcher(cluster: Cluster) -> None:
    """Answers rpc.watcher.sync: everything is in the log."""

    async def handle(_subject: str, _data: bytes) -> bytes:
        epoch = await cluster.bus.epoch(subjects.FACTS_STREAM)
        seq = await cluster.bus.last_seq(subjects.FACTS_STREAM)
        return wire.encode(Synced(fact_seq=seq, fact_epoch=epoch))

    await cluster.bus.serve(subjects.rpc("watcher", "sync"), handle)


def switch_fact(node: str) -> SwitchFact:
    """What the agent of a node says of its bridge."""
    return SwitchFact(name=node, dpid=DPIDS[node], router_mac=MAC, uplink_mac=MAC, gateway_port=1)


async def test_switches_flows_and_groups(scene: Scene) -> None:
    """The switch with its session, its flows with objects, its groups with owners."""
    (switch,) = (await scene.get("/v1/switches"))["items"]
    assert switch["node"] == "n1"
    assert switch["dpid"] == "0000000000000011"
    assert (switch["connected"], switch["role"], switch["pending"]) == (True, "master", 0)
    assert (switch["flows"], switch["groups"], switch["revision"]) == (6, 1, 3)
    flows = (await scene.get("/v1/switches/n1/flows"))["items"]
    assert len(flows) == 6 + len(["of shared intents", "of its own"])
    assert [f["intent"] for f in flows if f["table"] == "Digest"] == ["?/digest/?"] * 2
    only = (await scene.get("/v1/switches/n1/flows", intent="n1/endpoint/default/a/eth0"))["items"]
    assert [(f["table_id"], f["priority"], f["object"]) for f in only] == [
        (1, 10, "pod/default/a"),
        (2, 10, "pod/default/a"),
    ]
    assert only[0]["match"] == "in_port=1"
    assert only[1]["match"] == "ip,nw_dst=10.0.0.2"
    assert only[1]["actions"] == "output:1"
    (group,) = (await scene.get("/v1/switches/n1/groups"))["items"]
    assert group["object"] == "service/default/web"
    assert [bucket["actions"] for bucket in group["buckets"]] == ["output:2", "output:3"]


async def test_intents_and_where_they_are_in_force(scene: Scene) -> None:
    """Filters, revisions by switch, one intent with its content, pages."""
    items = (await scene.get("/v1/intents", object="default/web"))["items"]
    assert [(i["id"], i["kind"], i["applied"]) for i in items] == [
        ("all/service/default/web:/TCP", "service", {"n1": 3})
    ]
    assert (items[0]["switches"], items[0]["in_force"], items[0]["lacking"]) == (1, 1, [])
    page = await scene.get("/v1/intents", limit=2)
    rest_ = await scene.get("/v1/intents", limit=2, after=page["next"])
    assert [i["kind"] for i in page["items"] + rest_["items"]] == ["service", "endpoint", "switch"]
    one = await scene.get("/v1/intents/n1/endpoint/default/a/eth0")
    assert one["intent"]["ips"] == ["10.0.0.2"]
    assert (await scene.get("/v1/intents", scope="n9"))["items"] == []


async def test_counters_name_what_they_count(scene: Scene) -> None:
    """Intents, ports with their Pods, buckets of groups."""
    counters = await scene.get("/v1/switches/n1/counters")
    by_intent = {item["intent"]: item["flows"] for item in counters["intents"]}
    assert by_intent["all/service/default/web:/TCP"] == 3
    ports = {port["port"]: port["object"] for port in counters["ports"]}
    assert ports[1] == "pod/default/a"
    assert len(counters["groups"][0]["buckets"]) == 2
    assert len([f for f in counters["flows"] if f["table_id"] == 1]) == 1


async def test_unknown_names_are_errors_that_name_them(scene: Scene) -> None:
    """404 for what does not exist, 503 for what is not connected, 422 for what cannot be."""
    for path, code, word in (
        ("/v1/switches/nope/flows", 404, "nope"),
        ("/v1/intents/all/service/x", 404, "all/service/x"),
        ("/v1/switches/n1/flows?intent=garbage", 422, "garbage"),
    ):
        response = await scene.client.get(path)
        assert (response.status_code, word in response.text) == (code, True), response.text
    await scene.cluster.intend(switch_intent("n2"))
    await until(lambda: scene.flowctl.handles.desired.switch_intent("n2"), "n2 known")
    response = await scene.client.get("/v1/switches/n2/flows")
    assert (response.status_code, "n2" in response.text) == (503, True)


async def test_wait_ends_when_every_switch_has_everything(scene: Scene) -> None:
    """After a change the wait returns 200 only with the change in force."""
    await watcher(scene.cluster)
    await scene.cluster.know(switch_fact("n1"))
    waiting = asyncio.create_task(scene.client.post("/v1/wait", params={"timeout_s": 20}))
    seq = await scene.cluster.intend(service_intent("db", (1,), port=90))
    await scene.cluster.claim()
    response = await waiting
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["applied"], body["revision"]) == (True, seq)
    assert len(await asyncio.to_thread(scene.ovs.groups, "br-n1")) == 2


async def test_a_wait_that_times_out_says_what_lacks(scene: Scene) -> None:
    """A switch that is not there and an intent that was refused are named with their objects."""
    await watcher(scene.cluster)
    await scene.cluster.know(switch_fact("n2"))
    await scene.cluster.intend(service_intent("bad", (667,), port=91))
    await scene.cluster.claim()
    request = WaitRequest(timeout_ms=700)
    data = await scene.cluster.bus.request(
        subjects.rpc("flowctl", "wait"), wire.encode(request), timeout_s=10
    )
    reply = wire.decode(data, WaitReply)
    assert (reply.applied, reply.stage) == (False, "switches")
    n1, n2 = reply.switches
    assert [(m.intent, m.object) for m in n1.missing] == [
        ("all/service/default/bad:/TCP", "service/default/bad")
    ]
    assert not n1.applied
    assert "not connected" in n2.reason


async def test_a_wait_without_watcher_or_progress_says_so(scene: Scene) -> None:
    """The stage and the reason name the service that does not answer or has not read on."""
    body = (await scene.client.post("/v1/wait", params={"timeout_s": 0.3})).json()
    assert (body["applied"], body["stage"]) == (False, "watcher")
    assert "no watcher answers" in body["reason"]
    await watcher(scene.cluster)
    await scene.cluster.know(switch_fact("n1"))
    response = await scene.client.post("/v1/wait", params={"timeout_s": 0.3})
    assert response.status_code == 504
    body = response.json()
    assert body["stage"] == "intents"
    assert "planner has read facts up to 0, not 1" in body["reason"]


async def test_a_stuck_switch_holds_up_nobody(scene: Scene) -> None:
    """One switch stops reading: the other one goes on, and the wait names the stuck one."""
    other = Ovs()
    try:
        await asyncio.to_thread(other.start)
        await scene.cluster.intend(switch_intent("n2"))
        await asyncio.to_thread(other.bridge, "br-n2", 0x12, f"tcp:127.0.0.1:{scene.flowctl.port}")
        await scene.flowctl.synced("n2")
        other.pause(stopped=True)
        services = [service_intent(f"s{i}", (1000 + i,), port=2000 + i) for i in range(200)]
        seq = await scene.cluster.intend(*services)
        async with asyncio.timeout(5):
            assert (await scene.cluster.barrier("n1", seq)).applied
        stuck = await scene.cluster.barrier("n2", seq, timeout_ms=100)
        assert not stuck.applied
        assert len(stuck.missing) == 100
        other.pause(stopped=False)
        assert (await scene.cluster.barrier("n2", seq)).applied
    finally:
        await asyncio.to_thread(other.stop)
