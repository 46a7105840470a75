"""
The flows of br-ext: what of the outside's answers may be a Pod's goes to br-int. Pure.

br-ext is standalone, everything else is NORMAL. Source: docs/design/contracts.md, "The node".
"""

from collections.abc import Iterator

from dunlin.model.addresses import IPAddress
from dunlin.openflow.fields import IP_ICMP, IP_ICMPV6, IP_TCP, IP_UDP
from dunlin.openflow.flow import (
    OFPP_LOCAL,
    Action,
    FieldMatch,
    Flow,
    Match,
    Output,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.families import family_of
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK, EXTERNAL_PORT_MIN

COOKIE = 0xD1
PRIORITY = 200
# Errors, which hold a Pod's packet, and replies to a Pod's echo request.
ICMPV6_TYPES = (1, 2, 3, 4, 129)
# nw_frag=later, which has no name in dunlin.openflow.fields: NXM_NX_IP_FRAG, ANY|LATER.
LATER_FRAGMENT = FieldMatch("oxm_0001_26_1", 3, 3)


def external_flows(
    addresses: tuple[IPAddress, ...], uplink_port: int, patch_port: int
) -> tuple[Flow, ...]:
    """
    Every flow that br-ext has beside NORMAL.

    Args:
        addresses: the node's own, on br-ext's LOCAL port.
        uplink_port: OpenFlow port of br-ext that the uplink is.
        patch_port: OpenFlow port of br-ext that leads to br-int.
    """
    pod = (set_field("pkt_mark", EXTERNAL_PKT_MARK), Output(patch_port))
    flows = []
    for ip in addresses:
        family = family_of(ip)
        from_uplink = with_fields(match(in_port=uplink_port), family.to(ip))
        flows += [_flow(with_fields(from_uplink, kind), pod) for kind in _kinds(ip)]
        later = tuple(sorted((*from_uplink, LATER_FRAGMENT)))
        flows.append(_flow(later, pod))
        from_patch = with_fields(match(in_port=patch_port), family.to(ip))
        flows.append(_flow(from_patch, (Output(OFPP_LOCAL),)))
    return tuple(flows)


def _kinds(ip: IPAddress) -> Iterator[Match]:
    ports = (EXTERNAL_PORT_MIN, EXTERNAL_PORT_MIN)
    yield match(nw_proto=IP_TCP, tcp_dst=ports)
    yield match(nw_proto=IP_UDP, udp_dst=ports)
    if ip.version == 4:
        yield match(nw_proto=IP_ICMP)
    else:
        for kind in ICMPV6_TYPES:
            yield match(nw_proto=IP_ICMPV6, icmpv6_type=kind)


def _flow(when: Match, actions: tuple[Action, ...]) -> Flow:
    return Flow(0, PRIORITY, when, actions, cookie=COOKIE)


def takes_external(flows: tuple[Flow, ...]) -> bool:
    """br-int's pipeline stands: it has a flow for what br-ext marks."""
    marked = FieldMatch("pkt_mark", EXTERNAL_PKT_MARK)
    return any(marked in flow.match for flow in flows)
