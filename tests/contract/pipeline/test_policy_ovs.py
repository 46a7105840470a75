"""Policies on real packets through real Open vSwitch: each clause, and drawn clusters."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings

from dunlin_planner.core.step import intents
from tests.contract.pipeline.real_switches import SERVICE, RealSwitches, real_switches
from tests.fixtures.ovs_dummy import OvsDummy
from tests.scenario.policy.generate import clusters, packets
from tests.scenario.policy.oracle import Cluster, Packet, Pod, allowed, pod_with
from tests.scenario.policy.test_policy import PROFILE
from tests.scenario.policy.walk import planned

pytestmark = pytest.mark.ovs

SAMPLE = int(os.environ.get("DUNLIN_POLICY_SAMPLE", "12"))
"""Drawn clusters whose packets are sent; each has some 40."""


@pytest.fixture(scope="module")
def switches(ovs_dummy: OvsDummy) -> Iterator[RealSwitches]:
    """Two nodes."""
    with real_switches(ovs_dummy) as found:
        yield found


def wrong(switches: RealSwitches, cluster: Cluster, judged: Cluster | None = None) -> list[str]:
    """Packets to Pods that real switches treat otherwise than the specification says."""
    switches.load(cluster, intents(planned(cluster)).values())
    sent = [one for one in packets(cluster) if pod_with(cluster, one.dst)]
    return against(switches, sent, judged or cluster)


def against(switches: RealSwitches, sent: list[Packet], judged: Cluster) -> list[str]:
    """… of these."""
    return [
        f"{packet}: must {'be dropped' if arrived else 'arrive'}"
        for packet, arrived in zip(sent, switches.arrive(sent), strict=True)
        if arrived != allowed(judged, packet)
    ]


@pytest.mark.timeout(60 + 2 * SAMPLE)
def test_drawn_clusters(switches: RealSwitches) -> None:
    """Clusters, policies and packets as the simulator's, a sample of them."""

    @given(clusters())
    @settings(PROFILE, max_examples=SAMPLE, database=None)
    def check(cluster: Cluster) -> None:
        assert wrong(switches, cluster) == []

    check()


# --- each clause by itself, with its verdict written down -----------------------------------------

CLIENT = Pod("x", "client", {"app": "a", "tier": "a"}, "n1", 10, (("web", "TCP", 80),))
FRIEND = Pod("x", "friend", {"app": "b"}, "n1", 11, (("web", "TCP", 81),))
SERVER = Pod("x", "server", {"app": "s"}, "n2", 10, (("web", "TCP", 8080), ("dns", "UDP", 80)))
STRANGER = Pod("y", "stranger", {"app": "a"}, "n2", 11)
WORLD = {4: "198.51.100.7", 6: "2001:db8::7"}
OTHER_NODE = {4: "172.31.0.1", 6: "fd31::1"}
"""A host-network Pod there is this address."""
OWN_NODE = {4: "10.0.2.1", 6: "fd00:2::1"}
"""Where the kubelet's probes come from."""
SOURCES = {pod.name: {4: pod.ips[0], 6: pod.ips[1]} for pod in (CLIENT, FRIEND, STRANGER)} | {
    "world": WORLD,
    "node": OWN_NODE,
    "other node": OTHER_NODE,
}
EVERYBODY = frozenset(SOURCES)
NOBODY = frozenset({"node"})
"""A Pod's own node always passes."""
PODS_OF_Y = {"namespaceSelector": {"matchLabels": {"team": "y"}}}


def pods(*expressions: tuple[str, str, list[str]], **labels: str) -> dict[str, Any]:
    """A podSelector; expressions as (key, operator, values)."""
    found = [{"key": k, "operator": o, **({"values": v} if v else {})} for k, o, v in expressions]
    return {"podSelector": {"matchLabels": labels, "matchExpressions": found}}


def ingress(*rules: Any, **more: Any) -> list[dict[str, Any]]:
    """One NetworkPolicy about the server."""
    spec = {"podSelector": {"matchLabels": {"app": "s"}}, "ingress": list(rules), **more}
    return [{"metadata": {"namespace": "x", "name": "p"}, "spec": spec}]


def peers(*some: Any) -> list[dict[str, Any]]:
    """… with these peers."""
    return ingress({"from": list(some)})


def ports(*some: Any) -> list[dict[str, Any]]:
    """… with these ports."""
    return ingress({"ports": list(some)})


def both(v4: str, v6: str, hole4: str = "", hole6: str = "") -> list[dict[str, Any]]:
    """Two ipBlocks; with holes."""
    blocks = [{"cidr": v4, "except": [hole4]}, {"cidr": v6, "except": [hole6]}]
    return [{"ipBlock": b if b["except"] != [""] else {"cidr": b["cidr"]}} for b in blocks]


Case = tuple[list[dict[str, Any]], str, int, frozenset[str]]
IN, NOT_IN, EXISTS, NOT = "In", "NotIn", "Exists", "DoesNotExist"
HOLES = both("0.0.0.0/0", "::/0", "10.0.1.10/32", "fd00:1::a/128")
CLAUSES: dict[str, Case] = {
    "no policy": ([], "TCP", 8080, EVERYBODY),
    "no rules": (ingress(), "TCP", 8080, NOBODY),
    "empty from": (peers(), "TCP", 8080, EVERYBODY),
    "empty ports": (ports(), "TCP", 8080, EVERYBODY),
    "an empty rule": (ingress({}), "ICMP", 0, EVERYBODY),
    "matchLabels": (peers(pods(app="a")), "TCP", 8080, NOBODY | {"client"}),
    "In": (peers(pods(("app", IN, ["a", "z"]))), "TCP", 8080, NOBODY | {"client"}),
    "NotIn": (peers(pods(("tier", NOT_IN, ["a"]))), "TCP", 8080, NOBODY | {"friend"}),
    "Exists": (peers(pods(("tier", EXISTS, []))), "TCP", 8080, NOBODY | {"client"}),
    "DoesNotExist": (peers(pods(("tier", NOT, []))), "TCP", 8080, NOBODY | {"friend"}),
    "two requirements": (
        peers(pods(("app", IN, ["a", "b"]), ("tier", NOT, []))),
        "TCP", 8080, NOBODY | {"friend"},
    ),
    "namespaceSelector alone": (peers(PODS_OF_Y), "TCP", 8080, NOBODY | {"stranger"}),
    "every namespace": (
        peers({"namespaceSelector": {}}), "TCP", 8080, NOBODY | {"client", "friend", "stranger"},
    ),
    "both together": (
        peers({**PODS_OF_Y, **pods(app="a")}), "TCP", 8080, NOBODY | {"stranger"},
    ),
    "both together, nobody": (peers({**PODS_OF_Y, **pods(app="b")}), "TCP", 8080, NOBODY),
    "two peers": (
        peers(PODS_OF_Y, pods(app="b")), "TCP", 8080, NOBODY | {"stranger", "friend"},
    ),
    "ipBlock": (
        peers(*both("198.51.100.0/24", "2001:db8::/32")), "TCP", 8080, NOBODY | {"world"},
    ),
    "ipBlock of a Pod": (
        peers(*both("10.0.1.10/32", "fd00:1::a/128")), "TCP", 8080, NOBODY | {"client"},
    ),
    "except": (peers(*HOLES), "TCP", 8080, EVERYBODY - {"client"}),
    "a host-network Pod by its node's address": (
        peers(*both("172.31.0.1/32", "fd31::1/128")), "TCP", 8080, NOBODY | {"other node"},
    ),
    "a number": (ports({"port": 8080}), "TCP", 8080, EVERYBODY),
    "another number": (ports({"port": 8081}), "TCP", 8080, NOBODY),
    "TCP where no protocol is given": (ports({"port": 8080}), "UDP", 8080, NOBODY),
    "UDP": (ports({"protocol": "UDP", "port": 53}), "UDP", 53, EVERYBODY),
    "SCTP": (ports({"protocol": "SCTP", "port": 80}), "SCTP", 80, EVERYBODY),
    "another SCTP port": (ports({"protocol": "SCTP", "port": 81}), "SCTP", 80, NOBODY),
    "SCTP is not TCP": (ports({"protocol": "TCP", "port": 80}), "SCTP", 80, NOBODY),
    "a name": (ports({"port": "web"}), "TCP", 8080, EVERYBODY),
    "a name's other number": (ports({"port": "web"}), "TCP", 80, NOBODY),
    "a name of UDP": (ports({"protocol": "UDP", "port": "dns"}), "UDP", 80, EVERYBODY),
    "endPort": (ports({"port": 8000, "endPort": 8080}), "TCP", 8080, EVERYBODY),
    "beyond endPort": (ports({"port": 8000, "endPort": 8079}), "TCP", 8080, NOBODY),
    "all ports of a protocol": (ports({"protocol": "TCP"}), "TCP", 8080, EVERYBODY),
    "ICMP has no port": (ports({"protocol": "TCP"}), "ICMP", 0, NOBODY),
    "ICMP by its peer": (peers(pods(app="b")), "ICMP", 0, NOBODY | {"friend"}),
    "union of rules": (
        ingress({"from": [pods(app="b")]}, {"from": [PODS_OF_Y]}),
        "TCP", 8080, NOBODY | {"friend", "stranger"},
    ),
    "policyTypes Egress alone": (
        ingress(policyTypes=["Egress"], egress=[]), "TCP", 8080, EVERYBODY,
    ),
}  # fmt: skip


def cluster_policy(
    number: int, tier: str, priority: int, *actions: tuple[str, Any], **rule: Any
) -> dict[str, Any]:
    """A ClusterNetworkPolicy about the server; rules as (action, peer)."""
    subject = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "s"}}}}
    rules = [{"action": action, "from": [peer], **rule} for action, peer in actions]
    spec = {"tier": tier, "priority": priority, "subject": subject, "ingress": rules}
    return {"metadata": {"name": f"c{number}"}, "spec": spec}


ANY: dict[str, Any] = {"namespaces": {}}
OF_Y = {"namespaces": {"matchLabels": {"team": "y"}}}
A = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}}
ALL_PODS = frozenset({"client", "friend", "stranger"})
ADMIN = cluster_policy(1, "Admin", 10, ("Deny", A))
TIERS: dict[str, tuple[list[Any], list[Any], frozenset[str]]] = {
    "Admin denies over NetworkPolicies": (ingress({}), [ADMIN], EVERYBODY - {"client", "stranger"}),
    "Admin accepts over NetworkPolicies": (
        ingress(), [cluster_policy(1, "Admin", 10, ("Accept", OF_Y))], NOBODY | {"stranger"},
    ),
    "Pass leaves it to NetworkPolicies": (
        peers(pods(app="a")),
        [cluster_policy(2, "Admin", 5, ("Pass", A)), ADMIN], NOBODY | {"client"},
    ),
    "Pass leaves it to Baseline": (
        [],
        [cluster_policy(2, "Admin", 5, ("Pass", OF_Y)), ADMIN,
         cluster_policy(3, "Baseline", 5, ("Deny", OF_Y))], EVERYBODY - {"client", "stranger"},
    ),
    "the smaller priority first": (
        [], [cluster_policy(2, "Admin", 11, ("Accept", ANY)), ADMIN],
        EVERYBODY - {"client", "stranger"},
    ),
    "the first rule that matches": (
        ingress(),
        [cluster_policy(1, "Admin", 1, ("Deny", OF_Y), ("Accept", ANY))],
        NOBODY | {"client", "friend"},
    ),
    "Baseline denies what nobody isolates": (
        [], [cluster_policy(1, "Baseline", 0, ("Deny", ANY))], EVERYBODY - ALL_PODS,
    ),
    "Baseline is not asked for what is isolated": (
        peers(pods(app="a")), [cluster_policy(1, "Baseline", 0, ("Deny", ANY))],
        NOBODY | {"client"},
    ),
    "a port of the protocol": (
        [],
        [cluster_policy(1, "Admin", 0, ("Deny", ANY),
                        protocols=[{"tcp": {"destinationPort": {"number": 8080}}}])],
        EVERYBODY - ALL_PODS,
    ),
    "another port": (
        [],
        [cluster_policy(1, "Admin", 0, ("Deny", ANY),
                        protocols=[{"tcp": {"destinationPort": {"number": 81}}}])],
        EVERYBODY,
    ),
}  # fmt: skip


def world(policies: list[Any], cluster_policies: list[Any] | None = None) -> Cluster:
    """The Pods above."""
    pods = [CLIENT, FRIEND, SERVER, STRANGER]
    return Cluster({"x": {}, "y": {"team": "y"}}, pods, policies, cluster_policies or [])


def reached(
    switches: RealSwitches, cluster: Cluster, protocol: str, port: int
) -> dict[int, set[str]]:
    """Who reaches the server, by IP version."""
    switches.load(cluster, intents(planned(cluster)).values())
    names = [(version, name) for version in (4, 6) for name in SOURCES]
    sent = [
        Packet(SOURCES[name][version], SERVER.ips[version == 6], protocol, port)
        for version, name in names
    ]
    found: dict[int, set[str]] = {4: set(), 6: set()}
    for (version, name), arrived in zip(names, switches.arrive(sent), strict=True):
        if arrived:
            found[version].add(name)
    return found


@pytest.mark.parametrize("clause", CLAUSES)
def test_each_clause(switches: RealSwitches, clause: str) -> None:
    """Who reaches the server, in both families; the specification's evaluator says the same."""
    policies, protocol, port, expected = CLAUSES[clause]
    assert reached(switches, world(policies), protocol, port) == {4: expected, 6: expected}


@pytest.mark.parametrize("clause", TIERS)
def test_each_tier(switches: RealSwitches, clause: str) -> None:
    """ClusterNetworkPolicies: tiers, actions, priorities, in both families."""
    policies, tiers, expected = TIERS[clause]
    assert reached(switches, world(policies, tiers), "TCP", 8080) == {4: expected, 6: expected}


def to_names(*networks: dict[str, Any], name: str = "web") -> list[dict[str, Any]]:
    """One NetworkPolicy about the client: it may connect to this named port there."""
    spec = {
        "podSelector": {"matchLabels": {"app": "a"}},
        "policyTypes": ["Egress"],
        "egress": [{"to": list(networks), "ports": [{"port": name}]}],
    }
    return [{"metadata": {"namespace": "x", "name": "p"}, "spec": spec}]


def tier_to_names(number: int, action: str, *networks: str) -> dict[str, Any]:
    """An Admin rule about Pods of app a, and the named port web in these networks."""
    subject = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}}
    rule = {
        "action": action,
        "to": [{"networks": [*networks]}],
        "protocols": [{"destinationNamedPort": "web"}],
    }
    spec = {"tier": "Admin", "priority": number, "subject": subject, "egress": [rule]}
    return {"metadata": {"name": f"c{number}"}, "spec": spec}


TO_SERVER, TO_FRIEND = ("server", 8080), ("friend", 81)
EVERY_PORT = {(name, port) for name in ("server", "friend") for port in (8080, 81)}
N1, N2 = ("10.0.1.0/24", "fd00:1::/64"), ("10.0.2.0/24", "fd00:2::/64")
ALL = ("0.0.0.0/0", "::/0")
NOT_SERVER = both(*ALL, "10.0.2.10/32", "fd00:2::a/128")
NAMED: dict[str, tuple[list[Any], list[Any], set[tuple[str, int]]]] = {
    "each Pod's own number": (to_names(*both(*ALL)), [], {TO_SERVER, TO_FRIEND}),
    "only of Pods in the block": (to_names(*both(*N2)), [], {TO_SERVER}),
    "except": (to_names(*NOT_SERVER), [], {TO_FRIEND}),
    "a name that no Pod has": (to_names(*both(*ALL), name="nothing"), [], set()),
    "beside a selector": (to_names(*both(*N2), pods(app="b")), [], {TO_SERVER, TO_FRIEND}),
    "Admin denies": ([], [tier_to_names(1, "Deny", *N2)], EVERY_PORT - {TO_SERVER}),
    "Admin accepts": (
        to_names(*both(*ALL), name="nothing"), [tier_to_names(1, "Accept", *N1)], {TO_FRIEND},
    ),
    "Admin passes": (
        [], [tier_to_names(1, "Pass", *N1), tier_to_names(2, "Deny", *ALL)],
        EVERY_PORT - {TO_SERVER},
    ),
}  # fmt: skip


@pytest.mark.parametrize("clause", NAMED)
def test_a_named_port_in_a_network(switches: RealSwitches, clause: str) -> None:
    """What of two Pods' ports the client reaches, both families; the evaluator says the same."""
    policies, tiers, expected = NAMED[clause]
    cluster = world(policies, tiers)
    switches.load(cluster, intents(planned(cluster)).values())
    targets = {"server": SERVER, "friend": FRIEND}
    sent = [
        (name, port, Packet(CLIENT.ips[family], targets[name].ips[family], "TCP", port))
        for name, port in sorted(EVERY_PORT)
        for family in (0, 1)
    ]
    packets_sent = [packet for _, _, packet in sent]
    arrived = switches.arrive(packets_sent)
    assert [allowed(cluster, packet) for packet in packets_sent] == arrived
    assert [(name, port) in expected for name, port, _ in sent] == arrived


def test_the_labels_of_a_namespace_change(switches: RealSwitches) -> None:
    """Who was chosen by them is so no more."""
    before = world(peers(PODS_OF_Y))
    assert reached(switches, before, "TCP", 8080)[4] == NOBODY | {"stranger"}
    after = Cluster({"x": {"team": "y"}, "y": {}}, before.pods, before.policies)
    assert reached(switches, after, "TCP", 8080)[6] == NOBODY | {"client", "friend"}


def test_through_a_service(switches: RealSwitches) -> None:
    """
    Judged on the real source and the endpoint; the endpoint itself always gets through.

    The endpoint's own port is judged, not the Service's; both families.
    """
    for rules, expected in (
        (ingress(), {"server"}),
        ([], {"client", "stranger", "server"}),
        (peers(pods(app="a")), {"client", "server"}),
        (peers(PODS_OF_Y), {"stranger", "server"}),
        (ports({"port": 80}), {"server"}),
        (ports({"port": 8080}), {"client", "stranger", "server"}),
    ):
        cluster = world(rules)
        switches.load(cluster, intents(planned(cluster)).values(), SERVER)
        sent = [
            Packet(pod.ips[version], SERVICE[version], "TCP", 80)
            for pod in (CLIENT, STRANGER, SERVER)
            for version in (0, 1)
        ]
        arrived = switches.arrive(sent)
        for version in (0, 1):
            found = zip(("client", "stranger", "server"), arrived[version::2], strict=True)
            assert {name for name, came in found if came} == expected, rules


def test_real_packets_can_differ(switches: RealSwitches) -> None:
    """The comparison can fail: switches of one cluster, judged by another."""
    assert wrong(switches, world(peers(pods(app="a")))) == []
    assert wrong(switches, world(peers(pods(app="a"))), world(peers(pods(app="b"))))
