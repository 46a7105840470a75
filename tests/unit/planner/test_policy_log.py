"""`dunlin.dev/log-denied` on a policy or a namespace: which intents ask the switches to log."""

import json
from typing import Any

import msgspec

from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    Fact,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
)
from dunlin.events.intents import PolicyClassIntent, PolicyIntent
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import Changes, intents, step
from dunlin_planner.state import State

DENY = {"action": "Deny", "from": [{"namespaces": {}}]}


def policy(name: str = "p", *, log: bool = False) -> NetworkPolicyFact:
    """Isolates the namespace `shop`."""
    return NetworkPolicyFact(namespace="shop", name=name, spec=raw({}), log_denied=log)


def cluster_policy(*, log: bool) -> ClusterNetworkPolicyFact:
    """Denies everything to everybody."""
    subject: dict[str, Any] = {"namespaces": {}}
    spec = {"tier": "Admin", "priority": 1, "subject": subject, "ingress": [DENY]}
    return ClusterNetworkPolicyFact(name="c", spec=raw(spec), log_denied=log)


def raw(spec: dict[str, Any]) -> msgspec.Raw:
    """As the watcher passes it on."""
    return msgspec.Raw(json.dumps(spec).encode())


def facts() -> list[Fact]:
    """Two namespaces with a Pod each."""
    return [
        fact
        for name in ("shop", "other")
        for fact in (NamespaceFact(name=name), PodFact(namespace=name, name="a", node="n1"))
    ]


def told(state: State, *found: Fact) -> Changes:
    """The planner is told."""
    return step(state, [Upserted(fact) for fact in found])  # type: ignore[arg-type]


def logged(state: State) -> bool:
    """Whether the isolated class asks for it."""
    classes = [
        i for i in intents(state).values() if isinstance(i, PolicyClassIntent) and i.isolated
    ]
    assert len(classes) == 1
    return classes[0].log


def test_by_the_policy() -> None:
    """One of several that isolate is enough."""
    state = State()
    told(state, *facts(), policy("one"), policy("two"))
    assert not logged(state)
    told(state, policy("two", log=True))
    assert logged(state)
    told(state, policy("two"))
    assert not logged(state)


def test_by_the_namespace() -> None:
    """Its own Pods only; a change touches what it concerns and nothing else."""
    state = State()
    told(state, *facts(), policy())
    assert not told(state, NamespaceFact(name="other", log_denied=True)).intents
    changes = told(state, NamespaceFact(name="shop", log_denied=True))
    assert logged(state)
    assert [type(intent) for intent in changes.intents.values()] == [PolicyClassIntent]
    told(state, NamespaceFact(name="shop"))
    assert not logged(state)


def test_rules_that_deny() -> None:
    """A ClusterNetworkPolicy isolates nobody: its own rules are logged."""
    state = State()
    for log in (True, False):
        told(state, *facts(), cluster_policy(log=log))
        (found,) = (i for i in intents(state).values() if isinstance(i, PolicyIntent))
        assert found.log is log
