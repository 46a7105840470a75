"""What happens between two policies: no packet meets half a change; running connections follow."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.events.intents import AnyIntent, PolicyClassIntent, PolicySubjectIntent
from dunlin_planner.core.policy.order import split_ends
from dunlin_planner.core.step import intents, step
from tests.scenario.policy.generate import cluster_policies, clusters, packets, policies
from tests.scenario.policy.oracle import Cluster, Packet, Pod, allowed
from tests.scenario.policy.test_policy import EXAMPLES, PROFILE, differences
from tests.scenario.policy.walk import Walker, change, planned


def states_between(old: Cluster, new: Cluster) -> list[dict[str, AnyIntent]]:
    """Every state of the intent stream between two clusters, in the order the planner writes."""
    state = planned(old)
    stands = dict(intents(state))
    changes = step(state, change(old, new))
    rest, ends = split_ends(changes.intents)
    stages: list[dict[str, AnyIntent | None]] = [
        *(changes.stages[stage] for stage in sorted(changes.stages)), rest, *ends,
    ]  # fmt: skip
    found = [dict(stands)]
    gone: list[str] = []
    for stage in stages:
        for subject in sorted(stage):
            intent = stage[subject]
            if intent is None:
                gone.append(subject)
                continue
            stands[subject] = intent
            found.append(dict(stands))
    for subject in sorted(gone):
        stands.pop(subject, None)
        found.append(dict(stands))
    assert stands.keys() == intents(state).keys()
    return found


def disagreements(old: Cluster, new: Cluster, between: dict[str, AnyIntent]) -> list[str]:
    """Packets treated otherwise than both clusters want."""
    seen = Walker(new, between.values())
    found = []
    for packet in packets(new):
        wanted = allowed(old, packet)
        if wanted == allowed(new, packet) and seen.reaches(packet) != wanted:
            found.append(f"{packet}: must {'arrive' if wanted else 'be dropped'}")
    return found


@st.composite
def policy_changes(draw: st.DrawFn) -> tuple[Cluster, Cluster]:
    """The same namespaces and Pods under two sets of ingress policies; see docs/LIMITS.md."""
    old = draw(clusters())
    new = Cluster(
        old.namespaces,
        old.pods,
        [draw(policies(number)) for number in range(draw(st.integers(0, 3)))],
        [draw(cluster_policies(number)) for number in range(draw(st.integers(0, 1)))],
    )
    for cluster in (old, new):
        for policy in (*cluster.policies, *cluster.cluster_policies):
            policy["spec"].pop("egress", None)
        for policy in cluster.policies:
            policy["spec"]["policyTypes"] = ["Ingress"]
    return old, new


@given(policy_changes(), st.randoms(use_true_random=False))
@settings(PROFILE, max_examples=max(1, EXAMPLES // 8))
def test_no_packet_meets_half_a_change(clusters_: tuple[Cluster, Cluster], random: Any) -> None:
    """What both policies allow always passes, what both forbid never does, whatever is written."""
    old, new = clusters_
    between = states_between(old, new)
    for number in {random.randrange(len(between)) for _ in range(5)}:
        assert disagreements(old, new, between[number]) == [], f"state {number} of {len(between)}"


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
