"""
Pod interfaces: a veth pair for each, one end on the node for OVS, one in the Pod's namespace.

The Pod has /32 and /128 addresses, reaches its gateway on-link, and never resolves it: the
gateway's MAC is a permanent neighbour. Blocking netlink in one thread of its own; no process.
Requests are batched: three system calls configure a Pod.
"""

import asyncio
import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from dunlin.model.addresses import IPAddress, MacAddress, derived_mac
from dunlin_agent.adapters import rtnetlink as rt
from dunlin_agent.adapters.ethtool import FeatureSocket
from dunlin_agent.adapters.netns import NamespaceGoneError, entered, read_sysctl, write_sysctl
from dunlin_agent.adapters.pod_state import Difference, differences

T = TypeVar("T")

IFF_UP: Final = 1
NUD_PERMANENT: Final = 0x80
IFA_F_NODAD: Final = 0x02
RT_SCOPE_LINK: Final = 253
RT_TABLE_MAIN: Final = 254
RTPROT_STATIC: Final = 4
RTN_UNICAST: Final = 1
LOOPBACK_INDEX: Final = 1

# With userspace-tso OVS finishes TCP and UDP checksums, but not SCTP's CRC32c.
SCTP_FEATURES: Final = frozenset({"tx-checksum-sctp", "tx-sctp-segmentation"})
# Without it, a checksum that the Pod leaves unfinished stays so: ping works, TCP and UDP do not.
CHECKSUM_FEATURES: Final = SCTP_FEATURES | {
    "tx-checksum-ip-generic",
    "tx-checksum-ipv4",
    "tx-checksum-ipv6",
}

# What the node's own IP stack may do with frames of a device that OVS reads by a packet socket:
# nothing. Packet sockets come first and do not care. Without these a Pod that sends to the MAC of
# the node's end reaches the node past every flow; and on the uplink every connection to the node is
# delivered twice (measured: each ping answered twice, RSTs). Needs no tc classifier and no
# netfilter, which kernels may lack. The reverse path of no source leads here, so rp_filter drops
# all IPv4.
IGNORING_SYSCTLS: Final = {
    "net/ipv4/conf/{}/rp_filter": 1,
    "net/ipv4/conf/{}/forwarding": 0,
    "net/ipv4/conf/{}/arp_ignore": 8,
    "net/ipv6/conf/{}/disable_ipv6": 1,
}


_HOST_IFNAME = re.compile(r"dun[0-9a-f]{12}")


class PodLink(msgspec.Struct, frozen=True, kw_only=True):
    """
    What one Pod interface must be.

    `ips` and `gateways`: at most one of each family, a gateway for the family of every address.
    `checksum_offload`: True only where OVS runs with userspace-tso-enable.
    """

    netns: Path
    ifname: str
    host_ifname: str
    mac: MacAddress
    ips: tuple[IPAddress, ...]
    gateways: tuple[IPAddress, ...]
    gateway_mac: MacAddress
    mtu_bytes: int
    checksum_offload: bool = False

    @property
    def features_off(self) -> frozenset[str]:
        """The offloads that the Pod's end must not have."""
        return SCTP_FEATURES if self.checksum_offload else CHECKSUM_FEATURES


class LinkError(Exception):
    """A Pod interface could not be made; the message names the interface and the step."""


def host_ifname(container_id: str, ifname: str) -> str:
    """The node's end of a Pod interface: 15 characters, 48 bits of SHA-256 of both names."""
    digest = hashlib.sha256(f"{container_id}\0{ifname}".encode()).hexdigest()
    return f"dun{digest[:12]}"


class PodLinks:
    """Makes, verifies and removes Pod interfaces of one node."""

    def __init__(self, node_netns: Path | None = None) -> None:
        """`node_netns`: where the OVS ends live; None is the process's own namespace."""
        self._node_netns = node_netns
        self._node = rt.Rtnetlink(node_netns)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="links")

    async def create(self, link: PodLink) -> None:
        """
        Make the interface, in place of a half-made one with the same host_ifname.

        Raises:
            NamespaceGoneError: the Pod's namespace is not there.
            LinkError: the kernel refused a step; nothing is left behind.
        """
        await self._run(lambda: self._create(link))

    async def check(self, link: PodLink) -> tuple[Difference, ...]:
        """Every way in which the interface is not as `link` says; empty when all is well."""
        return await self._run(lambda: self._check(link))

    async def delete(self, name: str) -> None:
        """Remove the pair by the node's end; success when it is not there."""
        await self._run(lambda: self._delete(name))

    async def list(self) -> frozenset[str]:
        """Every node's end that `host_ifname` could have named, whether whole or half-made."""
        return await self._run(self._list)

    async def close(self) -> None:
        """Finish what runs; the interfaces stay."""
        await asyncio.to_thread(self._thread.shutdown)
        self._node.close()

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _create(self, link: PodLink) -> None:
        try:
            self._delete(link.host_ifname)
            with _pod_sockets(link.netns) as (pod, features):
                with entered(link.netns):
                    _prepare_namespace(link)
                with link.netns.open("rb") as namespace:
                    self._node.apply(_veth_pair(link, namespace.fileno()))
                self._finish(link, pod, features)
        except (OSError, rt.RtnetlinkError) as error:
            with contextlib.suppress(OSError):
                self._delete(link.host_ifname)
            raise LinkError(f"{link.ifname} in {link.netns}: {error}") from error

    def _finish(self, link: PodLink, pod: rt.Rtnetlink, features: FeatureSocket) -> None:
        """Everything after both ends exist."""
        made = pod.link(link.ifname)
        assert made is not None
        features.disable(link.ifname, link.features_off)
        with entered(self._node_netns):
            for name, value in IGNORING_SYSCTLS.items():
                write_sysctl(name.format(link.host_ifname), value)
        up = rt.link_message(name=link.host_ifname, flags=IFF_UP, change=IFF_UP)
        self._node.apply(rt.Request(rt.RTM_NEWLINK, 0, up, f"{link.host_ifname} up"))
        pod.apply(*_configuration(link, made["index"]))

    def _check(self, link: PodLink) -> tuple[Difference, ...]:
        try:
            with _pod_sockets(link.netns) as (pod, features):
                found = differences(link, pod, features)
        except NamespaceGoneError as error:
            return (Difference("netns", str(link.netns), str(error)),)
        return (*found, *self._check_host_end(link))

    def _check_host_end(self, link: PodLink) -> Iterator[Difference]:
        host = self._node.link(link.host_ifname)
        if host is None:
            yield Difference("host interface", link.host_ifname, "missing")
            return
        if not host["flags"] & IFF_UP:
            yield Difference("host interface state", "up", "down")
        with entered(self._node_netns):
            for pattern, value in IGNORING_SYSCTLS.items():
                name = pattern.format(link.host_ifname)
                actual = read_sysctl(name)
                if actual != value:
                    yield Difference(name, str(value), str(actual))

    def _list(self) -> frozenset[str]:
        names = (
            str(rt.attributes(found)["IFLA_IFNAME"])
            for found in self._node.dump(rt.RTM_GETLINK, rt.link_message())
        )
        return frozenset(name for name in names if _HOST_IFNAME.fullmatch(name))

    def _delete(self, name: str) -> None:
        message = rt.link_message(name=name)
        self._node.apply(rt.Request(rt.RTM_DELLINK, 0, message, f"delete {name}", (errno.ENODEV,)))


@contextlib.contextmanager
def _pod_sockets(netns: Path) -> Iterator[tuple[rt.Rtnetlink, FeatureSocket]]:
    """A netlink and an ethtool socket inside the Pod."""
    with entered(netns):
        pod, features = rt.Rtnetlink(), FeatureSocket()
    try:
        yield pod, features
    finally:
        pod.close()
        features.close()


def _prepare_namespace(link: PodLink) -> None:
    """Sysctls that the interface inherits when it is made; this thread is in the Pod."""
    if any(address.version == 6 for address in link.ips):
        for scope in ("all", "default", "lo"):
            write_sysctl(f"net/ipv6/conf/{scope}/disable_ipv6", 0)
        write_sysctl("net/ipv6/conf/default/accept_dad", 0)
        write_sysctl("net/ipv6/conf/default/accept_ra", 0)


def _veth_pair(link: PodLink, namespace_fd: int) -> rt.Request:
    """One message: the Pod's end is born in the Pod, with its name, MAC and MTU."""
    peer = {
        "attrs": [
            ("IFLA_IFNAME", link.ifname),
            ("IFLA_ADDRESS", link.mac),
            ("IFLA_MTU", link.mtu_bytes),
            ("IFLA_NET_NS_FD", namespace_fd),
        ]
    }
    info = {
        "attrs": [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
    }
    message = rt.link_message(
        name=link.host_ifname,
        attrs=[
            ("IFLA_ADDRESS", derived_mac("host", link.host_ifname)),
            ("IFLA_MTU", link.mtu_bytes),
            ("IFLA_LINKINFO", info),
        ],
    )
    return rt.Request(rt.RTM_NEWLINK, rt.ADD, message, f"veth {link.host_ifname} to {link.ifname}")


def _configuration(link: PodLink, index: int) -> Iterator[rt.Request]:
    """Links up, then addresses, neighbours and routes: each needs the one before."""
    for name, number in (("lo", LOOPBACK_INDEX), (link.ifname, index)):
        up = rt.link_message(index=number, flags=IFF_UP, change=IFF_UP)
        yield rt.Request(rt.RTM_NEWLINK, 0, up, f"{name} up")
    for ip in link.ips:
        yield _address(ip, link.ifname, index)
    for gateway in link.gateways:
        yield from _gateway(gateway, link.gateway_mac, link.ifname, index)


def _address(ip: IPAddress, ifname: str, index: int) -> rt.Request:
    """/32 or /128, usable at once (no duplicate address detection: ipam gave it)."""
    attrs = [
        ("IFA_LOCAL", str(ip)),
        ("IFA_ADDRESS", str(ip)),
        ("IFA_FLAGS", IFA_F_NODAD if ip.version == 6 else 0),
    ]
    message = rt.address_message(
        attrs, family=rt.family_of(ip), prefixlen=ip.max_prefixlen, index=index
    )
    return rt.Request(rt.RTM_NEWADDR, rt.REPLACE, message, f"address {ip} on {ifname}")


def _gateway(gateway: IPAddress, mac: MacAddress, ifname: str, index: int) -> Iterator[rt.Request]:
    """The permanent neighbour, the on-link route to it, and the default route by it."""
    family = rt.family_of(gateway)
    yield rt.Request(
        rt.RTM_NEWNEIGH,
        rt.REPLACE,
        rt.neighbour_message(
            [("NDA_DST", str(gateway)), ("NDA_LLADDR", mac)],
            family=family,
            ifindex=index,
            state=NUD_PERMANENT,
        ),
        f"neighbour {gateway} on {ifname}",
    )
    common = {"family": family, "table": RT_TABLE_MAIN, "proto": RTPROT_STATIC, "type": RTN_UNICAST}
    on_link = rt.route_message(
        [("RTA_DST", str(gateway)), ("RTA_OIF", index)],
        dst_len=gateway.max_prefixlen,
        scope=RT_SCOPE_LINK,
        **common,
    )
    yield rt.Request(rt.RTM_NEWROUTE, rt.REPLACE, on_link, f"route {gateway} dev {ifname}")
    default = rt.route_message([("RTA_GATEWAY", str(gateway)), ("RTA_OIF", index)], **common)
    yield rt.Request(rt.RTM_NEWROUTE, rt.REPLACE, default, f"default route via {gateway}")
