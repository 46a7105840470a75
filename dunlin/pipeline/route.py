"""
How another node's Pods and addresses are reached.

A route says the same to every switch: the other node's router MAC and its ends, in registers. What
differs from switch to switch stands once on each, in NextHop (ADR 0040).
"""

import hashlib
from typing import Literal

from dunlin.events.intents import RouteIntent, SwitchIntent
from dunlin.model.addresses import IPAddress, IPNetwork, host_network
from dunlin.openflow.flow import (
    Action,
    DecTtl,
    Match,
    Move,
    Output,
    Program,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.base import FlowMaker, SwitchContext
from dunlin.pipeline.families import FAMILIES, Family, family_of
from dunlin.pipeline.layout import (
    SUBNET_REGS,
    SUBNETS_XXREG,
    TUNNEL_V4,
    TUNNEL_V4_REG,
    TUNNEL_V6,
    TUNNEL_V6_XXREG,
    WAYS_REG,
    Priority,
    Table,
)


def compile_route(intent: RouteIntent) -> Program:
    """
    Flows towards node `intent.key`, the same on every switch, that node's own included.

    NextHop sends what it has no way for, and what is for the node itself, on to Beyond: as if
    there were no route.
    """
    make = FlowMaker(intent.id)
    actions = _say(intent)
    networks = [*intent.cidrs, *(host_network(address.ip) for address in intent.addresses)]
    for network in dict.fromkeys(networks):
        when = family_of(network).to(network)
        make.add(Table.L3_FORWARD, Priority.ROUTE, when, actions, Table.NEXT_HOP)
    return Program(tuple(make.flows))


def _say(intent: RouteIntent) -> tuple[Action, ...]:
    """The node's ends, in registers whose older content nobody needs any more."""
    subnets = [] if intent.encapsulation == "tunnel" else subnets_of(intent)
    numbers = [subnet_number(subnet) for subnet in subnets]
    packed = 0
    for number in (*numbers, *(0,) * (len(SUBNET_REGS) - len(numbers))):
        packed = packed << 32 | number
    v4, v6 = (_first(intent, family.version) for family in FAMILIES)
    ways, ends = 0, []
    if intent.encapsulation != "none" and v4 is not None:
        ways, ends = TUNNEL_V4.value, [set_field(TUNNEL_V4_REG, int(v4))]
    if intent.encapsulation != "none" and v6 is not None:
        ways, ends = ways | TUNNEL_V6.value, [*ends, set_field(TUNNEL_V6_XXREG, int(v6))]
    return (
        set_field("eth_dst", intent.router_mac),
        set_field(SUBNETS_XXREG, packed),
        set_field(WAYS_REG, ways),
        *ends,
    )


def subnets_of(intent: RouteIntent) -> list[IPNetwork]:
    """The subnets by which a node can be reached without a tunnel: as many as registers hold."""
    return list(dict.fromkeys(a.subnet for a in intent.addresses))[: len(SUBNET_REGS)]


def subnet_number(subnet: IPNetwork) -> int:
    """32 bits of the SHA-256 of a subnet, never 0."""
    return int.from_bytes(hashlib.sha256(str(subnet).encode()).digest()[:4], "big") or 1


def next_hops(make: FlowMaker, context: SwitchContext) -> None:
    """How this switch reaches whatever node a route has named."""
    switch = context.switch
    make.add(Table.NEXT_HOP, Priority.GUARD, match(eth_dst=switch.router_mac), (), Table.BEYOND)
    for family in FAMILIES:
        # dec_ttl needs to know that it is IP.
        if switch.uplink_port:
            out = (DecTtl(), set_field("eth_src", switch.router_mac), Output(switch.uplink_port))
            for subnet in dict.fromkeys(a.subnet for a in switch.addresses):
                for register in SUBNET_REGS:
                    named = match(**{register: subnet_number(subnet)})
                    when = with_fields(family.any, named)
                    make.add(Table.NEXT_HOP, Priority.EXACT, when, out)
        if switch.tunnel_port:
            _tunnels(make, context, family)
    make.add(Table.NEXT_HOP, Priority.DEFAULT, Match(), (), Table.BEYOND)


def _tunnels(make: FlowMaker, context: SwitchContext, inside: Family) -> None:
    """For packets of one family, by tunnels over IPv4 before those over IPv6."""
    switch = context.switch
    ways = (
        (4, Priority.LOCAL, TUNNEL_V4, Move(TUNNEL_V4_REG, "tun_dst")),
        (6, Priority.ROUTE, TUNNEL_V6, Move(TUNNEL_V6_XXREG, "tun_ipv6_dst")),
    )
    for version, priority, way, end in ways:
        if context.address(version) is not None:
            mac = set_field("eth_src", switch.router_mac)
            out = (DecTtl(), mac, end, Output(switch.tunnel_port))
            when = with_fields(inside.any, match(**{WAYS_REG: way.pair}))
            make.add(Table.NEXT_HOP, priority, when, out)


def link(intent: RouteIntent, switch: SwitchIntent) -> Literal["uplink", "tunnel", ""]:
    """By what the switch reaches node `intent.key`; "": it has no way, or is that node's own."""
    if intent.key == switch.scope:
        return ""
    mine = {address.subnet for address in switch.addresses}
    shared = not mine.isdisjoint(subnets_of(intent))
    if switch.uplink_port and shared and intent.encapsulation != "tunnel":
        return "uplink"
    families = {address.ip.version for address in switch.addresses}
    common = any(address.ip.version in families for address in intent.addresses)
    return "tunnel" if switch.tunnel_port and common and intent.encapsulation != "none" else ""


def _first(intent: RouteIntent, version: int) -> IPAddress | None:
    return next((a.ip for a in intent.addresses if a.ip.version == version), None)
