"""What happens between two policies: no packet meets half a change; running connections follow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.events.intents import (
    AnyIntent,
    PolicyClassIntent,
    PolicyCommitIntent,
    PolicySubjectIntent,
)
from dunlin.events.intents import intent_id as make_id
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.flow import Flow
from dunlin.pipeline.layout import POLICY_TABLES
from dunlin.subjects import split
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.core.delta import ChangeSet
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.core.switch import Moment
from dunlin_flowctl.encode import chunks
from dunlin_planner.core.events import Event
from dunlin_planner.core.policy.order import Wanted, commit, numbered
from dunlin_planner.core.step import intents, step
from tests.fixtures import cluster as nodes
from tests.scenario.policy.generate import cluster_policies, clusters, labels, policies
from tests.scenario.policy.oracle import Cluster, Packet, Pod
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE, differences
from tests.scenario.policy.walk import NODES, Walker, change, planned

Message = tuple[str, AnyIntent | None]


def stream(wanted: Wanted, number: int) -> list[Message]:
    """A change of policy as `PolicyWriter` writes it (test_policy_writer.py holds it to that)."""
    found: list[Message] = sorted(numbered(wanted, number).items())
    gone = sorted(subject for subject, intent in wanted.items() if intent is None)
    end = commit(number, (make_id(*split(subject)[1:]) for subject in gone))
    return [*found, (end.subject, end), *((subject, None) for subject in gone)]


class Switches:
    """flowctl's core, and what it wants on the switch of each node."""

    def __init__(self) -> None:
        self.desired = Desired(PipelineCompiler())
        self.seq = 0

    def read(self, messages: Iterable[Message]) -> Switches:
        """Messages of the intent stream, one after the other."""
        for subject, intent in messages:
            self.seq += 1
            if intent is None:
                intent_id = make_id(*split(subject)[1:])
                self.desired.delete(intent_id, Moment(self.seq))
            else:
                self.desired.upsert(IntentVersion(intent, self.seq))
            while self.desired.releasing:
                self.desired.release()
        return self

    def manage(self) -> Switches:
        """Both nodes have switches that this flowctl owns."""
        for number in NODES:
            switch = nodes.switch(number)
            self.read([(switch.subject, switch)])
            self.desired.manage(switch.scope)
        return self

    def flows(self, number: int) -> dict[Any, Flow]:
        """All flows of one switch."""
        parts = self.desired.parts(f"n{number}")
        return {key: flow for part in parts for key, flow in part.flows.items()}


def changes_of(old: Cluster, new: Cluster) -> tuple[Wanted, Wanted]:
    """Everything that the planner wants for `old`, and what changes then."""
    state = planned(old)
    before = dict(intents(state))
    events: list[Event] = change(old, new)
    return dict(before), step(state, events).intents


@st.composite
def two_clusters(draw: st.DrawFn) -> tuple[Cluster, Cluster]:
    """Anything may change: policies in both directions, labels of Pods and namespaces, Pods."""
    old = draw(clusters())
    pods = [
        Pod(pod.namespace, pod.name, draw(labels), pod.node, pod.number, pod.ports)
        if draw(st.booleans())
        else pod
        for pod in old.pods
    ]
    kept = pods[draw(st.integers(0, 1)) :]
    namespaces = {name: draw(st.one_of(st.just(was), labels)) for name, was in
                  old.namespaces.items()}  # fmt: skip
    new = Cluster(
        namespaces,
        kept,
        [draw(policies(number)) for number in range(draw(st.integers(0, 3)))],
        [draw(cluster_policies(number)) for number in range(draw(st.integers(0, 2)))],
    )
    return old, new


@given(two_clusters())
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_a_switch_holds_all_of_a_change_or_nothing(both: tuple[Cluster, Cluster]) -> None:
    """Whatever has been read of a change, each switch is to hold the old flows or the new ones."""
    before, wanted = changes_of(*both)
    switches = Switches().manage().read(stream(before, 1))
    old = {number: switches.flows(number) for number in NODES}
    messages = stream(wanted, 2)
    seen: list[dict[int, Any]] = []
    for message in messages:
        switches.read([message])
        seen.append({number: switches.flows(number) for number in NODES})
    for at, flows in enumerate(seen):
        for number in NODES:
            assert flows[number] in (old[number], seen[-1][number]), f"n{number}, message {at}"
    fresh = Switches().manage().read(stream(changes_of(Cluster(), both[1])[1], 1))
    assert {number: fresh.flows(number) for number in NODES} == (seen[-1] if seen else old)


@given(two_clusters(), st.randoms(use_true_random=False))
@settings(PROFILE, max_examples=max(1, EXAMPLES // 4))
def test_whoever_begins_in_the_middle_holds_back_too(
    both: tuple[Cluster, Cluster], random: Any
) -> None:
    """
    A flowctl that starts while a change is written knows the last message of each subject only.

    It wants nothing that is new, and leaves alone what may still be old; then it has all of it.
    """
    before, wanted = changes_of(*both)
    first, second = stream(before, 1), stream(wanted, 2)
    old = Switches().manage().read(first)
    cut = random.randrange(len(second))
    last = dict([*first, *second[:cut]])
    late = Switches().manage().read((s, i) for s, i in last.items() if i is not None)
    if not any(subject == second_commit(second) for subject, _ in second[:cut]):
        for number in NODES:
            assert late.flows(number).items() <= old.flows(number).items()
            held = {flow.cookie for flow in old.flows(number).values()} - {
                flow.cookie for flow in late.flows(number).values()
            }
            assert held <= {cookie_of(intent_id) for intent_id in late.desired.held}
    late.read(second[cut:])
    assert not late.desired.held
    old.read(second)
    for number in NODES:
        assert late.flows(number) == old.flows(number)


def second_commit(messages: list[Message]) -> str:
    """The subject of the commit among these."""
    return next(s for s, i in messages if isinstance(i, PolicyCommitIntent))


def test_without_numbers_half_a_change_would_be_seen() -> None:
    """The comparison above can fail: the same messages without their change."""
    before, wanted = changes_of(shop("b", "c"), shop("c", port="http"))
    switches = Switches().manage().read(stream(before, 1))
    old = switches.flows(2)
    switches.read(stream(wanted, 1)[:1])
    assert switches.flows(2) != old
    middle = switches.flows(2)
    switches.read(stream(wanted, 1)[1:])
    assert switches.flows(2) != middle


def test_a_bundle_that_is_too_large_keeps_policy_together() -> None:
    """All flows of policy come first, in one bundle, however small the limit is."""
    before, _ = changes_of(shop("b", "c"), shop())
    switches = Switches().manage().read(stream(before, 1))
    steps = ChangeSet()
    for part in switches.desired.parts("n2"):
        for flow in part.flows.values():
            steps.put(flow, held=False, who=part.intent_id)
    first, *rest = chunks(steps, 3)
    assert rest
    assert all(len(chunk) <= 3 for chunk in rest)
    tables = [
        {isinstance(s.content, Flow) and s.content.table in POLICY_TABLES for s in chunk}
        for chunk in (first, *rest)
    ]
    assert tables == [{True}, *([{False}] * len(rest))]


SERVER = Pod("x", "server", {"app": "a"}, "n2", 10, (("web", "TCP", 8080),))
CLIENT = Pod("x", "client", {"app": "b"}, "n1", 10)
FRIEND = Pod("x", "friend", {"app": "c"}, "n1", 11)


def shop(*peers: str, port: str = "web") -> Cluster:
    """Two clients and a server that lets in the Pods with these labels app=."""
    sources = [{"podSelector": {"matchLabels": {"app": peer}}} for peer in peers]
    spec: dict[str, Any] = {
        "podSelector": {"matchLabels": {"app": "a"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": sources, **({"ports": [{"port": port}]} if port else {})}],
    }
    if not sources:
        del spec["ingress"]
    policy = {"metadata": {"namespace": "x", "name": "p"}, "spec": spec}
    return Cluster({"x": {}}, [SERVER, CLIENT, FRIEND], [policy])


def connection(client: Pod, *, reply: bool = False) -> Packet:
    """A packet of a connection to the server; its ports do not matter here."""
    src, dst = (SERVER, client) if reply else (client, SERVER)
    return Packet(src.ips[0], dst.ips[0], "TCP", 8080)


def test_running_connections_are_judged_again() -> None:
    """After a change a forbidden connection ends in both directions; an allowed one goes on."""
    before = Walker(shop("b", "c"), intents(planned(shop("b", "c"))).values(), generation=1)
    for client in (CLIENT, FRIEND):
        assert before.establish(client, SERVER)
    after = Walker(shop("c"), intents(planned(shop("c"))).values(), generation=2)
    after.conntracks = before.conntracks
    assert after.exchange(FRIEND, SERVER) == (True, True)
    assert after.exchange(CLIENT, SERVER) == (False, False)
    again = Walker(shop("b", "c"), intents(planned(shop("b", "c"))).values(), generation=3)
    again.conntracks = after.conntracks
    assert again.exchange(CLIENT, SERVER) == (True, True)


def test_without_a_new_generation_they_would_go_on() -> None:
    """The test above can fail: the same change under the same generation cuts nothing."""
    before = Walker(shop("b"), intents(planned(shop("b"))).values(), generation=1)
    assert before.establish(CLIENT, SERVER)
    after = Walker(shop("c"), intents(planned(shop("c"))).values(), generation=1)
    after.conntracks = before.conntracks
    assert after.exchange(CLIENT, SERVER) == (True, True)


def test_a_pod_is_fenced_until_its_labels_are_known() -> None:
    """An interface without a policysubject intent neither sends nor receives."""
    cluster = Cluster({"x": {}}, [SERVER, CLIENT])
    wanted = intents(planned(cluster))
    open_ = Walker(cluster, wanted.values())
    assert open_.reaches(connection(CLIENT))
    for pod in (SERVER, CLIENT):
        fenced = [i for i in wanted.values() if not _is_subject(i, pod)]
        walker = Walker(cluster, fenced)
        assert not walker.reaches(connection(CLIENT))
        assert not walker.reaches(Packet(SERVER.ips[0], CLIENT.ips[0], "UDP", 80))


def _is_subject(intent: AnyIntent, pod: Pod) -> bool:
    return isinstance(intent, PolicySubjectIntent) and intent.key == f"{pod.namespace}/{pod.name}"


@pytest.mark.parametrize("lost", ["clauses", "isolated", "allowed"])
def test_the_comparison_can_fail(lost: str) -> None:
    """A planner that loses clauses or isolation, and an evaluator that forgets a rule."""
    cluster = shop("b", port="")
    wanted = dict(intents(planned(cluster)))
    for subject, intent in list(wanted.items()):
        if not isinstance(intent, PolicyClassIntent) or intent.role != "ingress":
            continue
        fields = {name: getattr(intent, name) for name in intent.__struct_fields__}
        if lost == "clauses":
            wanted[subject] = PolicyClassIntent(**{**fields, "clauses": ()})
        elif lost == "isolated":
            wanted[subject] = PolicyClassIntent(**{**fields, "isolated": False})
    judged = shop() if lost == "allowed" else cluster
    assert differences(cluster, Walker(cluster, intents(planned(cluster)).values())) == []
    assert differences(judged, Walker(cluster, wanted.values()))
