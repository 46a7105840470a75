"""hostPorts as packets: what becomes of a connection to a node's port, on n1's switch. ADR 0041."""

from ipaddress import ip_address
from typing import Any

import pytest

from dunlin.events.facts import ContainerPort, Meta, PodFact, Protocol, ServicePort
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK, HAIRPIN_V4
from tests.packets.cases import Case, case
from tests.packets.ipv6 import fact_in_ipv6, text_in_ipv6, verdict_in_ipv6
from tests.packets.test_connections import FROM_POD_11, ROUTER, reply, shown
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    GATEWAY,
    NODE,
    NODE_IP,
    NODE_IP6,
    REJECT,
    UPLINK,
    World,
    at,
    endpoints,
    pod_ip,
    service,
    to,
)

GATEWAY_IP, GATEWAY_IP6 = "10.244.1.1", "fd00:10:244:1::1"


def asking(
    node: int = 1,
    number: int = 1,
    *,
    ip: str | None = None,
    port: int = 8000,
    protocol: Protocol = Protocol.TCP,
    versions: tuple[int, ...] = (4, 6),
    **more: Any,
) -> PodFact:
    """Pod default/p<node><number>, whose port 8080 is its node's port 8000."""
    host_ip = ip_address(ip) if ip else None
    return PodFact(
        namespace="default",
        name=f"p{node}{number}",
        node=f"n{node}",
        ips=tuple(ip_address(pod_ip(node, number, version)) for version in versions),
        ports=(ContainerPort(protocol=protocol, port=8080, host_port=port, host_ip=host_ip),),
        **more,
    )


V4 = (4,)
CASES = [
    *case(
        "from everywhere, the client's address kept",
        (asking(versions=V4),),
        {
            (CLIENT, NODE_IP, 8000): to((1, 1)),
            ("192.0.2.2", NODE_IP, 8000): to((1, 1)),
            ("p12", NODE_IP, 8000): to((1, 1)),
            ("p22", NODE_IP, 8000): to((1, 1)),
            ("host", NODE_IP, 8000): to((1, 1)),
            ("node", NODE_IP, 8000): to((1, 1)),
            ("p11", NODE_IP, 8000): to((1, 1), translated=True),
            ("p12", GATEWAY_IP, 8000): to((1, 1)),
            ("host", GATEWAY_IP, 8000): to((1, 1)),
            ("p12", pod_ip(1, 1), 8080): to((1, 1)),
        },
    ),
    *case(
        "other ports are the node's, other addresses not of this node",
        (asking(versions=V4),),
        {
            (CLIENT, NODE_IP, 8001): NODE,
            ("host", NODE_IP, 8001): NODE,
            ("p12", NODE_IP, 8001): to(f"{NODE_IP}:8001"),
            ("p12", "192.0.2.2", 8000): to("192.0.2.2:8000"),
        },
    ),
    *case(
        "a Pod of another node: nothing here",
        (asking(2, 1, versions=V4),),
        {(CLIENT, NODE_IP, 8000): NODE, ("host", NODE_IP, 8000): NODE},
    ),
    *case(
        "on one address alone",
        (asking(ip=NODE_IP, versions=V4),),
        {
            (CLIENT, NODE_IP, 8000): to((1, 1)),
            ("host", NODE_IP, 8000): to((1, 1)),
            ("host", GATEWAY_IP, 8000): NODE,
        },
    ),
    *case(
        "a NodePort of that number comes first, as kube-proxy's rules do",
        (
            asking(versions=V4, port=30080),
            service(),
            endpoints(at(1, 2)),
        ),
        {(CLIENT, NODE_IP, 30080): to((1, 2)), ("host", NODE_IP, 30080): to((1, 2))},
    ),
    *case(
        "… also one without endpoints, and one of external IPs",
        (
            asking(versions=V4, port=80),
            service(external_ips=(ip_address(NODE_IP),)),
            endpoints(),
        ),
        {(CLIENT, NODE_IP, 80): REJECT, ("p12", NODE_IP, 80): REJECT},
    ),
    *case(
        "finished: nothing; terminating: to the end",
        (asking(versions=V4, finished=True), asking(1, 2, versions=V4, terminating=True)),
        {(CLIENT, NODE_IP, 8000): to((1, 2))},
    ),
]


@pytest.mark.parametrize(
    "line", CASES, ids=lambda c: f"{c.name}: {c.source} -> {c.target}:{c.port}"
)
@pytest.mark.parametrize("tunnel", [False, True], ids=["routed", "tunnel"])
def test_table(line: Case, *, tunnel: bool) -> None:
    """Each line of the table holds, without and (tunnel) with policies."""
    world = World.of(*line.facts, tunnel=tunnel, generation=7 if tunnel else 0)
    assert world.verdict(line.source, line.target, line.port) == line.verdict


@pytest.mark.parametrize(
    "line", CASES, ids=lambda c: f"{c.name}: {c.source} -> {c.target}:{c.port}"
)
def test_table_in_ipv6(line: Case) -> None:
    """The same table, with every address in IPv6."""
    world = World.of(*map(fact_in_ipv6, line.facts))
    source, target = text_in_ipv6(line.source), text_in_ipv6(line.target)
    assert world.verdict(source, target, line.port) == verdict_in_ipv6(line.verdict)


def test_the_table_can_fail() -> None:
    """A wrong expectation is noticed: in endpoints, and in translation."""
    found = World.of(asking()).verdict(CLIENT, NODE_IP, 8000)
    assert found not in (NODE, to((1, 2)), to((1, 1), translated=True))


@pytest.mark.parametrize(
    ("ip", "served"), [(None, (True, True)), ("0.0.0.0", (True, False)), ("::", (False, True))]
)
def test_families(ip: str | None, served: tuple[bool, bool]) -> None:
    """0.0.0.0 and :: are all addresses of their family; no address is all of both."""
    world = World.of(asking(ip=ip))
    expected = (
        to((1, 1)) if served[0] else NODE,
        to((1, 1), version=6) if served[1] else NODE,
    )
    assert (world.verdict(CLIENT, NODE_IP, 8000), world.verdict(CLIENT6, NODE_IP6, 8000)) == (
        expected
    )


def test_protocols() -> None:
    """UDP's and SCTP's 8000 are other ports than TCP's; SCTP only where its ports are tracked."""
    for version, sctp in (("3.1.0", NODE), ("3.2.1", to((1, 1)))):
        for protocol, expected in ((Protocol.UDP, to((1, 1))), (Protocol.SCTP, sctp)):
            world = World.of(asking(protocol=protocol), ovs_version=version)
            assert world.verdict(CLIENT, NODE_IP, 8000, protocol=protocol) == expected
            assert world.verdict(CLIENT, NODE_IP, 8000) == NODE


def test_two_that_ask_for_one_port() -> None:
    """The older Pod has it; two addresses of one node are two ports."""
    old, new = asking(created_ms=1), asking(1, 2, created_ms=2)
    for facts in ((old, new), (new, old)):
        assert World.of(*facts).verdict(CLIENT, NODE_IP, 8000) == to((1, 1))
    first = asking(meta=Meta(uid="a"))
    second = asking(1, 2, meta=Meta(uid="b"))
    assert World.of(second, first).verdict(CLIENT, NODE_IP, 8000) == to((1, 1))
    here, there = asking(ip=NODE_IP), asking(1, 2, ip=GATEWAY_IP)
    world = World.of(here, there)
    assert world.verdict("p22", NODE_IP, 8000) == to((1, 1))
    assert world.verdict("host", GATEWAY_IP, 8000) == to((1, 2))


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_client_outside(protocol: Protocol, generation: int) -> None:
    """The Pod sees the client; the answer leaves as from the node's port, by the node's way."""
    world = World.of(asking(protocol=protocol), generation=generation)
    for _ in range(2):
        request = world.send(CLIENT, NODE_IP, 8000, protocol=protocol)
        assert shown(request) == (11, CLIENT, 40000, pod_ip(1, 1), 8080)
        answer = reply(world, request, **FROM_POD_11)
        assert shown(answer)[1:] == (NODE_IP, 8000, CLIENT, 40000)
        assert answer.left[0].port in (UPLINK, GATEWAY)


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
def test_pods_and_processes(generation: int) -> None:
    """A Pod here, one of another node, the node's own process: each gets its answer back."""
    world = World.of(asking(), generation=generation)
    for source, port in (("p12", 12), ("p22", UPLINK), ("host", GATEWAY)):
        for _ in range(2):
            request = world.send(source, NODE_IP, 8000)
            came_from = shown(request)[1]
            assert shown(request) == (11, came_from, 40000, pod_ip(1, 1), 8080)
            answer = reply(world, request, **FROM_POD_11)
            assert shown(answer) == (port, NODE_IP, 8000, came_from, 40000)


def test_hairpin() -> None:
    """The Pod by its own hostPort: out of the port where it came from, and back."""
    world = World.of(asking())
    for _ in range(2):
        request = world.send("p11", NODE_IP, 8000)
        assert shown(request) == (11, str(HAIRPIN_V4), 40000, pod_ip(1, 1), 8080)
        answer = reply(world, request, **FROM_POD_11)
        assert shown(answer)[1:] == (NODE_IP, 8000, pod_ip(1, 1), 40000)


def test_a_pods_own_connections_are_not_taken() -> None:
    """A Pod's connection to a server whose port, or the node's, is that number goes as ever."""
    world = World.of(asking(port=61500))
    request = world.send("p12", CLIENT, 8000)
    answer = reply(world, request, UPLINK, pkt_mark=EXTERNAL_PKT_MARK)
    assert shown(answer) == (12, CLIENT, 8000, pod_ip(1, 2), 40000)
    elsewhere = world.send("p12", "192.0.2.2", 61500)
    assert shown(elsewhere)[3:] == ("192.0.2.2", 61500)
    back = reply(world, elsewhere, UPLINK, **ROUTER)
    assert shown(back) == (12, "192.0.2.2", 61500, pod_ip(1, 2), 40000)


def test_node_ports_confined_to_some_addresses_do_not_confine_host_ports() -> None:
    """A NodePort of the same number that is served on no address here leaves it to the Pod."""
    ports = (ServicePort(name="http", port=80, node_port=8000),)
    world = World.of(asking(), service(ports=ports), endpoints(at(1, 2)))
    assert world.verdict("p22", NODE_IP, 8000) == to((1, 2))
    assert world.verdict("host", GATEWAY_IP, 8000) == to((1, 1))
