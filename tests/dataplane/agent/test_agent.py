"""The whole agent on real OVS and a memory bus: CNI calls in, facts out, restarts survived."""

import asyncio
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.facts import NodeFact, SwitchFact
from dunlin.events.rpc import Failure
from dunlin.model.addresses import GATEWAY_MAC, derived_dpid, derived_mac
from dunlin.openflow.flow import match
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK
from dunlin.service.metrics import Metrics
from dunlin_agent.adapters.ipam import Ipam
from dunlin_agent.adapters.links import PodLinks, host_ifname
from dunlin_agent.adapters.node_net import NodeNet
from dunlin_agent.adapters.openflow_local import dump_flows
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.vswitchd import Vswitchd
from dunlin_agent.cni import CniServer
from dunlin_agent.config import Settings
from dunlin_agent.external_shell import ExternalFlows
from dunlin_agent.facts import Facts
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.node import Node
from dunlin_agent.pods import Pods
from tests.dataplane.agent.control_plane import ControlPlane
from tests.dataplane.agent.ovs_node import OvsNode, run
from tests.unit.agent.executable import Call, build, call

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]
DEADLINE_S = 60.0


class Agent:
    """One agent of one node, in this process but with its hands in the node's namespace."""

    def __init__(self, node: OvsNode, server: MemoryServer) -> None:
        """As __main__ wires it."""
        self.bus = MemoryBus(server)
        self.settings = Settings(
            node="node-1.example",
            agent_socket=node.rundir / "agent.sock",
            ovs_rundir=node.rundir,
            uplink="eth0",
            state_dir=node.rundir,
            add_timeout_s=3.0,
        )
        self.metrics = AgentMetrics(Metrics("agent", "0"))
        self.ovs = Ovs(node.remote)
        self.net = NodeNet(node.rundir / "uplink.json", node.netns)
        self.links = PodLinks(node.netns)
        self.vswitchd = Vswitchd(node.rundir)
        self.facts = Facts(self.bus, self.settings.node, self.metrics, now_ms=lambda: 1)
        ipam = Ipam(self.bus, self.settings.node)
        self.node = Node(
            self.settings, self.facts, self.ovs, self.net, self.vswitchd, ipam, self.metrics
        )
        self.pods = Pods(
            self.facts,
            self.ovs,
            self.links,
            ipam,
            self.metrics,
            add_timeout_s=3.0,
            not_ready=self.node.not_ready,
        )
        self.server = CniServer(self.settings.agent_socket, self.pods, self.metrics.observe_cni)
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Every task."""
        await self.bus.ensure_streams()
        await self.ovs.start()
        await self.server.start()

        async def seed(neighbour: Any) -> None:
            await self.vswitchd.set_neighbour("br-ext", neighbour.ip, neighbour.mac)

        for work in (
            self.facts.follow_facts(),
            self.facts.follow_state(),
            self.facts.publish(seed),
            self.pods.watch(),
            self.node.run(),
            ExternalFlows(self.settings, self.facts, self.ovs).keep(),
        ):
            self.tasks.append(asyncio.create_task(work))

    async def stop(self) -> None:
        """As SIGTERM."""
        for task in self.tasks:
            task.cancel()
        ended = await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.server.stop()
        await self.links.close()
        await self.net.close()
        await self.ovs.close()
        await self.bus.close()
        assert [e for e in ended if not isinstance(e, asyncio.CancelledError)] == []

    async def until(self, level: Callable[[], bool], what: str) -> None:
        """Wait for a level of this process."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not level():
                    assert not [task for task in self.tasks if task.done()]
                    await asyncio.sleep(0.02)
        except TimeoutError:
            pytest.fail(f"waited {DEADLINE_S} s for {what}: {self.node.not_ready()}")

    async def until_ready(self) -> None:
        """The node is set up and told."""
        await self.until(lambda: self.node.not_ready() is None, "the node")

    async def until_other_than(self, incarnation: str) -> None:
        """The node is set up on another life of vswitchd."""
        await self.until(
            lambda: (
                self.facts.state.switch is not None
                and self.facts.state.switch.incarnation != incarnation
                and self.node.not_ready() is None
            ),
            "another life of ovs-vswitchd",
        )


class Site:
    """A node with an uplink and a world, its control plane, and one agent at a time."""

    def __init__(self, node: OvsNode) -> None:
        """Nothing runs yet."""
        self.ovs_node = node
        self.server = MemoryServer()
        self.control = ControlPlane(self.server, "node-1.example")
        self.agent = Agent(node, self.server)

    async def build(self) -> None:
        """The world, then everything else."""
        out, name = f"{self.ovs_node.name}-out", self.ovs_node.name
        self.ovs_node.add_netns(out)
        run("sh", "-c", f"ip link add eth0 type veth peer name eth0 netns {out}", netns=name)
        for netns, host in ((out, 1), (name, 10)):
            setup = (
                "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0;"
                "ip link set lo up; ethtool -K eth0 tx off >/dev/null;"
                f"ip addr add 172.31.9.{host}/24 dev eth0; ip link set eth0 up;"
                f"ip addr add fd09::{host}/64 dev eth0 nodad"
            )
            run("sh", "-c", setup, netns=netns)
        defaults = "ip route add default via 172.31.9.1; ip -6 route add default via fd09::1"
        run("sh", "-c", defaults, netns=name)
        await self.control.start()
        await self.agent.start()

    async def restart_agent(self) -> None:
        """Another process in its place."""
        await self.agent.stop()
        self.agent = Agent(self.ovs_node, self.server)
        await self.agent.start()

    async def cni(self, command: str, pod: str, **conf: Any) -> Call:
        """Call the executable for a Pod of that name, whose namespace is there."""
        netns = Path("/run/netns", f"{self.ovs_node.name}-{pod}")
        environment = {
            "CNI_CONTAINERID": f"cid-{pod}",
            "CNI_NETNS": str(netns),
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID=u",
            "DUNLIN_AGENT_SOCKET": str(self.agent.settings.agent_socket),
        }
        body = {"cniVersion": "1.1.0", "name": "dunlin", "type": "dunlin-cni"} | conf
        stdin = json.dumps(body).encode()
        return await asyncio.to_thread(call, build("dunlin-cni"), command, stdin, **environment)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Everything runs; the node may not be ready yet."""
    with OvsNode(f"agta-{uuid.uuid4().hex[:5]}") as node:
        site = Site(node)
        await site.build()
        yield site
        await site.agent.stop()
        await site.control.stop()


async def test_the_switch_fact_says_what_stands(site: Site) -> None:
    """Once the node is set up its switch fact is in the stream, true in every field."""
    await site.agent.until_ready()
    subject = site.agent.facts.state.switch_subject
    await site.agent.until(lambda: subject in site.agent.facts.state.stored, "the switch fact")
    record = await site.control.bus.get_last(subject)
    assert record is not None
    fact = wire.decode(record.data, SwitchFact)
    assert fact.dpid == derived_dpid("node-1.example")
    assert fact.router_mac == derived_mac("router", "node-1.example")
    assert (fact.gateway_port, fact.uplink_port, fact.tunnel_port) == (1, 2, 0)
    assert {str(a.ip) for a in fact.addresses} == {"172.31.9.10", "fd09::10"}
    mac = run("cat", "/sys/class/net/eth0/address", netns=f"{site.ovs_node.name}-out").strip()
    assert {(str(hop.ip), hop.mac) for hop in fact.next_hops} == {
        ("172.31.9.1", mac),
        ("fd09::1", mac),
    }
    assert fact.mtu == 1500
    assert fact.ovs_version[0].isdigit()
    assert fact.incarnation == site.agent.vswitchd.incarnation()
    assert (await site.cni("STATUS", "x")).status == 0


async def test_add_check_delete(site: Site) -> None:
    """ADD attaches and is in force; again it gives the same; CHECK agrees; DEL leaves nothing."""
    await site.agent.until_ready()
    site.ovs_node.add_pod("web")
    added = await site.cni("ADD", "web")
    assert added.status == 0, added.stdout
    assert [ip["address"] for ip in added.body["ips"]] == ["10.1.0.2/32", "fd10::2/128"]
    assert added.body["interfaces"][1]["sandbox"].endswith("-web")
    assert site.control.barriers[-1].revision == 7
    assert (await site.cni("ADD", "web")).body == added.body
    fact = (await site.control.attachments())["cid-web/eth0"]
    assert (fact.pod_namespace, fact.pod_name, fact.pod_uid) == ("shop", "web", "u")
    assert fact.ofport > 0
    assert (await site.cni("CHECK", "web", prevResult=added.body)).status == 0
    wrong = {**added.body, "ips": [{"address": "10.9.9.9/32"}]}
    refused = await site.cni("CHECK", "web", prevResult=wrong)
    assert "prevResult has 10.9.9.9" in refused.body["details"]
    neighbours = run("ip", "neigh", netns=f"{site.ovs_node.name}-web")
    assert f"10.1.0.1 dev eth0 lladdr {GATEWAY_MAC} PERMANENT" in neighbours
    for _ in range(2):
        assert (await site.cni("DEL", "web")).status == 0
    assert site.control.released == ["cid-web", "cid-web"]
    name = host_ifname("cid-web", "eth0")
    assert name not in run("ip", "-br", "link", netns=site.ovs_node.name)
    assert name not in site.ovs_node.vsctl("list-ports", "br-int")
    await site.agent.until(
        lambda: site.agent.facts.state.stored[fact.subject].fact is None, "the tombstone"
    )
    assert await site.control.attachments() == {}
    assert (await site.cni("CHECK", "web")).body["code"] == 3


async def test_add_waits_for_everybody_and_says_for_whom(site: Site) -> None:
    """Without the planner's claim, or with flows missing, ADD fails by name and leaves nothing."""
    await site.agent.until_ready()
    site.ovs_node.add_pod("web")
    site.control.in_force = False
    failed = await site.cni("ADD", "web")
    assert failed.body["code"] == 11
    assert "node-1.example/endpoint/x" in failed.body["details"]
    assert host_ifname("cid-web", "eth0") not in site.ovs_node.vsctl("list-ports", "br-int")
    assert "eth0" not in run("ip", "-br", "link", netns=f"{site.ovs_node.name}-web")
    assert await site.control.attachments() == {}
    site.control.in_force, site.control.planner_works = True, False
    failed = await site.cni("ADD", "web")
    assert "planner has read facts up to" in failed.body["details"]
    site.control.planner_works = True
    site.control.refuse = Failure(reason="pool 10.1.0.0/24 is empty")
    failed = await site.cni("ADD", "web")
    assert failed.body["code"] == 100
    assert "pool 10.1.0.0/24 is empty" in failed.body["details"]
    site.control.refuse = None
    assert (await site.cni("ADD", "web")).status == 0


async def test_collect_garbage(site: Site) -> None:
    """GC detaches what the runtime no longer lists, recorded or half-made, and nothing else."""
    await site.agent.until_ready()
    for pod in ("one", "two"):
        site.ovs_node.add_pod(pod)
        assert (await site.cni("ADD", pod)).status == 0
    half = host_ifname("cid-half", "eth0")
    run("ip", "link", "add", half, "type", "veth", "peer", "name", "x", netns=site.ovs_node.name)
    valid = [{"containerID": "cid-one", "ifname": "eth0"}]
    assert (await site.cni("GC", "x", **{"cni.dev/valid-attachments": valid})).status == 0
    assert await site.agent.links.list() == {host_ifname("cid-one", "eth0")}
    assert set(await site.control.attachments()) == {"cid-one/eth0"}
    assert site.control.released == ["cid-two"]


async def test_restarts_change_nothing_for_pods(site: Site) -> None:
    """After restarts of agent, vswitchd and the stream every Pod is attached as before."""
    await site.agent.until_ready()
    site.ovs_node.add_pod("web")
    assert (await site.cni("ADD", "web")).status == 0
    before = (await site.control.attachments())["cid-web/eth0"]
    await site.restart_agent()
    await site.agent.until_ready()
    assert (await site.cni("CHECK", "web")).status == 0

    incarnation = site.agent.vswitchd.incarnation()
    site.ovs_node.kill("ovs-vswitchd")
    await site.agent.until(lambda: site.agent.node.not_ready() is not None, "the agent to notice")
    assert (await site.cni("STATUS", "x")).body["code"] == 50
    site.ovs_node.start_vswitchd()
    await site.agent.until_other_than(incarnation)
    assert (await site.cni("CHECK", "web")).status == 0
    ping = ("ping", "-c", "1", "-W", "2", "172.31.9.10")
    assert " 0% packet loss" in run(*ping, netns=f"{site.ovs_node.name}-out")

    site.server.delete_stream(subjects.FACTS_STREAM)
    await site.control.bus.ensure_streams()
    epoch = await site.control.bus.epoch(subjects.FACTS_STREAM)
    subject = site.agent.facts.state.switch_subject
    await site.agent.until(
        lambda: site.agent.facts.state.epoch == epoch and subject in site.agent.facts.state.stored,
        "the facts in the new stream",
    )
    assert (await site.control.attachments())["cid-web/eth0"] == before
    switch = await site.control.bus.get_last(subject)
    attachment = await site.control.bus.get_last(before.subject)
    assert switch is not None
    assert attachment is not None
    assert attachment.seq < switch.seq


async def test_br_ext_passes_answers_on_once_br_int_can_take_them(site: Site) -> None:
    """Only NORMAL on br-ext before br-int's pipeline stands; then all; again after OVS died."""
    await site.agent.until_ready()
    assert len(await dump_flows(site.ovs_node.rundir, "br-ext", 0)) == 1
    pipeline = f"in_port=2,pkt_mark={EXTERNAL_PKT_MARK},ip,actions=drop"
    site.ovs_node.ofctl("add-flow", "br-int", pipeline)
    ports = match(nw_proto=6, tcp_dst=(0xF000, 0xF000))
    assert len(await _external_flows(site)) == BR_EXT_FLOWS
    flows = await dump_flows(site.ovs_node.rundir, "br-ext", 0)
    assert any(set(ports) <= set(flow.match) for flow in flows)
    assert "nw_frag=yes" in site.ovs_node.ofctl("dump-flows", "br-ext")
    incarnation = site.agent.vswitchd.incarnation()
    site.ovs_node.kill("ovs-vswitchd")
    site.ovs_node.start_vswitchd()
    await site.agent.until_other_than(incarnation)
    site.ovs_node.ofctl("add-flow", "br-int", pipeline)
    assert len(await _external_flows(site)) == BR_EXT_FLOWS


# NORMAL; what may be a Pod's, node ports and the rest, of an IPv4 and of an IPv6 address; not to
# an address.
BR_EXT_FLOWS = 1 + (5 + 15 + 1) + (9 + 15 + 1) + 4


async def _external_flows(site: Site) -> tuple[Any, ...]:
    """br-ext's flows once there are more than the one of a standalone bridge."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            flows = await dump_flows(site.ovs_node.rundir, "br-ext", 0)
            if len(flows) > 1:
                return flows
            await asyncio.sleep(0.05)


async def test_a_changed_address_is_told(site: Site) -> None:
    """An address that an administrator adds to br-ext appears in the switch fact."""
    await site.agent.until_ready()
    run("ip", "addr", "add", "172.31.9.77/24", "dev", "br-ext", netns=site.ovs_node.name)
    wanted = ip_address("172.31.9.77")

    def told() -> bool:
        switch = site.agent.facts.state.switch
        return switch is not None and any(a.ip == wanted for a in switch.addresses)

    await site.agent.until(told, "the new address in the switch fact")


async def test_processes_send_from_the_nodes_own_address(site: Site) -> None:
    """From its InternalIP where it has several; again after the address went and came back."""
    await site.agent.until_ready()
    assert source_to_pods(site) == "172.31.9.10"
    name = site.ovs_node.name
    run("ip", "addr", "add", "172.31.9.77/24", "dev", "br-ext", netns=name)
    fact = NodeFact(name="node-1.example", ips=(ip_address("172.31.9.77"),), ready=True)
    await site.control.bus.publish(Message(fact.subject, wire.encode(fact)))
    await site.agent.until(lambda: source_to_pods(site) == "172.31.9.77", "its InternalIP")
    away = "ip addr del 172.31.9.77/24 dev br-ext"
    run("sh", "-c", f"{away}; ip addr add 172.31.9.77/24 dev br-ext", netns=name)
    await site.agent.until(lambda: source_to_pods(site) == "172.31.9.77", "the address once more")
    run("sh", "-c", away, netns=name)
    await site.agent.until(lambda: source_to_pods(site) == "172.31.9.10", "its other address")


def source_to_pods(site: Site) -> str:
    """What the kernel sends from to the first Pod CIDR, now."""
    shown = run("ip", "route", "get", "10.1.3.77", netns=site.ovs_node.name)
    return shown.partition(" src ")[2].split()[0]
