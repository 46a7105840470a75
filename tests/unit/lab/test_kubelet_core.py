"""What the lab's kubelet does next, from any Pod and any sandbox."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dunlin_lab.kubelet_core import (
    RETRY_MAX_MS,
    Action,
    CreateSandbox,
    DeleteObject,
    Drain,
    Nothing,
    PodView,
    Report,
    Sandbox,
    Serve,
    TearDown,
    Wait,
    next_action,
    pod_status,
    retry_at,
    sandbox_id,
    view,
)
from dunlin_lab.responder import Port

BOX = Sandbox(
    "c" * 64, "u1", "default", "web", "n1", "dl-t-p-cccccccccc", 1, "attached", ("10.0.0.5",)
)


def pod(**changes: Any) -> dict[str, Any]:
    """A Pod of the API with one port."""
    container = {"name": "c", "image": "i", "ports": [{"containerPort": 80}]}
    base: dict[str, Any] = {
        "metadata": {"uid": "u1", "namespace": "default", "name": "web", "annotations": {}},
        "spec": {"nodeName": "n1", "containers": [container], "terminationGracePeriodSeconds": 30},
        "status": {},
    }
    for key, value in changes.items():
        base[key].update(value)
    return base


def step(
    seen: PodView | None,
    box: Sandbox | None,
    *,
    now: int = 0,
    served: bool = True,
    stale: bool = False,
) -> Action:
    """The next action."""
    return next_action(seen, box, now, served=served, stale=stale)


READY = {"conditions": [{"type": "Ready", "status": "True"}], "podIPs": [{"ip": "10.0.0.5"}]}
DELETED = {"deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 30}


def test_a_pods_life_step_by_step() -> None:
    """Create, serve, report, nothing; deleted: drain, wait, tear down, delete the object."""
    fresh, ready = view(pod()), view(pod(status=READY))
    deleted = view(pod(metadata=DELETED, status=READY))
    draining = msgspec.structs.replace(BOX, stage="draining", drain_until_ms=2000)
    assert step(fresh, None) == CreateSandbox(fresh, 1)
    assert step(fresh, BOX, served=False) == Serve(fresh, BOX)
    assert step(fresh, BOX) == Report(fresh, BOX, ready=True)
    assert step(ready, BOX) == Nothing()
    assert step(deleted, BOX) == Drain(BOX, 2000)
    assert step(deleted, draining, now=1999) == Wait(2000)
    assert step(deleted, draining, now=2000) == TearDown(draining)
    assert step(deleted, None) == DeleteObject(deleted)


def test_a_failed_sandbox_is_tried_again_at_its_time() -> None:
    """With the next attempt's number, so with another container id."""
    failed = msgspec.structs.replace(BOX, stage="failed", retry_ms=500, attempt=3)
    assert step(view(pod()), failed, now=499) == Wait(500)
    assert step(view(pod()), failed, now=500) == CreateSandbox(view(pod()), 4)
    assert sandbox_id("t", "u1", 3) != sandbox_id("t", "u1", 4) != sandbox_id("s", "u1", 4)


@pytest.mark.parametrize("status", [{}, READY])
def test_a_stale_sandbox_is_torn_down_first(status: dict[str, Any]) -> None:
    """Left half made by a killed kubelet, or its namespace is gone."""
    assert step(view(pod(status=status)), BOX, stale=True) == TearDown(BOX)


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_finished_or_vanished_pod_has_no_sandbox(phase: str) -> None:
    """A Pod deleted by force has nobody to drain for."""
    finished = view(pod(status={"phase": phase}))
    assert step(finished, BOX) == TearDown(BOX)
    assert step(finished, None) == Nothing()
    assert step(None, BOX) == TearDown(BOX)
    assert step(None, None) == Nothing()


def test_a_teardown_that_failed_waits_for_its_time() -> None:
    """An agent that is away is not asked in a busy loop, and not given up."""
    box = msgspec.structs.replace(BOX, stage="draining", retry_ms=900)
    assert step(None, box, now=899) == Wait(900)
    assert step(None, box, now=900) == TearDown(box)


def test_the_annotation_makes_a_pod_not_ready_and_back() -> None:
    """Only readiness changes; it goes on answering."""
    seen = view(pod(metadata={"annotations": {"dunlin.dev/lab-ready": "false"}}, status=READY))
    assert step(seen, BOX) == Report(seen, BOX, ready=False)
    status = pod_status(seen, BOX, ("172.31.0.11",), ready=False)["status"]
    assert {c["type"]: c["status"] for c in status["conditions"]}["Ready"] == "False"
    assert status["phase"] == "Running"


@pytest.mark.parametrize(
    ("annotation", "grace", "expected"),
    [
        (None, 30, 2000),
        (None, 1, 1000),
        ("5", 30, 5000),
        ("5", 3, 3000),
        ("0", 30, 0),
        ("-1", 30, 0),
    ],
)
def test_drain_time_is_bounded_by_the_grace_period(
    annotation: str | None, grace: int, expected: int
) -> None:
    """A Pod never answers longer than Kubernetes would let it."""
    annotations = {} if annotation is None else {"dunlin.dev/lab-drain-seconds": annotation}
    metadata = {**DELETED, "deletionGracePeriodSeconds": grace, "annotations": annotations}
    assert view(pod(metadata=metadata)).drain_ms == expected


def test_ports_of_all_containers_once_each_with_tcp_as_default() -> None:
    """Two containers of a Pod share its namespace, so a port is opened once."""
    containers = [
        {"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]},
        {"name": "b", "ports": [{"containerPort": 80, "protocol": "TCP"}]},
    ]
    assert view(pod(spec={"containers": containers})).ports == (Port("TCP", 80), Port("UDP", 53))


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": "http"}]}]}},
        {"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 1, "protocol": "X"}]}]}},
        {"metadata": {"annotations": {"dunlin.dev/lab-drain-seconds": "soon"}}},
        {"spec": {"containers": "none"}},
    ],
)
def test_a_pod_that_does_not_parse_is_named(changes: dict[str, Any]) -> None:
    """Bad input is an error with the Pod's name, never a crash of the kubelet."""
    with pytest.raises(ValueError, match="pod default/web"):
        view(pod(**changes))


def test_retries_double_up_to_a_bound() -> None:
    """250 ms, 500 ms, … 10 s."""
    assert [retry_at(0, n) for n in (1, 2, 3)] == [250, 500, 1000]
    assert retry_at(0, 1000) == RETRY_MAX_MS
