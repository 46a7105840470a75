"""Whole connections through Services, both directions, as node n1's switch sees them."""

from ipaddress import ip_address
from typing import Any

import pytest

from dunlin.events.facts import Endpoint, Protocol
from dunlin.events.intents import ServiceEndpoint
from dunlin.openflow.flow import OFPP_IN_PORT, Flow
from dunlin.openflow.packet import packet
from dunlin.openflow.trace import Trace
from dunlin.pipeline.affinity import lifetime_s
from dunlin.pipeline.layout import (
    EXTERNAL_PKT_MARK,
    EXTERNAL_PORT_MIN,
    HAIRPIN_V4,
    Table,
)
from dunlin.pipeline.traffic import endpoint_number, number_in_label
from tests.packets.world import (
    CLIENT,
    GATEWAY,
    NODE_IP,
    UPLINK,
    World,
    at,
    endpoints,
    first_packet,
    pod_ip,
    pod_mac,
    service,
)
from tests.unit.planner.build import switch

CLUSTER_IP, GATEWAY_IP = "10.96.0.10", "10.244.1.1"
ROUTER = {"eth_dst": str(switch("n1").router_mac)}


def shown(trace: Trace) -> tuple[int, str, int, str, int]:
    """Where one packet left: port, source, its port, destination, its port."""
    (left,) = trace.left
    fields = left.packet
    name = "tcp" if "tcp_src" in fields else "udp"
    return (
        left.port,
        str(ip_address(fields["nw_src"])),
        fields[f"{name}_src"],
        str(ip_address(fields["nw_dst"])),
        fields[f"{name}_dst"],
    )


def reply(world: World, request: Trace, in_port: int, **more: Any) -> Trace:
    """The answer to what left, coming in at `in_port`."""
    (left,) = request.left
    fields = left.packet
    name = "tcp" if "tcp_src" in fields else "udp"
    answer = packet(
        eth_type=0x800,
        nw_proto=fields["nw_proto"],
        nw_ttl=64,
        nw_src=ip_address(fields["nw_dst"]),
        nw_dst=ip_address(fields["nw_src"]),
        **{f"{name}_src": fields[f"{name}_dst"], f"{name}_dst": fields[f"{name}_src"]},
        in_port=in_port,
        **more,
    )
    trace = world.tracer.trace(answer, world.conntrack, learned=world.learned)
    world.conntrack = trace.conntrack
    return trace


def counted(trace: Trace) -> list[int]:
    """Numbers of the endpoints that a packet was counted for."""
    steps = [s.flow for s in trace.steps if s.table == Table.SERVICE_TRAFFIC and s.flow]
    labels = (item.value for flow in steps for item in flow.match if item.field == "ct_label")
    return [number_in_label(label) for label in labels]


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
def test_traffic_is_counted_for_its_endpoint(generation: int) -> None:
    """Both directions, from the answer to the first packet on; what is no Service's is not."""
    world = World.of(service(), endpoints(at(1, 2), at(2, 1)), generation=generation)
    numbers = {
        str(end.ip): endpoint_number("default/web:http/TCP", end)
        for end in (ServiceEndpoint(ip=at(*pod).ip, port=8080) for pod in ((1, 2), (2, 1)))
    }
    first = world.send("p11", CLUSTER_IP, 80)
    chosen = str(ip_address(first.left[0].packet["nw_dst"]))
    way: dict[str, Any] = {"in_port": 12, "eth_src": pod_mac(2)}
    if chosen != pod_ip(1, 2):
        way = {"in_port": UPLINK, **ROUTER}
    answer = reply(world, first, **way)
    second = world.send("p11", CLUSTER_IP, 80)
    assert [counted(trace) for trace in (first, answer, second)] == [
        [],
        [numbers[chosen]],
        [numbers[chosen]],
    ]
    direct = world.send("p11", pod_ip(1, 2), 8080)
    assert counted(direct) == counted(reply(world, direct, in_port=12, eth_src=pod_mac(2))) == []


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
@pytest.mark.parametrize(("version", "own"), [("3.1.0", False), ("3.1.3", True), ("3.5.0", True)])
def test_one_port_to_a_service_and_to_its_endpoint(
    version: str, own: bool, generation: int
) -> None:
    """The second connection gets another port where Open vSwitch can; a client elsewhere never."""
    facts = (service(), endpoints(at(1, 1)))
    world = World.of(*facts, ovs_version=version, generation=generation)
    first = world.send("p12", CLUSTER_IP, 80)
    second = world.send("p12", pod_ip(1, 1), 8080)
    assert shown(first) == (11, pod_ip(1, 2), 40000, pod_ip(1, 1), 8080)
    assert (shown(second)[2] != 40000) == own
    assert world.conntrack.connections[-1].nat == ("src" if own else "")
    if own:
        answer = reply(world, second, **FROM_POD_11)
        assert shown(answer) == (12, pod_ip(1, 1), 8080, pod_ip(1, 2), 40000)
        assert shown(reply(world, first, **FROM_POD_11))[1:3] == (CLUSTER_IP, 80)
    world.send("p21", pod_ip(1, 1), 8080)
    assert world.conntrack.connections[-1].nat == ""


FROM_POD_11: dict[str, Any] = {"in_port": 11, "eth_src": pod_mac(1)}


def test_external_client_of_a_pod_here() -> None:
    """The Pod sees the client; the answer leaves as from the node port, translated once."""
    world = World.of(service(), endpoints(at(1, 1)))
    for _ in range(2):
        request = world.send(CLIENT, NODE_IP, 30080)
        assert shown(request) == (11, CLIENT, 40000, pod_ip(1, 1), 8080)
        answer = reply(world, request, **FROM_POD_11)
        assert shown(answer)[1:] == (NODE_IP, 30080, CLIENT, 40000)
        assert answer.left[0].port in (UPLINK, GATEWAY)


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_external_client_of_a_pod_elsewhere(protocol: Protocol, generation: int) -> None:
    """In and out of the same port, from the gateway's address, and the answer the same way back."""
    web = service(protocol=protocol) if protocol == Protocol.UDP else service()
    world = World.of(web, endpoints(at(2, 1), protocol=protocol), generation=generation)
    for number in range(3):
        request = world.send(CLIENT, NODE_IP, 30080, protocol=protocol)
        port, source, source_port, *there = shown(request)
        assert (port, source, there) == (UPLINK, GATEWAY_IP, [pod_ip(2, 1), 8080])
        assert source_port >= EXTERNAL_PORT_MIN
        if number == 0 and protocol == Protocol.UDP:
            continue  # The second datagram before any answer goes the same way.
        answer = reply(world, request, UPLINK, **ROUTER)
        assert shown(answer)[1:] == (NODE_IP, 30080, CLIENT, 40000)


def test_external_client_of_the_node_itself() -> None:
    """The node answers to an address that leads back through the switch, not out by itself."""
    host = Endpoint(ip=ip_address(NODE_IP), node="n1")
    world = World.of(service(), endpoints(host))
    for _ in range(2):
        request = world.send(CLIENT, NODE_IP, 30080)
        assert shown(request) == (GATEWAY, str(HAIRPIN_V4), 40000, NODE_IP, 8080)
        answer = reply(world, request, GATEWAY)
        assert shown(answer)[1:] == (NODE_IP, 30080, CLIENT, 40000)


def test_the_nodes_own_connection_from_outside_is_given_back() -> None:
    """A port in the NodePort range that is no Service's: first packet and all that follow."""
    world = World.of(service(), endpoints(at(1, 1)))
    for _ in range(2):
        given = world.send(CLIENT, NODE_IP, 31999)
        assert shown(given) == (UPLINK, CLIENT, 40000, NODE_IP, 31999)
        assert given.conntrack.connections == ()


def test_a_pods_connection_to_the_outside_still_gets_its_answer() -> None:
    """Source NAT to the node's address, and back by zone EXTERNAL, past all of this."""
    world = World.of(service(), endpoints(at(1, 1)))
    request = world.send("p11", CLIENT, 443)
    assert shown(request)[1] == NODE_IP
    answer = reply(world, request, UPLINK, pkt_mark=EXTERNAL_PKT_MARK)
    assert shown(answer) == (11, CLIENT, 443, pod_ip(1, 1), 40000)


def affine(*pods: tuple[int, int], timeout_s: int = 600) -> World:
    """default/web with affinity."""
    chosen = endpoints(*(at(*pod) for pod in pods))
    return World.of(service(affinity_timeout_s=timeout_s), chosen)


def ends(world: World, source: str, count: int = 4) -> set[str]:
    """Endpoints of that many connections from one client, each offered its last bucket."""
    found = set()
    for number in range(count):
        sent = world.send(source, CLUSTER_IP, 80, source_port=41000 + number)
        found.add(shown(sent)[3])
    return found


def test_affinity_keeps_a_client_on_its_endpoint() -> None:
    """One endpoint for all connections of a client; another client is remembered on its own."""
    world = affine((2, 1), (3, 1))
    (first,) = ends(world, "p11")
    (learned,) = world.learned
    assert learned.table == Table.AFFINITY
    assert learned.idle_timeout_s == 600
    assert ends(world, "p12")
    assert len(world.learned) == 2
    assert ends(world, "p11") == {first}


def test_affinity_outlives_a_new_endpoint_but_not_its_own() -> None:
    """A remembered client stays when endpoints come; when its own goes, it gets another."""
    world = affine((2, 1), (3, 1))
    (kept,) = ends(world, "p11")
    later = affine((2, 1), (3, 1), (2, 2), (3, 2))
    later.learned = world.learned
    assert ends(later, "p11") == {kept}
    others = [pod for pod in ((2, 1), (3, 1)) if pod_ip(*pod) != kept]
    without = affine(*others)
    without.learned = world.learned
    (moved,) = ends(without, "p11")
    assert moved == pod_ip(*others[0])
    assert len(without.learned) == 1, "the new endpoint replaces the old one"


def test_affinity_timeouts_beyond_openflow() -> None:
    """16 bits of seconds are the most that a switch counts: a longer time is written down."""
    for timeout_s, idle, lifetime in ((65535, 65535, None), (86400, 0, 86400)):
        world = affine((2, 1), (3, 1), timeout_s=timeout_s)
        (kept,) = ends(world, "p11")
        (learned,) = world.learned
        assert learned.idle_timeout_s == idle
        assert lifetime_s(learned) == lifetime
        assert ends(world, "p11") == {kept}


def test_learned_flows_carry_the_cookie_of_their_intent() -> None:
    """So flowctl knows whose they are, keeps them, and removes them with it."""
    world = affine((2, 1), (3, 1))
    trace = world.send("p11", CLUSTER_IP, 80)
    (learned,) = world.learned
    makers: set[int] = {f.cookie for f in trace.flows if f.table == Table.AFFINITY_LEARN}
    assert makers == {learned.cookie}
    assert isinstance(learned, Flow)


def test_another_nodes_process_as_a_client() -> None:
    """The answer goes to its kernel: its switch has never seen the connection."""
    world = World.of(service(), endpoints(at(1, 1)))
    request = world.send("192.0.2.2", NODE_IP, 30080)
    answer = reply(world, request, **FROM_POD_11)
    assert shown(answer)[1:] == (NODE_IP, 30080, "192.0.2.2", 40000)
    (left,) = answer.left
    assert left.packet["eth_dst"] != packet(eth_dst=str(switch("n2").router_mac))["eth_dst"]


def test_another_nodes_pod_as_a_client() -> None:
    """Its answer goes to its node's switch, which sent the request."""
    world = World.of(service(), endpoints(at(1, 1)))
    request = world.send("p22", NODE_IP, 30080)
    answer = reply(world, request, **FROM_POD_11)
    assert shown(answer) == (UPLINK, NODE_IP, 30080, pod_ip(2, 2), 40000)
    (left,) = answer.left
    router = switch("n2", 2).router_mac
    assert left.packet["eth_dst"] == packet(eth_dst=str(router))["eth_dst"]


def test_another_nodes_pod_to_the_node_itself() -> None:
    """It is no traffic from outside, even if br-ext has marked it: it goes to the node."""
    world = World.of(service(external_policy_local=True), endpoints(at(2, 1)))
    for port, ends_at in ((22, GATEWAY), (30080, UPLINK)):
        sent = first_packet("p22", NODE_IP, port) | packet(pkt_mark=EXTERNAL_PKT_MARK)
        (left,) = world.tracer.trace(sent).left
        assert left.port == ends_at


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_the_nodes_own_process_to_its_node_port(protocol: Protocol, generation: int) -> None:
    """To a Pod here and to one elsewhere from the node's address, and back; no port is changed."""
    web = service(protocol=protocol)
    here = World.of(web, endpoints(at(1, 1), protocol=protocol), generation=generation)
    for _ in range(2):
        request = here.send("host", NODE_IP, 30080, protocol=protocol)
        assert shown(request) == (11, NODE_IP, 40000, pod_ip(1, 1), 8080)
        answer = reply(here, request, **FROM_POD_11)
        assert shown(answer) == (GATEWAY, NODE_IP, 30080, NODE_IP, 40000)
    there = World.of(web, endpoints(at(2, 1), protocol=protocol), generation=generation)
    for _ in range(2):
        request = there.send("host", NODE_IP, 30080, protocol=protocol)
        assert shown(request) == (UPLINK, NODE_IP, 40000, pod_ip(2, 1), 8080)
        answer = reply(there, request, UPLINK, **ROUTER)
        assert shown(answer) == (GATEWAY, NODE_IP, 30080, NODE_IP, 40000)


def test_a_pod_answers_another_nodes_process() -> None:
    """As its switch sees it: from the other node's own address, and back to that node's switch."""
    world = World.of()
    sent = first_packet("p21", pod_ip(1, 1), 8080) | packet(nw_src=ip_address("192.0.2.2"))
    request = world.tracer.trace(sent, world.conntrack)
    world.conntrack = request.conntrack
    assert shown(request) == (11, "192.0.2.2", 40000, pod_ip(1, 1), 8080)
    answer = reply(world, request, **FROM_POD_11)
    assert shown(answer) == (UPLINK, pod_ip(1, 1), 8080, "192.0.2.2", 40000)
    (left,) = answer.left
    there = packet(eth_dst=str(switch("n2", 2).router_mac))
    assert left.packet["eth_dst"] == there["eth_dst"]


def test_the_nodes_own_process_to_another_node_through_its_node_port() -> None:
    """The other node would answer by itself: so from the gateway's address, and back."""
    world = World.of(service(), endpoints(Endpoint(ip=ip_address("192.0.2.2"), node="n2")))
    for _ in range(2):
        request = world.send("host", NODE_IP, 30080)
        port, source, source_port, *rest = shown(request)
        assert (port, source, rest) == (UPLINK, GATEWAY_IP, ["192.0.2.2", 8080])
        assert source_port >= EXTERNAL_PORT_MIN
        answer = reply(world, request, UPLINK, **ROUTER)
        assert shown(answer) == (GATEWAY, NODE_IP, 30080, NODE_IP, 40000)


def test_the_nodes_own_process_to_itself_through_its_node_port() -> None:
    """The endpoint is the node: it answers to the address that leads back through the switch."""
    world = World.of(service(), endpoints(Endpoint(ip=ip_address(NODE_IP), node="n1")))
    for _ in range(2):
        request = world.send("host", NODE_IP, 30080)
        assert shown(request) == (GATEWAY, str(HAIRPIN_V4), 40000, NODE_IP, 8080)
        answer = reply(world, request, GATEWAY)
        assert shown(answer) == (GATEWAY, NODE_IP, 30080, NODE_IP, 40000)


@pytest.mark.parametrize("source", ["node", "host"])
def test_the_nodes_own_process_to_an_endpoint_beyond_the_cluster(source: str) -> None:
    """Such as an API server that is no node: from the node's address, and back."""
    world = World.of(service(), endpoints(Endpoint(ip=ip_address("192.0.2.77"))))
    for _ in range(2):
        request = world.send(source, CLUSTER_IP, 80)
        port, address, source_port, *rest = shown(request)
        assert (port, address, rest) == (GATEWAY, NODE_IP, ["192.0.2.77", 8080])
        assert source_port >= EXTERNAL_PORT_MIN
        answer = reply(world, request, UPLINK, pkt_mark=EXTERNAL_PKT_MARK)
        own = GATEWAY_IP if source == "node" else NODE_IP
        assert shown(answer) == (GATEWAY, CLUSTER_IP, 80, own, 40000)


def test_the_nodes_own_connection_to_itself_is_given_back() -> None:
    """A port in the NodePort range that is no Service's: every packet of it, both ways."""
    world = World.of(service(), endpoints(at(1, 1)))
    for _ in range(2):
        given = world.send("host", NODE_IP, 31999)
        assert shown(given) == (GATEWAY, NODE_IP, 40000, NODE_IP, 31999)
        assert given.conntrack.connections == ()


def test_other_ports_of_an_external_ip_are_the_world_outside() -> None:
    """What the kernel sends here for an address of which the Service has just gone."""
    world = World.of(service(), endpoints(at(1, 1)))
    request = world.send("host", "198.51.100.7", 443)
    assert shown(request)[:2] == (GATEWAY, NODE_IP)
    answer = reply(world, request, UPLINK, pkt_mark=EXTERNAL_PKT_MARK)
    assert shown(answer) == (GATEWAY, "198.51.100.7", 443, NODE_IP, 40000)


CONTAINER = "172.17.0.2"
"""On another bridge of the node: its kernel forwards what it sends to a cluster IP."""


def forwarded(**changes: Any) -> dict[str, int]:
    """What such a container sends to the Service, as it comes in by the gateway port."""
    sent = first_packet("node", CLUSTER_IP, 80, **changes)
    return {**sent, "nw_src": int(ip_address(CONTAINER))}


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
def test_a_container_behind_the_node_to_a_pod_here(generation: int) -> None:
    """The Pod sees the container's address; the answer goes back to the node's kernel."""
    world = World.of(service(), endpoints(at(1, 1)), generation=generation)
    for port in (40000, 40000, 40001):
        request = world.tracer.trace(forwarded(source_port=port), world.conntrack)
        world.conntrack = request.conntrack
        assert shown(request) == (11, CONTAINER, port, pod_ip(1, 1), 8080)
        answer = reply(world, request, **FROM_POD_11)
        assert shown(answer) == (GATEWAY, CLUSTER_IP, 80, CONTAINER, port)


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
def test_a_container_behind_the_node_to_a_pod_elsewhere(generation: int) -> None:
    """From the gateway's address, which the other node can answer to."""
    world = World.of(service(), endpoints(at(2, 1)), generation=generation)
    for _ in range(2):
        request = world.tracer.trace(forwarded(), world.conntrack)
        world.conntrack = request.conntrack
        where, source, source_port, target, port = shown(request)
        assert (where, source, target, port) == (UPLINK, GATEWAY_IP, pod_ip(2, 1), 8080)
        assert source_port >= EXTERNAL_PORT_MIN
        answer = reply(world, request, UPLINK, **ROUTER)
        assert shown(answer) == (GATEWAY, CLUSTER_IP, 80, CONTAINER, 40000)


def test_a_container_behind_the_node_to_the_node_itself() -> None:
    """As the API server on this node: in and out by the gateway port."""
    world = World.of(service(), endpoints(Endpoint(ip=ip_address(NODE_IP), node="n1")))
    request = world.tracer.trace(forwarded(), world.conntrack)
    world.conntrack = request.conntrack
    (left,) = request.left
    assert left.port in (GATEWAY, OFPP_IN_PORT)
    assert str(ip_address(left.packet["nw_src"])) == str(HAIRPIN_V4)
    answer = reply(world, request, GATEWAY)
    (back,) = answer.left
    assert back.port in (GATEWAY, OFPP_IN_PORT)
    assert str(ip_address(back.packet["nw_src"])) == CLUSTER_IP
    assert str(ip_address(back.packet["nw_dst"])) == CONTAINER
