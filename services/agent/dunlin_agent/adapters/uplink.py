"""
The addresses and routes of the node's uplink as values, and the requests that move them.

Pure but for `read`. Moved are addresses of global and site scope and every route that is not the
kernel's own consequence of an address. Not moved: link-local addresses (each device makes its own),
multipath routes (refused: see `read`).
"""

from collections.abc import Iterator
from errno import EADDRNOTAVAIL, EEXIST, ENODEV, ESRCH
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface, ip_network
from typing import Any, Final

import msgspec

from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_agent.adapters import rtnetlink as rt

IFF_UP: Final = 1
IFA_F_SECONDARY: Final = 0x01  # of IPv4; of IPv6 the same bit says: temporary
IFA_F_NODAD: Final = 0x02
IFA_F_UNFIT: Final = 0x08 | 0x20 | 0x40  # duplicate, deprecated, tentative
IFA_F_NOPREFIXROUTE: Final = 0x200
RT_SCOPE_SITE: Final = 200
RT_TABLE_LOCAL: Final = 255
RTPROT_KERNEL: Final = 2
RTN_UNICAST: Final = 1
RTNH_F_ONLINK: Final = 4


class UplinkError(Exception):
    """The uplink cannot be moved as it is; the message names the device and the reason."""


class Address(msgspec.Struct, frozen=True):
    """An address with its prefix, as on the device."""

    ip: IPAddress
    prefix_length: int
    scope: int = 0
    no_prefix_route: bool = False
    broadcast: IPAddress | None = None

    @property
    def interface(self) -> IPv4Interface | IPv6Interface:
        """Address and subnet in one."""
        return ip_interface(f"{self.ip}/{self.prefix_length}")


class Route(msgspec.Struct, frozen=True):
    """A unicast route by the device; numbers as in rtnetlink(7)."""

    dst: IPNetwork
    gateway: IPAddress | None = None
    source: IPAddress | None = None
    metric: int | None = None
    table: int = 254
    protocol: int = 4
    scope: int = 0
    on_link: bool = False


class UplinkState(msgspec.Struct, frozen=True):
    """What a device carries for the node."""

    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()


def read(netlink: rt.Rtnetlink, index: int, name: str) -> UplinkState:
    """
    What the device with that index carries.

    Raises:
        UplinkError: a route by several next hops uses it: whoever made that must move it.
    """
    addresses = [
        _address(message)
        for message in netlink.dump(rt.RTM_GETADDR, rt.address_message())
        if message["index"] == index and message["scope"] <= RT_SCOPE_SITE
    ]
    routes = []
    for message in netlink.dump(rt.RTM_GETROUTE, rt.route_message()):
        attrs = rt.attributes(message)
        hops = attrs.get("RTA_MULTIPATH") or ()
        if any(hop["oif"] == index for hop in hops):
            dst = attrs.get("RTA_DST", "default")
            raise UplinkError(f"{name}: route {dst} has several next hops")
        if attrs.get("RTA_OIF") == index and _is_kept(message, attrs):
            routes.append(_route(message, attrs))
    return UplinkState(tuple(addresses), tuple(sorted(routes, key=_on_link_first)))


def sources(netlink: rt.Rtnetlink, index: int) -> tuple[IPAddress, ...]:
    """
    The addresses of the device that a process may send from, the node's main ones first.

    Not those that are tentative, duplicate or deprecated: the kernel refuses them or avoids them.
    """
    found = []
    for message in netlink.dump(rt.RTM_GETADDR, rt.address_message()):
        flags = rt.attributes(message).get("IFA_FLAGS", 0)
        fit = message["scope"] <= RT_SCOPE_SITE and not flags & IFA_F_UNFIT
        if message["index"] == index and fit:
            found.append((bool(flags & IFA_F_SECONDARY), _address(message).ip))
    return tuple(ip for _, ip in sorted(found, key=lambda item: item[0]))


def _is_kept(message: Any, attrs: dict[str, Any]) -> bool:
    """Not the local table, and not what an address brings with it."""
    table = attrs.get("RTA_TABLE", message["table"])
    of_kernel = message["proto"] == RTPROT_KERNEL
    return message["type"] == RTN_UNICAST and table != RT_TABLE_LOCAL and not of_kernel


def _on_link_first(route: Route) -> tuple[bool, str]:
    """A gateway may be reachable only by an on-link route, which must then be there first."""
    return (route.gateway is not None, str(route.dst))


def _address(message: Any) -> Address:
    attrs = rt.attributes(message)
    ip = ip_address(attrs.get("IFA_LOCAL", attrs["IFA_ADDRESS"]))
    broadcast = attrs.get("IFA_BROADCAST")
    return Address(
        ip=ip,
        prefix_length=message["prefixlen"],
        scope=message["scope"],
        no_prefix_route=bool(attrs.get("IFA_FLAGS", 0) & IFA_F_NOPREFIXROUTE),
        broadcast=ip_address(broadcast) if broadcast and ip.version == 4 else None,
    )


def _route(message: Any, attrs: dict[str, Any]) -> Route:
    any_address = "0.0.0.0" if message["family"] == rt.AF_INET else "::"  # noqa: S104 - a prefix
    return Route(
        dst=ip_network(f"{attrs.get('RTA_DST', any_address)}/{message['dst_len']}"),
        gateway=_maybe_address(attrs.get("RTA_GATEWAY")),
        source=_maybe_address(attrs.get("RTA_PREFSRC")),
        metric=attrs.get("RTA_PRIORITY"),
        table=attrs.get("RTA_TABLE", message["table"]),
        protocol=message["proto"],
        scope=message["scope"],
        on_link=bool(message["flags"] & RTNH_F_ONLINK),
    )


def _maybe_address(text: str | None) -> IPAddress | None:
    return None if text is None else ip_address(text)


def move_requests(state: UplinkState, source: int | None, target: int) -> Iterator[rt.Request]:
    """
    Put `state` on device `target` and take it from device `source` (None: that device is gone).

    One batch, in this order: the node is never without its addresses, and without a default route
    only between two messages of one system call. (An address that leaves a device takes the routes
    with it whose source it was, on whatever device; so routes come last.)
    """
    yield up_request(target, str(target))
    for address in state.addresses:
        yield address_request(rt.RTM_NEWADDR, rt.REPLACE, address, target, ())
    if source is not None:
        gone = (EADDRNOTAVAIL, ENODEV)
        for address in state.addresses:
            yield address_request(rt.RTM_DELADDR, 0, address, source, gone)
        for route in state.routes:
            yield route_request(rt.RTM_DELROUTE, 0, route, source, (ESRCH, ENODEV))
    for route in state.routes:
        yield route_request(rt.RTM_NEWROUTE, rt.REPLACE, route, target, (EEXIST,))


def up_request(index: int, name: str) -> rt.Request:
    """Set a device up."""
    up = rt.link_message(index=index, flags=IFF_UP, change=IFF_UP)
    return rt.Request(rt.RTM_NEWLINK, 0, up, f"device {name} up")


def address_request(
    kind: int, flags: int, address: Address, index: int, accept: tuple[int, ...]
) -> rt.Request:
    """Add or delete one address; without duplicate detection, for the address was ours before."""
    bits = IFA_F_NOPREFIXROUTE if address.no_prefix_route else 0
    if address.ip.version == 6:
        bits |= IFA_F_NODAD
    attrs = [
        ("IFA_LOCAL", str(address.ip)),
        ("IFA_ADDRESS", str(address.ip)),
        ("IFA_BROADCAST", None if address.broadcast is None else str(address.broadcast)),
        ("IFA_FLAGS", bits),
    ]
    message = rt.address_message(
        attrs,
        family=rt.family_of(address.ip),
        prefixlen=address.prefix_length,
        index=index,
        scope=address.scope,
    )
    return rt.Request(kind, flags, message, f"address {address.interface}", accept)


def route_request(
    kind: int, flags: int, route: Route, index: int, accept: tuple[int, ...]
) -> rt.Request:
    """Add or delete one route by the device."""
    attrs = [
        ("RTA_DST", str(route.dst.network_address) if route.dst.prefixlen else None),
        ("RTA_GATEWAY", None if route.gateway is None else str(route.gateway)),
        ("RTA_PREFSRC", None if route.source is None else str(route.source)),
        ("RTA_PRIORITY", route.metric),
        ("RTA_TABLE", route.table),
        ("RTA_OIF", index),
    ]
    message = rt.route_message(
        attrs,
        family=rt.family_of(route.dst.network_address),
        dst_len=route.dst.prefixlen,
        table=route.table if route.table <= RT_TABLE_LOCAL else 0,
        proto=route.protocol,
        scope=route.scope,
        type=RTN_UNICAST,
        flags=RTNH_F_ONLINK if route.on_link else 0,
    )
    return rt.Request(kind, flags, message, f"route {route.dst}", accept)
