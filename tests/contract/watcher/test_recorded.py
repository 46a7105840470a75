"""What a real Kubernetes 1.36 API server wrote, read by the normaliser and the core."""

import json
from pathlib import Path
from typing import Any

import pytest

from dunlin_watcher.core import step
from dunlin_watcher.events import Gone, ListEnded, ListStarted, Seen
from dunlin_watcher.kinds import KINDS
from dunlin_watcher.normalise import normalise
from dunlin_watcher.state import State

RECORDING = Path(__file__).parents[1] / "kube_api" / "exchanges-1.36.jsonl"
KIND_OF = {
    "Node": "node",
    "Namespace": "namespace",
    "Pod": "pod",
    "Service": "service",
    "EndpointSlice": "endpointslice",
    "NetworkPolicy": "networkpolicy",
}
EXCHANGES = [json.loads(line) for line in RECORDING.read_text().splitlines()]
WATCHES = [exchange["watch"] for exchange in EXCHANGES if "watch" in exchange]


def objects_of(exchange: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """(kind, object) of everything in an exchange that the watcher would read."""
    if "watch" in exchange:
        found = [e["object"] for e in exchange["watch"]["events"] if e["type"] != "BOOKMARK"]
    else:
        body = exchange["response"]["body"]
        if not isinstance(body, dict):
            return []
        item_kind = str(body.get("kind", "")).removesuffix("List")
        items = body.get("items")
        found = [{"kind": item_kind} | item for item in items or ()] if "items" in body else [body]
    return [(KIND_OF[obj["kind"]], obj) for obj in found if obj.get("kind") in KIND_OF]


OBJECTS = [found for exchange in EXCHANGES for found in objects_of(exchange)]


def test_the_recording_has_every_kind() -> None:
    """Every kind is there but ServiceCIDRs and ClusterNetworkPolicies, which were not recorded."""
    assert {kind for kind, _obj in OBJECTS} == KINDS.keys() - {
        "servicecidr",
        "clusternetworkpolicy",
    }
    assert len(OBJECTS) > 80


def test_every_object_is_good() -> None:
    """No object of a real server is bad in our eyes."""
    for kind, obj in OBJECTS:
        if "metadata" not in obj or "name" not in obj["metadata"]:
            continue
        found = normalise(kind, json.dumps(obj).encode())
        assert found.problems == (), (kind, obj["metadata"]["name"])
        assert found.fact is not None


def test_endpoint_slices_of_the_controller() -> None:
    """The facts of the slices hold what their endpoints are, with Pod, node and zone."""
    slices = [
        normalise(kind, json.dumps(obj).encode()).fact
        for exchange in EXCHANGES
        if exchange["note"] == "endpoint slices made by the controller"
        for kind, obj in objects_of(exchange)
    ]
    web = next(fact for fact in slices if getattr(fact, "service", "") == "web")
    (port,) = web.ports  # type: ignore[union-attr]
    assert (port.name, port.protocol, port.port) == ("http", "TCP", 8080)
    targets = {(e.target, e.node, str(e.ip)) for e in web.endpoints}  # type: ignore[union-attr]
    assert targets == {
        ("record/p1", "n1", "10.244.1.11"),
        ("record/p2", "n2", "10.244.2.12"),
        ("record/p3", "n1", "10.244.1.13"),
    }


@pytest.mark.parametrize("watch", WATCHES, ids=[w["path"][:60] for w in WATCHES])
def test_watches_lead_to_their_last_state(watch: dict[str, Any]) -> None:
    """The events of a recorded watch, one by one, leave exactly what was not deleted in the end."""
    state = State()
    expected: dict[tuple[str, str], str] = {}
    for event in watch["events"]:
        obj = event["object"]
        if event["type"] not in ("ADDED", "MODIFIED", "DELETED"):
            continue
        kind = KIND_OF[obj["kind"]]
        raw = json.dumps(obj).encode()
        key = (kind, f"{obj['metadata']['namespace']}/{obj['metadata']['name']}")
        if event["type"] == "DELETED":
            assert step(state, Gone(kind, raw, 1)).bad == ()
            expected.pop(key, None)
        else:
            assert step(state, Seen(kind, raw, 1)).bad == ()
            expected[key] = obj["metadata"]["resourceVersion"]
    held = {
        (kind, key): entry.version
        for kind, its in state.kinds.items()
        for key, entry in its.entries.items()
    }
    assert held == expected


def test_recorded_list_then_its_absence() -> None:
    """A list holds facts for all its items; the next list without them deletes them."""
    pages = [
        exchange["response"]["body"]
        for exchange in EXCHANGES
        if exchange["note"] in ("paginated list, first page", "paginated list, next page")
    ]
    state = State()
    step(state, ListStarted("pod"))
    for page in pages:
        for item in page["items"]:
            step(state, Seen("pod", json.dumps(item).encode(), 1))
    step(state, ListEnded("pod", pages[-1]["metadata"]["resourceVersion"]))
    assert state.kinds["pod"].count == sum(len(page["items"]) for page in pages) == 3
    step(state, ListStarted("pod"))
    step(state, ListEnded("pod", "999"))
    assert state.kinds["pod"].count == 0
