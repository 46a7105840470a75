"""Flows of policies, summed by rule and by who isolates."""

from msgspec.structs import replace

from dunlin.events.intents import PolicyClassIntent, PolicyIntent, PolicyRule
from dunlin.openflow.flow import Flow
from dunlin.openflow.messages import InstalledFlow
from dunlin.pipeline import compile_intent
from dunlin.pipeline.layout import Priority
from dunlin_flowctl.core.desired import IntentVersion
from dunlin_flowctl.policy_counters import PolicySums

POLICY = PolicyIntent(
    scope="all", key="shop/web", object="networkpolicy/shop/web", tier="default", priority=200,
    rules=(
        PolicyRule(conj_id=7, direction="ingress", index=0),
        PolicyRule(conj_id=8, direction="egress", index=0),
    ),
)  # fmt: skip
SUBJECTS = PolicyClassIntent(
    scope="all", key="ab", class_id=0xAB, role="ingress", isolated=True,
    policies=("/wide", "shop/b", "shop/a"),
)  # fmt: skip
KNOWN = {intent.id: IntentVersion(intent, 1) for intent in (POLICY, SUBJECTS)}


def installed(flow: Flow, packets: int) -> InstalledFlow:
    """As a dump has it; packets of 100 bytes."""
    return InstalledFlow(flow, packets, packets * 100, 1.0)


def test_a_rule_is_the_sum_of_its_flows() -> None:
    """Established packets, first ones and others that were judged; connections are the first."""
    sums = PolicySums(KNOWN)
    for flow in compile_intent(POLICY, None).flows:
        first = any(item.field == "ct_mark" for item in flow.match)
        sums.add(POLICY.id, installed(flow, 3 if first else 10))
    assert [(r.direction, r.packets, r.bytes, r.connections) for r in sums.rules] == [
        ("egress", 23, 2300, 3),
        ("ingress", 23, 2300, 3),
    ]
    assert {rule.object for rule in sums.rules} == {"networkpolicy/shop/web"}


def test_denied_by_networkpolicies_alone() -> None:
    """A ClusterNetworkPolicy that selects the Pod isolates nobody."""
    sums = PolicySums(KNOWN)
    (flow,) = compile_intent(SUBJECTS, None).flows
    assert flow.priority == Priority.DROP
    sums.add(SUBJECTS.id, installed(flow, 4))
    (denied,) = sums.denied
    assert (denied.policies, denied.direction, denied.packets) == (
        ["shop/a", "shop/b"],
        "ingress",
        4,
    )


def test_what_has_changed_meanwhile_is_left_out() -> None:
    """An intent that goes, or a rule that is on its way out, while a dump comes in."""
    gone = replace(POLICY, key="shop/gone")
    old = replace(POLICY, rules=(PolicyRule(conj_id=99, direction="ingress", index=0),))
    sums = PolicySums(KNOWN)
    sums.add(gone.id, installed(compile_intent(gone, None).flows[0], 5))
    sums.add(POLICY.id, installed(compile_intent(old, None).flows[0], 5))
    assert sums.rules == []
