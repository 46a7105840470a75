"""`explain` against the second opinion: the verdict, who decided, and nobody else named."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings

from dunlin.events.intents import AnyIntent, PolicyGenerationIntent
from dunlin.explain.answer import Answer, Judgement
from dunlin.explain.policy import explain
from dunlin.explain.question import Place, Question
from dunlin.explain.world import Version, World
from dunlin_planner.core.step import intents
from tests.fixtures import cluster as nodes
from tests.scenario.policy.generate import clusters, packets
from tests.scenario.policy.oracle import (
    Cluster,
    Packet,
    Pod,
    allowed,
    applies,
    cluster_rule_matches,
    cluster_subject,
    pod_with,
    rule_allows,
)
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE
from tests.scenario.policy.walk import NODES, endpoint, planned

Name = tuple[str, str, int]
"""Namespace, policy, rule."""


def world_of(cluster: Cluster) -> World:
    """All intents of a cluster, each of revision 1."""
    wanted: list[AnyIntent] = list(intents(planned(cluster)).values())
    wanted += [nodes.switch(number) for number in NODES]
    wanted += [nodes.route(number) for number in NODES]
    wanted += [endpoint(pod) for pod in cluster.pods]
    wanted.append(PolicyGenerationIntent(scope="all", key="all", generation=1))
    return World(Version(intent, 1) for intent in wanted)


def asked(world: World, packet: Packet) -> Answer:
    """What explain says of a packet between two addresses."""
    source, destination = (Place("address", ip=ip_address(ip)) for ip in (packet.src, packet.dst))
    port = str(packet.port) if packet.port else ""
    return explain(world, Question(source, destination, port, packet.protocol))


def first_of(cluster: Cluster, tier: str, direction: str, pod: Pod, packet: Packet) -> Any:
    """(name, index, action) of the first cluster-wide rule of a tier that matches, not Pass."""
    found = [p for p in cluster.cluster_policies if p["spec"]["tier"] == tier]
    for policy in sorted(found, key=lambda p: p["spec"]["priority"]):
        if not cluster_subject(cluster, policy["spec"]["subject"], pod):
            continue
        for index, rule in enumerate(policy["spec"].get(direction) or []):
            if cluster_rule_matches(cluster, rule, direction, packet):
                name = ("", policy["metadata"]["name"], index)
                return None if rule["action"] == "Pass" else (name, rule["action"])
    return None


def expected(cluster: Cluster, direction: str, pod: Pod, packet: Packet) -> tuple[Any, ...]:
    """(allowed, why, rules, who isolates), from the specification."""
    admin = first_of(cluster, "Admin", direction, pod, packet)
    if admin is not None:
        return admin[1] == "Accept", "rule", {admin[0]}, set()
    selecting = [p for p in cluster.policies if applies(p, direction, pod)]
    names = {(p["metadata"]["namespace"], p["metadata"]["name"]) for p in selecting}
    rules: set[Name] = {
        (p["metadata"]["namespace"], p["metadata"]["name"], index)
        for p in selecting
        for index, rule in enumerate(p["spec"].get(direction) or [])
        if rule_allows(cluster, p, rule, direction, packet)
    }
    if rules:
        return True, "rule", rules, set()
    if selecting:
        return False, "isolated", set(), names
    baseline = first_of(cluster, "Baseline", direction, pod, packet)
    if baseline is not None:
        return baseline[1] == "Accept", "rule", {baseline[0]}, set()
    return True, "not selected", set(), set()


def said(judgement: Judgement) -> tuple[Any, ...]:
    """The same of an answer."""
    rules = {(r.policy.namespace, r.policy.name, r.rule) for r in judgement.rules}
    isolating = {(p.namespace, p.name) for p in judgement.isolated_by}
    return judgement.allowed, judgement.why, rules, isolating


def differences(cluster: Cluster, sent: Iterable[Packet]) -> list[str]:
    """Where explain says otherwise than the specification."""
    world = world_of(cluster)
    found = []
    for packet in sent:
        (path,) = asked(world, packet).paths
        verdict = "ALLOWED" if allowed(cluster, packet) else "DENIED"
        if path.verdict != verdict:
            found.append(f"{packet}: {path.verdict} ({path.reason}) instead of {verdict}")
        for judgement in path.judgements:
            ip = packet.src if judgement.direction == "egress" else packet.dst
            pod = pod_with(cluster, ip)
            wanted = pod and expected(cluster, judgement.direction, pod, packet)
            if pod is None and judgement.why != "not a Pod":
                found.append(f"{packet}: {judgement} though {ip} is no Pod")
            elif pod is not None and said(judgement) != wanted:
                found.append(f"{packet}: {said(judgement)} instead of {wanted}")
    return found


@given(clusters())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_explain_says_what_the_specification_says(cluster: Cluster) -> None:
    """Verdict, every rule that allows, and everybody who isolates: exactly."""
    assert differences(cluster, packets(cluster)) == []


def shop() -> Cluster:
    """One Pod that may talk to another, by two policies of which one has two rules."""
    pods = [
        Pod("shop", "web", {"app": "web"}, "n1", 11),
        Pod("shop", "db", {"app": "db"}, "n2", 12),
    ]
    peer = {"podSelector": {"matchLabels": {"app": "web"}}}
    spec = {
        "podSelector": {"matchLabels": {"app": "db"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"ports": [{"port": 1}]}, {"from": [peer], "ports": [{"port": 5432}]}],
    }
    wide = {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [peer]}]}
    return Cluster(
        {"shop": {}},
        pods,
        [
            {"metadata": {"namespace": "shop", "name": "db"}, "spec": spec},
            {"metadata": {"namespace": "shop", "name": "wide"}, "spec": wide},
        ],
    )


def test_every_rule_that_allows_is_named() -> None:
    """Also those that the switch has not picked: deleting one rule changes nothing then."""
    (path,) = asked(world_of(shop()), Packet("10.0.1.11", "10.0.2.12", "TCP", 5432)).paths
    ingress = path.judgements[-1]
    assert {rule.text for rule in ingress.rules} == {
        "NetworkPolicy shop/db, ingress rule 1",
        "NetworkPolicy shop/wide, ingress rule 0",
    }
    assert ingress.node == "n2"


@pytest.mark.parametrize("wrong", ["allow", "forget"])
def test_the_comparison_can_fail(wrong: str) -> None:
    """An explanation of another cluster is found out."""
    cluster = shop()
    sent = [Packet("10.0.1.11", "10.0.2.12", "TCP", 5432)]
    assert differences(cluster, sent) == []
    world = world_of(cluster)
    if wrong == "allow":
        cluster.policies[0]["spec"]["ingress"].pop()
        cluster.policies[1]["spec"]["ingress"].pop()
    else:
        cluster.policies.pop()
    (path,) = asked(world, sent[0]).paths
    pod = cluster.pods[1]
    assert said(path.judgements[-1]) != expected(cluster, "ingress", pod, sent[0])
