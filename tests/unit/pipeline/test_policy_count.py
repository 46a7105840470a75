"""Every packet of a rule is counted once, by the flows of its policy."""

from collections import Counter

from dunlin.events.intents import Clause, PolicyClassIntent, PolicyIntent, PolicyRule, PolicyTier
from dunlin.openflow.flow import Flow
from dunlin.pipeline import compile_intent
from dunlin.pipeline.policy import METRICS
from dunlin.pipeline.policy_count import Counted, counted, denies_isolated


def policy(*rules: PolicyRule, tier: PolicyTier = "default") -> tuple[Flow, ...]:
    """The flows of a policy."""
    intent = PolicyIntent(scope="all", key="ns/p", tier=tier, priority=200, rules=rules)
    return compile_intent(intent, None).flows


def test_flows_of_a_rule_that_allows() -> None:
    """The first packet, others that are judged, and established ones; the label is the rule's."""
    for direction, (metric, _, _) in METRICS.items():
        flows = policy(PolicyRule(conj_id=0x12345678, direction=direction, index=0))
        found = Counter(counted(flow) for flow in flows)
        assert found == {Counted(0x12345678): 2, Counted(0x12345678, first=True): 1}
        assert sum(flow.table == metric for flow in flows) == 1


def test_a_rule_that_denies_has_its_verdict_alone() -> None:
    """Deny and Pass allow nothing: no connection bears their number."""
    for action in ("Deny", "Pass"):
        (flow,) = policy(
            PolicyRule(conj_id=5, direction="egress", index=0, action=action),
            tier="admin",
        )
        assert counted(flow) == Counted(5)
        assert not flow.actions


def test_what_isolation_denies() -> None:
    """One flow of a class counts what no rule allowed; its clauses do not."""
    clause = Clause(direction="ingress", tier="default", priority=200, conj_id=1, number=1, of=2)
    intent = PolicyClassIntent(
        scope="all", key="1", class_id=1, role="ingress", clauses=(clause,), isolated=True
    )
    flows = compile_intent(intent, None).flows
    assert [denies_isolated(flow) for flow in flows] == [False, True]
