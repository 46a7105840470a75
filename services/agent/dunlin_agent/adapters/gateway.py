"""
dunlin-gw0, the node's interface to Pods, as requests to the kernel. Pure.

The node reaches Pods and Services by a next hop that nobody answers for: its MAC is a permanent
neighbour, what br-int takes for the router.
"""

import errno
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import msgspec

from dunlin.model.addresses import IPAddress, IPNetwork, MacAddress
from dunlin_agent.adapters import rtnetlink as rt
from dunlin_agent.adapters.uplink import (
    Address,
    Route,
    UplinkState,
    address_request,
    route_request,
)

# The next hop of the node's routes to Pods and Services: a permanent neighbour, asked by nobody.
ROUTER_IPS: Final[dict[int, IPAddress]] = {
    4: IPv4Address("169.254.100.1"),
    6: IPv6Address("fe80::64:756e:6c01"),
}
# Marks our routes, so that those no longer wanted are found: linux/rtnetlink.h leaves it free.
RTPROT_DUNLIN: Final = 100
# What the kernel takes for a route without a metric (of IPv6: IP6_RT_PRIO_USER, which it shows).
FIRST_METRIC: Final[dict[int, int | None]] = {4: None, 6: 1024}
LAST_METRIC: Final = 4096
RT_SCOPE_UNIVERSE: Final = 0
NUD_PERMANENT: Final = 0x80


class GatewaySpec(msgspec.Struct, frozen=True, kw_only=True):
    """
    The node's interface to Pods.

    `ips`: at most one of each family. `sources`: what the node's processes send from, at most one
    of each family and the node's own; a family without one sends from `ips`. `cidrs`: of Pods and
    Services, reached by this interface; those of a family without an address are left out.
    `router_mac`: what br-int takes for its own.
    """

    ifname: str
    ips: tuple[IPAddress, ...]
    sources: tuple[IPAddress, ...] = ()
    cidrs: tuple[IPNetwork, ...]
    router_mac: MacAddress
    mtu_bytes: int


def gateway_requests(spec: GatewaySpec, present: UplinkState, index: int) -> Iterator[rt.Request]:
    """Make the interface as specified, and remove what an earlier spec left on it."""
    addresses, routes = _gateway_addresses(spec), _gateway_routes(spec)
    yield from _up_with_mtu(index, spec)
    for address in addresses:
        yield address_request(rt.RTM_NEWADDR, rt.REPLACE, address, index, ())
    for ip in _router_ips(spec):
        yield _permanent(ip, spec.router_mac, index)
    for route in routes:
        yield route_request(rt.RTM_NEWROUTE, rt.REPLACE, route, index, ())
    yield from _without(present, addresses, routes, index)


def route_key(route: Route) -> tuple[IPNetwork, IPAddress | None, int]:
    """What two routes of one device may not share."""
    return (route.dst, route.gateway, route.table)


def stands(spec: GatewaySpec, present: UplinkState) -> bool:
    """
    All addresses and routes of the specification are there.

    The kernel takes a route away (IPv4), or its source (IPv6), with the address that is its source.
    """
    wanted = {address.interface for address in _gateway_addresses(spec)}
    routes = {(*_metric_key(route), route.source) for route in _gateway_routes(spec)}
    return wanted <= {address.interface for address in present.addresses} and routes <= {
        (*_metric_key(route), route.source) for route in present.routes
    }


def _metric_key(route: Route) -> tuple[IPNetwork, IPAddress | None, int, int | None]:
    return (*route_key(route), route.metric)


def _versions(spec: GatewaySpec) -> dict[int, IPAddress]:
    return {ip.version: ip for ip in spec.ips}


def _router_ips(spec: GatewaySpec) -> tuple[IPAddress, ...]:
    return tuple(ROUTER_IPS[version] for version in sorted(_versions(spec)))


def _gateway_addresses(spec: GatewaySpec) -> tuple[Address, ...]:
    return tuple(Address(ip=ip, prefix_length=ip.max_prefixlen) for ip in spec.ips)


def _gateway_routes(spec: GatewaySpec) -> tuple[Route, ...]:
    """
    Each CIDR by the virtual router, with the node's own address as the source.

    With a larger metric once more, from the gateway's address: the way that is left at the moment
    in which the node's address goes. ADR 0038.
    """
    gateway = _versions(spec)
    own = {ip.version: ip for ip in spec.sources}
    cidrs = [cidr for cidr in spec.cidrs if cidr.version in gateway]
    last = [_route(cidr, gateway[cidr.version], LAST_METRIC) for cidr in cidrs]
    first = [
        _route(cidr, own[cidr.version], FIRST_METRIC[cidr.version])
        for cidr in cidrs
        if cidr.version in own
    ]
    return (*last, *first)


def _route(cidr: IPNetwork, source: IPAddress, metric: int | None) -> Route:
    return Route(
        dst=cidr,
        gateway=ROUTER_IPS[cidr.version],
        source=source,
        metric=metric,
        protocol=RTPROT_DUNLIN,
        scope=RT_SCOPE_UNIVERSE,
        on_link=cidr.version == 4,
    )


def _up_with_mtu(index: int, spec: GatewaySpec) -> tuple[rt.Request, ...]:
    message = rt.link_message(index=index, attrs=[("IFLA_MTU", spec.mtu_bytes)], flags=1, change=1)
    return (rt.Request(rt.RTM_NEWLINK, 0, message, f"{spec.ifname} up, MTU {spec.mtu_bytes}"),)


def _permanent(ip: IPAddress, mac: MacAddress, index: int) -> rt.Request:
    message = rt.neighbour_message(
        [("NDA_DST", str(ip)), ("NDA_LLADDR", mac)],
        family=rt.family_of(ip),
        ifindex=index,
        state=NUD_PERMANENT,
    )
    return rt.Request(rt.RTM_NEWNEIGH, rt.REPLACE, message, f"neighbour {ip}")


def _without(
    present: UplinkState, addresses: tuple[Address, ...], routes: tuple[Route, ...], index: int
) -> list[rt.Request]:
    """Requests that remove what an earlier spec left."""
    wanted = {item.interface for item in addresses}
    keys = {_metric_key(route) for route in routes}
    gone = (errno.EADDRNOTAVAIL, errno.ESRCH)
    return [
        address_request(rt.RTM_DELADDR, 0, item, index, gone)
        for item in present.addresses
        if item.interface not in wanted
    ] + [
        route_request(rt.RTM_DELROUTE, 0, item, index, gone)
        for item in present.routes
        if item.protocol == RTPROT_DUNLIN and _metric_key(item) not in keys
    ]
