"""
The few link operations the lab needs, each run inside one namespace, without a process.

Every function here acts on the namespace of the calling thread: call them through `netns.run_in`,
or directly for the host's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from pathlib import Path
from typing import Any

from pyroute2.iproute.linux import IPRoute

Interface = IPv4Interface | IPv6Interface
Address = IPv4Address | IPv6Address

# pyroute2 gives its methods to the object at run time, where mypy sees none.
_IPRoute: Any = IPRoute

# linux/sockios.h, linux/ethtool.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_GTXCSUM = 0x16
_ETHTOOL_STXCSUM = 0x17
# linux/if_addr.h
_IFA_F_NODAD = 0x02
_IFNAME_BYTES_MAX = 15


@contextmanager
def route() -> Iterator[Any]:
    """A pyroute2 IPRoute in the calling thread's namespace."""
    with _IPRoute() as ipr:
        yield ipr


def index_of(ipr: Any, ifname: str) -> int | None:
    """Interface index; None when there is no such link."""
    found = ipr.link_lookup(ifname=ifname)
    return found[0] if found else None


def names_here() -> list[str]:
    """Every link of this namespace."""
    return [name for _, name in socket.if_nameindex()]


def veth(ipr: Any, ifname: str, peer: str, peer_netns: Path, mtu: int) -> None:
    """Make a veth pair: one end here, the other straight in its namespace, both down."""
    fd = os.open(peer_netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        ipr.link(
            "add",
            ifname=ifname,
            kind="veth",
            mtu=mtu,
            peer={"ifname": peer, "net_ns_fd": fd, "mtu": mtu},
        )
    finally:
        os.close(fd)


def bridge(ipr: Any, ifname: str, owner: str = "") -> int:
    """
    Make a Linux bridge and bring it up: no spanning tree, no delay, no multicast snooping.

    Without a querier, snooping can lose IPv6 neighbour discovery.

    Args:
        owner: kept as the link's alias, for `owner_of`.
    """
    ipr.link(
        "add",
        ifname=ifname,
        kind="bridge",
        br_stp_state=0,
        br_forward_delay=0,
        br_mcast_snooping=0,
    )
    index = index_of(ipr, ifname)
    assert index is not None, f"{ifname} was just made"
    # The kernel takes an alias only of a link that exists.
    ipr.link("set", index=index, state="up", **({"ifalias": owner} if owner else {}))
    return index


def owner_of(ifname: str) -> str | None:
    """The alias of a link of this namespace; None when there is no such link or alias."""
    with route() as ipr:
        index = index_of(ipr, ifname)
        if index is None:
            return None
        alias = ipr.get_links(index)[0].get_attr("IFLA_IFALIAS")
        return None if alias is None else str(alias)


def enslave(ipr: Any, ifname: str, master: int) -> None:
    """Put a link into a bridge and bring it up."""
    ipr.link("set", index=index_of(ipr, ifname), master=master, state="up")


def up(ipr: Any, ifname: str, addresses: tuple[Interface, ...] = ()) -> None:
    """Bring a link up and give it addresses, usable at once: no duplicate address detection."""
    index = index_of(ipr, ifname)
    ipr.link("set", index=index, state="up")
    for address in addresses:
        flags = {"flags": _IFA_F_NODAD} if address.version == 6 else {}
        length = address.network.prefixlen
        ipr.addr("add", index=index, address=str(address.ip), prefixlen=length, **flags)


def default_route(ipr: Any, gateway: Address) -> None:
    """Send everything that is not local to `gateway`."""
    family = socket.AF_INET if gateway.version == 4 else socket.AF_INET6
    ipr.route("add", family=family, dst="default", gateway=str(gateway))


def delete(ifname: str) -> bool:
    """Remove a link of this namespace; False when there is none."""
    with route() as ipr:
        index = index_of(ipr, ifname)
        if index is None:
            return False
        ipr.link("del", index=index)
    return True


def sysctl(name: str, value: str) -> None:
    """
    Set a net.* sysctl of this namespace.

    Args:
        name: below net, with slashes: "ipv4/ip_forward".
    """
    Path("/proc/sys/net", name).write_text(value)


def set_tx_checksum(ifname: str, *, on: bool) -> None:
    """
    Turn transmit checksum offload of a link on or off; off also ends segmentation offload.

    Source: ethtool(8) -K tx; DATAPLANE §5: OVS without userspace-tso cannot finish a checksum that
    the kernel left to a device, and every receiver then drops the packet.
    """
    _ethtool(ifname, _ETHTOOL_STXCSUM, int(on))


def tx_checksum(ifname: str) -> bool:
    """True when the kernel may leave checksums to this link."""
    return bool(_ethtool(ifname, _ETHTOOL_GTXCSUM, 0))


def _ethtool(ifname: str, command: int, value: int) -> int:
    """One struct ethtool_value {u32 cmd, u32 data} through SIOCETHTOOL; the data after it."""
    raw = ifname.encode()
    assert len(raw) <= _IFNAME_BYTES_MAX, ifname
    data = bytearray(struct.pack("=II", command, value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = _ifreq_with_pointer(raw, data)
        fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return int(struct.unpack("=II", data)[1])


def _ifreq_with_pointer(name: bytes, data: bytearray) -> bytes:
    """A struct ifreq: 16 bytes of name, a pointer to `data`, padding to 40 bytes."""
    pointer = ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data))
    return struct.pack("=16sQ16x", name, pointer)
