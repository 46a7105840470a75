"""Bad policies: named by field, and closed for what they select."""

import json
from typing import Any

import pytest

from dunlin.events.facts import Protocol
from dunlin_planner.core.policy.model import EVERYTHING, Policy, PortRange
from dunlin_planner.core.policy.parse import parse_policy
from dunlin_planner.core.policy.parse_cluster import parse_cluster_policy
from dunlin_planner.core.policy.variants import masked

SELECTOR = {"matchLabels": {"app": "web"}}
SUBJECT: dict[str, dict[str, str]] = {"namespaces": {}}


def parsed(spec: Any) -> tuple[Policy, list[str]]:
    """The policy, and the fields that are at fault."""
    policy, faults = parse_policy("shop", "p", json.dumps(spec).encode())
    return policy, [fault.field for fault in faults]


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"from": [{}]}, "spec.ingress[0].from[0]"),
        ({"from": [{"ipBlock": {"cidr": "x"}}]}, "spec.ingress[0].from[0].ipBlock.cidr"),
        (
            {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]},
            "spec.ingress[0].from[0].ipBlock.except[0]",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Gt"}]}}]},
            "spec.ingress[0].from[0].podSelector.matchExpressions[0].operator",
        ),
        ({"ports": [{"protocol": "ICMP"}]}, "spec.ingress[0].ports[0].protocol"),
        ({"ports": [{"port": 90, "endPort": 80}]}, "spec.ingress[0].ports[0].endPort"),
        ({"ports": [{"port": 0}]}, "spec.ingress[0].ports[0].port"),
        ({"unheard": 1}, "spec.ingress[0].unheard"),
    ],
)
def test_a_bad_rule_allows_nothing(rule: dict[str, Any], field: str) -> None:
    """It is named and left out; the policy isolates, and its other rules stay."""
    policy, fields = parsed({"podSelector": SELECTOR, "ingress": [rule, {}]})
    assert fields == [field]
    assert [rule.index for rule in policy.rules] == [1]
    assert policy.directions == ("ingress",)


def test_what_cannot_be_read_isolates_more() -> None:
    """A bad podSelector selects the namespace, bad types are both."""
    policy, fields = parsed({"podSelector": {"matchLabels": 1}})
    assert (policy.subject.pods, fields) == (EVERYTHING, ["spec.podSelector.matchLabels"])
    for types in (["Ingres"], "Ingress", [1]):
        policy, fields = parsed({"podSelector": SELECTOR, "policyTypes": types})
        assert (policy.directions, fields) == (("ingress", "egress"), ["spec.policyTypes"])
    policy, fields = parsed([])
    assert (policy.directions, policy.rules) == (("ingress", "egress"), ())


@pytest.mark.parametrize(
    ("action", "peers"), [("Accept", ()), ("Pass", ()), ("Deny", None), ("Log", None)]
)
def test_a_bad_cluster_rule_is_closed(action: str, peers: Any) -> None:
    """Accept and Pass match nobody, Deny and the unknown match everybody."""
    rule = {"action": action, "to": [{"domainNames": ["example.org"]}]}
    spec = {"tier": "Admin", "priority": 1, "subject": SUBJECT, "egress": [rule]}
    policy, faults = parse_cluster_policy("c", json.dumps(spec).encode())
    assert policy is not None
    assert len(faults) == 1
    assert policy.rules[0].peers == peers


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"tier": "Root"}, "spec.tier"),
        ({"priority": 1001}, "spec.priority"),
        ({"subject": {}}, "spec.subject"),
    ],
)
def test_a_cluster_policy_for_nobody_knows_whom(change: dict[str, Any], field: str) -> None:
    """It is refused as a whole, by name."""
    spec = {"tier": "Admin", "priority": 1, "subject": SUBJECT, **change}
    policy, faults = parse_cluster_policy("c", json.dumps(spec).encode())
    assert policy is None
    assert [fault.field for fault in faults] == [field]


@pytest.mark.parametrize("ends", [(0, 65535), (1, 65535), (80, 80), (79, 443), (32767, 32769)])
def test_masks_are_exactly_the_range(ends: tuple[int, int]) -> None:
    """Every port of a range is matched by one mask, and no other port."""
    keys = list(masked(PortRange(Protocol.TCP, *ends)))
    hits = [sum(port & key.mask == key.value for key in keys) for port in range(65536)]
    assert hits == [int(ends[0] <= port <= ends[1]) for port in range(65536)]
    assert len(keys) <= 30
