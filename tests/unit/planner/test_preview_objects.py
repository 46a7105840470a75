"""Manifests for `dunlin plan`: what becomes of them, and what is refused, by field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dunlin.events.facts import Fact, NamespaceFact, NetworkPolicyFact, PodFact, kind_of
from dunlin_planner.core.events import Deleted, Upserted
from dunlin_planner.core.preview.objects import Change, read

POD = PodFact(namespace="shop", name="web-1", node="n1", labels={"app": "web"})
FACTS: tuple[Fact, ...] = (
    NamespaceFact(name="shop", labels={"team": "a"}),
    POD,
    NetworkPolicyFact(namespace="shop", name="old", spec=msgspec.Raw(b'{"podSelector":{}}')),
)


def find(kind: str, namespace: str, name: str) -> Fact | None:
    """One of `FACTS`."""
    for fact in FACTS:
        if (kind_of(type(fact)), fact.namespace, fact.name) == (kind, namespace, name):
            return fact
    return None


def policy(name: str = "p", namespace: str = "shop", **spec: Any) -> dict[str, Any]:
    """A NetworkPolicy's manifest."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


def pod(**meta: Any) -> dict[str, Any]:
    """A Pod's manifest."""
    meta = {"name": "web-1", "namespace": "shop", **meta}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta}


def change(*manifests: Any, delete: bool = False) -> Change:
    """What these ask for."""
    return read(list(manifests), find, delete=delete)


def test_create_replace_unchanged_delete() -> None:
    """By what stands; a spec that is written otherwise but says the same is no change."""
    found = change(policy("new"), policy("old", ingress=[]), policy("old"))
    assert found.actions == [
        ("networkpolicy/shop/new", "create"),
        ("networkpolicy/shop/old", "replace"),
        ("networkpolicy/shop/old", "replace"),
    ]
    assert change(policy("old")).actions == [("networkpolicy/shop/old", "unchanged")]
    assert change(policy("old")).events == []
    gone = change(policy("old"), delete=True)
    assert gone.events == [Deleted("networkpolicy", "shop", "old")]


def test_labels_of_what_runs() -> None:
    """A Pod keeps its node and addresses; a namespace its annotations; lists are their items."""
    labels = {"app": "other"}
    namespace = {
        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": labels},
    }  # fmt: skip
    found = change({"kind": "List", "items": [pod(labels=labels), namespace]})
    assert found.problems == []
    assert found.events[0] == Upserted(msgspec.structs.replace(POD, labels=labels))
    assert isinstance(found.events[1], Upserted)
    assert isinstance(found.events[1].fact, NamespaceFact)
    assert found.events[1].fact.labels == {"kubernetes.io/metadata.name": "shop", **labels}


@pytest.mark.parametrize(
    ("manifest", "field"),
    [
        ("text", "object"),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}}, "kind"),
        (policy(namespace="nowhere"), "metadata.namespace"),
        (policy("NO"), "metadata.name"),
        ({**policy(), "spec": None}, "spec"),
        ({**policy(), "metadata": {}}, "metadata.name"),
        (policy(ingress=[{"ports": [{"port": 0}]}]), "spec.ingress[0].ports[0].port"),
        (policy(surprise=1), "spec.surprise"),
        (pod(name="nobody"), "metadata.name"),
        (pod(labels={"app": "not a value"}), "metadata.labels[app]"),
        (pod(labels=["app"]), "metadata.labels"),
    ],
)
def test_refused_by_field(manifest: Any, field: str) -> None:
    """Nothing of a bad object is planned; the good one beside it has no problem."""
    found = change(manifest, policy("good"))
    assert [problem.field for problem in found.problems] == [field]
    assert [action for _, action in found.actions] == ["create"]


def test_only_policies_that_exist_are_deleted() -> None:
    """Anything else is named."""
    found = change(policy("none"), pod(), delete=True)
    assert [problem.field for problem in found.problems] == ["metadata.name", "kind"]


def test_any_json_is_read_or_refused() -> None:
    """No manifest makes it fail."""
    bads: tuple[Any, ...] = (
        None,
        1,
        [],
        {},
        {"kind": 3},
        {"kind": "List"},
        {"metadata": 1},
        {"kind": "List", "items": [1]},
        {**policy(), "metadata": {"name": 1}},
        pod(labels=3),
        {**pod(), "spec": {"containers": [1, {"ports": [1]}]}},
        {**pod(), "spec": {"containers": 1}},
        {**pod(), "spec": {"containers": [{"ports": [{"containerPort": "x"}]}]}},
    )
    for bad in bads:
        found = change(bad)
        assert bad is None or found.problems or not found.actions, bad
