"""Compiled policies against the second opinion, over clusters that Hypothesis draws."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dunlin_planner.core.step import findings, intents
from tests.scenario.policy.cases import HISTORIES, KEPT
from tests.scenario.policy.generate import clusters, named_clusters, named_packets, packets
from tests.scenario.policy.oracle import Cluster, Packet, allowed
from tests.scenario.policy.walk import Walker, planned, walker

EXAMPLES = int(os.environ.get("DUNLIN_POLICY_EXAMPLES", "240"))
"""Each is a cluster and some 44 packets: more than 10,000 cases."""

PROFILE = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def differences(cluster: Cluster, seen: Walker, sent: Iterable[Packet] | None = None) -> list[str]:
    """Packets that the flows treat otherwise than the specification says."""
    found = []
    for packet in packets(cluster) if sent is None else sent:
        wanted = allowed(cluster, packet)
        if seen.reaches(packet) != wanted:
            found.append(f"{packet}: must {'arrive' if wanted else 'be dropped'}")
    return found


def kept(test: Callable[..., None]) -> Callable[..., None]:
    """With every case that is kept, before those that are drawn."""
    for cluster in KEPT.values():
        test = example(cluster)(test)
    return test


@kept
@given(clusters())
@PROFILE
def test_flows_do_what_the_specification_says(cluster: Cluster) -> None:
    """Every packet arrives exactly when the naive evaluator says so."""
    assert differences(cluster, walker(cluster)) == []


@given(st.lists(named_clusters(), min_size=1, max_size=2))
@settings(PROFILE, max_examples=max(1, EXAMPLES // 8))
def test_named_ports_in_networks(history: list[Cluster]) -> None:
    """By name, to the Pods of networks: every port that a name may stand for, after any change."""
    state, last = planned(*history), history[-1]
    assert intents(state) == intents(planned(last))
    assert differences(last, Walker(last, intents(state).values()), named_packets(last)) == []


def kept_histories(test: Callable[..., None]) -> Callable[..., None]:
    """With every change that is kept, and back again."""
    for history in HISTORIES:
        test = example(history)(example(history[::-1])(test))
    return test


@kept_histories
@given(st.lists(clusters(), min_size=2, max_size=3))
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_a_changed_cluster_is_a_new_one(history: list[Cluster]) -> None:
    """After any change the intents are those of the last cluster alone."""
    state = planned(*history)
    assert intents(state) == intents(planned(history[-1]))
    assert findings(state) == []
    assert differences(history[-1], Walker(history[-1], intents(state).values())) == []
