"""How another node's Pods and addresses are reached."""

from dunlin.events.intents import RouteIntent
from dunlin.model.addresses import IPAddress, IPNetwork, host_network
from dunlin.openflow.flow import Action, DecTtl, Output, Program, set_field
from dunlin.pipeline.base import FlowMaker, SwitchContext, deliver
from dunlin.pipeline.families import family_of
from dunlin.pipeline.layout import Priority, Table


def compile_route(intent: RouteIntent, context: SwitchContext) -> Program:
    """
    Flows towards node `intent.key`; none on that node itself.

    A node that cannot be reached (no shared subnet and no tunnel) gets no flows: its addresses fall
    to L3Forward's drop of the cluster's CIDRs. `unreachable` tells so.
    """
    make = FlowMaker(intent.id)
    actions = _next_hop(intent, context)
    if intent.key == context.node or actions is None:
        return Program()
    networks = [*intent.cidrs, *(host_network(address.ip) for address in intent.addresses)]
    for network in dict.fromkeys(networks):
        when = family_of(network).to(network)
        make.add(Table.L3_FORWARD, Priority.ROUTE, when, actions)
    return Program(tuple(make.flows))


def unreachable(intent: RouteIntent, context: SwitchContext) -> bool:
    """Whether the switch has no way to that node."""
    return intent.key != context.node and _next_hop(intent, context) is None


def _next_hop(intent: RouteIntent, context: SwitchContext) -> tuple[Action, ...] | None:
    switch = context.switch
    shared = _shares_subnet(intent, context)
    if switch.uplink_port and shared and intent.encapsulation != "tunnel":
        return (DecTtl(), *deliver(switch.router_mac, intent.router_mac, switch.uplink_port))
    if switch.tunnel_port and intent.encapsulation != "none":
        return _tunnel(intent, context)
    return None


def _shares_subnet(intent: RouteIntent, context: SwitchContext) -> bool:
    mine: set[IPNetwork] = {address.subnet for address in context.switch.addresses}
    return any(address.subnet in mine for address in intent.addresses)


def _tunnel(intent: RouteIntent, context: SwitchContext) -> tuple[Action, ...] | None:
    remote = _tunnel_end(intent, context)
    if remote is None:
        return None
    switch = context.switch
    name = "tun_dst" if remote.version == 4 else "tun_ipv6_dst"
    return (
        DecTtl(),
        set_field("eth_src", switch.router_mac),
        set_field("eth_dst", intent.router_mac),
        set_field(name, remote),
        Output(switch.tunnel_port),
    )


def _tunnel_end(intent: RouteIntent, context: SwitchContext) -> IPAddress | None:
    """The other node's first address of a family that this node has too; IPv4 first."""
    versions = {address.ip.version for address in context.switch.addresses}
    candidates = [a.ip for a in intent.addresses if a.ip.version in versions]
    return min(candidates, key=lambda ip: ip.version, default=None)
