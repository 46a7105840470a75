"""Counters of policies: from flowctl's answer to REST and Prometheus."""

import msgspec

from dunlin import subjects
from dunlin.events.intents import PolicyIntent, PolicyRule, PolicyTier
from dunlin_metrics.core import step
from dunlin_metrics.counters import Counters, Denied, Rule
from dunlin_metrics.events import Polled
from dunlin_metrics.policies import bounded, policies
from dunlin_metrics.state import State
from tests.unit.metrics.build import read, started
from tests.unit.metrics.test_exposition import lines

WEB = "all/policy/shop/web"
FIREWALL = "all/policy//firewall"


def policy(key: str, *rules: PolicyRule) -> PolicyIntent:
    """The verdicts of a policy."""
    tier: PolicyTier = "admin" if key.startswith("/") else "default"
    return PolicyIntent(scope="all", key=key, tier=tier, priority=200, rules=rules)


def judged() -> State:
    """A policy with two rules, and a cluster-wide one that denies."""
    state = started()
    read(
        state,
        subjects.INTENTS_STREAM,
        policy(
            "shop/web",
            PolicyRule(conj_id=7, direction="ingress", index=0),
            PolicyRule(conj_id=8, direction="ingress", index=1),
        ),
        policy("/firewall", PolicyRule(conj_id=9, direction="egress", index=2, action="Deny")),
    )
    return state


def poll(state: State, now_ms: int, *parts: Rule | Denied, node: str = "n1") -> None:
    """One reading of a switch."""
    rules = tuple(part for part in parts if isinstance(part, Rule))
    denied = tuple(part for part in parts if isinstance(part, Denied))
    step(state, Polled(Counters(node, rules=rules, denied=denied), now_ms))


def rule(conj_id: int, packets: int, index: int = 0, connections: int = 1) -> Rule:
    """A rule of `web`; packets of 100 bytes."""
    return Rule(WEB, conj_id, "ingress", index, packets, packets * 100, connections=connections)


def deny(packets: int, *names: str) -> Denied:
    """Isolated by these."""
    return Denied("all/policyclass/ab", "ingress", packets, packets * 60, names)


def test_a_rule_sums_switches_and_conjunctions() -> None:
    """A named port makes several conjunctions of one rule; every switch counts its own packets."""
    state = judged()
    poll(state, 1, rule(7, 10), rule(17, 5))
    poll(state, 2, rule(7, 3), node="n2")
    web = policies(state, "shop")["items"][0]
    first, second = web["rules"]
    assert (first["packets"], first["bytes"], first["connections"]) == (18, 1800, 3)
    assert (second["rule"], second["packets"]) == (1, 0), "a rule that nothing has used is shown"
    assert (web["kind"], web["exists"]) == ("NetworkPolicy", True)


def test_a_rule_that_changed_counts_on() -> None:
    """Changed content is a new conjunction with new flows: the rule's totals never fall."""
    state = judged()
    poll(state, 1, rule(7, 10))
    poll(state, 2, rule(70, 1))
    assert policies(state, "shop")["items"][0]["rules"][0]["packets"] == 11


def test_denied_names_everybody_who_isolates() -> None:
    """All policies that select the Pods are named; rules that deny stand beside them."""
    state = judged()
    poll(
        state,
        1,
        deny(4, "shop/a", "shop/b"),
        Rule(FIREWALL, 9, "egress", 2, 6, 360, action="Deny"),
    )
    isolated, denied = sorted(policies(state)["denied"], key=lambda row: row["rule"] is not None)
    assert isolated["policies"] == ["shop/a", "shop/b"]
    assert (isolated["namespace"], isolated["direction"]) == ("shop", "ingress")
    assert (isolated["rule"], isolated["packets"], isolated["bytes"]) == (None, 4, 240)
    assert (denied["policies"], denied["rule"], denied["packets"]) == (["firewall"], 2, 6)
    assert len(policies(state, "shop")["denied"]) == 1


def test_series() -> None:
    """Prometheus has both families."""
    state = judged()
    poll(state, 1, rule(7, 10), deny(4, "shop/a", "shop/b"))
    labels = '{action="Accept",direction="ingress",namespace="shop",policy="web",rule="0"}'
    denied = '{direction="ingress",namespace="shop",policies="a,b",rule=""}'
    assert {
        f"dunlin_networkpolicy_rule_packets_total{labels} 10.0",
        f"dunlin_networkpolicy_rule_connections_total{labels} 1.0",
        f"dunlin_networkpolicy_denied_packets_total{denied} 4.0",
    } <= lines(state)


def test_series_are_bounded() -> None:
    """Beyond the bound everything is summed in one series: nothing is lost, nothing grows."""
    state = judged()
    poll(state, 1, *(rule(number, 1, index=number) for number in range(50)))
    found = [line for line in lines(state, 10) if "rule_packets_total" in line]
    assert len(found) == 11
    (rest,) = (line for line in found if "_other" in line)
    assert rest.endswith(" 40.0")
    assert bounded([(("a",), [1])], 0, ("x",)) == {("x",): [1]}


def test_a_policy_that_went() -> None:
    """Its totals stay for a while, and say that it is no longer there."""
    state = judged()
    poll(state, 1, rule(7, 10))
    state.policies.clear()
    (web,) = policies(state, "shop")["items"]
    assert (web["exists"], web["rules"][0]["packets"]) == (False, 10)


def test_an_older_flowctl() -> None:
    """Answers without these fields are read as before."""
    assert msgspec.json.decode(b'{"node": "n1"}', type=Counters).rules == ()
