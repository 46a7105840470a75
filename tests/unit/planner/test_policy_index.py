"""Pods that policies cannot select (of the host's network, finished); named ports in networks."""

import json
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from dunlin import wire
from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    ContainerPort,
    Meta,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
)
from dunlin.events.intents import (
    Clause,
    Intent,
    PolicyClassIntent,
    PolicyIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicySubjectIntent,
)
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import findings, intents, step
from dunlin_planner.state import State

EVERYBODY = NetworkPolicyFact(
    namespace="x",
    name="p",
    spec=msgspec.Raw(
        json.dumps({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}).encode()
    ),
)


@pytest.mark.parametrize(("kind", "peers"), [("ordinary", 1), ("host_network", 0), ("finished", 0)])
def test_who_is_a_peer(kind: str, peers: int) -> None:
    """A host-network Pod has its node's address: no selector may open that to everybody there."""
    pod = PodFact(
        namespace="x",
        name="a",
        node="n1",
        ips=(ip_address("10.0.0.7"),),
        meta=Meta(uid="a"),
        host_network=kind == "host_network",
        finished=kind == "finished",
    )
    state = State()
    events = [NamespaceFact(name="x"), EVERYBODY, pod]
    step(state, map(Upserted, events))  # type: ignore[arg-type]
    found = [i for i in intents(state).values() if isinstance(i, PolicyPeerIntent)]
    assert len(found) == peers
    assert not [i for i in intents(state).values() if isinstance(i, PolicySubjectIntent)]


NETWORKS = [{"networks": ["10.0.0.0/8", "fd00::/8"]}]


def denying(to: list[Any]) -> ClusterNetworkPolicyFact:
    """Nobody may connect to the port `web` of these peers."""
    rule = {"action": "Deny", "to": to, "protocols": [{"destinationNamedPort": "web"}]}
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "egress": [rule]}
    return ClusterNetworkPolicyFact(name="c", spec=msgspec.Raw(json.dumps(spec).encode()))


def serving(*, host_network: bool = False, name: str = "web") -> PodFact:
    """Pod x/a has a named port 80."""
    return PodFact(
        namespace="x",
        name="a",
        node="n1",
        ips=(ip_address("10.0.0.7"),),
        meta=Meta(uid="a"),
        ports=(ContainerPort(name=name, port=80),),
        host_network=host_network,
    )


def planned(*facts: Any) -> State:
    """The planner's state after all of these."""
    state = State()
    step(state, [Upserted(fact) for fact in (NamespaceFact(name="x"), *facts)])
    return state


def rules(state: State) -> list[Any]:
    """Every conjunction there is."""
    found = (i for i in intents(state).values() if isinstance(i, PolicyIntent))
    return [rule for intent in found for rule in intent.rules]


def test_a_host_network_pods_port_has_no_name() -> None:
    """Its address is its node's, which many Pods share: as no selector holds it, no name does."""
    assert len(rules(planned(denying(NETWORKS), serving()))) == 1
    state = planned(denying(NETWORKS), serving(host_network=True))
    assert rules(state) == []
    assert not [i for i in intents(state).values() if isinstance(i, PolicyPeerIntent)]


def test_a_named_port_of_nodes_is_refused_aloud() -> None:
    """Peers `nodes` are not supported: the rule denies everybody, and is named."""
    state = planned(denying([*NETWORKS, {"nodes": {}}]), serving())
    (finding,) = findings(state)
    assert (finding.kind, finding.name) == ("ClusterNetworkPolicy", "c")
    assert finding.field == "spec.egress[0].to[1].nodes"
    (rule,) = rules(state)
    assert rule.action == "Deny"


def test_a_release_that_knows_three_clauses_reads_the_rest() -> None:
    """Clauses of four are in a field of their own, which it does not know (ADR 0047)."""

    class Before(Intent, frozen=True, kw_only=True, tag="policyclass"):
        class_id: int
        role: str
        clauses: tuple[Clause, ...] = ()

    state = planned(denying(NETWORKS), EVERYBODY, serving())
    seen = []
    for intent in intents(state).values():
        if isinstance(intent, (PolicyClassIntent, PolicyPortIntent)):
            seen += [clause.number for clause in intent.names]
            again = msgspec.json.decode(wire.encode(intent), type=type(intent))
            assert again == intent
        if isinstance(intent, PolicyClassIntent):
            old = msgspec.json.decode(wire.encode(intent), type=Before)
            assert old.clauses == intent.clauses
    assert sorted(seen) == [1, 2, 2, 3, 4], "a subject, two networks, a port, a Pod with it"


@pytest.mark.parametrize("others", [0, 1_000])
def test_a_pod_with_a_named_port_touches_itself(others: int) -> None:
    """Policies about its name stand: it is one peer more, however many Pods and policies."""
    facts = [denying(NETWORKS)]
    facts += [msgspec.structs.replace(facts[0], name=f"c{n}") for n in range(others // 100)]
    pods = [msgspec.structs.replace(serving(), name=f"b{n}", meta=Meta(uid=f"b{n}"))
            for n in range(1 + others)]  # fmt: skip
    state = planned(*facts, *pods)
    changed = step(state, [Upserted(serving())]).intents
    assert [i for i in changed.values() if not isinstance(i, PolicySubjectIntent)] == [
        i for i in intents(state).values() if isinstance(i, PolicyPeerIntent) and "x/a" in i.key
    ]
    assert len(changed) == 1
    moved = msgspec.structs.replace(serving(), ips=(ip_address("10.0.0.8"),))
    assert len(step(state, [Upserted(moved)]).intents) == 1
    renamed = step(state, [Upserted(serving(name="other"))]).intents
    assert list(renamed.values()) == [None], "no rule knows that name: no peer"
