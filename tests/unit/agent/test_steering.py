"""What the kernel must hold for the node's own processes: from intents, in any order."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.facts import NodeAddress, Protocol
from dunlin.events.intents import (
    ExternalAddress,
    HostPortIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin_agent.steering.core import (
    TABLE_BASE,
    Frontend,
    Rule,
    Steered,
    SteeredRoute,
    Steering,
    can_be_steered,
    refused,
    steered,
)

OWN, OWN6, GATEWAY = ip_address("192.0.2.1"), ip_address("2001:db8::1"), ip_address("10.244.1.1")
VIP, VIP6 = ip_address("198.51.100.7"), ip_address("2001:db8:f::7")
RANGE = (30000, 32767)


def switch(**changes: Any) -> SwitchIntent:
    """Of a node with one address of each family."""
    values: dict[str, Any] = {
        "scope": "n1",
        "key": "pipeline",
        "dpid": 1,
        "router_mac": "02:00:00:00:00:01",
        "gateway_port": 1,
        "gateway_ips": (GATEWAY,),
        "addresses": (
            NodeAddress(ip=OWN, subnet=ip_network("192.0.2.0/24")),
            NodeAddress(ip=OWN6, subnet=ip_network("2001:db8::/64")),
        ),
        "node_port_ips": (OWN, OWN6),
    }
    return SwitchIntent(**(values | changes))


def service(
    number: int = 1,
    *external: Any,
    node_port: int = 0,
    port: int = 80,
    protocol: Protocol = Protocol.TCP,
) -> ServicePortIntent:
    """default/web-<number> with these external IPs."""
    return ServicePortIntent(
        scope="all",
        key=f"default/web-{number}:/{protocol.value}",
        service_namespace="default",
        service_name=f"web-{number}",
        protocol=protocol,
        port=port,
        addresses=(ServiceAddress(ip=ip_address("10.96.0.10") + number, group_id=number),),
        external=tuple(ExternalAddress(ip=ip) for ip in external),
        node_port=node_port,
    )


def host_port(port: int = 8080, ip: Any = None, pod: str = "10.244.1.9") -> HostPortIntent:
    """A Pod of this node at the node's port."""
    return HostPortIntent(
        scope="n1",
        key=f"default/p:{port}/TCP",
        pod_namespace="default",
        pod_name="p",
        protocol=Protocol.TCP,
        port=port,
        host_ip=ip,
        endpoints=(ServiceEndpoint(ip=ip_address(pod), port=80),),
    )


def of(*intents: ServicePortIntent | SwitchIntent | HostPortIntent) -> Steered:
    """What is wanted after these."""
    core = Steering(RANGE)
    for intent in intents:
        core.put(intent)
    return core.wanted()


def test_nothing_without_a_switch_or_without_a_need() -> None:
    """No rule at all, so that a node without such Services is as it was."""
    assert not of(service(1, VIP, node_port=30080))
    assert not of(switch(), service(1))


def test_a_node_port_leads_the_range_of_its_protocol_to_br_int() -> None:
    """One rule a family, however many; a process that has not chosen sends from that address."""
    found = of(switch(), service(1, node_port=30080), service(2, node_port=30081))
    assert found.rules == {Rule(v, Protocol.TCP, RANGE, TABLE_BASE) for v in (4, 6)}
    assert found.routes == {SteeredRoute(TABLE_BASE, ip, ip) for ip in (OWN, OWN6)}


def test_node_port_cidrs_restrict() -> None:
    """Only where the node serves NodePorts."""
    found = of(switch(node_port_ips=(OWN6,)), service(1, node_port=30080))
    assert {rule.version for rule in found.rules} == {6}


def test_external_ips_on_their_port_alone() -> None:
    """Many addresses, one rule; from the node's own address, which source ranges name."""
    found = of(switch(), service(1, VIP, VIP6), service(2, VIP + 1), service(3, VIP, port=443))
    assert {(r.version, r.ports) for r in found.rules} == {
        (4, (80, 80)),
        (4, (443, 443)),
        (6, (80, 80)),
    }
    assert {(r.ip, r.source) for r in found.routes} == {(VIP, OWN), (VIP + 1, OWN), (VIP6, OWN6)}


def test_an_external_ip_that_is_the_nodes_own() -> None:
    """Steered on that port too, from itself as without us, and told to br-ext."""
    core = Steering(RANGE)
    core.put(switch())
    core.put(service(1, OWN, VIP))
    assert SteeredRoute(TABLE_BASE | 6 << 16 | 80, OWN, OWN) in core.wanted().routes
    assert core.own_frontends() == {Frontend(OWN, Protocol.TCP, 80)}


def test_without_an_uplink_from_the_gateway_address() -> None:
    """And a family that the node has not is left out."""
    found = of(switch(addresses=(), node_port_ips=()), service(1, VIP, VIP6))
    assert {(r.ip, r.source) for r in found.routes} == {(VIP, GATEWAY)}


def test_host_ports_on_the_nodes_own_addresses() -> None:
    """One rule a port, routes to the addresses of the Pod's family, each from itself."""
    table = TABLE_BASE | 6 << 16 | 8080
    found = of(switch(), host_port())
    assert found.rules == {Rule(4, Protocol.TCP, (8080, 8080), table)}
    assert found.routes == {SteeredRoute(table, ip, ip) for ip in (OWN, GATEWAY)}
    assert of(host_port(), switch()) == found
    assert of(switch(), host_port(ip=OWN)).routes == {SteeredRoute(table, OWN, OWN)}
    assert of(switch(), host_port(pod="fd00::9")).routes == {SteeredRoute(table, OWN6, OWN6)}
    assert not of(host_port())


def test_br_ext_is_told_of_host_ports() -> None:
    """Of those at the node's own addresses: nobody outside sends to its gateway address."""
    core = Steering(RANGE)
    assert core.put(switch())
    assert core.put(host_port())
    assert not core.put(host_port()), "nothing new"
    assert core.own_frontends() == {Frontend(OWN, Protocol.TCP, 8080)}
    assert core.remove(host_port().id)
    assert not core.remove(host_port().id)
    assert core.own_frontends() == frozenset()
    assert not core.wanted()


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1", "0.0.0.0", "224.0.0.1", "169.254.1.1", "255.255.255.255", "::1", "fe80::1"],
)
def test_special_addresses_are_left_out_and_named(text: str) -> None:
    """A route to 127.0.0.1 would take the host's own."""
    ip = ip_address(text)
    assert not can_be_steered(ip)
    assert refused(service(1, ip, VIP)) == (ip,)
    assert {r.ip for r in of(switch(), service(1, ip, VIP)).routes} == {VIP}


SERVICES = st.builds(
    lambda number, external, node_port, port, protocol: service(
        number, *external, node_port=node_port, port=port, protocol=protocol
    ),
    st.integers(1, 3),
    st.lists(st.sampled_from([VIP, VIP6, VIP + 1, OWN]), unique=True, max_size=3),
    st.sampled_from([0, 30080]),
    st.sampled_from([80, 443]),
    st.sampled_from(list(Protocol)),
)
EVENTS = st.lists(
    st.one_of(
        SERVICES,
        st.just(switch()),
        st.just(switch(node_port_ips=(OWN,))),
        st.sampled_from([host_port(), host_port(ip=OWN), host_port(443)]),
        st.integers(0, 9),
    )
)


@given(EVENTS)
def test_any_history_ends_as_from_scratch(events: list[Any]) -> None:
    """Put, put again, removed (a number: the n-th intent that is there); changes are told."""
    core, there = Steering(RANGE), dict[Any, Any]()
    before = core.wanted()
    for event in events:
        if isinstance(event, int):
            if event >= len(there):
                continue
            key = list(there)[event]
            del there[key]
            told = core.remove(key)
        else:
            there[event.id] = event
            told = core.put(event)
        after = core.wanted()
        assert told or after == before
        before = after
    services = [i for i in there.values() if isinstance(i, ServicePortIntent)]
    own = next((i for i in there.values() if isinstance(i, SwitchIntent)), None)
    frontends = [Frontend(e.ip, i.protocol, i.port) for i in services for e in i.external]
    for asked in (i for i in there.values() if isinstance(i, HostPortIntent)):
        ips = (OWN, GATEWAY) if own and asked.host_ip is None else (OWN,)
        frontends += [Frontend(ip, asked.protocol, asked.port) for ip in ips]
    protocols = {i.protocol for i in services if i.node_port}
    assert before == steered(own, RANGE, protocols, frontends)
    core.clear()
    assert not core.wanted()
