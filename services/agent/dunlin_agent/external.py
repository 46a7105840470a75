"""
The flows of br-ext: what from outside may be a Pod's answer or for a Service goes to br-int. Pure.

br-ext is standalone, everything else is NORMAL. Source: docs/design/contracts.md, "The node".

br-ext knows no Services: node ports are a range, and what is sent to this node's MAC but to none of
its addresses may be for an external or load balancer IP. What br-int has no Service for comes back.
"""

from collections.abc import Collection, Iterator
from ipaddress import IPv6Network

from dunlin.events.facts import Protocol
from dunlin.model.addresses import IPAddress, MacAddress
from dunlin.openflow.fields import IP_ICMP, IP_ICMPV6, IP_TCP, IP_UDP
from dunlin.openflow.flow import (
    OFPP_LOCAL,
    OFPP_NORMAL,
    Action,
    FieldMatch,
    Flow,
    Match,
    Output,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.families import FAMILIES, V6, family_of, to_l4_port
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK, EXTERNAL_PORT_MIN

COOKIE = 0xD1
LINK_LOCAL = IPv6Network("fe80::/10")
PRIORITY = 200
# Errors, which hold a Pod's packet, and replies to a Pod's echo request.
ICMPV6_TYPES = (1, 2, 3, 4, 129)
# nw_frag=yes, which has no name in dunlin.openflow.fields: NXM_NX_IP_FRAG, ANY. All of them, for
# br-int's conntrack lets no fragment of a datagram pass before it has seen every one.
FRAGMENT = FieldMatch("oxm_0001_26_1", 1, 1)


def external_flows(
    addresses: tuple[IPAddress, ...],
    uplink_port: int,
    patch_port: int,
    uplink_mac: MacAddress,
    node_ports: tuple[int, int],
    frontends: Collection[tuple[IPAddress, Protocol, int]] = (),
) -> tuple[Flow, ...]:
    """
    Every flow that br-ext has beside NORMAL.

    Args:
        addresses: the node's own, on br-ext's LOCAL port.
        uplink_port: OpenFlow port of br-ext that the uplink is.
        patch_port: OpenFlow port of br-ext that leads to br-int.
        uplink_mac: of the LOCAL port: frames for this node have it.
        node_ports: first and last of the NodePort range.
        frontends: external and load balancer IPs that are the node's own addresses.
    """
    pod = (set_field("pkt_mark", EXTERNAL_PKT_MARK), Output(patch_port))
    flows = []
    for ip in addresses:
        family = family_of(ip)
        # Frames to the router's MAC are other nodes' Pods: br-int knows them without a mark.
        to_mac = match(in_port=uplink_port, eth_dst=uplink_mac)
        from_uplink = with_fields(to_mac, family.to(ip))
        flows += [_flow(with_fields(from_uplink, kind), pod) for kind in _kinds(ip)]
        flows += [_flow(with_fields(from_uplink, kind), pod) for kind in _node_ports(*node_ports)]
        flows.append(_flow(from_uplink, (Output(OFPP_NORMAL),), PRIORITY - 10))
        fragments = tuple(sorted((*from_uplink, FRAGMENT)))
        flows.append(_flow(fragments, pod))
        from_patch = with_fields(match(in_port=patch_port), family.to(ip))
        flows.append(_flow(from_patch, (Output(OFPP_LOCAL),)))
    to_mac = match(in_port=uplink_port, eth_dst=uplink_mac)
    for ip, protocol, port in sorted(frontends, key=str):
        flows.append(_flow(with_fields(to_mac, family_of(ip).to_port(ip, protocol, port)), pod))
    flows += _to_this_node(uplink_port, patch_port, uplink_mac, pod)
    return tuple(flows)


def _to_this_node(
    uplink_port: int, patch_port: int, uplink_mac: MacAddress, pod: tuple[Action, ...]
) -> Iterator[Flow]:
    """Routed to this node, but to no address of its own that we know of."""
    to_mac = with_fields(match(in_port=uplink_port), match(eth_dst=uplink_mac))
    for family in FAMILIES:
        yield _flow(with_fields(to_mac, family.any), pod, PRIORITY - 20)
    # Neighbour discovery among link-local addresses is the node's own.
    link_local = with_fields(to_mac, V6.to(LINK_LOCAL))
    yield _flow(link_local, (Output(OFPP_NORMAL),), PRIORITY - 10)
    # Without this br-ext would learn from what comes back that the sender is behind br-int.
    back = match(in_port=patch_port, eth_dst=uplink_mac)
    yield _flow(back, (Output(OFPP_LOCAL),), PRIORITY - 10)


def _node_ports(first: int, last: int) -> Iterator[Match]:
    for value, mask in port_masks(first, last):
        for protocol in Protocol:
            yield to_l4_port(protocol, (value, mask))


def port_masks(first: int, last: int) -> Iterator[tuple[int, int]]:
    """The fewest (value, mask) that match all ports from `first` to `last`, and no other."""
    while first <= last:
        size = first & -first or 1 << 16
        while first + size - 1 > last:
            size //= 2
        yield first, 0xFFFF & ~(size - 1)
        first += size


def _kinds(ip: IPAddress) -> Iterator[Match]:
    ports = (EXTERNAL_PORT_MIN, EXTERNAL_PORT_MIN)
    yield match(nw_proto=IP_TCP, tcp_dst=ports)
    yield match(nw_proto=IP_UDP, udp_dst=ports)
    if ip.version == 4:
        yield match(nw_proto=IP_ICMP)
    else:
        for kind in ICMPV6_TYPES:
            yield match(nw_proto=IP_ICMPV6, icmpv6_type=kind)


def _flow(when: Match, actions: tuple[Action, ...], priority: int = PRIORITY) -> Flow:
    return Flow(0, priority, when, actions, cookie=COOKIE)


def takes_external(flows: tuple[Flow, ...]) -> bool:
    """br-int's pipeline stands: it has a flow for what br-ext marks."""
    marked = FieldMatch("pkt_mark", EXTERNAL_PKT_MARK)
    return any(marked in flow.match for flow in flows)
