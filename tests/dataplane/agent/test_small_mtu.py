"""TCP to a peer behind a smaller MTU, through Open vSwitch alone: with userspace-tso or not."""

import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dunlin_agent.core import keeps_peers_mtu
from dunlin_lab import netns
from tests.dataplane.agent.ovs_node import OvsNode, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]

OCTETS = 1_000_000
SMALL_MTU = 1300


@contextmanager
def path(node: OvsNode, peer_mtu: int, *, offload: bool) -> Iterator[tuple[str, str]]:
    """A sender, Open vSwitch, a router with a small MTU behind it, a receiver."""
    sender, router, receiver = (f"{node.name}-{word}" for word in ("a", "r", "b"))
    for name in (sender, router, receiver):
        node.add_netns(name)
    node.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
    for number, name in enumerate((sender, router)):
        words = f"link add p{number} type veth peer name eth0 netns {name}"
        run("ip", *words.split(), netns=node.name)
        run("ip", "link", "set", f"p{number}", "up", netns=node.name)
        node.vsctl("add-port", "br0", f"p{number}")
        run("ip", "link", "set", "eth0", "up", netns=name)
        if not offload:
            run("ethtool", "-K", "eth0", "tx", "off", netns=name)
    run("ip", "link", "add", "far0", "type", "veth", "peer", "name", "eth0", "netns", receiver,
        netns=router)  # fmt: skip
    run("ip", "link", "set", "far0", "mtu", str(SMALL_MTU), "up", netns=router)
    run("ip", "link", "set", "eth0", "mtu", str(peer_mtu), "up", netns=receiver)
    for name, device, address in (
        (sender, "eth0", "10.1.0.1/24"), (router, "eth0", "10.1.0.254/24"),
        (router, "far0", "10.2.0.254/24"), (receiver, "eth0", "10.2.0.1/24"),
    ):  # fmt: skip
        run("ip", "addr", "add", address, "dev", device, netns=name)
    run("ip", "route", "add", "default", "via", "10.1.0.254", netns=sender)
    run("ip", "route", "add", "default", "via", "10.2.0.254", netns=receiver)
    run("sysctl", "-qw", "net.ipv4.ip_forward=1", netns=router)
    yield sender, receiver


def received(sender: str, receiver: str) -> int:
    """How many of OCTETS arrive while something still does."""

    def sink() -> int:
        with socket.create_server(("0.0.0.0", 9090)) as server:
            server.settimeout(10)
            link, _ = server.accept()
            with link:
                link.settimeout(5)
                total = 0
                while chunk := link.recv(65536):
                    total += len(chunk)
                return total

    arrived = netns.start_in(netns.path_of(receiver), sink)

    def pour() -> None:
        with socket.socket() as link:
            link.settimeout(60)
            wait_for(lambda: link.connect_ex(("10.2.0.1", 9090)) == 0, "the receiver")
            link.sendall(bytes(OCTETS))

    netns.run_in(netns.path_of(sender), pour)
    return arrived.result(timeout=60)


@pytest.mark.parametrize("peer_mtu", [1500, SMALL_MTU], ids=["told by ICMP", "told by its MSS"])
@pytest.mark.parametrize("tso", [False, True], ids=["tx off", "userspace-tso"])
def test_a_peer_of_smaller_mtu(*, tso: bool, peer_mtu: int) -> None:
    """It gets segments of its size: not where OVS cuts them anew to its own port's MTU."""
    with OvsNode(f"mtu-{uuid.uuid4().hex[:5]}", userspace_tso=tso) as node:
        version = run("ovs-vswitchd", "--version").split("\n")[0].rpartition(" ")[2]
        if not keeps_peers_mtu(version, userspace_tso=tso):
            pytest.skip(f"Open vSwitch {version} with userspace-tso does not (docs/LIMITS.md)")
        with path(node, peer_mtu, offload=tso) as (sender, receiver):
            assert received(sender, receiver) == OCTETS
