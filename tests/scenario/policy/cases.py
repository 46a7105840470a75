"""
Clusters on which a mistake once showed, or shows when it is made: they stay.

Drawn by Hypothesis and shrunk, then named; a new failing case is added here, and
`test_kept_cases.py` says which mistake it catches. All of them run in every test run, as examples.
"""

from __future__ import annotations

from typing import Any

from tests.scenario.policy.oracle import Cluster, Pod

A, B = Pod("x", "pod0", {}, "n1", 10), Pod("x", "pod1", {"app": "a"}, "n2", 10)
PODS = [A, B]
SPACES: dict[str, dict[str, str]] = {"x": {}, "y": {}}


def policy(**spec: Any) -> list[dict[str, Any]]:
    """About every Pod of x, unless it says otherwise."""
    return [{"metadata": {"namespace": "x", "name": "p0"}, "spec": {"podSelector": {}, **spec}}]


def tier(name: str, priority: int, *rules: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """About every Pod."""
    spec = {"tier": name, "priority": priority, "subject": {"namespaces": {}}, "ingress": [*rules]}
    return {"metadata": {"name": f"c{number}"}, "spec": spec}


def rule(action: str, **more: Any) -> dict[str, Any]:
    """From every Pod."""
    return {"action": action, "from": [{"namespaces": {}}], **more}


def ingress(*rules: Any) -> list[dict[str, Any]]:
    """Rules of one NetworkPolicy."""
    return policy(ingress=list(rules))


NOT_A = {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}
IS_A = {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a"]}]}
WEB_80, WEB_81 = (
    Pod("x", f"pod{n}", {}, f"n{1 + n % 2}", 11, (("web", "TCP", number),))
    for n, number in ((2, 80), (3, 81))
)
DRAWN = Pod("x", "pod3", {}, "n2", 11, (("web", "TCP", 80),))
UDP_WEB = Pod("x", "pod2", {}, "n1", 11, (("web", "UDP", 80),))
PASSES = [tier("Admin", 0, rule("Pass")), tier("Admin", 4, rule("Deny"), number=1)]

TO_WEB = [{"protocol": "TCP", "port": "web"}]


def to_network(action: str, *networks: str, name: str = "web", priority: int = 0) -> dict[str, Any]:
    """An Admin rule about every Pod, and a named port of what it connects to in these networks."""
    there = {"action": action, "to": [{"networks": [*networks]}],
             "protocols": [{"destinationNamedPort": name}]}  # fmt: skip
    spec = {"tier": "Admin", "priority": priority, "subject": {"namespaces": {}}, "egress": [there]}
    return {"metadata": {"name": f"c{priority}"}, "spec": spec}


KEPT: dict[str, Cluster] = {
    "NotIn holds where the key is absent": Cluster(
        SPACES, PODS, [],
        [{"metadata": {"name": "c0"}, "spec": {
            "tier": "Admin", "priority": 0,
            "subject": {"pods": {"namespaceSelector": NOT_A, "podSelector": IS_A}},
            "ingress": [rule("Deny")]}}],
    ),
    "a name without a protocol is TCP": Cluster(
        SPACES, [*PODS, UDP_WEB], ingress({"ports": [{"port": "web"}]}),
    ),
    "the end of a range": Cluster(
        SPACES, PODS, ingress({"ports": [{"port": 79, "endPort": 81}]}),
    ),
    "a name is another number in each Pod": Cluster(
        SPACES, [*PODS, WEB_80, WEB_81], ingress({"ports": [{"port": "web"}]}),
    ),
    "the first rule that matches decides": Cluster(
        SPACES, PODS, [], [tier("Admin", 0, rule("Accept"), rule("Deny"))],
    ),
    "Pass is no Accept": Cluster(SPACES, PODS, policy(), PASSES),
    "a ClusterNetworkPolicy does not isolate": Cluster(
        SPACES, PODS, [], [tier("Baseline", 0, rule("Accept"))],
    ),
    "except holds for addresses of Pods": Cluster(
        SPACES, PODS,
        ingress({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.1.10/32"]}}]}),
    ),
    # Drawn with --hypothesis-seed=101 and DUNLIN_POLICY_EXAMPLES=1000.
    "a named port in a network is that of Pods there": Cluster(
        SPACES, [*PODS, DRAWN], [], [to_network("Deny", "0.0.0.0/0")],
    ),
    "a named port in a network is no other address's": Cluster(
        SPACES, [*PODS, WEB_80], [], [to_network("Deny", "0.0.0.0/0", "::/0")],
    ),
    "a named port in a network is not that of Pods elsewhere": Cluster(
        SPACES, [*PODS, WEB_80, WEB_81],
        policy(policyTypes=["Egress"], egress=[{"ports": TO_WEB, "to": [
            {"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.2.0/24"]}}]}]),
    ),
}  # fmt: skip

MOVED = Pod("x", "pod3", {}, "n2", 12, (("web", "TCP", 81),))
OTHER_NUMBER = Pod("x", "pod3", {}, "n2", 11, (("web", "TCP", 443),))
OTHER_NAME = Pod("x", "pod3", {}, "n2", 11, (("dns", "TCP", 81),))
OTHER_NAMESPACE = Pod("y", "pod3", {"app": "a"}, "n2", 11, (("web", "TCP", 81),))


def _with(*pods: Pod) -> Cluster:
    """Of each action one, and of each form of peer one, about names in networks."""
    networks = [
        to_network("Pass", "10.0.1.0/24", "fd00:1::/64", name="dns"),
        to_network("Accept", "10.0.2.11/32", "fd00:1::/64", priority=4),
        to_network("Deny", "10.0.0.0/16", "fd00:2::/64", priority=5),
    ]
    to = [{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.0.1.8/29"]}},
          {"podSelector": IS_A}]  # fmt: skip
    names = [{"ports": [{"port": "web"}, {"port": "dns"}], "to": to}]
    return Cluster(SPACES, [*PODS, *pods], policy(policyTypes=["Egress"], egress=names), networks)


HISTORIES: list[list[Cluster]] = [
    [_with(), _with(WEB_81)],
    [_with(WEB_80, WEB_81), _with(WEB_80)],
    [_with(WEB_81), _with(MOVED)],
    [_with(WEB_80, WEB_81), _with(WEB_80, OTHER_NUMBER), _with(WEB_80, WEB_81)],
    [_with(WEB_80, WEB_81), _with(WEB_80, OTHER_NAME)],
    [_with(WEB_81), _with(OTHER_NAMESPACE)],
    [_with(UDP_WEB, WEB_81), Cluster(SPACES, [*PODS, UDP_WEB, WEB_81]), _with(UDP_WEB, WEB_81)],
]
"""Changes that are kept: a Pod with a named port in a network comes, goes, and becomes another."""
