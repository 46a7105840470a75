"""
The node's own processes as clients: what comes in by the gateway port. ADR 0014.

The node's kernel sends here what may be for a Service: cluster IPs, NodePorts at its own addresses,
external and load balancer IPs. What is for no Service goes back to it, unchanged and uncommitted.
"""

from dunlin.model.addresses import IPAddress
from dunlin.openflow.fields import IP_TCP
from dunlin.openflow.flow import OFPP_IN_PORT, Ct, Flow, Match, match, set_field, with_fields
from dunlin.pipeline.base import NO_IN_PORT, FlowMaker, SwitchContext, to_gateway
from dunlin.pipeline.families import FAMILIES, Family, family_of
from dunlin.pipeline.layout import SNAT_MARK, VIA_NODE_MARK, Priority, Table, Zone

_SYN_ACK = (0x12, 0x12)


def node_clients(make: FlowMaker, context: SwitchContext) -> None:
    """Every flow for them but those that they share with Pods."""
    _given_back(make, context)
    _selected(make, context)
    for ip in context.own_addresses:
        # To the world outside as a Pod would go: an endpoint there, a port that is no Service's.
        out = _from(context, ip)
        make.add(Table.BEYOND, Priority.DROP - 1, out, (NO_IN_PORT,), Table.EXTERNAL)


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
    everywhere, to the node's other addresses from all Pods (every switch has a route for them).
    Else, from the kernel of another node or from beyond the cluster, it becomes the gateway's.

    What the kernel merely forwards (a container on another bridge of the node) has an address that
    no other node and no route of ours knows: its connections are marked, so that replies go back.
    """
    table = Table.ENDPOINT_SELECTED
    for ip in context.own_addresses:
        cidrs = (*context.switch.local_cidrs, *context.switch.pod_cidrs)
        for cidr in dict.fromkeys(cidrs):
            if cidr.version == ip.version:
                pods = with_fields(_from(context, ip), family_of(ip).to(cidr))
                make.add(table, Priority.ROUTE, pods, (), Table.EGRESS_SUBJECT)
    for ip in context.switch.gateway_ips:
        make.add(table, Priority.FALLBACK, _from(context, ip), (), Table.EGRESS_SUBJECT)
    for cidr in context.switch.local_cidrs:
        forwarded = with_fields(_from_gateway(context), family_of(cidr).to(cidr))
        make.add(table, Priority.DEFAULT + 5, forwarded, (_note(VIA_NODE_MARK.value),))
    for family in FAMILIES:
        if any(ip.version == family.version for ip in context.switch.gateway_ips):
            when = with_fields(_from_gateway(context), family.any)
            both = _note(SNAT_MARK.value | VIA_NODE_MARK.value)
            make.add(table, Priority.DEFAULT, when, (both,))
        _replies(make, context, family)


def _note(bits: int) -> Ct:
    """Note it in the committed connection, and go on to policy."""
    note = (set_field("ct_mark", (bits, bits)),)
    return Ct(Zone.MAIN, commit=True, table=Table.EGRESS_SUBJECT, exec=note)


def _replies(make: FlowMaker, context: SwitchContext, family: Family) -> None:
    """To the kernel, which knows its client; also where the node itself is the endpoint."""
    reply = with_fields(family.any, match(ct_mark=VIA_NODE_MARK.pair, ct_state="+trk+rpl"))
    back = (NO_IN_PORT, *to_gateway(context))
    make.add(Table.CONNTRACK_STATE, Priority.LOCAL, reply, back)
    itself = with_fields(_from_gateway(context), family.any)
    make.add(Table.HAIRPIN_OUTPUT, Priority.DEFAULT, itself, to_gateway(context, OFPP_IN_PORT))


def _from(context: SwitchContext, ip: IPAddress) -> Match:
    """Sent by the node itself from this address of its own, not merely forwarded."""
    return with_fields(_from_gateway(context), family_of(ip).from_(ip))
