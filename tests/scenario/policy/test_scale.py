"""Scale by construction: what one change costs, counted in flows, whatever the cluster's size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from dunlin.events.facts import (
    AttachmentFact,
    Fact,
    Meta,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
    kind_of,
)
from dunlin.events.intents import AnyIntent, PolicyGenerationIntent
from dunlin.model.addresses import MacAddress
from dunlin.pipeline import compile_intent
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.preview.preview import preview
from dunlin_planner.core.step import intents, step
from dunlin_planner.state import State

SMALL, LARGE = (200, 20), (10_000, 1_000)
"""Pods, and policies of 50 peers each."""
PEERS = 50
NAMESPACES = 10


def policy(number: int, **spec: Any) -> NetworkPolicyFact:
    """In one of the namespaces."""
    body = msgspec.Raw(json.dumps(spec).encode())
    return NetworkPolicyFact(namespace=f"ns{number % NAMESPACES}", name=f"p{number}", spec=body)


def selector(app: int) -> dict[str, Any]:
    """By a label."""
    return {"matchLabels": {"app": f"a{app}"}}


def policies(count: int) -> Iterator[NetworkPolicyFact]:
    """Each selects one workload; peers of all three forms, 50 of them."""
    for number in range(count):
        peers: list[dict[str, Any]] = []
        for peer in range(PEERS):
            match peer % 3:
                case 0:
                    peers.append({"podSelector": selector(number + peer)})
                case 1:
                    spaces = {"matchLabels": {"team": f"t{peer % 5}"}}
                    peers.append({"namespaceSelector": spaces, "podSelector": selector(peer)})
                case _:
                    peers.append({"ipBlock": {"cidr": f"192.0.{peer}.0/24"}})
        rule = {"from": peers, "ports": [{"port": 80}, {"port": "web"}]}
        yield policy(number, podSelector=selector(number % 100), ingress=[rule])


def pod(number: int, app: int | None = None) -> tuple[PodFact, AttachmentFact]:
    """A Pod and its interface."""
    space, name, node = f"ns{number % NAMESPACES}", f"pod{number}", f"n{number % 20}"
    fact = PodFact(
        namespace=space,
        name=name,
        node=node,
        labels={"app": f"a{number // NAMESPACES % 100 if app is None else app}"},
        meta=Meta(uid=name),
    )
    link = AttachmentFact(
        namespace=node,
        name=f"{name}/eth0",
        pod_namespace=space,
        pod_name=name,
        pod_uid=name,
        container_id=name,
        ips=(ip_address(f"10.0.{number // 250}.{1 + number % 250}"),),
        mac=MacAddress("0a:00:00:00:00:01"),
        ofport=1 + number // 20,
        port_name=name,
    )
    return fact, link


def world(size: tuple[int, int]) -> list[Fact]:
    """Everything."""
    count, many = size
    found: list[Fact] = [
        NamespaceFact(name=f"ns{n}", labels={"team": f"t{n % 5}"}) for n in range(NAMESPACES)
    ]
    found += policies(many)
    for number in range(count):
        found += pod(number)
    return found


def flows(some: Iterable[AnyIntent | None]) -> dict[Any, Any]:
    """Every flow of these, by scope and key; connections judged again are no part of it."""
    found: dict[Any, Any] = {}
    for intent in some:
        if intent is not None and not isinstance(intent, PolicyGenerationIntent):
            for flow in compile_intent(intent, None).flows:
                found[intent.scope, flow.key] = flow
    return found


def cost(state: State, *facts: Fact) -> int:
    """How many flows one change adds, removes or modifies, on all switches together."""
    before = dict(intents(state))
    changed = step(state, [Upserted(fact) for fact in facts]).intents  # type: ignore[arg-type]
    old = flows(before.get(subject) for subject in changed)
    new = flows(changed.values())
    return sum(old.get(key) != new.get(key) for key in old.keys() | new.keys())


@pytest.fixture(scope="module", params=[SMALL, LARGE], ids=["small", "large"])
def state(request: Any) -> State:
    """A cluster that has been planned."""
    made = State()
    step(made, [Upserted(fact) for fact in world(request.param)])  # type: ignore[arg-type]
    return made


def test_a_pods_change_costs_its_own_addresses(state: State) -> None:
    """
    A Pod that comes: two flows as a peer, two as a subject, on each switch that needs them.

    A kind of Pod that is new needs its class once, at most a flow for each of its groups' policies'
    priorities and tables: here two. The number of Pods and policies makes no difference.
    """
    assert cost(state, *pod(20_000, app=7)) <= 6
    assert cost(state, *pod(20_000, app=9)) <= 10
    assert cost(state, *pod(20_000, app=9)) == 0


def test_a_policys_change_costs_its_own_clauses(state: State) -> None:
    """One more peer: its own class and prefix and what the policy's 50 others and subjects say."""
    spec = {"podSelector": selector(3), "ingress": [{"from": [{"podSelector": selector(4)}]}]}
    assert cost(state, policy(9000, **spec)) <= 4 * NAMESPACES


def test_holes_are_prefixes_once() -> None:
    """A block with 1,000 holes in 100 policies: two flows a prefix, not a hundred times as many."""
    holes = [f"10.{n // 250}.{n % 250}.0/24" for n in range(1000)]
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": holes}}
    made = State()
    step(made, [Upserted(fact) for fact in pod(1)])
    counts = []
    for number in range(100):
        rule = {"from": [block]}
        counts.append(cost(made, policy(number, podSelector=selector(number), ingress=[rule])))
    assert 2 * 1001 <= counts[0] <= 2 * 1001 + 10
    assert max(counts[1:]) <= 10


def test_plan_compares_kinds_of_pods() -> None:
    """A hundred Pods alike are one class: as many comparisons as for one of each."""
    facts: dict[str, list[Fact]] = {}
    for fact in world(SMALL):
        facts.setdefault(kind_of(type(fact)), []).append(fact)
    closed = Upserted(policy(0, podSelector={}, policyTypes=["Ingress"]))
    few = preview(facts, [closed])
    for number in range(200, 1000):
        like, link = pod(number)
        facts["pod"].append(like)
        facts["attachment"].append(link)
    many = preview(facts, [closed])
    assert few.reach.pairs > 0
    assert many.reach.pairs >= 4 * few.reach.pairs
    assert len(many.reach.rows) <= 60 * len(few.reach.rows)
