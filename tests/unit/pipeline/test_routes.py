"""A route says the same to all switches; each reaches the node as it can, by NextHop."""

from ipaddress import ip_address, ip_network

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.facts import NodeAddress
from dunlin.events.intents import RouteIntent, SwitchIntent
from dunlin.model.addresses import IPAddress, mac_to_int
from dunlin.openflow.flow import DecTtl, Flow, Match, Program, Resubmit
from dunlin.openflow.packet import packet
from dunlin.openflow.prerequisites import refusal
from dunlin.openflow.trace import Trace, Tracer
from dunlin.pipeline import compile_intent, is_shared
from dunlin.pipeline.layout import Table
from dunlin.pipeline.route import link, subnets_of
from tests.fixtures import cluster

SUBNETS = ("172.31.0.0/24", "172.31.1.0/24", "172.31.2.0/24", "fd31::/64", "fd32::/64")
FORWARDING = {Table.L3_FORWARD, Table.NEXT_HOP, Table.BEYOND}
POD_PORT = 11
CLIENT = "10.0.9.9", "fd00:9::9"
STALE = {f"reg{number}": 0x1234 + number for number in range(10)}
"""What policy leaves in the registers."""


def addresses(number: int, names: list[str]) -> tuple[NodeAddress, ...]:
    """Of node `number`, one in each subnet."""
    subnets = [ip_network(name) for name in names]
    return tuple(NodeAddress(ip=subnet[number], subnet=subnet) for subnet in subnets)


def ends(number: int, *, least: int = 0) -> st.SearchStrategy[tuple[NodeAddress, ...]]:
    """Addresses of node `number`, in any subnets, in any order."""
    names = st.lists(st.sampled_from(SUBNETS), unique=True, min_size=least, max_size=4)
    return names.map(lambda found: addresses(number, found))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[SwitchIntent, RouteIntent, IPAddress]:
    """A switch, a route that may be its own node's, and where a packet goes: a Pod or the node."""
    switch = msgspec.structs.replace(
        cluster.switch(1),
        addresses=draw(ends(1)),
        uplink_port=draw(st.sampled_from((0, cluster.UPLINK_PORT))),
        tunnel_port=draw(st.sampled_from((0, cluster.TUNNEL_PORT))),
    )
    other = draw(st.sampled_from((1, 2, 2, 2)))
    route = cluster.route(
        other,
        addresses=switch.addresses if other == 1 else draw(ends(2, least=1)),
        encapsulation=draw(st.sampled_from(("auto", "none", "tunnel"))),
    )
    places = [ip_address(f"10.0.{other}.77"), ip_address(f"fd00:{other}::77")]
    places += [address.ip for address in route.addresses]
    return switch, route, draw(st.sampled_from(places))


def forwarded(program: Program, destination: IPAddress) -> Trace:
    """What L3Forward and what it leads to do with a Pod's packet."""
    start = Flow(0, 1, Match(), (Resubmit(int(Table.L3_FORWARD)),))
    flows = [flow for flow in program.flows if flow.table in FORWARDING]
    if destination.version == 4:
        fields = packet(eth_type=0x800, nw_src=ip_address(CLIENT[0]), nw_dst=destination)
    else:
        fields = packet(eth_type=0x86DD, ipv6_src=ip_address(CLIENT[1]), ipv6_dst=destination)
    common = packet(in_port=POD_PORT, nw_proto=17, udp_src=1, udp_dst=2, nw_ttl=64, **STALE)
    return Tracer([start, *flows]).trace({**fields, **common})


def expected(switch: SwitchIntent, route: RouteIntent) -> tuple[int, IPAddress | None] | None:
    """The rule in words: port, and the tunnel's other end; None: as if there were no route."""
    if route.key == switch.scope:
        return None
    mine = {address.subnet for address in switch.addresses}
    shared = any(address.subnet in mine for address in route.addresses)
    if switch.uplink_port and shared and route.encapsulation != "tunnel":
        return switch.uplink_port, None
    versions = {address.ip.version for address in switch.addresses}
    candidates = [a.ip for a in route.addresses if a.ip.version in versions]
    if switch.tunnel_port and candidates and route.encapsulation != "none":
        return switch.tunnel_port, min(candidates, key=lambda ip: ip.version)
    return None


@given(pairs())
def test_every_switch_finds_its_way(drawn: tuple[SwitchIntent, RouteIntent, IPAddress]) -> None:
    """The port, the MAC addresses, the tunnel's end; without a way, what the switch does anyway."""
    switch, route, destination = drawn
    own, toward = compile_intent(switch, None), compile_intent(route, None)
    trace = forwarded(Program((*own.flows, *toward.flows)), destination)
    there = expected(switch, route)
    kinds = {None: "", switch.uplink_port: "uplink", switch.tunnel_port: "tunnel"}
    assert link(route, switch) == kinds[there[0] if there else None]
    if there is None:
        without = forwarded(own, destination)
        assert trace.ports == without.ports
        last = [step.flow for step in trace.steps if step.flow is not None][-1]
        assert last == [step.flow for step in without.steps if step.flow is not None][-1]
        return
    (left,) = trace.left
    port, end = there
    assert left.port == port
    assert left.packet["eth_src"] == mac_to_int(switch.router_mac)
    assert left.packet["eth_dst"] == mac_to_int(route.router_mac)
    assert left.packet["nw_ttl"] == 63
    found = (left.packet.get("tun_dst", 0), left.packet.get("tun_ipv6_dst", 0))
    v4 = int(end) if end is not None and end.version == 4 else 0
    v6 = int(end) if end is not None and end.version == 6 else 0
    assert found == (v4, v6)


def test_a_route_needs_nothing_of_the_switch() -> None:
    """So it is compiled and encoded once, whatever the number of switches."""
    route = cluster.route(2)
    assert is_shared(route)
    assert {flow.table for flow in compile_intent(route, None).flows} == {Table.L3_FORWARD}


@given(pairs())
def test_open_vswitch_takes_every_flow(drawn: tuple[SwitchIntent, RouteIntent, IPAddress]) -> None:
    """Each says what its fields and actions need; a flow that does not is noticed."""
    switch, route, _ = drawn
    for intent in (switch, route):
        for flow in compile_intent(intent, None).flows:
            assert refusal(flow.match, flow.actions) is None, flow
    assert refusal(Match(), (DecTtl(),)) == "OFPBAC_MATCH_INCONSISTENT"


def test_what_leads_to_a_table_comes_after_it() -> None:
    """Where a newer pipeline replaces an older one in several bundles, nothing leads nowhere."""
    flows = compile_intent(cluster.switch(1, tunnel=True), None).flows
    first = min(i for i, flow in enumerate(flows) if flow.table == Table.L3_FORWARD)
    last = max(i for i, flow in enumerate(flows) if flow.table in FORWARDING - {Table.L3_FORWARD})
    assert last < first


def test_more_subnets_than_registers() -> None:
    """Of a node in more than four subnets the first four count (docs/LIMITS.md)."""
    many = cluster.route(2, addresses=addresses(2, [*SUBNETS]))
    assert subnets_of(many) == [ip_network(name) for name in SUBNETS[:4]]
    only_fifth = msgspec.structs.replace(cluster.switch(1), addresses=addresses(1, [SUBNETS[4]]))
    assert link(many, only_fifth) == ""
