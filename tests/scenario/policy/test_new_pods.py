"""
A Pod comes while policies stand: what its packets meet until both switches know it (ADR 0039).

Its own switch lifts its fence; the other one learns what it is as a peer. Two switches act at two
moments; where the planner says so, the first waits for the second.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from hypothesis import assume, event, example, given, settings
from hypothesis import strategies as st

from dunlin.events.intents import AnyIntent
from dunlin.openflow.flow import Flow
from dunlin_planner.core.policy.order import Wanted
from dunlin_planner.core.step import Changes, intents, step
from tests.fixtures import cluster as nodes
from tests.scenario.policy.cases import to_network
from tests.scenario.policy.generate import clusters, packets
from tests.scenario.policy.oracle import Cluster, Pod, allowed
from tests.scenario.policy.test_changes import Message, Switches, stream
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE
from tests.scenario.policy.walk import NODES, Walker, change, endpoint, planned


class Arrival:
    """The last Pod of a cluster comes: the flows of both switches before, between and after."""

    def __init__(self, cluster: Cluster, *, heeded: bool = True) -> None:
        """`heeded`: what the planner says of fences is done; else all is one change."""
        self.cluster, self.pod = cluster, cluster.pods[-1]
        before = replace(cluster, pods=cluster.pods[:-1])
        state = planned(before)
        standing: Wanted = dict(intents(state))
        self.changes: Changes = step(state, change(before, cluster))
        wanted = self.changes.intents
        later = self.changes.fenced if heeded else set()
        self.switches = Switches().manage()
        bases: list[AnyIntent] = [
            *(endpoint(pod) for pod in cluster.pods),
            *(nodes.route(other) for other in NODES),
        ]
        base: list[Message] = [(intent.subject, intent) for intent in bases]
        self.switches.read(base).read(stream(standing, 1))
        self.switches.desired.held.caught_up()
        self.flows = {"old": self._held()}
        self.switches.read(stream({s: i for s, i in wanted.items() if s not in later}, 2))
        self.flows["known"] = self._held()
        self.switches.read(stream({s: wanted[s] for s in later}, 3))
        self.flows["new"] = self._held()

    def _held(self) -> dict[int, tuple[Flow, ...]]:
        return {number: tuple(self.switches.flows(number).values()) for number in NODES}

    def leaks(self) -> list[str]:
        """What passes to or from the Pod at some moment, and is forbidden."""
        own = set(self.pod.ips)
        sent = [p for p in packets(self.cluster) if {p.src, p.dst} & own]
        forbidden = [p for p in sent if not allowed(self.cluster, p)]
        found = []
        for moments in (*product(("old", "known"), repeat=2), *product(("known", "new"), repeat=2)):
            pairs = zip(NODES, moments, strict=True)
            flows = {number: self.flows[when][number] for number, when in pairs}
            walker = Walker.of_flows(self.cluster, flows)
            found += [f"{moments}: {p} passes" for p in forbidden if walker.reaches(p)]
        return found


def against(action: str, direction: str, *more: dict[str, Any]) -> Cluster:
    """A server on n1 with a rule about role `evil`, and such a Pod that comes on n2."""
    pods = [
        Pod("x", "server", {"app": "server"}, "n1", 10),
        Pod("x", "new", {"role": "evil"}, "n2", 10),
    ]
    side = {"ingress": "from", "egress": "to"}[direction]
    spec = {
        "tier": "Admin",
        "priority": 1,
        "subject": {"pods": _pods(app="server")},
        direction: [{"action": action, side: [{"pods": _pods(role="evil")}]}, *more],
    }
    return Cluster({"x": {}}, pods, [], [{"metadata": {"name": "c"}, "spec": spec}])


def _pods(**labels: str) -> dict[str, Any]:
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}


PASSED_ON = replace(
    against("Pass", "egress", {"action": "Accept", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}),
    policies=[
        {
            "metadata": {"namespace": "x", "name": "deny"},
            "spec": {"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Egress"]},
        }
    ],
)


NAMED = Cluster(
    {"x": {}},
    [
        Pod("x", "server", {}, "n1", 10),
        Pod("x", "new", {}, "n2", 10, (("web", "TCP", 80), ("dns", "UDP", 8080))),
    ],
    [],
    [
        to_network("Deny", "10.0.2.0/24", "fd00:2::/64"),
        to_network("Deny", "10.0.2.0/24", "fd00:2::/64", name="dns", priority=1),
    ],
)
"""It is known by its ports and where it is."""


@example(against("Deny", "ingress"))
@example(against("Deny", "egress"))
@example(PASSED_ON)
@example(NAMED)
@given(clusters())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 8))
def test_nothing_forbidden_passes_before_everybody_knows_the_pod(cluster: Cluster) -> None:
    """Whatever policies there are, at any moment of either switch; and in the end it is as ever."""
    assume(len(cluster.pods) > 1)
    arrival = Arrival(cluster)
    event("fenced" if arrival.changes.fenced else "at once")
    assert arrival.leaks() == []
    at_once = Arrival(cluster, heeded=False)
    for number in NODES:
        assert set(arrival.flows["new"][number]) == set(at_once.flows["new"][number])


def test_the_leak_is_there_without_the_fence() -> None:
    """The comparison above can fail: where its own switch is first, a denied Pod passes."""
    for cluster in (against("Deny", "ingress"), against("Deny", "egress"), PASSED_ON, NAMED):
        assert Arrival(cluster).changes.fenced
        assert Arrival(cluster).leaks() == []
        assert Arrival(cluster, heeded=False).leaks()


@given(st.sampled_from(["ingress", "egress"]))
@settings(max_examples=2)
def test_who_is_accepted_or_not_named_waits_for_nobody(direction: str) -> None:
    """Only rules that deny or pass on make a Pod wait, and only those that name it."""
    assert not Arrival(against("Accept", direction)).changes.fenced
    other = against("Deny", direction)
    other.pods[-1] = replace(other.pods[-1], labels={"role": "good"})
    assert not Arrival(other).changes.fenced


def test_a_named_port_elsewhere_waits_for_nobody() -> None:
    """The Pod has the port that a rule denies, or is in its network, but not both."""
    elsewhere = [to_network("Deny", "10.0.1.0/24"), to_network("Deny", "fd00:2::/64", name="no")]
    assert not Arrival(replace(NAMED, cluster_policies=elsewhere)).changes.fenced


def test_a_pod_that_was_there_does_not_wait() -> None:
    """Its labels change, a policy comes: ADR 0030 sees to that, and its fence is lifted already."""
    cluster = against("Deny", "ingress")
    plain = replace(cluster, pods=[cluster.pods[0], replace(cluster.pods[1], labels={})])
    assert not step(planned(plain), change(plain, cluster)).fenced
    without = replace(cluster, cluster_policies=[])
    assert not step(planned(without), change(without, cluster)).fenced
