"""
The node's own processes as clients: what comes in by the gateway port. ADR 0014.

The node's kernel sends here what may be for a Service: cluster IPs, NodePorts at its own addresses,
external and load balancer IPs. What is for no Service goes back to it, unchanged and uncommitted.
"""

from dunlin.model.addresses import IPAddress
from dunlin.openflow.fields import IP_TCP
from dunlin.openflow.flow import OFPP_IN_PORT, Ct, Flow, Match, match, set_field, with_fields
from dunlin.pipeline.base import NO_IN_PORT, FlowMaker, SwitchContext, to_gateway
from dunlin.pipeline.families import FAMILIES, family_of
from dunlin.pipeline.layout import SNAT_MARK, Priority, Table, Zone

_SYN_ACK = (0x12, 0x12)


def node_clients(make: FlowMaker, context: SwitchContext) -> None:
    """Every flow for them but those that they share with Pods."""
    _given_back(make, context)
    _selected(make, context)
    for ip in context.own_addresses:
        # To the world outside as a Pod would go: an endpoint there, a port that is no Service's.
        out = _from(context, ip)
        make.add(Table.L3_FORWARD, Priority.DROP - 1, out, (NO_IN_PORT,), Table.EXTERNAL)


def takes_node_clients(flows: tuple[Flow, ...], gateway_port: int) -> bool:
    """By the flows of ConntrackState: the kernel may send NodePorts to this switch."""
    return any(
        item.field == "in_port" and item.value == gateway_port
        for flow in flows
        if flow.table == int(Table.CONNTRACK_STATE)
        for item in flow.match
    )


def _from_gateway(context: SwitchContext) -> Match:
    """What the node's kernel has sent."""
    return match(in_port=context.switch.gateway_port)


def _given_back(make: FlowMaker, context: SwitchContext) -> None:
    """
    To an address of the node, but for no Service: some process of its own.

    Such a connection is never committed, so each of its packets is new here, but for the answer to
    its first: conntrack calls a SYN+ACK without SYN invalid. (No client of a Service sends one.)
    """
    back = to_gateway(context, OFPP_IN_PORT)
    for ip in context.own_addresses:
        there = with_fields(_from_gateway(context), family_of(ip).to(ip))
        make.add(Table.SERVICE_LB, Priority.DROP, there, back)
        answer = with_fields(there, match(nw_proto=IP_TCP, tcp_flags=_SYN_ACK))
        answer = with_fields(answer, match(ct_state="+trk+inv"))
        make.add(Table.CONNTRACK_STATE, Priority.GUARD + 5, answer, back)


def _selected(make: FlowMaker, context: SwitchContext) -> None:
    """
    An endpoint has been chosen for a process of the node.

    Its address is kept where the endpoint answers through this switch: to the gateway address from
    everywhere, to the node's other addresses from its own Pods. Else it becomes the gateway's.
    """
    table = Table.ENDPOINT_SELECTED
    for ip in context.own_addresses:
        for cidr in context.switch.local_cidrs:
            if cidr.version == ip.version:
                here = with_fields(_from(context, ip), family_of(ip).to(cidr))
                make.add(table, Priority.ROUTE, here, (), Table.EGRESS_SUBJECT)
    for ip in context.switch.gateway_ips:
        make.add(table, Priority.FALLBACK, _from(context, ip), (), Table.EGRESS_SUBJECT)
    note = Ct(
        Zone.MAIN,
        commit=True,
        table=Table.EGRESS_SUBJECT,
        exec=(set_field("ct_mark", SNAT_MARK.pair),),
    )
    for family in FAMILIES:
        if any(ip.version == family.version for ip in context.switch.gateway_ips):
            when = with_fields(_from_gateway(context), family.any)
            make.add(table, Priority.DEFAULT, when, (note,))


def _from(context: SwitchContext, ip: IPAddress) -> Match:
    """Sent by the node itself from this address of its own, not merely forwarded."""
    return with_fields(_from_gateway(context), family_of(ip).from_(ip))
