"""Pods that policies cannot select: those of the host's network, and finished ones."""

import json
from ipaddress import ip_address

import msgspec
import pytest

from dunlin.events.facts import Meta, NamespaceFact, NetworkPolicyFact, PodFact
from dunlin.events.intents import PolicyPeerIntent, PolicySubjectIntent
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import intents, step
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
