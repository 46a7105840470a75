"""Small clusters with policies that use every form of the API, drawn by Hypothesis."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.scenario.policy.oracle import Cluster, Packet, Pod
from tests.scenario.policy.walk import OUTSIDE

NAMESPACES = ("x", "y")
KEYS, VALUES = ("app", "tier"), ("a", "b")
BLOCKS = (
    "0.0.0.0/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.8/29", "10.0.1.10/32", "198.51.100.0/24",
    "::/0", "fd00:1::/64", "fd00:1::a/128", "2001:db8::/32",
)  # fmt: skip
NUMBERS = (80, 81, 443, 8080)

labels = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=2)


@st.composite
def selectors(draw: st.DrawFn) -> dict[str, Any]:
    """Empty, by labels, by expressions, or both."""
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found["matchLabels"] = draw(labels)
    if draw(st.integers(0, 3)) == 0:
        operator = draw(st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]))
        item: dict[str, Any] = {"key": draw(st.sampled_from(KEYS)), "operator": operator}
        if operator in ("In", "NotIn"):
            item["values"] = draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=2))
        found["matchExpressions"] = [item]
    return found


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    """An ipBlock, often with holes."""
    from ipaddress import ip_network

    cidr = ip_network(draw(st.sampled_from(BLOCKS)))
    inside = [
        text
        for text in BLOCKS
        if ip_network(text).version == cidr.version
        and ip_network(text) != cidr
        and ip_network(text).subnet_of(cidr)  # type: ignore[arg-type]
    ]
    found: dict[str, Any] = {"cidr": str(cidr)}
    with_holes = draw(st.booleans())
    if inside and with_holes:
        holes = st.lists(st.sampled_from(inside), min_size=1, max_size=2)
        found["except"] = draw(holes)
    return found


@st.composite
def peers(draw: st.DrawFn) -> dict[str, Any]:
    """A NetworkPolicyPeer."""
    form = draw(st.sampled_from(["pods", "namespaces", "both", "block"]))
    if form == "block":
        return {"ipBlock": draw(blocks())}
    found = {}
    if form in ("pods", "both"):
        found["podSelector"] = draw(selectors())
    if form in ("namespaces", "both"):
        found["namespaceSelector"] = draw(selectors())
    return found


@st.composite
def ports(draw: st.DrawFn) -> dict[str, Any]:
    """A NetworkPolicyPort."""
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found["protocol"] = draw(st.sampled_from(["TCP", "UDP", "SCTP"]))
    form = draw(st.sampled_from(["all", "number", "name", "range"]))
    if form == "number":
        found["port"] = draw(st.sampled_from(NUMBERS))
    elif form == "name":
        found["port"] = draw(st.sampled_from(["web", "dns"]))
    elif form == "range":
        first = draw(st.sampled_from([1, 79, 80, 400]))
        found |= {"port": first, "endPort": first + draw(st.sampled_from([0, 1, 50, 40000]))}
    return found


@st.composite
def rules(draw: st.DrawFn, peers_name: str) -> dict[str, Any]:
    """A rule; lists are absent, empty or not."""
    found: dict[str, Any] = {}
    if draw(st.booleans()):
        found[peers_name] = draw(st.lists(peers(), max_size=2))
    if draw(st.booleans()):
        found["ports"] = draw(st.lists(ports(), max_size=2))
    return found


@st.composite
def policies(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """A NetworkPolicy."""
    spec: dict[str, Any] = {"podSelector": draw(selectors())}
    if draw(st.integers(0, 3)):
        spec["ingress"] = draw(st.lists(rules("from"), max_size=2))
    if draw(st.booleans()):
        spec["egress"] = draw(st.lists(rules("to"), max_size=2))
    types = draw(st.sampled_from([None, [], ["Ingress"], ["Egress"], ["Ingress", "Egress"]]))
    if types is not None:
        spec["policyTypes"] = types
    namespace = draw(st.sampled_from(NAMESPACES))
    return {"metadata": {"namespace": namespace, "name": f"p{number}"}, "spec": spec}


@st.composite
def subjects(draw: st.DrawFn) -> dict[str, Any]:
    """A ClusterNetworkPolicySubject, which is also a peer."""
    if draw(st.booleans()):
        return {"namespaces": draw(selectors())}
    return {"pods": {"namespaceSelector": draw(selectors()), "podSelector": draw(selectors())}}


@st.composite
def protocols(draw: st.DrawFn) -> dict[str, Any]:
    """A ClusterNetworkPolicyProtocol."""
    form = draw(st.sampled_from(["all", "number", "name", "range"]))
    if form == "name":
        return {"destinationNamedPort": draw(st.sampled_from(["web", "dns"]))}
    port: dict[str, Any] = {}
    if form == "number":
        port = {"destinationPort": {"number": draw(st.sampled_from(NUMBERS))}}
    elif form == "range":
        port = {"destinationPort": {"range": {"start": 79, "end": 443}}}
    return {draw(st.sampled_from(["tcp", "udp", "sctp"])): port}


@st.composite
def cluster_rules(draw: st.DrawFn, direction: str) -> dict[str, Any]:
    """A rule of a ClusterNetworkPolicy."""
    found = draw(st.lists(subjects(), min_size=1, max_size=2))
    if direction == "egress" and draw(st.booleans()):
        networks = st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=2, unique=True)
        found.append({"networks": draw(networks)})
    rule = {
        "action": draw(st.sampled_from(["Accept", "Deny", "Pass"])),
        "from" if direction == "ingress" else "to": found,
    }
    if draw(st.booleans()):
        rule["protocols"] = draw(st.lists(protocols(), min_size=1, max_size=2))
    return rule


@st.composite
def cluster_policies(draw: st.DrawFn, number: int) -> dict[str, Any]:
    """A ClusterNetworkPolicy; priorities differ, because equal ones are undefined."""
    spec: dict[str, Any] = {
        "tier": draw(st.sampled_from(["Admin", "Baseline"])),
        "priority": draw(st.sampled_from([0, 4, 996])) + number,
        "subject": draw(subjects()),
    }
    for direction in ("ingress", "egress"):
        if draw(st.booleans()):
            spec[direction] = draw(st.lists(cluster_rules(direction), min_size=1, max_size=3))
    return {"metadata": {"name": f"c{number}"}, "spec": spec}


@st.composite
def pods(draw: st.DrawFn, number: int) -> Pod:
    """A Pod on one of two nodes; a name may stand for another number in each Pod."""
    names = draw(
        st.lists(
            st.tuples(
                st.sampled_from(["web", "dns"]),
                st.sampled_from(["TCP", "UDP"]),
                st.sampled_from(NUMBERS),
            ),
            max_size=2,
            unique_by=lambda port: port[0],
        )
    )
    return Pod(
        draw(st.sampled_from(NAMESPACES)),
        f"pod{number}",
        draw(labels),
        f"n{1 + number % 2}",
        10 + number // 2,
        tuple(names),
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    """Two namespaces, two to four Pods on two nodes, up to three policies of each kind."""
    return Cluster(
        namespaces={name: draw(labels) for name in NAMESPACES},
        pods=[draw(pods(number)) for number in range(draw(st.integers(2, 4)))],
        policies=[draw(policies(number)) for number in range(draw(st.integers(0, 3)))],
        cluster_policies=[
            draw(cluster_policies(number)) for number in range(draw(st.integers(0, 3)))
        ],
    )


@st.composite
def named_clusters(draw: st.DrawFn) -> Cluster:
    """Every rule is one of egress, to named ports, and mostly to networks: rare in `clusters`."""
    names = ["web", "dns"]
    to = st.lists(st.one_of(blocks().map(lambda one: {"ipBlock": one}), peers()), max_size=2)
    by_name = st.fixed_dictionaries({"port": st.sampled_from(names)},
        optional={"protocol": st.sampled_from(["TCP", "UDP"])})  # fmt: skip
    drawn = draw(clusters())
    for number in range(draw(st.integers(0, 2))):
        one = draw(policies(number))
        wanted = {"to": draw(to), "ports": draw(st.lists(by_name, min_size=1, max_size=2))}
        one["spec"] |= {"policyTypes": ["Egress"], "ingress": [], "egress": [wanted]}
        drawn.policies = [*drawn.policies[:number], one]
    drawn.cluster_policies = [
        draw(cluster_policies(number)) for number in range(draw(st.integers(0, 2)))
    ]
    for one in drawn.cluster_policies:
        one["spec"].pop("ingress", None)
        one["spec"]["egress"] = [
            {
                "action": draw(st.sampled_from(["Accept", "Deny", "Pass"])),
                "to": [{"networks": draw(st.lists(st.sampled_from(BLOCKS), min_size=1))}],
                "protocols": [{"destinationNamedPort": draw(st.sampled_from(names))}],
            }
            for _ in range(draw(st.integers(1, 3)))
        ]
    return drawn


def named_packets(cluster: Cluster) -> list[Packet]:
    """Between all Pods, and to an address outside: every port that a name may stand for."""
    found: list[Packet] = []
    for version in (4, 6):
        addresses = [pod.ips[0 if version == 4 else 1] for pod in cluster.pods]
        found += [
            Packet(src, dst, protocol, port)
            for src in addresses
            for dst in (*addresses, OUTSIDE[version])
            for protocol in ("TCP", "UDP")
            for port in NUMBERS
            if src != dst
        ]
    return found


def packets(cluster: Cluster) -> list[Packet]:
    """Between all Pods and an address outside, both families, over what policies tell apart."""
    found: list[Packet] = []
    for version in (4, 6):
        addresses = [pod.ips[0 if version == 4 else 1] for pod in cluster.pods]
        for src in (*addresses, OUTSIDE[version]):
            for dst in addresses:
                if src != dst:
                    found += _between(src, dst)
        found += [Packet(src, OUTSIDE[version], "TCP", 80) for src in addresses]
    return found


def _between(src: str, dst: str) -> list[Packet]:
    turn = sum(map(ord, src + dst))
    some = [
        Packet(src, dst, "TCP", 80), Packet(src, dst, "TCP", 81), Packet(src, dst, "TCP", 443),
        Packet(src, dst, "UDP", 80), Packet(src, dst, "UDP", 8080), Packet(src, dst, "SCTP", 80),
        Packet(src, dst, "ICMP", 0), Packet(src, dst, "TCP", 8080),
    ]  # fmt: skip
    return [some[turn % 8], some[(turn + 3) % 8]]
