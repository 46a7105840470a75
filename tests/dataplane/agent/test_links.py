"""Pod links in real namespaces: made, verified, damaged, found out, removed."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dunlin_agent.adapters.links import LinkError, PodLink, PodLinks
from dunlin_agent.adapters.netns import NamespaceGoneError
from tests.dataplane.agent.ovs_node import run
from tests.dataplane.agent.pods import pod_link

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


class Namespaces:
    """A node and a Pod without OVS."""

    def __init__(self) -> None:
        """Names that nobody else has."""
        tag = uuid.uuid4().hex[:6]
        self.node, self.pod = f"agtl-{tag}", f"agtl-{tag}-pod"
        self.link: PodLink = pod_link(Path("/run/netns", self.pod), 1)


@pytest.fixture
def spaces() -> Iterator[Namespaces]:
    """Both namespaces, gone afterwards."""
    spaces = Namespaces()
    run("ip", "netns", "add", spaces.node)
    run("ip", "netns", "add", spaces.pod)
    yield spaces
    run("ip", "netns", "del", spaces.pod, check=False)
    run("ip", "netns", "del", spaces.node)


async def test_created_link_has_no_difference(spaces: Namespaces) -> None:
    """What create() makes is what check() wants, and making it again in its place works."""
    links = PodLinks(Path("/run/netns", spaces.node))
    for _ in range(2):
        await links.create(spaces.link)
        assert await links.check(spaces.link) == ()
    await links.close()


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        ("ip link set eth0 mtu 1400", "MTU"),
        ("ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:09", "MAC address"),
        ("ip link set eth0 down", "state"),
        ("ip addr del 10.1.0.2/32 dev eth0", "address"),
        ("ip addr del fd00::2/128 dev eth0", "address"),
        ("ip neigh del 10.1.0.1 dev eth0", "permanent neighbour 10.1.0.1"),
        ("ip -6 neigh replace fd00::1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent",
         "permanent neighbour fd00::1"),
        ("ip route del default", "default route (IPv4)"),
        ("ip -6 route del default", "default route (IPv6)"),
        ("ip route del 10.1.0.1", "on-link route"),
        ("ethtool -K eth0 tx on", "offload tx-checksum-ip-generic"),
        ("ip link set eth0 name eth9", "interface"),
    ],
)  # fmt: skip
async def test_check_names_each_damage(spaces: Namespaces, damage: str, what: str) -> None:
    """Every property that ADD sets is one that CHECK misses by name when it is gone."""
    links = PodLinks(Path("/run/netns", spaces.node))
    await links.create(spaces.link)
    run("sh", "-c", damage, netns=spaces.pod)
    assert what in {difference.what for difference in await links.check(spaces.link)}
    await links.close()


async def test_check_looks_at_the_node_too(spaces: Namespaces) -> None:
    """The node's end must be up and must not be listened to by the node's IP stack."""
    links = PodLinks(Path("/run/netns", spaces.node))
    await links.create(spaces.link)
    host = spaces.link.host_ifname
    run("sysctl", "-qw", f"net.ipv4.conf.{host}.rp_filter=0", netns=spaces.node)
    run("ip", "link", "set", host, "down", netns=spaces.node)
    found = {difference.what for difference in await links.check(spaces.link)}
    assert {"host interface state", f"net/ipv4/conf/{host}/rp_filter"} <= found
    await links.close()


async def test_delete_is_idempotent(spaces: Namespaces) -> None:
    """Both ends go, and deleting again is success, also when the Pod is gone."""
    links = PodLinks(Path("/run/netns", spaces.node))
    await links.create(spaces.link)
    await links.delete(spaces.link.host_ifname)
    await links.delete(spaces.link.host_ifname)
    assert "eth0" not in run("ip", "-br", "link", netns=spaces.pod)
    await links.create(spaces.link)
    run("ip", "netns", "del", spaces.pod)
    await links.delete(spaces.link.host_ifname)
    assert [found.what for found in await links.check(spaces.link)] == ["netns"]
    await links.close()


async def test_failures_leave_nothing(spaces: Namespaces) -> None:
    """No namespace, or a name taken in it: a typed error, and no interface on the node."""
    links = PodLinks(Path("/run/netns", spaces.node))
    with pytest.raises(NamespaceGoneError):
        await links.create(msgspec.structs.replace(spaces.link, netns=Path("/run/netns/nowhere")))
    run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x", netns=spaces.pod)
    with pytest.raises(LinkError, match="eth0"):
        await links.create(spaces.link)
    assert run("ip", "-br", "link", netns=spaces.node).split()[0] == "lo"
    assert len(run("ip", "-br", "link", netns=spaces.node).splitlines()) == 1
    await links.close()


async def test_a_frame_to_the_nodes_end_does_not_reach_the_node(spaces: Namespaces) -> None:
    """A Pod that addresses the MAC of the node's end gets no answer past OVS."""
    links = PodLinks(Path("/run/netns", spaces.node))
    await links.create(spaces.link)
    host = spaces.link.host_ifname
    run("sh", "-c", "ip link set lo up; ip addr add 10.9.9.9/32 dev lo", netns=spaces.node)
    mac = run("cat", f"/sys/class/net/{host}/address", netns=spaces.node).strip()
    run("ip", "neigh", "replace", "10.1.0.1", "lladdr", mac, "dev", "eth0", netns=spaces.pod)
    ping = ("ping", "-c", "2", "-i", "0.05", "-W", "1", "10.9.9.9")
    assert " 0 received" in run(*ping, netns=spaces.pod, check=False)
    filtered = run("nstat", "-az", "TcpExtIPReversePathFilter", netns=spaces.node).split()
    assert int(filtered[filtered.index("TcpExtIPReversePathFilter") + 1]) >= 2
    await links.close()
