"""Selectors, patches, apply, protobuf, tables: the pure parts below the registry."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_lab.apiserver.apply import server_side_apply
from dunlin_lab.apiserver.errors import ApiError
from dunlin_lab.apiserver.patches import json_patch, merge_patch
from dunlin_lab.apiserver.protobuf import decode_protobuf
from dunlin_lab.apiserver.requests import parse_target
from dunlin_lab.apiserver.resources import PODS
from dunlin_lab.apiserver.selectors import parse_fields, parse_labels
from dunlin_lab.apiserver.strategic import strategic_merge
from dunlin_lab.apiserver.tables import duration


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a==b,c!=d", {"a": "b"}, True),
        ("a!=b", {"a": "b"}, False),
        ("a in (b, c),!z", {"a": "c"}, True),
        ("a in (b, c)", {}, False),
        ("a notin (b)", {}, True),
        ("a,!b", {"a": "", "b": ""}, False),
        ("x.io/y-z=1", {"x.io/y-z": "1"}, True),
    ],
)
def test_label_selectors(selector: str, labels: dict[str, str], *, matches: bool) -> None:
    """Every operator, and an absent key under each."""
    assert parse_labels(selector).matches(labels) is matches


@pytest.mark.parametrize("selector", ["a in b", "=", "a in (b", "a=b c"])
def test_bad_label_selector_is_400(selector: str) -> None:
    """What is no selector is an error."""
    with pytest.raises(ApiError) as caught:
        parse_labels(selector)
    assert caught.value.code == 400


def test_selector_of_nothing_is_empty() -> None:
    """A Pod without a node matches the empty nodeName."""
    pod: dict[str, Any] = {"metadata": {"name": "p"}, "spec": {}}
    assert parse_fields("spec.nodeName=", PODS).matches(pod)
    assert not parse_fields("spec.nodeName!=", PODS).matches(pod)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/api/v1/pods", ("", "", "")),
        ("/api/v1/namespaces/a/pods/b", ("a", "b", "")),
        ("/api/v1/namespaces/a/pods/b/status", ("a", "b", "status")),
        ("/api/v1/namespaces/a", ("", "a", "")),
        ("/api/v1/namespaces/a/status", ("", "a", "status")),
        ("/apis/apps/v1/namespaces/a/deployments/d/scale", ("a", "d", "scale")),
        ("/apis/apps/v1/nothing", None),
        ("/api/v1/namespaces/a/nodes/n", None),
        ("/api/v1/pods/b", None),
        ("/healthz", None),
    ],
)
def test_paths(path: str, found: tuple[str, str, str] | None) -> None:
    """A path names a namespace, an object and a subresource, or nothing at all."""
    target = parse_target(path)
    shown = target and (target.namespace, target.name, target.subresource)
    assert shown == found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
    max_leaves=8,
)


@given(JSON, JSON)
def test_merge_patch_twice_is_once(target: Any, patch: Any) -> None:
    """A merge patch is idempotent."""
    once = merge_patch(target, patch)
    assert merge_patch(once, patch) == once


def test_json_patch_operations() -> None:
    """Each operation of RFC 6902, with escaped names and the end of a list."""
    operations = [
        {"op": "add", "path": "/list/-", "value": 3},
        {"op": "add", "path": "/list/0", "value": 0},
        {"op": "replace", "path": "/a~1b", "value": "y"},
        {"op": "copy", "from": "/list", "path": "/copied"},
        {"op": "remove", "path": "/list/1"},
        {"op": "move", "from": "/a~1b", "path": "/moved"},
        {"op": "test", "path": "/moved", "value": "y"},
    ]
    found = json_patch({"list": [1, 2], "a/b": "x"}, operations)
    assert found == {"list": [0, 2, 3], "copied": [0, 1, 2, 3], "moved": "y"}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "test", "path": "/a", "value": 2},
        {"op": "remove", "path": "/none"},
        {"op": "replace", "path": "/list/7", "value": 1},
        {"op": "add", "path": "no-slash", "value": 1},
        {"op": "nope", "path": "/a"},
    ],
)
def test_json_patch_that_does_not_fit(operation: dict[str, Any]) -> None:
    """A patch that does not fit is refused, and the target is as it was."""
    target = {"a": 1, "list": [1]}
    with pytest.raises(ApiError) as caught:
        json_patch(target, [{"op": "add", "path": "/b", "value": 1}, operation])
    assert caught.value.code == 422
    assert target == {"a": 1, "list": [1]}


def test_strategic_directives() -> None:
    """Elements merge by key, go by $patch, follow $setElementOrder; $retainKeys drops the rest."""
    target = {
        "spec": {
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
            "template": {
                "spec": {"containers": [{"name": "a", "image": "1"}, {"name": "b"}, {"name": "c"}]}
            },
        },
        "metadata": {"finalizers": ["x", "y"]},
    }
    patch = {
        "spec": {
            "strategy": {"$retainKeys": ["type"], "type": "Recreate"},
            "template": {
                "spec": {
                    "$setElementOrder/containers": [{"name": "c"}, {"name": "d"}, {"name": "a"}],
                    "containers": [
                        {"name": "a", "command": ["x"]},
                        {"name": "b", "$patch": "delete"},
                        {"name": "d"},
                    ],
                }
            },
        },
        "metadata": {"$deleteFromPrimitiveList/finalizers": ["x"], "finalizers": ["z"]},
    }
    found = strategic_merge("Deployment", target, patch)
    assert found["spec"]["strategy"] == {"type": "Recreate"}
    assert found["spec"]["template"]["spec"]["containers"] == [
        {"name": "c"},
        {"name": "d"},
        {"name": "a", "image": "1", "command": ["x"]},
    ]
    assert found["metadata"]["finalizers"] == ["y", "z"]


def applied(live: Any, config: Any, manager: str = "m", *, force: bool = False) -> Any:
    """Apply a Service."""
    return server_side_apply("Service", live, config, manager=manager, force=force, time="t")


def test_apply_merges_lists_by_key() -> None:
    """A manager's ports stand beside another's, and going they leave those alone."""
    one = {"spec": {"ports": [{"port": 1, "protocol": "TCP"}]}}
    two = {"spec": {"ports": [{"port": 2, "protocol": "TCP"}]}}
    live = applied(applied(None, one, "one"), two, "two")
    assert [port["port"] for port in live["spec"]["ports"]] == [1, 2]
    live = applied(live, {"spec": {}}, "one")
    assert [port["port"] for port in live["spec"]["ports"]] == [2]


def test_apply_of_the_same_changes_nothing() -> None:
    """Applying again gives the same object, so that no version is made."""
    config = {"metadata": {"name": "s", "labels": {"a": "b"}}, "spec": {"type": "ClusterIP"}}
    live = applied(None, config)
    assert applied(live, config) == live


def test_apply_conflict_and_force() -> None:
    """A field of another manager is refused with its name, and taken by force."""
    live = applied(None, {"spec": {"type": "ClusterIP"}}, "one")
    with pytest.raises(ApiError) as caught:
        applied(live, {"spec": {"type": "NodePort"}}, "two")
    assert caught.value.details == {
        "causes": [
            {
                "reason": "FieldManagerConflict",
                "message": 'conflict with "one" using None',
                "field": ".spec.type",
            }
        ]
    }
    taken = applied(live, {"spec": {"type": "NodePort"}}, "two", force=True)
    assert [entry["manager"] for entry in taken["metadata"]["managedFields"]] == ["two"]


def field(number: int, payload: bytes) -> bytes:
    """Encode one short field of bytes."""
    return bytes([number << 3 | 2, len(payload)]) + payload


def envelope(kind: bytes, raw: bytes) -> bytes:
    """Encode what kubectl sends."""
    return b"k8s\0" + field(1, field(1, b"v1") + field(2, kind)) + field(2, raw)


def test_protobuf_body() -> None:
    """Strings, maps, numbers and IntOrString; plain fields that are empty are left out."""
    port = field(2, b"TCP") + bytes([3 << 3, 80]) + field(4, bytes([1 << 3, 1]) + field(3, b"h"))
    raw = field(1, field(1, b"s") + field(2, b"")) + field(
        2, field(1, port) + field(2, field(1, b"a") + field(2, b"b"))
    )
    assert decode_protobuf(envelope(b"Service", raw)) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "s"},
        "spec": {
            "ports": [{"protocol": "TCP", "port": 80, "targetPort": "h"}],
            "selector": {"a": "b"},
        },
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{}", 400),
        (b"k8s\0\x0a\xff", 400),
        (envelope(b"Nothing", b""), 415),
        (envelope(b"ConfigMap", field(15, b"x")), 415),
    ],
)
def test_protobuf_that_is_not_understood(body: bytes, code: int) -> None:
    """Nothing is stored without a part of it: what is not known is refused."""
    with pytest.raises(ApiError) as caught:
        decode_protobuf(body)
    assert caught.value.code == code


@given(st.binary(max_size=60))
def test_protobuf_garbage_is_refused(garbage: bytes) -> None:
    """Any bytes either decode or are a 400 or 415."""
    with suppress(ApiError):
        assert isinstance(decode_protobuf(b"k8s\0" + garbage), dict)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0s"), (119, "119s"), (120, "2m"), (185, "3m5s"), (3600, "60m"), (4 * 3600, "4h"),
     (5 * 3600 + 60, "5h1m"), (47 * 3600, "47h"), (49 * 3600, "2d"), (800 * 86400, "2y")],
)  # fmt: skip
def test_ages(seconds: int, shown: str) -> None:
    """Ages read as kubectl's."""
    assert duration(seconds) == shown
