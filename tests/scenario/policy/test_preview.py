"""What `dunlin plan` says is what the naive evaluator and the flows say; and it changes nothing."""

from __future__ import annotations

from collections import defaultdict
from ipaddress import ip_address
from itertools import product
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.events.facts import Fact, Protocol, kind_of
from dunlin.events.intents import AnyIntent, PolicyGenerationIntent
from dunlin.pipeline import compile_intent
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.preview.ports import (
    EVERYTHING,
    OTHERS,
    Ports,
    described,
    has,
    span,
)
from dunlin_planner.core.preview.preview import Connection, Preview, preview
from dunlin_planner.core.preview.reach import Row, Workload, changes
from dunlin_planner.core.step import intents
from tests.scenario.policy.oracle import Cluster, Packet, Pod, allowed
from tests.scenario.policy.test_changes import CLIENT, FRIEND, SERVER, shop, two_clusters
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE
from tests.scenario.policy.walk import OUTSIDE, change, facts, planned

PROBES = [(p, port) for p in ("TCP", "UDP", "SCTP") for port in (80, 81, 443, 8080)]
PROBES += [("ICMP", 0)]


def by_kind(cluster: Cluster) -> dict[str, list[Fact]]:
    """Facts as the planner keeps them."""
    found: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts(cluster):
        found[kind_of(type(fact))].append(fact)
    return found


def seen(old: Cluster, new: Cluster) -> Preview:
    """What the change would do."""
    return preview(by_kind(old), change(old, new))


@st.composite
def same_pods(draw: st.DrawFn) -> tuple[Cluster, Cluster]:
    """Policies and labels change; the Pods are the same."""
    old, new = draw(two_clusters())
    names = {pod.name for pod in new.pods}
    return Cluster(old.namespaces, [p for p in old.pods if p.name in names], old.policies,
        old.cluster_policies), new  # fmt: skip


@given(same_pods())
@settings(PROFILE, max_examples=EXAMPLES)
def test_pairs_are_those_of_the_specification(both: tuple[Cluster, Cluster]) -> None:
    """For each pair of Pods, family and probe: opened and closed are what the oracle says."""
    old, new = both
    said = seen(old, new)
    each = {PodName(p.namespace, p.name): Workload(p.namespace, p.name) for p in new.pods}
    rows = changes(*said.moments, each).rows
    for source, destination in product(new.pods, new.pods):
        if source.name == destination.name:
            continue
        for family in (0, 1):
            opened, closed = found(rows, source, destination, family)
            for protocol, port in PROBES:
                packet = Packet(source.ips[family], destination.ips[family], protocol, port)
                was, is_ = allowed(old, packet), allowed(new, packet)
                assert has(opened, protocol, port) == (is_ and not was), packet
                assert has(closed, protocol, port) == (was and not is_), packet


def found(rows: Any, source: Pod, destination: Pod, family: int) -> tuple[Ports, Ports]:
    """What the rows say of this pair."""
    ends = (Workload(source.namespace, source.name),
            Workload(destination.namespace, destination.name))  # fmt: skip
    mine = [r for r in rows if r[:2] == ends and r.family in ("", ("IPv4", "IPv6")[family])]
    assert len(mine) <= 1
    return (mine[0].opened, mine[0].closed) if mine else (0, 0)


@given(same_pods())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 2))
def test_connections_that_would_be_cut(both: tuple[Cluster, Cluster]) -> None:
    """Exactly those that are allowed now and would not be; also from and to outside."""
    old, new = both
    said = seen(old, new)
    for family in (0, 1):
        places = [pod.ips[family] for pod in new.pods] + [OUTSIDE[4 if family == 0 else 6]]
        for source, destination in product(places, places):
            if source == destination or {source, destination} <= set(OUTSIDE.values()):
                continue
            for protocol, port in PROBES:
                packet = Packet(source, destination, protocol, port)
                cut = allowed(old, packet) and not allowed(new, packet)
                link = Connection(protocol, ip_address(source), ip_address(destination), port)
                assert said.is_cut(link) == cut, packet
                if cut:
                    ends = {said.pod(link.source), said.pod(link.destination)} - {None}
                    assert ends <= said.closes()


@given(same_pods())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_flows_are_those_of_the_next_plan(both: tuple[Cluster, Cluster]) -> None:
    """Added, removed, modified: as comparing all flows of both clusters from scratch."""
    old, new = both
    said = seen(old, new)
    before, after = all_flows(old), all_flows(new)
    for scope in before.keys() | after.keys():
        one, two = before[scope], after[scope]
        delta = said.flows.get(scope)
        counts = (delta.added, delta.removed, delta.modified) if delta else (0, 0, 0)
        assert counts == (
            len(two.keys() - one.keys()),
            len(one.keys() - two.keys()),
            sum(one[key] != two[key] for key in one.keys() & two.keys()),
        )


def all_flows(cluster: Cluster) -> dict[str, dict[Any, Any]]:
    """Every flow of policy, by scope."""
    found: dict[str, dict[Any, Any]] = defaultdict(dict)
    wanted: list[AnyIntent] = list(intents(planned(cluster)).values())
    for intent in wanted:
        if not isinstance(intent, PolicyGenerationIntent):
            for flow in compile_intent(intent, None).flows:
                found[intent.scope][flow.key] = flow
    return found


def test_a_comparison_that_is_wrong_is_seen() -> None:
    """The tests above can fail: judged against another cluster the rows do not fit."""
    said = seen(shop("b", "c"), shop("c"))
    row = Row(Workload("x", "b"), Workload("x", "a"), "", 0, span(Protocol.TCP, 8080, 8080))
    assert dict(said.reach.rows) == {row: 1}
    assert (said.reach.pairs, said.reach.opened, said.reach.closed) == (1, 0, 1)
    cut = Connection("TCP", ip_address(CLIENT.ips[0]), ip_address(SERVER.ips[0]), 8080)
    kept = Connection("TCP", ip_address(FRIEND.ips[0]), ip_address(SERVER.ips[0]), 8080)
    assert (said.is_cut(cut), said.is_cut(kept)) == (True, False)


def test_ports_for_people() -> None:
    """Whole protocols, ranges, and what is missing of nearly all."""
    some = span(Protocol.TCP, 80, 80) | span(Protocol.TCP, 8000, 8010) | span(Protocol.UDP)
    assert described(some) == ("TCP/80", "TCP/8000-8010", "UDP")
    assert described(EVERYTHING) == ("all",)
    but = EVERYTHING & ~span(Protocol.TCP, 22, 22)
    assert described(but) == ("TCP but 22", "UDP", "SCTP", "ICMP and others")
    assert described(OTHERS) == ("ICMP and others",)
    assert described(span(Protocol.TCP, 65535, 65535)) == ("TCP/65535",)
