"""
What joins the nodes: the fabric, the outside, and the management network.

    host:   dlb-<digest>  198.18.x.1/24          management bridge; services listen here too
               |   mgmt0 in every node: 198.18.x.(10+i)
    fabric: br (a Linux bridge in its own namespace)
               |   eth0 in every node:    172.31.x.(10+i)/24, fd00:dl:x::(10+i)/64
               |   eth0 in the outside:   172.31.x.1/24,      fd00:dl:x::1/64 = default gateway

The management network never passes Open vSwitch: killing a vswitchd does not cut its node from the
control plane. The nodes' addresses sit on eth0 until the agent moves them to br-ext.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path

from dunlin_lab import links, netns
from dunlin_lab.paths import LabPaths, node_name
from dunlin_lab.state import Journal, NodeState, OutsideState

MTU_BYTES = 1500
UPLINK = "eth0"
MGMT = "mgmt0"
FABRIC_BRIDGE = "br"

_FIRST_NODE = 10
_MGMT_RANGE = IPv4Network("198.18.0.0/15")
"""RFC 2544 benchmarking range: not used on real networks."""


class UnderlayError(Exception):
    """The underlay could not be built; the message names the lab and what is missing."""


@dataclass(frozen=True, slots=True)
class AddressPlan:
    """The lab's three subnets. Node i has host number 10 + i in each, the gateway and host 1."""

    underlay_v4: IPv4Network
    underlay_v6: IPv6Network
    mgmt: IPv4Network

    @classmethod
    def of(cls, lab: str, taken: frozenset[IPv4Network] = frozenset()) -> AddressPlan:
        """
        Subnets from the lab's name. Only `mgmt` is visible on the host and must be free there.

        Args:
            taken: subnets the host is connected to.
        Raises:
            UnderlayError: all 512 management subnets are taken.
        """
        digest = hashlib.sha256(lab.encode()).digest()
        choices = list(_MGMT_RANGE.subnets(new_prefix=24))
        first = int.from_bytes(digest[:4])
        for step in range(len(choices)):
            mgmt = choices[(first + step) % len(choices)]
            if not any(mgmt.overlaps(other) for other in taken):
                break
        else:
            raise UnderlayError(f"lab {lab}: no free management subnet in {_MGMT_RANGE}")
        v6 = IPv6Network((b"\xfd" + digest[4:9] + bytes(10), 64))
        return cls(IPv4Network((bytes([172, 31, digest[9], 0]), 24)), v6, mgmt)

    @property
    def host(self) -> IPv4Interface:
        """The host on the management network."""
        return _member(self.mgmt, 1)

    @property
    def gateway_v4(self) -> IPv4Interface:
        """The outside, the nodes' IPv4 gateway."""
        return _member(self.underlay_v4, 1)

    @property
    def gateway_v6(self) -> IPv6Interface:
        """The outside, the nodes' IPv6 gateway."""
        return _member_v6(self.underlay_v6, 1)

    def node_v4(self, index: int) -> IPv4Interface:
        """The node's InternalIP."""
        return _member(self.underlay_v4, _FIRST_NODE + index)

    def node_v6(self, index: int) -> IPv6Interface:
        """The node's second InternalIP."""
        return _member_v6(self.underlay_v6, _FIRST_NODE + index)

    def node_mgmt(self, index: int) -> IPv4Interface:
        """The node on the management network."""
        return _member(self.mgmt, _FIRST_NODE + index)


class Underlay:
    """Builds the underlay of one lab. `down` removes it, by names and journal alone."""

    def __init__(self, paths: LabPaths, plan: AddressPlan, *, userspace_tso: bool) -> None:
        self._paths = paths
        self._plan = plan
        self._tso = userspace_tso
        self._journal = Journal(paths.journal)

    def build(self, nodes: int) -> tuple[OutsideState, tuple[NodeState, ...]]:
        """
        Make management bridge, fabric, outside and `nodes` nodes. All names must be free.

        Raises:
            NetnsError, UnderlayError: a name is taken; `down` removes what was made.
        """
        self._build_mgmt()
        self._build_fabric()
        outside = self._build_outside()
        return outside, tuple(self.add_node(index) for index in range(1, nodes + 1))

    def add_node(self, index: int) -> NodeState:
        """Make one node's namespace with lo, mgmt0 and eth0."""
        name = node_name(index)
        path = self._make_netns(self._paths.node_netns(name))
        port = self._paths.mgmt_port(index)
        self._journal.will_make("link", port)
        with links.route() as ipr:
            links.veth(ipr, port, MGMT, path, MTU_BYTES)
            bridge = links.index_of(ipr, self._paths.mgmt_bridge)
            if bridge is None:
                raise UnderlayError(f"lab {self._paths.name}: no {self._paths.mgmt_bridge}")
            links.enslave(ipr, port, bridge)
        self._plug(name, path)
        v4, v6 = self._plan.node_v4(index), self._plan.node_v6(index)
        mgmt = self._plan.node_mgmt(index)
        netns.run_in(path, lambda: self._set_up_node(v4, v6, mgmt))
        return NodeState(
            name=name,
            index=index,
            netns=str(path),
            ips=(str(v4.ip), str(v6.ip)),
            mgmt_ip=str(mgmt.ip),
            ovs_rundir=str(self._paths.ovs(name)),
        )

    def _build_mgmt(self) -> None:
        """The bridge on the host, with the host's address."""
        name = self._paths.mgmt_bridge
        with links.route() as ipr:
            if links.index_of(ipr, name) is not None:
                raise UnderlayError(f"lab {self._paths.name}: link {name} exists already")
            self._journal.will_make("link", name)
            links.bridge(ipr, name, owner=str(self._paths.run_dir))
            links.up(ipr, name, (self._plan.host,))

    def _build_fabric(self) -> None:
        """The switch: layer 2 only, no address of its own."""

        def inside() -> None:
            _quiet_ipv6()
            links.sysctl("ipv6/conf/all/disable_ipv6", "1")
            links.sysctl("ipv6/conf/default/disable_ipv6", "1")
            with links.route() as ipr:
                links.bridge(ipr, FABRIC_BRIDGE)

        netns.run_in(self._make_netns(self._paths.fabric_netns), inside)

    def _build_outside(self) -> OutsideState:
        """The world: on the nodes' network, knowing nothing of Pods and Services."""
        path = self._make_netns(self._paths.outside_netns)
        gateways = (self._plan.gateway_v4, self._plan.gateway_v6)
        self._plug("outside", path)

        def inside() -> None:
            with links.route() as ipr:
                links.up(ipr, "lo")
                links.up(ipr, UPLINK, gateways)
            links.set_tx_checksum(UPLINK, on=self._tso)

        netns.run_in(path, inside)
        return OutsideState(netns=str(path), ips=tuple(str(g.ip) for g in gateways))

    def _set_up_node(self, v4: IPv4Interface, v6: IPv6Interface, mgmt: IPv4Interface) -> None:
        """In the node: as an installer leaves it, with forwarding on, which kubeadm asks for."""
        links.sysctl("ipv4/ip_forward", "1")
        links.sysctl("ipv6/conf/all/forwarding", "1")
        with links.route() as ipr:
            links.up(ipr, "lo")
            links.up(ipr, MGMT, (mgmt,))
            links.up(ipr, UPLINK, (v4, v6))
            links.default_route(ipr, self._plan.gateway_v4.ip)
            links.default_route(ipr, self._plan.gateway_v6.ip)
        links.set_tx_checksum(UPLINK, on=self._tso)

    def _plug(self, port: str, path: Path) -> None:
        """A cable from the fabric's port of that name to eth0 of the namespace."""

        def inside() -> None:
            with links.route() as ipr:
                links.veth(ipr, port, UPLINK, path, MTU_BYTES)
                bridge = links.index_of(ipr, FABRIC_BRIDGE)
                assert bridge is not None, "the fabric is built before its ports"
                links.enslave(ipr, port, bridge)
            links.set_tx_checksum(port, on=self._tso)

        netns.run_in(netns.path_of(self._paths.fabric_netns), inside)

    def _make_netns(self, name: str) -> Path:
        self._journal.will_make("netns", name)
        path = netns.create(name)
        netns.run_in(path, _quiet_ipv6)
        return path


def host_networks() -> frozenset[IPv4Network]:
    """IPv4 subnets the host is connected to."""
    with links.route() as ipr:
        return frozenset(
            IPv4Interface(f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}").network
            for address in ipr.get_addr(family=2)
        )


def _quiet_ipv6() -> None:
    """Addresses are usable at once: nobody else gives out addresses in a lab."""
    for where in ("all", "default"):
        links.sysctl(f"ipv6/conf/{where}/accept_dad", "0")
        links.sysctl(f"ipv6/conf/{where}/accept_ra", "0")


def _member(network: IPv4Network, number: int) -> IPv4Interface:
    return IPv4Interface((IPv4Address(int(network.network_address) + number), network.prefixlen))


def _member_v6(network: IPv6Network, number: int) -> IPv6Interface:
    return IPv6Interface((IPv6Address(int(network.network_address) + number), network.prefixlen))
