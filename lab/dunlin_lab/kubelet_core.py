"""
What the lab's kubelet does next for a Pod: a pure function of the Pod and of its sandbox.

    next_action(pod, sandbox, now_ms) -> Action

Nothing here remembers what was done before: after a restart the same Pod and sandbox lead on from
where they are. The shell (kubelet.py) carries an action out, stores the new sandbox, asks again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from dunlin_lab.responder import Port

READY_ANNOTATION = "dunlin.dev/lab-ready"
"""`false` makes the Pod NotReady; it goes on answering."""
DRAIN_ANNOTATION = "dunlin.dev/lab-drain-seconds"
"""How long a deleted Pod goes on answering; default and bounds below."""
DRAIN_DEFAULT_S = 2.0
RETRY_FIRST_MS = 250
RETRY_MAX_MS = 10_000

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class PodView:
    """What the kubelet needs to know of a Pod."""

    uid: str
    namespace: str
    name: str
    node: str
    host_network: bool
    ports: tuple[Port, ...]
    containers: tuple[tuple[str, str], ...]
    """(name, image)."""
    ready_wanted: bool
    deleting: bool
    drain_ms: int
    finished: bool
    """Succeeded or Failed: has no sandbox."""
    reported: tuple[tuple[str, ...], bool]
    """(podIPs, Ready) as the API has them now, to report only what changed."""


class Sandbox(msgspec.Struct, frozen=True):
    """
    A Pod's namespace, on disk so that another kubelet process can take it over.

    `adding` is written before CNI ADD is called and `attached` after it: a sandbox found `adding`
    by a new process may be half made, and is torn down.
    """

    id: str
    uid: str
    namespace: str
    name: str
    node: str
    netns: str
    """Name; the node's for a Pod on the host's network."""
    attempt: int
    stage: Literal["adding", "attached", "draining", "failed"]
    ips: tuple[str, ...] = ()
    started: str = ""
    """RFC 3339: when ADD had succeeded."""
    retry_ms: int = 0
    """Of `failed`, or of a teardown that failed: not before this time."""
    drain_until_ms: int = 0
    error: str = ""
    host_network: bool = False


@dataclass(frozen=True, slots=True)
class CreateSandbox:
    """Make a namespace, call ADD, serve the ports."""

    pod: PodView
    attempt: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Tell the responder of the sandbox's ports."""

    pod: PodView
    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class Report:
    """Patch the Pod's status."""

    pod: PodView
    sandbox: Sandbox
    ready: bool


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask HTTP clients to go elsewhere, answer on until the time."""

    sandbox: Sandbox
    until_ms: int


@dataclass(frozen=True, slots=True)
class TearDown:
    """Stop answering, call DEL, remove the namespace."""

    sandbox: Sandbox


@dataclass(frozen=True, slots=True)
class DeleteObject:
    """Nothing of the Pod is left here: let the API forget it."""

    pod: PodView


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before that time, or before a change."""

    until_ms: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """Nothing to do before a change."""


Action = CreateSandbox | Serve | Report | Drain | TearDown | DeleteObject | Wait | Nothing


def next_action(
    pod: PodView | None, sandbox: Sandbox | None, now_ms: int, *, served: bool, stale: bool
) -> Action:
    """
    The next step for one Pod uid.

    Args:
        pod: None once the API no longer has it.
        served: the responder knows the sandbox's ports as the Pod has them now.
        stale: the sandbox was left by an earlier process and cannot be used: it is `adding`, or its
            namespace is gone.
    """
    if pod is None or pod.finished:
        return Nothing() if sandbox is None else _tear_down(sandbox, now_ms)
    if pod.deleting:
        return _end(pod, sandbox, now_ms)
    if sandbox is None:
        return CreateSandbox(pod, attempt=1)
    if stale:
        return _tear_down(sandbox, now_ms)
    if sandbox.stage == "failed":
        if now_ms < sandbox.retry_ms:
            return Wait(sandbox.retry_ms)
        return CreateSandbox(pod, sandbox.attempt + 1)
    if not served:
        return Serve(pod, sandbox)
    if pod.reported != (sandbox.ips, pod.ready_wanted):
        return Report(pod, sandbox, ready=pod.ready_wanted)
    return Nothing()


def _end(pod: PodView, sandbox: Sandbox | None, now_ms: int) -> Action:
    """A deleted Pod: answer on for a while, tear down, tell the API."""
    if sandbox is None:
        return DeleteObject(pod)
    if sandbox.stage == "attached":
        return Drain(sandbox, now_ms + pod.drain_ms)
    if sandbox.stage == "draining" and now_ms < sandbox.drain_until_ms:
        return Wait(sandbox.drain_until_ms)
    return _tear_down(sandbox, now_ms)


def _tear_down(sandbox: Sandbox, now_ms: int) -> Action:
    """After a DEL that failed, not before its time."""
    if sandbox.stage != "failed" and now_ms < sandbox.retry_ms:
        return Wait(sandbox.retry_ms)
    return TearDown(sandbox)


def retry_at(now_ms: int, attempt: int) -> int:
    """When to try again after failure number `attempt` (from 1): doubling, at most RETRY_MAX_MS."""
    return now_ms + min(RETRY_MAX_MS, RETRY_FIRST_MS << min(attempt - 1, 10))


def sandbox_id(lab: str, uid: str, attempt: int) -> str:
    """A container id: 64 hex digits, the same for the same attempt."""
    return hashlib.sha256(f"{lab}\0{uid}\0{attempt}".encode()).hexdigest()


def view(pod: Object) -> PodView:
    """
    Read a Pod.

    Raises:
        ValueError: a field is not what the API promises; the message names Pod and field.
    """
    metadata = pod.get("metadata") or {}
    label = f"pod {metadata.get('namespace')}/{metadata.get('name')}"
    try:
        return _view(metadata, pod.get("spec") or {}, pod.get("status") or {})
    except (KeyError, TypeError, ValueError, AttributeError, msgspec.ValidationError) as error:
        raise ValueError(f"{label}: {error!r}") from error


def _view(metadata: Object, spec: Object, status: Object) -> PodView:
    annotations = metadata.get("annotations") or {}
    containers = spec.get("containers") or []
    ports = [
        {"protocol": port.get("protocol") or "TCP", "port": port["containerPort"]}
        for container in containers
        for port in container.get("ports") or []
    ]
    conditions = {c["type"]: c["status"] for c in status.get("conditions") or []}
    pod_ips = tuple(entry["ip"] for entry in status.get("podIPs") or [])
    return PodView(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        node=spec.get("nodeName") or "",
        host_network=bool(spec.get("hostNetwork")),
        ports=tuple(sorted(set(msgspec.convert(ports, tuple[Port, ...])))),
        containers=tuple((c["name"], c.get("image") or "") for c in containers),
        ready_wanted=annotations.get(READY_ANNOTATION, "true") != "false",
        deleting=bool(metadata.get("deletionTimestamp")),
        drain_ms=_drain_ms(metadata, spec, annotations),
        finished=status.get("phase") in ("Succeeded", "Failed"),
        reported=(pod_ips, conditions.get("Ready") == "True"),
    )


def _drain_ms(metadata: Object, spec: Object, annotations: Object) -> int:
    """At most the grace period, whichever of the two says it."""
    grace = metadata.get("deletionGracePeriodSeconds")
    if grace is None:
        grace = spec.get("terminationGracePeriodSeconds")
    wished = float(annotations.get(DRAIN_ANNOTATION, DRAIN_DEFAULT_S))
    return int(1000 * max(0.0, min(wished, 30.0 if grace is None else float(grace))))


def pod_status(pod: PodView, sandbox: Sandbox, host_ips: tuple[str, ...], *, ready: bool) -> Object:
    """The status of a Pod that runs, as a strategic merge patch."""
    word = "True" if ready else "False"
    return {
        "status": {
            "phase": "Running",
            "hostIP": host_ips[0],
            # A strategic merge would keep addresses of an earlier sandbox.
            "hostIPs": [{"$patch": "replace"}, *({"ip": ip} for ip in host_ips)],
            "podIP": sandbox.ips[0],
            "podIPs": [{"$patch": "replace"}, *({"ip": ip} for ip in sandbox.ips)],
            "startTime": sandbox.started,
            "conditions": [
                condition("PodReadyToStartContainers", "True", sandbox.started),
                condition("Initialized", "True", sandbox.started),
                condition("ContainersReady", word, rfc3339()),
                condition("Ready", word, rfc3339()),
            ],
            "containerStatuses": [
                {
                    "name": name,
                    "image": image,
                    "imageID": "",
                    "containerID": f"dunlin-lab://{sandbox.id}",
                    "ready": ready,
                    "started": True,
                    "restartCount": 0,
                    "state": {"running": {"startedAt": sandbox.started}},
                }
                for name, image in pod.containers
            ],
        }
    }


def failed_status(error: str) -> Object:
    """The status of a Pod whose sandbox cannot be made, as a strategic merge patch."""
    failed = condition("PodReadyToStartContainers", "False", rfc3339())
    more = {"reason": "FailedCreatePodSandBox", "message": error}
    return {"status": {"phase": "Pending", "conditions": [{**failed, **more}]}}


def condition(kind: str, status: str, since: str) -> Object:
    """One entry of status.conditions."""
    return {"type": kind, "status": status, "lastTransitionTime": since}


def rfc3339(moment: datetime | None = None) -> str:
    """A time as the API writes it, to the second, UTC."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
