"""
Service semantics as packets: (source, target, port) -> endpoints, translated or not, or refusal.

Walked through the flows that node n1 would hold. Truth: kube-proxy (CategorizeEndpoints).
"""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from dunlin.events.facts import (
    AnyFact,
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    LoadBalancerIngress,
    Protocol,
    ServicePort,
)
from tests.packets.cases import Case, case
from tests.packets.ipv6 import fact_in_ipv6, text_in_ipv6, verdict_in_ipv6
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    DROP,
    NODE,
    NODE_IP,
    NODE_IP6,
    REJECT,
    World,
    at,
    endpoints,
    pod_ip,
    service,
    to,
)

CLUSTER_IP, CLUSTER_IP6 = "10.96.0.10", "fd00:10:96::10"
EXTERNAL_IP, VIP = "198.51.100.7", "198.51.100.8"
SPREAD = (at(1, 1), at(2, 1), at(3, 1))
EVERYBODY = ((1, 1), (2, 1), (3, 1))


def outside(**changes: Any) -> AnyFact:
    """default/web with an external IP and a load balancer's VIP."""
    ingress = (LoadBalancerIngress(ip=ip_address(VIP)),)
    values: dict[str, Any] = {
        "external_ips": (ip_address(EXTERNAL_IP),),
        "load_balancer_ingress": ingress,
    }
    return service(**(values | changes))


REMOTE_CLIENT_ON_N2 = "p22"
CASES = [
    *case(
        "policy Cluster: everybody, and the client's address kept where it can be",
        (outside(), endpoints(*SPREAD)),
        {
            ("p12", CLUSTER_IP, 80): to(*EVERYBODY),
            ("node", CLUSTER_IP, 80): to(*EVERYBODY),
            ("p12", NODE_IP, 30080): to(*EVERYBODY),
            ("p12", EXTERNAL_IP, 80): to(*EVERYBODY),
            ("p12", VIP, 80): to(*EVERYBODY),
            ("node", NODE_IP, 30080): to(*EVERYBODY),
        },
    ),
    *case(
        "the node's own processes: from its own address, kept where the endpoint is here",
        (outside(), endpoints(at(1, 1))),
        {
            ("host", NODE_IP, 30080): to((1, 1)),
            ("host", EXTERNAL_IP, 80): to((1, 1)),
            ("host", VIP, 80): to((1, 1)),
            ("host", CLUSTER_IP, 80): to((1, 1)),
            ("host", NODE_IP, 31999): NODE,
            ("host", NODE_IP, 22): NODE,
        },
    ),
    *case(
        "the node's own processes: kept, too, where the endpoint is a Pod elsewhere",
        (outside(), endpoints(at(2, 1))),
        {
            ("host", NODE_IP, 30080): to((2, 1)),
            ("host", VIP, 80): to((2, 1)),
            ("host", CLUSTER_IP, 80): to((2, 1)),
            ("node", VIP, 80): to((2, 1)),
            ("node", CLUSTER_IP, 80): to((2, 1)),
        },
    ),
    *case(
        "the node's own processes are not from outside: policy Local does not bind them",
        (
            outside(external_policy_local=True),
            endpoints(at(2, 1)),
        ),
        {
            ("host", NODE_IP, 30080): to((2, 1)),
            ("host", EXTERNAL_IP, 80): to((2, 1)),
            ("host", VIP, 80): to((2, 1)),
        },
    ),
    *case(
        "the node's own processes and nobody to answer",
        (outside(), endpoints()),
        {("host", NODE_IP, 30080): REJECT, ("host", VIP, 80): REJECT},
    ),
    *case(
        "the node's own processes within the source ranges, or not: by the node's own address",
        (
            outside(load_balancer_source_ranges=(ip_network("192.0.2.0/24"),)),
            endpoints(at(1, 1)),
        ),
        {("host", VIP, 80): to((1, 1)), (CLIENT, VIP, 80): DROP, ("node", VIP, 80): DROP},
    ),
    *case(
        "the node's own processes over IPv6",
        (
            service(CLUSTER_IP, CLUSTER_IP6),
            endpoints(at(1, 1)),
            endpoints(at(2, 1, version=6), name="web-6"),
        ),
        {
            ("host", NODE_IP6, 30080): to((2, 1), version=6),
            ("host", NODE_IP6, 31999): NODE,
        },
    ),
    *case(
        "an external client of an endpoint here keeps its address",
        (outside(), endpoints(at(1, 1))),
        {
            (CLIENT, NODE_IP, 30080): to((1, 1)),
            (CLIENT, EXTERNAL_IP, 80): to((1, 1)),
            (CLIENT, VIP, 80): to((1, 1)),
            (CLIENT, CLUSTER_IP, 80): to((1, 1)),
            (REMOTE_CLIENT_ON_N2, NODE_IP, 30080): to((1, 1)),
        },
    ),
    *case(
        "an external client of an endpoint elsewhere is translated, or the reply would miss us",
        (outside(), endpoints(at(2, 1))),
        {
            (CLIENT, NODE_IP, 30080): to((2, 1), translated=True),
            (CLIENT, EXTERNAL_IP, 80): to((2, 1), translated=True),
            (CLIENT, VIP, 80): to((2, 1), translated=True),
            (REMOTE_CLIENT_ON_N2, NODE_IP, 30080): to((2, 1), translated=True),
        },
    ),
    *case(
        "what nobody listens on",
        (outside(), endpoints(*SPREAD)),
        {
            ("p12", CLUSTER_IP, 81): REJECT,
            ("p12", "10.96.7.7", 80): REJECT,
            (CLIENT, NODE_IP, 30081): NODE,
            (CLIENT, VIP, 81): NODE,
            (CLIENT, "198.51.100.99", 80): NODE,
        },
    ),
    *case(
        "no endpoints: refused, whatever the policy",
        (outside(external_policy_local=True, internal_policy_local=True), endpoints()),
        {
            ("p12", CLUSTER_IP, 80): REJECT,
            ("p12", NODE_IP, 30080): REJECT,
            (CLIENT, NODE_IP, 30080): REJECT,
            (CLIENT, VIP, 80): REJECT,
        },
    ),
    *case(
        "externalTrafficPolicy Local with endpoints here and elsewhere",
        (outside(external_policy_local=True), endpoints(*SPREAD)),
        {
            (CLIENT, NODE_IP, 30080): to((1, 1)),
            (CLIENT, EXTERNAL_IP, 80): to((1, 1)),
            (CLIENT, VIP, 80): to((1, 1)),
            ("p12", CLUSTER_IP, 80): to(*EVERYBODY),
            ("p12", NODE_IP, 30080): to(*EVERYBODY),
            ("p12", VIP, 80): to(*EVERYBODY),
            ("node", VIP, 80): to(*EVERYBODY),
        },
    ),
    *case(
        "externalTrafficPolicy Local without endpoints here",
        (outside(external_policy_local=True), endpoints(at(2, 1), at(3, 1))),
        {
            (CLIENT, NODE_IP, 30080): DROP,
            (CLIENT, VIP, 80): DROP,
            ("p12", NODE_IP, 30080): to((2, 1), (3, 1)),
            (REMOTE_CLIENT_ON_N2, NODE_IP, 30080): to((2, 1), (3, 1), translated=True),
        },
    ),
    *case(
        "internalTrafficPolicy Local",
        (outside(internal_policy_local=True), endpoints(*SPREAD)),
        {
            ("p12", CLUSTER_IP, 80): to((1, 1)),
            ("node", CLUSTER_IP, 80): to((1, 1)),
            ("p12", NODE_IP, 30080): to(*EVERYBODY),
            ("p12", VIP, 80): to(*EVERYBODY),
        },
    ),
    *case(
        "internalTrafficPolicy Local without endpoints here",
        (service(internal_policy_local=True), endpoints(at(2, 1))),
        {("p12", CLUSTER_IP, 80): DROP, ("p12", NODE_IP, 30080): to((2, 1))},
    ),
    *case(
        "terminating endpoints serve separately for Cluster and Local",
        (
            outside(external_policy_local=True),
            endpoints(at(1, 1, "serving"), at(2, 1), at(1, 2, "terminating")),
        ),
        {(CLIENT, NODE_IP, 30080): to((1, 1)), ("p12", CLUSTER_IP, 80): to((2, 1))},
    ),
    *case(
        "only terminating endpoints are left",
        (service(), endpoints(at(1, 1, "serving"), at(2, 1, "serving"), at(3, 1, "terminating"))),
        {("p12", CLUSTER_IP, 80): to((1, 1), (2, 1))},
    ),
    *case(
        "loadBalancerSourceRanges guard the VIP and nothing else",
        (
            outside(
                load_balancer_source_ranges=(
                    ip_network("203.0.113.0/24"), ip_network("203.0.113.0/28"),
                )
            ),
            endpoints(at(1, 1)),
        ),
        {
            (CLIENT, VIP, 80): to((1, 1)),
            ("192.0.2.200", VIP, 80): DROP,
            ("p12", VIP, 80): DROP,
            ("192.0.2.200", EXTERNAL_IP, 80): to((1, 1)),
            ("192.0.2.200", NODE_IP, 30080): to((1, 1)),
        },
    ),
    *case(
        "a load balancer of mode Proxy gets its traffic itself",
        (
            outside(
                load_balancer_ingress=(
                    LoadBalancerIngress(ip=ip_address(VIP), ip_mode="Proxy"),
                )
            ),
            endpoints(at(1, 1)),
        ),
        {(CLIENT, VIP, 80): NODE, (CLIENT, NODE_IP, 30080): to((1, 1))},
    ),
    *case(
        "zone hints: n1 is in zone za",
        (
            service(),
            endpoints(
                at(1, 1, hint_zones=("za",)),
                at(2, 1, hint_zones=("za",)),
                at(3, 1, hint_zones=("zb",)),
            ),
        ),
        {("p12", CLUSTER_IP, 80): to((1, 1), (2, 1)), ("p12", NODE_IP, 30080): to((1, 1), (2, 1))},
    ),
    *case(
        "zone hints that leave one ready endpoint out are ignored", (service(), endpoints(at(1, 1,
        hint_zones=("za",)), at(2, 1), at(3, 1, hint_zones=("zb",)))), {("p12", CLUSTER_IP, 80):
        to(*EVERYBODY)},
    ),
    *case(
        "no endpoint is hinted for this zone",
        (service(), endpoints(at(2, 1, hint_zones=("zb",)), at(3, 1, hint_zones=("zb",)))),
        {("p12", CLUSTER_IP, 80): to((2, 1), (3, 1))},
    ),
    *case(
        "node hints come before zone hints",
        (
            service(),
            endpoints(
                at(1, 1, hint_zones=("za",), hint_nodes=("n1",)),
                at(2, 1, hint_zones=("za",), hint_nodes=("n2",)),
                at(3, 1, hint_zones=("zb",), hint_nodes=("n3",)),
            ),
        ),
        {("p12", CLUSTER_IP, 80): to((1, 1))},
    ),
    *case(
        "node hints without this node fall back to its zone",
        (
            service(),
            endpoints(
                at(2, 1, hint_zones=("za",), hint_nodes=("n2",)),
                at(3, 1, hint_zones=("zb",), hint_nodes=("n3",)),
            ),
        ),
        {("p12", CLUSTER_IP, 80): to((2, 1))},
    ),
    *case(
        "affinity changes nothing about who may answer",
        (
            outside(external_policy_local=True, affinity_timeout_s=10800),
            endpoints(*SPREAD),
        ),
        {
            ("p12", CLUSTER_IP, 80): to(*EVERYBODY),
            (CLIENT, NODE_IP, 30080): to((1, 1)),
            ("p12", VIP, 80): to(*EVERYBODY),
        },
    ),
    *case(
        "no node ports are allocated",
        (outside(ports=(ServicePort(name="http", port=80),)), endpoints(at(1, 1))),
        {(CLIENT, VIP, 80): to((1, 1)), (CLIENT, NODE_IP, 30080): NODE},
    ),
    *case(
        "labelled headless: nothing, though it has a cluster IP",
        (outside(headless_label=True), endpoints(at(1, 1))),
        {("p12", CLUSTER_IP, 80): REJECT, (CLIENT, VIP, 80): NODE, (CLIENT, NODE_IP, 30080): NODE},
    ),
    *case(
        "left to another proxy",
        (outside(proxy_name="other"), endpoints(at(1, 1))),
        {("p12", CLUSTER_IP, 80): REJECT, (CLIENT, VIP, 80): NODE},
    ),
    *case(
        "an endpoint beyond the cluster",
        (service(), endpoints(Endpoint(ip=ip_address("192.0.2.77")))),
        {
            ("p12", CLUSTER_IP, 80): to("192.0.2.77:8080", translated=True),
            (CLIENT, NODE_IP, 30080): to("192.0.2.77:8080", translated=True),
            ("node", CLUSTER_IP, 80): to("192.0.2.77:8080", translated=True),
            ("host", NODE_IP, 30080): to("192.0.2.77:8080"),
        },
    ),
    *case(
        "an endpoint that is this node itself",
        (service(), endpoints(Endpoint(ip=ip_address(NODE_IP), node="n1"))),
        {
            ("p12", CLUSTER_IP, 80): to(f"{NODE_IP}:8080"),
            ("p12", NODE_IP, 30080): to(f"{NODE_IP}:8080"),
            (REMOTE_CLIENT_ON_N2, NODE_IP, 30080): to(f"{NODE_IP}:8080"),
            (CLIENT, NODE_IP, 30080): to(f"{NODE_IP}:8080", translated=True),
            ("node", CLUSTER_IP, 80): to(f"{NODE_IP}:8080", translated=True),
            ("host", NODE_IP, 30080): to(f"{NODE_IP}:8080", translated=True),
            ("host", CLUSTER_IP, 80): to(f"{NODE_IP}:8080", translated=True),
        },
    ),
    *case(
        "a Pod that is its own endpoint",
        (service(), endpoints(at(1, 2))),
        {
            ("p12", CLUSTER_IP, 80): to((1, 2), translated=True),
            ("p12", NODE_IP, 30080): to((1, 2), translated=True),
            ("p11", CLUSTER_IP, 80): to((1, 2)),
        },
    ),
    *case(
        "IPv6 and IPv4 are served apart",
        (
            service(CLUSTER_IP, CLUSTER_IP6, external_policy_local=True),
            endpoints(at(1, 1), at(2, 1)),
            endpoints(at(2, 1, version=6), name="web-6"),
        ),
        {
            ("p12", CLUSTER_IP6, 80): to((2, 1), version=6),
            (CLIENT6, NODE_IP6, 30080): DROP,
            ("p12", NODE_IP6, 30080): to((2, 1), version=6),
            (CLIENT, NODE_IP, 30080): to((1, 1)),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    "line", CASES, ids=lambda c: f"{c.name}: {c.source} -> {c.target}:{c.port}"
)
@pytest.mark.parametrize("tunnel", [False, True], ids=["routed", "tunnel"])
def test_table(line: Case, *, tunnel: bool) -> None:
    """Each line of the table holds, without and (tunnel) with policies."""
    world = World.of(*line.facts, tunnel=tunnel, generation=7 if tunnel else 0)
    assert world.verdict(line.source, line.target, line.port) == line.verdict


@pytest.mark.parametrize(
    "line",
    [line for line in CASES if "IPv6" not in line.name],
    ids=lambda c: f"{c.name}: {c.source} -> {c.target}:{c.port}",
)
def test_table_in_ipv6(line: Case) -> None:
    """The same table, with every address in IPv6."""
    world = World.of(*map(fact_in_ipv6, line.facts))
    source, target = text_in_ipv6(line.source), text_in_ipv6(line.target)
    assert world.verdict(source, target, line.port) == verdict_in_ipv6(line.verdict)


def test_the_table_can_fail() -> None:
    """A wrong expectation is noticed: in endpoints, and in translation."""
    world = World.of(service(), endpoints(at(2, 1)))
    found = world.verdict(CLIENT, NODE_IP, 30080)
    assert found != to((2, 1))
    assert found != to((1, 1), translated=True)


@pytest.mark.parametrize("version", ["3.1.0", "3.2.1"])
def test_sctp(version: str) -> None:
    """Served where Open vSwitch tracks its ports, refused elsewhere: never silently wrong."""
    ports = (ServicePort(name="http", protocol=Protocol.SCTP, port=80, node_port=30080),)
    facts = (service(ports=ports), endpoints(at(1, 1), protocol=Protocol.SCTP))
    world = World.of(*facts, ovs_version=version)
    served, sctp = version != "3.1.0", Protocol.SCTP
    expected = (to((1, 1)), to((1, 1))) if served else (REJECT, NODE)
    assert world.verdict("p12", CLUSTER_IP, 80, protocol=sctp) == expected[0]
    assert world.verdict(CLIENT, NODE_IP, 30080, protocol=sctp) == expected[1]
    assert world.verdict("p12", CLUSTER_IP, 80) == REJECT, "TCP on that port is nobody's"


@pytest.mark.parametrize("count", [33, 300])
def test_many_endpoints(count: int) -> None:
    """No endpoint is left out, with one level of groups and with two."""
    many = [Endpoint(ip=ip_address("198.18.0.1") + i) for i in range(count)]
    world = World.of(service(), endpoints(*many))
    found = world.verdict("p12", CLUSTER_IP, 80)
    assert not isinstance(found, str)
    assert len(found.endpoints) == count


def test_one_port_number_of_several_protocols() -> None:
    """TCP, UDP and SCTP of port 80 lead to their own endpoints, also by one node port."""
    everything = (Protocol.TCP, Protocol.UDP, Protocol.SCTP)
    ports = tuple(
        ServicePort(name=f"p-{protocol.lower()}", protocol=protocol, port=80, node_port=30080)
        for protocol in everything
    )
    slices = (
        EndpointSliceFact(
            namespace="default",
            name=f"web-{number}",
            service="web",
            ports=(EndpointPort(name=f"p-{protocol.lower()}", protocol=protocol, port=8080),),
            endpoints=(at(number, 1),),
        )
        for number, protocol in enumerate(everything, 1)
    )
    world = World.of(service(ports=ports), *slices)
    for number, protocol in enumerate(everything, 1):
        assert world.verdict("p12", CLUSTER_IP, 80, protocol=protocol) == to((number, 1))
        found = world.verdict(CLIENT, NODE_IP, 30080, protocol=protocol)
        assert found == to((number, 1), translated=number != 1)


@pytest.mark.parametrize("version", [4, 6])
def test_a_named_target_port_that_differs_by_endpoint(version: int) -> None:
    """Pods of two versions name different numbers: a slice for each, all of them are used."""
    slices = (
        EndpointSliceFact(
            namespace="default",
            name=f"web-{number}",
            service="web",
            ports=(EndpointPort(name="http", port=8000 + number),),
            endpoints=(at(number, 1, version=version),),
        )
        for number in (1, 2, 3)
    )
    target = CLUSTER_IP if version == 4 else CLUSTER_IP6
    world = World.of(service(target), *slices)
    names = [f"{pod_ip(number, 1, version)}:{8000 + number}" for number in (1, 2, 3)]
    assert world.verdict("p12", target, 80) == to(*names)


def test_a_host_network_endpoint_of_another_node() -> None:
    """As the API server: Pods reach it with their own address; the node from its gateway's."""
    host = Endpoint(ip=ip_address("192.0.2.2"), node="n2")
    world = World.of(service(), endpoints(host))
    for source in ("p12", "node"):
        assert world.verdict(source, CLUSTER_IP, 80) == to("192.0.2.2:8080")
    assert world.verdict(CLIENT, NODE_IP, 30080) == to("192.0.2.2:8080", translated=True)
    assert world.verdict("host", NODE_IP, 30080) == to("192.0.2.2:8080", translated=True)
    assert world.verdict("host", CLUSTER_IP, 80) == to("192.0.2.2:8080", translated=True)
