"""
Two switches take over one change at two moments: what their packets meet in between.

Each switch holds the old policies, then both, then the new ones; nothing else is waited for but
that all hold both before any holds only the new ones (ADR 0030).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings

from dunlin.events.intents import AnyIntent, PolicyCommitIntent
from dunlin.openflow.flow import Flow
from dunlin_planner.core.step import intents, step
from dunlin_planner.state import State
from tests.fixtures import cluster as nodes
from tests.scenario.policy.generate import packets
from tests.scenario.policy.oracle import Cluster, Pod, allowed
from tests.scenario.policy.test_changes import (
    Message,
    Switches,
    changes_of,
    shop,
    stream,
    two_clusters,
)
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE
from tests.scenario.policy.walk import NODES, Walker, change, endpoint

Flows = dict[int, tuple[Flow, ...]]
BEFORE = (("old", "both"), ("old", "both"))
AFTER = (("both", "new"), ("both", "new"))


def in_two_steps(messages: list[Message]) -> tuple[list[Message], list[Message]]:
    """A change as `stream` has it: up to what is prepared, and from the commit on."""
    at = next(n for n, (_, i) in enumerate(messages) if isinstance(i, PolicyCommitIntent))
    subject, commit = messages[at]
    assert isinstance(commit, PolicyCommitIntent)
    prepared = msgspec.structs.replace(
        commit, committed=commit.committed - 1, prepared=commit.committed
    )
    return [*messages[:at], (subject, prepared)], messages[at:]


class Rollout:
    """What both switches hold before, between and after one change."""

    def __init__(self, old: Cluster, new: Cluster) -> None:
        self.old, self.new = old, new
        self.switches = Switches().manage()
        pods = {pod.ips: pod for pod in (*old.pods, *new.pods)}.values()
        bases: list[AnyIntent] = [
            *(endpoint(pod) for pod in pods),
            *(nodes.route(other) for other in NODES),
        ]
        self.bases: list[Message] = [(intent.subject, intent) for intent in bases]
        self.switches.read(self.bases)
        before, wanted = changes_of(old, new)
        self.switches.read(stream(before, 1))
        self.switches.desired.held.caught_up()
        self.flows: dict[str, Flows] = {"old": self.held()}
        self.first, self.second = in_two_steps(stream(wanted, 2))
        self.switches.read(self.first)
        self.flows["both"] = self.held()
        self.switches.read(self.second)
        self.flows["new"] = self.held()

    def held(self) -> Flows:
        """What the switches hold now."""
        return {number: tuple(self.switches.flows(number).values()) for number in NODES}

    def walkers(self, times: tuple[tuple[str, ...], ...]) -> Iterator[tuple[str, Walker]]:
        """Every combination of moments."""
        for moments in product(*times):
            pairs = zip(NODES, moments, strict=True)
            flows = {number: self.flows[when][number] for number, when in pairs}
            yield "-".join(moments), Walker.of_flows(self.new, flows)

    def wrong(self, times: tuple[tuple[str, ...], ...], *, lasting: set[str]) -> list[str]:
        """Packets between these Pods that both versions treat alike, and these switches do not."""
        found = []
        sent = [p for p in packets(self.new) if {p.src, p.dst} <= lasting]
        verdicts = [(p, allowed(self.old, p), allowed(self.new, p)) for p in sent]
        for name, walker in self.walkers(times):
            for packet, was, will in verdicts:
                passed = walker.reaches(packet)
                if passed and not (was or will):
                    found.append(f"{name}: {packet} passes, and both forbid it")
                if not passed and was and will:
                    found.append(f"{name}: {packet} is dropped, and both allow it")
        return found


def lasting(old: Cluster, new: Cluster) -> set[str]:
    """Addresses of the Pods that are there before and after."""
    before, after = ({ip for pod in c.pods for ip in pod.ips} for c in (old, new))
    return before & after


def crossing(*, opens: str) -> Cluster:
    """A client on n1 and a server on n2: one direction is open, the other closed."""
    pods = [
        Pod("x", "client", {"app": "client"}, "n1", 10),
        Pod("x", "server", {"app": "server"}, "n2", 10),
    ]
    rules: dict[str, list[Any]] = {"ingress": [], "egress": [], opens: [{}]}
    policies = [
        {
            "metadata": {"namespace": "x", "name": direction},
            "spec": {
                "podSelector": {"matchLabels": {"app": who}},
                "policyTypes": [direction.capitalize()],
                direction: rules[direction],
            },
        }
        for direction, who in (("egress", "client"), ("ingress", "server"))
    ]
    return Cluster({"x": {}}, pods, policies)


@example((crossing(opens="ingress"), crossing(opens="egress")))
@example((crossing(opens="egress"), crossing(opens="ingress")))
@given(two_clusters())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_no_packet_meets_what_both_versions_forbid(both: tuple[Cluster, Cluster]) -> None:
    """In no combination of moments; nor is anything dropped that both allow."""
    rollout = Rollout(*both)
    known = lasting(*both)
    assert rollout.wrong(BEFORE, lasting=known) == []
    assert rollout.wrong(AFTER, lasting=known) == []
    assert not rollout.switches.desired.held.coming
    at_once = Switches().manage().read(rollout.bases).read(stream(changes_of(*both)[0], 1))
    at_once.read(stream(changes_of(*both)[1], 2))
    for number, flows in rollout.flows["new"].items():
        assert set(flows) == set(at_once.flows(number).values())


@pytest.mark.parametrize("opens", ["ingress", "egress"])
def test_the_gap_is_there_without_the_step_between(opens: str) -> None:
    """The comparison above can fail: one switch old, the other new, passes what both forbid."""
    other = {"ingress": "egress", "egress": "ingress"}[opens]
    rollout = Rollout(crossing(opens=other), crossing(opens=opens))
    known = lasting(rollout.old, rollout.new)
    assert rollout.wrong(BEFORE, lasting=known) == rollout.wrong(AFTER, lasting=known) == []
    gaps = rollout.wrong((("old", "new"), ("old", "new")), lasting=known)
    assert gaps
    assert all("both forbid" in gap for gap in gaps)


def test_both_versions_cost_what_changes_and_go_again() -> None:
    """While a change is prepared each changed flow stands twice; afterwards nothing is left."""
    rollout = Rollout(crossing(opens="ingress"), crossing(opens="egress"))
    walks = [f for f in rollout.flows["both"][1] if any(m.field == "reg10" and m.mask == 8
             for m in f.match)]  # fmt: skip
    assert 0 < len(walks) < 30
    for when in ("old", "new"):
        for flow in rollout.flows[when][1]:
            assert not any(m.field == "reg10" and m.mask == 8 for m in flow.match)


def test_who_does_not_know_what_stood_before_waits_for_the_commit() -> None:
    """A flowctl that starts while a change is prepared leaves policy as it is on the switches."""
    old, new = shop("b", "c"), shop("c", port="http")
    before, wanted = changes_of(old, new)
    first, second = in_two_steps(stream(wanted, 2))
    late = Switches().manage()
    last = dict([*stream(before, 1), *first])
    late.read((s, i) for s, i in last.items() if i is not None)
    late.desired.held.caught_up()
    assert late.desired.held.incomplete
    assert late.desired.held.prepared == 0
    late.read(second)
    assert not late.desired.held.incomplete
    fresh = Switches().manage().read(stream(changes_of(Cluster(), new)[1], 1))
    assert {n: late.flows(n) for n in NODES} == {n: fresh.flows(n) for n in NODES}


def test_a_change_that_comes_while_one_is_prepared() -> None:
    """It joins: old and newest are held; what a change takes back is as it was."""
    worlds = [crossing(opens="ingress"), crossing(opens="egress"), crossing(opens="ingress")]
    state = State()
    switches = Switches().manage()
    switches.read(stream(step(state, change(Cluster(), worlds[0])).intents, 1))
    switches.desired.held.caught_up()
    old = {n: switches.flows(n) for n in NODES}
    for number, (was, will) in enumerate(pairwise(worlds), 2):
        first, _ = in_two_steps(stream(step(state, change(was, will)).intents, number))
        subject, prepared = first[-1]
        assert isinstance(prepared, PolicyCommitIntent)
        gone = [i for i in switches.desired.intents if i.split("/")[1].startswith("policy")
                and not any(i == w.id for w in intents(state).values())]  # fmt: skip
        said = msgspec.structs.replace(prepared, committed=1, gone=tuple(gone))
        switches.read([*first[:-1], (subject, said)])
        assert switches.desired.held.prepared == number
    again = {
        n: {
            key: flow
            for key, flow in switches.flows(n).items()
            if flow.table != 50 or flow.priority < 220
        }
        for n in NODES
    }
    assert again == old
