"""Cases that are kept, and the mistake that each of them catches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import dunlin.pipeline.policy as compiled
from dunlin.events.intents import PolicyRule
from dunlin_planner.core.policy import index, model, plan, variants
from dunlin_planner.core.policy.networks import Networks
from tests.scenario.policy.cases import KEPT
from tests.scenario.policy.oracle import Cluster
from tests.scenario.policy.test_policy import differences
from tests.scenario.policy.walk import walker

Mistake = tuple[Any, str, Callable[[Any], Any]]


def _without_absent(right: Any) -> Any:
    def holds(self: model.Requirement, labels: model.Labels) -> bool:
        return bool(right(self, labels)) and (self.operator != "NotIn" or self.key in labels)

    return holds


def _pass_accepts(right: Any) -> Any:
    def verdict(tier: str, rule: PolicyRule) -> Any:
        return compiled.AFTER[rule.direction] if rule.action == "Pass" else right(tier, rule)

    return verdict


def _cut_short(right: Any) -> Any:
    def masked(port: model.PortRange) -> Any:
        keys = list(right(port))
        return keys[:-1] or keys

    return masked


def _all_alike(right: Any) -> Any:
    def clause(known_all: Any, known: index.Known, variant: variants.Variant, number: int) -> Any:
        priority = variants.priority_of(known.policy)
        return msgspec.structs.replace(right(known_all, known, variant, number), priority=priority)

    return clause


def _groups_alone(right: Any) -> Any:
    return lambda rule, binding: [(how, some) for how, some in right(rule, binding) if not how]


def _whoever(right: Any) -> Any:
    return lambda rule, binding: [("", some) for _, some in right(rule, binding)]


MISTAKES: dict[str, Mistake] = {
    "NotIn holds where the key is absent": (model.Requirement, "holds", _without_absent),
    "a name without a protocol is TCP": (
        index.PolicyIndex,
        "_numbers",
        lambda _: lambda self, port: self._by_name.get(port.name, ()),
    ),
    "the end of a range": (variants, "masked", _cut_short),
    "a name is another number in each Pod": (
        index,
        "_bindings",
        lambda right: lambda pod: frozenset(b._replace(number=80) for b in right(pod)),
    ),
    "the first rule that matches decides": (plan, "_clause", _all_alike),
    "Pass is no Accept": (compiled, "_verdict", _pass_accepts),
    "a ClusterNetworkPolicy does not isolate": (
        plan,
        "_isolating",
        lambda _: lambda _index, policies: set(policies),
    ),
    "except holds for addresses of Pods": (
        Networks,
        "add",
        lambda right: lambda self, block: right(self, block._replace(holes=())),
    ),
    "a named port in a network is that of Pods there": (variants, "_named_peers", _groups_alone),
    "a named port in a network is no other address's": (variants, "_named_peers", _whoever),
    "a named port in a network is not that of Pods elsewhere": (
        variants,
        "_named_peers",
        lambda _: lambda _rule, binding: [("", (binding,))],
    ),
}


def fails(cluster: Cluster) -> bool:
    """Flows and specification differ, or there are no flows."""
    try:
        return bool(differences(cluster, walker(cluster)))
    except Exception:  # noqa: BLE001 - a mistake may also end in an error, which shows, too
        return True


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_case_catches_its_mistake(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right as it is; wrong as soon as that mistake is made."""
    assert not fails(KEPT[name])
    where, what, wrong = MISTAKES[name]
    monkeypatch.setattr(where, what, wrong(getattr(where, what)))
    assert fails(KEPT[name])
