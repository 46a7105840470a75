"""The node's addresses: to br-ext and back under traffic, after failures, and when OVS dies."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network

import msgspec
import pytest

from dunlin.model.addresses import GATEWAY_MAC, derived_mac
from dunlin_agent.adapters.gateway import ROUTER_IPS, GatewaySpec
from dunlin_agent.adapters.node_net import NodeNet, NodeNetError
from dunlin_agent.adapters.ovs_spec import node_bridges
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.uplink import UplinkState
from dunlin_agent.adapters.vswitchd import Vswitchd
from tests.dataplane.agent.ovs_node import OvsNode, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]

GATEWAY = GatewaySpec(
    ifname="dunlin-gw0",
    ips=(ip_address("10.1.0.1"), ip_address("fd10::1")),
    cidrs=(ip_network("10.0.0.0/8"), ip_network("fd10::/48"), ip_network("10.96.0.0/12")),
    router_mac=GATEWAY_MAC,
    mtu_bytes=1450,
)
SERVER = """
import socket
tcp = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
tcp.settimeout(20); print("ready", flush=True)
while True:
    conn, _ = tcp.accept(); conn.recv(9); conn.sendall(b"x" * 100_000); conn.close()
"""
CLIENT = """
import socket
for i in range(30):
    conn = socket.create_connection(("172.31.9.10" if i % 2 else "fd09::10", 9000), 5)
    conn.sendall(b"hi"); got = 0
    while chunk := conn.recv(65536): got += len(chunk)
    assert got == 100_000, got
"""


class Site:
    """A node 172.31.9.10, fd09::10 whose gateway 172.31.9.1, fd09::1 is another namespace."""

    def __init__(self, node: OvsNode) -> None:
        """Nothing is made yet."""
        self.node = node
        self.out = f"{node.name}-out"
        self.net = NodeNet(node.rundir / "uplink.json", node.netns)
        self.ovs = Ovs(node.remote)

    async def build(self) -> None:
        """Uplink, addresses, routes, bridges."""
        node, out = self.node, self.out
        node.add_netns(out)
        link = f"ip link add eth0 type veth peer name eth0 netns {out}"
        run("sh", "-c", link, netns=node.name)
        for netns, host in ((out, 1), (node.name, 10)):
            setup = (
                "sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0;"
                "ip link set lo up; ethtool -K eth0 tx off >/dev/null;"
                f"ip addr add 172.31.9.{host}/24 dev eth0; ip link set eth0 up;"
                f"ip addr add fd09::{host}/64 dev eth0 nodad"
            )
            run("sh", "-c", setup, netns=netns)
        routes = (
            "ip route add default via 172.31.9.1; ip -6 route add default via fd09::1;"
            "ip route add 198.51.100.0/24 via 172.31.9.1 src 172.31.9.10 metric 50"
        )
        run("sh", "-c", routes, netns=node.name)
        await self.ovs.start()
        mac = (await self.net.addresses("eth0")).mac
        bridges = node_bridges(
            "n",
            controllers=(),
            uplink="eth0",
            uplink_mac=mac,
            gateway_mac=derived_mac("gateway"),
            pod_mtu=1450,
        )
        await self.ovs.ensure(bridges)
        await self.net.raise_bridge("br-ext")
        await self.ovs.until_up("br-ext")

    def reachable(self) -> bool:
        """The world reaches the node by both families, and the node the world."""
        pings = "ping -c1 -W2 {0} >/dev/null && ping -c1 -W2 {1} >/dev/null && echo yes"
        there = run("sh", "-c", pings.format("172.31.9.10", "fd09::10"), netns=self.out)
        back = run("sh", "-c", pings.format("172.31.9.1", "fd09::1"), netns=self.node.name)
        return there == back == "yes\n"

    def sysctl(self, name: str) -> str:
        """A sysctl of the node."""
        return run("sysctl", "-n", name, netns=self.node.name).strip()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """A node with its bridges, its addresses still on the uplink."""
    with OvsNode(f"agtn-{uuid.uuid4().hex[:5]}") as node:
        site = Site(node)
        await site.build()
        yield site
        await site.ovs.close()
        await site.net.close()


def pinged(site: Site, count: int = 150) -> list[subprocess.Popen[str]]:
    """Pings of both families every 10 ms from the world to the node; both have begun."""
    pings = [
        subprocess.Popen(
            ["ip", "netns", "exec", site.out, "ping", "-i", "0.01", "-c", str(count), "-W1", host],
            stdout=subprocess.PIPE,
            text=True,
        )
        for host in ("172.31.9.10", "fd09::10")
    ]
    for ping in pings:
        assert ping.stdout
        assert "PING" in ping.stdout.readline()
        assert "icmp_seq=1" in ping.stdout.readline()
    return pings


async def lost(pings: list[subprocess.Popen[str]]) -> list[int]:
    """How many of each have no answer."""
    said = [(await asyncio.to_thread(ping.communicate))[0] for ping in pings]
    found = [re.search(r"(\d+) packets transmitted, (\d+) received", text) for text in said]
    return [int(counts[1]) - int(counts[2]) for counts in found if counts]


async def test_moving_loses_no_packet(site: Site) -> None:
    """The node's addresses move to the bridge under pings, twice: none is lost."""
    pings = pinged(site)
    before = await site.net.take_over("eth0", "br-ext")
    assert await site.net.take_over("eth0", "br-ext") == before
    assert await lost(pings) == [0, 0]
    assert site.reachable()


async def test_coming_home(site: Site) -> None:
    """The way back under pings: at most the one that the kernel is working on as its route goes."""
    await site.net.take_over("eth0", "br-ext")
    pings = pinged(site)
    await site.net.give_back("eth0", "br-ext")
    assert all(count <= 1 for count in await lost(pings))
    assert site.reachable()


async def test_losses_are_counted(site: Site) -> None:
    """The counts above can differ from 0: an address that is gone for a while."""
    pings = pinged(site, 30)
    run("ip", "link", "set", "eth0", "down", netns=site.node.name)
    assert all(count > 1 for count in await lost(pings))


async def test_everything_moves_and_comes_back(site: Site) -> None:
    """Addresses, routes with metric and source, default gateways are the same on either side."""
    before = await site.net.addresses("eth0")
    routes = (
        run("ip", "route", netns=site.node.name),
        run("ip", "-6", "route", netns=site.node.name),
    )
    await site.net.take_over("eth0", "br-ext")
    await site.net.take_over("eth0", "br-ext")
    moved = await site.net.addresses("br-ext")
    assert moved.addresses == before.addresses
    assert moved.mac == before.mac
    assert [hop.ip for hop in moved.gateways] == [hop.ip for hop in before.gateways]
    assert (await site.net.addresses("eth0")).addresses == ()
    await site.net.give_back("eth0", "br-ext")
    assert (await site.net.addresses("eth0")).addresses == before.addresses
    after = run("ip", "route", netns=site.node.name), run("ip", "-6", "route", netns=site.node.name)
    assert _lines(after, "eth0") == _lines(routes, "eth0")
    assert not site.net._journal.exists()
    assert site.sysctl("net.ipv6.conf.eth0.disable_ipv6") == "0"


def _lines(tables: tuple[str, str], device: str) -> set[str]:
    """Routes by a device, link-local ones left out."""
    rows = "".join(tables).splitlines()
    return {row.strip() for row in rows if f"dev {device}" in row and "fe80::" not in row}


async def test_the_kernel_ignores_the_uplink(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ping is answered once, TCP meets no RST; and without the sysctls it would not be so."""
    program = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(  # noqa: ASYNC220 - a test's own server
        ["ip", "netns", "exec", site.node.name, *program], stdout=subprocess.PIPE
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        await site.net.take_over("eth0", "br-ext")
        run(sys.executable, "-c", CLIENT, netns=site.out)
        ping = ("ping", "-c", "3", "-i", "0.05", "172.31.9.10")
        assert "duplicates" not in run(*ping, netns=site.out)
        await site.net.give_back("eth0", "br-ext")
        monkeypatch.setattr(NodeNet, "_ignore", lambda _self, _uplink: None)
        await site.net.take_over("eth0", "br-ext")
        assert "duplicates" in run(*ping, netns=site.out)
    finally:
        server.kill()
        server.wait()
        if server.stdout is not None:
            server.stdout.close()


async def test_a_failed_move_is_undone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """When reading back finds something missing, the node is as it was and reachable."""
    real = NodeNet._verify

    def verify(net: NodeNet, state: UplinkState, index: int, name: str) -> None:
        if name == "br-ext":
            raise NodeNetError("as if a route were lost")
        real(net, state, index, name)

    monkeypatch.setattr(NodeNet, "_verify", verify)
    before = await site.net.addresses("eth0")
    with pytest.raises(NodeNetError, match="eth0 keeps its addresses: as if"):
        await site.net.take_over("eth0", "br-ext")
    assert (await site.net.addresses("eth0")).addresses == before.addresses
    assert site.reachable()


async def test_the_node_outlives_ovs(site: Site) -> None:
    """When vswitchd dies the addresses go home and the node stays reachable; then out again."""
    await site.net.take_over("eth0", "br-ext")
    site.node.kill("ovs-vswitchd")
    assert not await site.net.carries("br-ext")
    await site.net.give_back("eth0", "br-ext", forget=False)
    assert site.reachable()
    site.node.start_vswitchd()
    await asyncio.wait_for(Vswitchd(site.node.rundir).wait_ready(), 10)
    async with asyncio.timeout(10):
        async for _ in site.net.changes("link"):
            if await site.net.carries("br-ext"):
                break
    await site.net.take_over("eth0", "br-ext")
    assert site.reachable()


async def test_the_journal_remembers(site: Site) -> None:
    """Addresses that are nowhere come to the bridge from the journal; a damaged one is an error."""
    await site.net.take_over("eth0", "br-ext")
    run("sh", "-c", "ip addr flush dev br-ext scope global", netns=site.node.name)
    state = await site.net.take_over("eth0", "br-ext")
    assert {str(address.ip) for address in state.addresses} == {"172.31.9.10", "fd09::10"}
    assert site.reachable()
    run("sh", "-c", "ip addr flush dev br-ext scope global", netns=site.node.name)
    (site.node.rundir / "uplink.json").write_bytes(b"{not json")
    with pytest.raises(NodeNetError, match="neither eth0 nor br-ext nor the journal"):
        await site.net.take_over("eth0", "br-ext")


async def test_gateway_interface(site: Site) -> None:
    """Device dunlin-gw0 has addresses, MTU, neighbours, routes and sysctls, as its spec changes."""
    await site.net.configure_gateway(GATEWAY)
    await site.net.configure_gateway(GATEWAY)
    show = "ip -o addr show dunlin-gw0; ip route; ip -6 route; ip neigh; ip -6 neigh"
    shown = run("sh", "-c", show, netns=site.node.name)
    for wanted in (
        "inet 10.1.0.1/32",
        "inet6 fd10::1/128",
        "10.0.0.0/8 via 169.254.100.1 dev dunlin-gw0 proto 100 src 10.1.0.1 metric 4096 onlink",
        f"fd10::/48 via {ROUTER_IPS[6]} dev dunlin-gw0 proto 100 src fd10::1 metric 4096",
        f"169.254.100.1 dev dunlin-gw0 lladdr {GATEWAY_MAC} PERMANENT",
        f"{ROUTER_IPS[6]} dev dunlin-gw0 lladdr {GATEWAY_MAC} PERMANENT",
    ):
        assert wanted in shown
    assert "mtu 1450" in run("ip", "link", "show", "dunlin-gw0", netns=site.node.name)
    for name, value in {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.dunlin-gw0.accept_local": "1",
        "net.ipv6.conf.all.forwarding": "1",
    }.items():
        assert site.sysctl(name) == value
    less = msgspec.structs.replace(GATEWAY, ips=(ip_address("10.1.1.1"),), cidrs=GATEWAY.cidrs[:2])
    await site.net.configure_gateway(less)
    shown = run("sh", "-c", show, netns=site.node.name)
    assert "inet 10.1.1.1/32" in shown
    assert "10.0.0.0/8" in shown
    assert all(gone not in shown for gone in ("10.1.0.1", "10.96.0.0", "fd10::"))
    with pytest.raises(NodeNetError, match="no device gw9"):
        await site.net.configure_gateway(msgspec.structs.replace(less, ifname="gw9"))


@pytest.mark.timeout(120)
async def test_what_the_nodes_processes_send_from(site: Site) -> None:
    """The node's own addresses, as long as they stand; at the moment they go, the gateway's."""
    await site.net.configure_gateway(GATEWAY)  # As a node without addresses, or an older agent.
    assert chosen(site) == ("10.1.0.1", "fd10::1")
    await site.net.take_over("eth0", "br-ext")
    seen = await site.net.addresses("br-ext")
    assert seen.sources == (ip_address("172.31.9.10"), ip_address("fd09::10"))
    spec = msgspec.structs.replace(GATEWAY, sources=seen.sources)
    assert not await site.net.gateway_stands(spec)
    for _ in range(2):
        await site.net.configure_gateway(spec)
        assert await site.net.gateway_stands(spec)
        assert chosen(site) == ("172.31.9.10", "fd09::10")
    in_node(site, "ip addr del 172.31.9.10/24 dev br-ext; ip addr del fd09::10/64 dev br-ext")
    assert chosen(site) == ("10.1.0.1", "fd10::1")
    in_node(site, "ip addr add 172.31.9.10/24 dev br-ext; ip addr add fd09::10/64 dev br-ext nodad")
    assert not await site.net.gateway_stands(spec), "routes do not come back with addresses"
    await site.net.configure_gateway(spec)
    assert chosen(site) == ("172.31.9.10", "fd09::10")
    await site.net.configure_gateway(GATEWAY)
    assert chosen(site) == ("10.1.0.1", "fd10::1")
    shown = in_node(site, "ip route show proto 100; ip -6 route show proto 100")
    assert "172.31.9.10" not in shown
    assert "fd09::10" not in shown


async def test_addresses_that_nobody_may_send_from(site: Site) -> None:
    """Deprecated ones are left out; secondary ones come last."""
    in_node(
        site,
        "ip addr add 172.31.9.11/24 dev eth0; ip addr add 172.31.9.12/32 dev eth0 preferred_lft 0;"
        "ip addr add fd09::11/64 dev eth0 nodad preferred_lft 0",
    )
    found = (await site.net.addresses("eth0")).sources
    assert found == tuple(map(ip_address, ("172.31.9.10", "fd09::10", "172.31.9.11")))


def in_node(site: Site, script: str) -> str:
    """What these commands say in the node's namespace."""
    return run("sh", "-c", script, netns=site.node.name)


def chosen(site: Site) -> tuple[str, ...]:
    """The kernel's choice of a source towards Pods, IPv4 and IPv6."""
    shown = in_node(site, "ip route get 10.1.2.3; ip -6 route get fd10::1:3")
    return tuple(re.findall(r"dunlin-gw0 .*?src (\S+)", shown))


async def test_gateways_are_resolved(site: Site) -> None:
    """The default gateway's MAC is found by making the kernel ask; a silent one is an error."""
    mac = run("cat", "/sys/class/net/eth0/address", netns=site.out).strip()
    for hop in (await site.net.addresses("eth0")).gateways:
        assert await site.net.resolve("eth0", hop.ip) == mac
    assert {hop.mac for hop in (await site.net.addresses("eth0")).gateways} == {mac}
    with pytest.raises(NodeNetError, match=r"no MAC for 172\.31\.9\.77"):
        await site.net.resolve("eth0", ip_address("172.31.9.77"), timeout_seconds=0.3)
