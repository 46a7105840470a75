"""
What a real Kubernetes 1.36 control plane answered, asked again.

exchanges-1.36.jsonl was recorded once against etcd, kube-apiserver, kube-controller-manager and
kube-scheduler. Each request is made again in the same order; answers and watch events are compared
after uids, times, versions, allocated addresses and generated names are evened out.
"""

from __future__ import annotations

import difflib
import json
import re
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fixtures.kube_api import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parent / "exchanges-1.36.jsonl").read_text().splitlines()
]
EXCHANGES = [(at, item) for at, item in enumerate(RECORDED) if "request" in item]
WATCHES = [(at, item) for at, item in enumerate(RECORDED) if "watch" in item]
WATCH_FROM = 14
"""The list whose version the recorded watches begin at."""

WATCH_UNTIL = min(at for at, _ in WATCHES)
SETTLE_SECONDS = 10.0
SERVED = {
    "bindings", "componentstatuses", "configmaps", "endpoints", "events", "namespaces", "nodes",
    "pods", "secrets", "serviceaccounts", "services", "deployments", "replicasets",
    "networkpolicies", "leases", "endpointslices",
}  # fmt: skip
OPTIONAL = {"bindings", "componentstatuses"}
TIMES = {
    "creationTimestamp", "deletionTimestamp", "lastTransitionTime", "lastUpdateTime",
    "lastHeartbeatTime", "time", "endpoints.kubernetes.io/last-change-trigger-time",
}  # fmt: skip
TTL = "node.alpha.kubernetes.io/ttl"
HASHED = re.compile(r"\bd-[a-z0-9]{8,10}\b")


def even(value: Any, key: str = "") -> Any:
    """Replace what differs between any two runs; structure and everything else stay."""
    if isinstance(value, dict):
        return {k: even(v, k) for k, v in sorted(_even_object(value).items())}
    if isinstance(value, list):
        return [even(item, key) for item in value]
    if value is None:
        return None
    if key in TIMES:
        return "<time>"
    if key in ("uid", "resourceVersion", "continue", "nodePort", "pod-template-hash"):
        return f"<{key}>"
    if key in ("clusterIP", "clusterIPs") and str(value).startswith("10.96."):
        return "<address>"
    return HASHED.sub("d-<hash>", value) if isinstance(value, str) else value


def _even_object(value: dict[str, Any]) -> dict[str, Any]:
    found = dict(value)
    found.pop("managedFields", None)
    if "generateName" in found and "name" in found:
        found["name"] = found["generateName"] + "<random>"
    if found.get("kind") == "Pod" and "spec" not in found and "name" in found:  # a targetRef
        found["name"] = re.sub(r"-[a-z0-9]{5}$", "-<random>", found["name"])
    if "conditions" in found and isinstance(found["conditions"], list):
        kept = [c for c in found["conditions"] if c.get("reason") != "Unschedulable"]
        found["conditions"] = kept  # only a scheduler says it, and at no fixed time
        if not kept:
            del found["conditions"]
    if "taints" in found:  # when it goes depends on the node lifecycle controller's period
        taints = [t for t in found["taints"] if t["key"] != "node.kubernetes.io/not-ready"]
        found["taints"] = taints
        if not taints:
            del found["taints"]
    annotations = found.get("annotations")
    if isinstance(annotations, dict) and TTL in annotations:  # its controller has no fixed time
        found["annotations"] = {k: v for k, v in annotations.items() if k != TTL}
        if not found["annotations"]:
            del found["annotations"]
    if found.get("addressType") and "metadata" in found:
        found["metadata"] = {k: v for k, v in found["metadata"].items() if k != "generation"}
    if found.get("name") == "https":  # the API server's own port
        found.pop("targetPort", None)
    return found


def even_version(body: dict[str, Any]) -> Any:
    """Keep which version it is, not which build."""
    return {key: body[key] for key in ("major", "minor")} | {"keys": sorted(body)}


def even_table(body: dict[str, Any]) -> Any:
    """Drop the prose of a Table, and ages."""
    found = even(body)
    ages = [at for at, col in enumerate(body["columnDefinitions"]) if col["name"] == "Age"]
    for column in found["columnDefinitions"]:
        del column["description"]
    for row in found["rows"]:
        for at in ages:
            row["cells"][at] = "<age>"
    return found


def even_discovery(body: dict[str, Any]) -> Any:
    """Keep the resources this project needs, of the subresources those that both have."""
    if body["kind"] == "APIVersions":
        return body["versions"]
    if body["kind"] == "APIGroupList":
        return {g["name"]: g["preferredVersion"]["version"] for g in body["groups"]}
    if body["kind"] == "APIGroupDiscoveryList":
        return {
            (group["metadata"].get("name", ""), item["resource"]): {
                key: sorted(found) if isinstance(found, list) else found
                for key, found in item.items() if key != "subresources"
            }
            for group in body["items"] for version in group["versions"]
            for item in version["resources"]
            if item["resource"] in SERVED and group["metadata"].get("name") != "events.k8s.io"
        }  # fmt: skip
    return {
        item["name"]: {k: v for k, v in item.items() if k != "storageVersionHash"}
        for item in body["resources"]
        if item["name"].partition("/")[0] in SERVED - OPTIONAL
    }


@dataclass
class Translation:
    """Recorded uids, versions and tokens, and what they are in this run."""

    known: dict[str, str] = field(default_factory=dict)

    def learn(self, recorded: Any, actual: Any, key: str = "") -> None:
        """Walk two answers side by side."""
        if isinstance(recorded, dict) and isinstance(actual, dict):
            for name in recorded.keys() & actual.keys():
                self.learn(recorded[name], actual[name], name)
        elif isinstance(recorded, list) and isinstance(actual, list):
            for one, other in zip(recorded, actual, strict=False):
                self.learn(one, other, key)
        elif key in ("uid", "resourceVersion", "continue", "creationTimestamp"):
            self.known[str(recorded)] = str(actual)

    def body(self, value: Any, key: str = "") -> Any:
        """Translate a request's body."""
        if isinstance(value, dict):
            return {k: self.body(v, k) for k, v in value.items() if k != "managedFields"}
        if isinstance(value, list):
            return [self.body(item, key) for item in value]
        if key in ("uid", "resourceVersion", "creationTimestamp"):
            return self.known.get(value, value)
        return value

    def path(self, path: str) -> str:
        """Translate a version or a token in a query."""
        return re.sub(
            r"(continue|resourceVersion)=([^&]+)",
            lambda found: f"{found[1]}={self.known.get(found[2], found[2])}",
            path,
        )


@dataclass
class Answer:
    """One answer, decoded where it is JSON."""

    status: int
    content_type: str
    body: Any


def ask(client: httpx.Client, request: dict[str, Any], translation: Translation) -> Answer:
    """Make a recorded request."""
    headers = {"Accept": request["accept"]}
    content = None
    if request["body"] is not None:
        content = json.dumps(translation.body(request["body"]))
        headers["Content-Type"] = request["content_type"]
    found = client.request(
        request["method"], translation.path(request["path"]), content=content, headers=headers
    )
    kind = found.headers.get("content-type", "")
    try:
        body = found.json() if found.content else ""
    except ValueError:
        body = found.text
    return Answer(found.status_code, kind, body)


def by_first(histories: list[list[Any]]) -> list[list[Any]]:
    """Order histories by their first state."""
    return sorted(histories, key=lambda history: json.dumps(history[0]))


def states(events: list[dict[str, Any]]) -> list[list[Any]]:
    """
    Return the history of each object in a watch, in a fixed order.

    Events of different objects come in no fixed order; a MODIFIED that changes nothing that is
    compared does not count, nor does a bookmark that only tells how far the server is.
    """
    found: dict[str, list[Any]] = defaultdict(list)
    for event in events:
        if event["type"] == "BOOKMARK" and "annotations" not in event["object"]["metadata"]:
            continue
        obj = _with_sorted_endpoints(event["object"])
        history = found[obj["metadata"].get("uid", "")]
        shown = even(obj)
        if event["type"] != "MODIFIED" or not history or history[-1][1] != shown:
            history.append([event["type"], shown])
    return by_first(list(found.values()))


def same_histories(found: list[list[Any]], recorded: list[list[Any]]) -> bool:
    """
    Whether objects went through the recorded states.

    The EndpointSlice controller may take several changes at once, here and in the real one, so a
    slice may skip states; it may not show others, nor begin or end otherwise.
    """
    if len(found) != len(recorded):
        return False
    return all(_same(mine, theirs) for mine, theirs in zip(found, recorded, strict=True))


def _same(mine: list[Any], theirs: list[Any]) -> bool:
    if mine == theirs:
        return True
    if theirs[0][1]["kind"] != "EndpointSlice":
        return False
    if mine[0] != theirs[0] or mine[-1][0] != theirs[-1][0]:
        return False
    if mine[-1][0] != "DELETED" and mine[-1] != theirs[-1]:
        return False  # a deletion may come before the last change was written
    left = iter([shown for _, shown in theirs])
    contents = [shown for kind, shown in mine if kind != "DELETED"]
    return all(any(shown == other for other in left) for shown in contents)


@dataclass
class Listener:
    """One recorded watch, made again in a thread."""

    client: httpx.Client
    path: str
    status: int = 0
    content_type: str = ""
    events: list[dict[str, Any]] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Read events until the client is closed."""
        try:
            with self.client.stream("GET", self.path) as answer:
                self.status = answer.status_code
                self.content_type = answer.headers["content-type"]
                self.started.set()
                for line in answer.iter_lines():
                    self.events.append(json.loads(line))
        except httpx.TransportError:
            return  # closed under it: the end of the watch


@dataclass
class Replay:
    """Everything this server answered."""

    answers: dict[int, Answer]
    listeners: dict[int, Listener]


def matches(recorded: dict[str, Any], answer: Answer) -> bool:
    """Whether an answer is as recorded."""
    same: bool = comparable(answer.body) == comparable(recorded["body"])
    return same and answer.status == recorded["status"]


def comparable(body: Any) -> Any:
    """Even out a body of any sort."""
    if isinstance(body, str) and body.startswith('{"type"'):
        return states([json.loads(line) for line in body.splitlines()])
    if not isinstance(body, dict):
        return body
    if "gitVersion" in body:
        return even_version(body)
    kind = body.get("kind", "")
    if kind == "Table":
        return even_table(body)
    if kind.startswith(("APIGroup", "APIResource", "APIVersions")):
        return even_discovery(body)
    if kind in ("EndpointSliceList", "EndpointsList"):  # no order among generated names
        items = [_with_sorted_endpoints(item) for item in body["items"]]
        body = {**body, "items": sorted(items, key=lambda item: item["metadata"]["name"])}
    return even(body)


def _with_sorted_endpoints(item: dict[str, Any]) -> dict[str, Any]:
    endpoints = item.get("endpoints")
    if not endpoints:
        return item
    return {**item, "endpoints": sorted(endpoints, key=lambda found: found["addresses"])}


def play(client: httpx.Client, listening: httpx.Client) -> Replay:
    """Make every recorded request; reads that controllers bring about are awaited."""
    translation = Translation()
    replay = Replay({}, {})
    for at, item in EXCHANGES:
        if at > WATCH_UNTIL and not listening.is_closed:
            settle(replay)
            listening.close()
        answer = ask(client, item["request"], translation)
        end = time.monotonic() + SETTLE_SECONDS
        level = item["request"]["method"] == "GET" and "watch=1" not in item["request"]["path"]
        while level and not matches(item["response"], answer) and time.monotonic() < end:
            if at in (1, 2, 3, 4, 5, 6, 7, 8):
                break
            time.sleep(0.05)
            answer = ask(client, item["request"], translation)
        translation.learn(item["response"]["body"], answer.body)
        replay.answers[at] = answer
        if item["note"] == "create namespace":
            wait_for_account(client)
        if at == WATCH_FROM:
            listen(replay, listening, translation)
    return replay


def wait_for_account(client: httpx.Client) -> None:
    """Pods are admitted once the namespace has its service account."""
    path = "/api/v1/namespaces/record/serviceaccounts/default"
    wait_until(path, lambda: client.get(path).is_success)


def listen(replay: Replay, client: httpx.Client, translation: Translation) -> None:
    """Begin all recorded watches."""
    for at, item in WATCHES:
        listener = Listener(client, translation.path(item["watch"]["path"]))
        replay.listeners[at] = listener
        threading.Thread(target=listener.run, daemon=True).start()
        assert listener.started.wait(SETTLE_SECONDS), f"{item['note']}: no answer"


def settle(replay: Replay) -> None:
    """Wait until every watch has seen what was recorded, or give up and let the test say so."""
    end = time.monotonic() + SETTLE_SECONDS
    for at, item in WATCHES:
        wanted = states(item["watch"]["events"])
        while time.monotonic() < end:
            if same_histories(states(replay.listeners[at].events), wanted):
                break
            time.sleep(0.05)


@pytest.fixture(scope="module")
def replay(server: Any) -> Iterator[Replay]:
    """Every recorded request, made once against each server."""
    with server.client() as client, server.client(300.0) as listening:
        yield play(client, listening)


def difference(found: Any, recorded: Any) -> str:
    """What a person wants to see of two bodies: the lines that differ."""
    sides = [json.dumps(side, indent=1, sort_keys=True).splitlines() for side in (recorded, found)]
    lines = difflib.unified_diff(sides[0], sides[1], "recorded", "found", lineterm="", n=6)
    return "\n".join(lines)


def _ids(items: list[tuple[int, dict[str, Any]]]) -> list[str]:
    return [f"{at}-{item['note']}" for at, item in items]


@pytest.mark.parametrize(("at", "item"), EXCHANGES, ids=_ids(EXCHANGES))
def test_exchange(replay: Replay, at: int, item: dict[str, Any]) -> None:
    """A request is answered as the real control plane answered it."""
    answer, recorded = replay.answers[at], item["response"]
    assert answer.status == recorded["status"]
    assert answer.content_type == recorded["content_type"]
    wanted, found = comparable(recorded["body"]), comparable(answer.body)
    if isinstance(recorded["body"], dict) and "groups" in recorded["body"]:
        both = wanted.keys() & found.keys()
        assert {"apps", "discovery.k8s.io", "networking.k8s.io"} <= both
        wanted, found = ({key: side[key] for key in both} for side in (wanted, found))
    elif isinstance(recorded["body"], dict) and "resources" in recorded["body"]:
        missing = {name for name in wanted.keys() - found.keys() if "/" not in name}
        assert not missing
        wanted, found = ({k: side[k] for k in side if k in found and k in wanted}
                         for side in (wanted, found))  # fmt: skip
    assert found == wanted, difference(found, wanted)


@pytest.mark.parametrize(("at", "item"), WATCHES, ids=_ids(WATCHES))
def test_watch(replay: Replay, at: int, item: dict[str, Any]) -> None:
    """A watch sees each object go through the same states."""
    listener, recorded = replay.listeners[at], item["watch"]
    assert listener.status == recorded["status"]
    assert listener.content_type == recorded["content_type"]
    found, wanted = states(listener.events), states(recorded["events"])
    assert same_histories(found, wanted), difference(found, wanted)


def test_comparison_can_fail() -> None:
    """A missing field, another value and another order of states are each seen."""
    body = RECORDED[19]["response"]["body"]
    changed = json.loads(json.dumps(body))
    del changed["spec"]["dnsPolicy"]
    assert comparable(changed) != comparable(body)
    changed = json.loads(json.dumps(body))
    changed["spec"]["containers"][0]["image"] = "y"
    assert comparable(changed) != comparable(body)
    events = WATCHES[3][1]["watch"]["events"]
    assert states(events[::-1]) != states(events)
    assert states(events[:-1]) != states(events)
    recorded = states(WATCHES[1][1]["watch"]["events"])
    assert same_histories(recorded, recorded)
    longest = max(recorded, key=len)
    assert same_histories([longest[:1] + longest[2:]], [longest])
    assert not same_histories([longest[:-1]], [longest])
    assert not same_histories([longest[::-1]], [longest])
