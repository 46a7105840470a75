"""Deployments, the pure part: which ReplicaSets there shall be, how large, and the status."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.registry import NAME_LETTERS
from dunlin_lab.apiserver.values import Obj, condition, encode, meta, timestamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

HASH_LABEL = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"
DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
_PRIVATE = (REVISION, DESIRED, MAXIMUM, "kubectl.kubernetes.io/last-applied-configuration")


def template_hash(template: Obj) -> str:
    """Return ten letters that stand for a Pod template (not the real controller's number)."""
    digest = hashlib.blake2b(encode(_sorted(template)), digest_size=10).digest()
    return "".join(NAME_LETTERS[byte % len(NAME_LETTERS)] for byte in digest)


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _template_of(replicaset: Obj) -> Obj:
    """Return a ReplicaSet's template as its Deployment wrote it."""
    template = replicaset["spec"]["template"]
    metadata = dict(template.get("metadata") or {})
    metadata["labels"] = {k: v for k, v in metadata.get("labels", {}).items() if k != HASH_LABEL}
    return {**template, "metadata": metadata}


def current_of(deployment: Obj, replicasets: Sequence[Obj]) -> Obj | None:
    """Return the ReplicaSet of the present template, the oldest if there are several."""
    template = deployment["spec"]["template"]
    same = [item for item in replicasets if _template_of(item) == template]
    return min(same, key=lambda item: str(meta(item)["creationTimestamp"]), default=None)


def _count(value: object, total: int, *, up: bool) -> int:
    """Resolve an absolute number or a percentage of `total`."""
    if isinstance(value, str):
        scaled = int(value.removesuffix("%")) * total
        return -(-scaled // 100) if up else scaled // 100
    return value if isinstance(value, int) else 0


def limits_of(deployment: Obj) -> tuple[int, int]:
    """Return (maxSurge, maxUnavailable) in Pods, never both zero."""
    spec = deployment["spec"]
    if spec["strategy"]["type"] != "RollingUpdate":
        return 0, spec["replicas"]
    rolling = spec["strategy"].get("rollingUpdate") or {}
    surge = _count(rolling.get("maxSurge", "25%"), spec["replicas"], up=True)
    unavailable = _count(rolling.get("maxUnavailable", "25%"), spec["replicas"], up=False)
    return surge, unavailable if surge or unavailable else 1


def revision_of(obj: Obj) -> int:
    """Return the rollout revision written on an object, 0 if none."""
    return int((meta(obj).get("annotations") or {}).get(REVISION, "0"))


def new_replicaset(deployment: Obj, revision: int) -> Obj:
    """Return the ReplicaSet of a Deployment's present template, without replicas."""
    spec, metadata = deployment["spec"], meta(deployment)
    template = spec["template"]
    digest = template_hash(template)
    inner = template.get("metadata") or {}
    labels = {**(inner.get("labels") or {}), HASH_LABEL: digest}
    selector = dict(spec["selector"])
    selector["matchLabels"] = {**(selector.get("matchLabels") or {}), HASH_LABEL: digest}
    own = {k: v for k, v in (metadata.get("annotations") or {}).items() if k not in _PRIVATE}
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": metadata["name"],
             "uid": metadata["uid"], "controller": True, "blockOwnerDeletion": True}  # fmt: skip
    wanted = {
        "replicas": 0, "selector": selector,
        "template": {**template, "metadata": {**inner, "labels": labels}},
    }  # fmt: skip
    if spec.get("minReadySeconds"):
        wanted["minReadySeconds"] = spec["minReadySeconds"]
    return {
        "metadata": {
            "name": f"{metadata['name']}-{digest}", "labels": labels,
            "annotations": {**own, REVISION: str(revision)}, "ownerReferences": [owner],
        },
        "spec": wanted,
    }  # fmt: skip


def _size(replicaset: Obj) -> int:
    size: int = replicaset["spec"].get("replicas", 0)
    return size


def _available(replicaset: Obj) -> int:
    count: int = (replicaset.get("status") or {}).get("availableReplicas", 0)
    return count


@dataclass(slots=True)
class Rollout:
    """The next step: sizes by ReplicaSet name, and old ones that are no longer kept."""

    sizes: dict[str, int] = field(default_factory=dict)
    delete: list[str] = field(default_factory=list)


def plan_rollout(deployment: Obj, current: Obj, old: Sequence[Obj]) -> Rollout:
    """
    Return the next step of a rollout, from the sizes and the availability of its ReplicaSets.

    Never more than replicas + maxSurge Pods are asked for, nor fewer than replicas -
    maxUnavailable kept available.
    """
    rollout = Rollout()
    if deployment["spec"].get("paused"):
        _scale_paused(deployment, current, old, rollout)
        return rollout
    if deployment["spec"]["strategy"]["type"] == "Recreate":
        _plan_recreate(deployment, current, old, rollout)
    else:
        _plan_rolling(deployment, current, old, rollout)
    _plan_history(deployment, old, rollout)
    return rollout


def _scale_paused(deployment: Obj, current: Obj, old: Sequence[Obj], rollout: Rollout) -> None:
    """A paused Deployment rolls nothing out, but its largest ReplicaSet follows its size."""
    everything = [current, *old]
    largest = max(everything, key=lambda item: (_size(item), item is current))
    rest = sum(_size(item) for item in everything if item is not largest)
    wanted = max(deployment["spec"]["replicas"] - rest, 0)
    if wanted != _size(largest):
        rollout.sizes[meta(largest)["name"]] = wanted


def _plan_recreate(deployment: Obj, current: Obj, old: Sequence[Obj], rollout: Rollout) -> None:
    for item in old:
        if _size(item):
            rollout.sizes[meta(item)["name"]] = 0
    status = [item.get("status") or {} for item in old]
    leaving = any(item.get("replicas") or item.get("terminatingReplicas") for item in status)
    wanted = deployment["spec"]["replicas"]
    if not rollout.sizes and not leaving and _size(current) != wanted:
        rollout.sizes[meta(current)["name"]] = wanted


def _plan_rolling(deployment: Obj, current: Obj, old: Sequence[Obj], rollout: Rollout) -> None:
    wanted = deployment["spec"]["replicas"]
    surge, unavailable = limits_of(deployment)
    total = _size(current) + sum(_size(item) for item in old)
    if _size(current) > wanted:
        rollout.sizes[meta(current)["name"]] = wanted
    elif _size(current) < wanted and total < wanted + surge:
        step = min(wanted + surge - total, wanted - _size(current))
        rollout.sizes[meta(current)["name"]] = _size(current) + step
    old_total = total - _size(current)
    if not old_total:
        return
    floor = wanted - unavailable
    pending = max(_size(current) - _available(current), 0)
    room = total - floor - pending
    by_age = sorted(old, key=lambda item: str(meta(item)["creationTimestamp"]))
    for item in by_age:  # first those that serve nobody
        idle = min(max(_size(item) - _available(item), 0), max(room, 0))
        if idle:
            rollout.sizes[meta(item)["name"]] = _size(item) - idle
            room -= idle
    spare = _available(current) + sum(_available(item) for item in old) - floor
    for item in by_age:
        left = rollout.sizes.get(meta(item)["name"], _size(item))
        step = min(left, max(spare, 0), max(room, 0))
        if step:
            rollout.sizes[meta(item)["name"]] = left - step
            spare -= step
            room -= step


def _plan_history(deployment: Obj, old: Sequence[Obj], rollout: Rollout) -> None:
    """Old ReplicaSets without Pods are kept up to revisionHistoryLimit, the newest."""
    empty = [
        item for item in old
        if not _size(item) and not (item.get("status") or {}).get("replicas")
    ]  # fmt: skip
    surplus = len(empty) - deployment["spec"].get("revisionHistoryLimit", 10)
    for item in sorted(empty, key=revision_of)[: max(surplus, 0)]:
        rollout.delete.append(meta(item)["name"])


def status_of(deployment: Obj, current: Obj | None, old: Sequence[Obj], now: float) -> Obj:
    """Return the status of a Deployment."""
    everything = [*([current] if current is not None else []), *old]

    def total(name: str, items: Sequence[Obj] = everything) -> int:
        return sum((item.get("status") or {}).get(name, 0) for item in items)

    wanted = deployment["spec"]["replicas"]
    available = total("availableReplicas")
    sizes = sum(_size(item) for item in everything)
    counts: Mapping[str, int] = {
        "replicas": total("replicas"),
        "updatedReplicas": total("replicas", [current] if current is not None else []),
        "readyReplicas": total("readyReplicas"),
        "availableReplicas": available,
        "unavailableReplicas": max(sizes - available, 0),
    }
    status: Obj = {"observedGeneration": meta(deployment).get("generation", 1)}
    status |= {key: value for key, value in counts.items() if value}
    status["terminatingReplicas"] = total("terminatingReplicas")
    complete = counts["updatedReplicas"] == counts["replicas"] == available == wanted
    status["conditions"] = [
        _available_condition(deployment, available, now),
        _progressing_condition(deployment, current, complete=complete, now=now),
    ]
    return status


def _available_condition(deployment: Obj, available: int, now: float) -> Obj:
    enough = available >= deployment["spec"]["replicas"] - limits_of(deployment)[1]
    if enough:
        text = ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    else:
        text = ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    return _condition(deployment, "Available", "True" if enough else "False", text, now)


def _progressing_condition(
    deployment: Obj, current: Obj | None, *, complete: bool, now: float
) -> Obj:
    name = meta(current)["name"] if current is not None else ""
    if complete:
        message = f'ReplicaSet "{name}" has successfully progressed.'
        text = ("NewReplicaSetAvailable", message)
    else:
        text = ("ReplicaSetUpdated", f'ReplicaSet "{name}" is progressing.')
    return _condition(deployment, "Progressing", "True", text, now)


def _condition(deployment: Obj, kind: str, value: str, text: tuple[str, str], now: float) -> Obj:
    before = condition(deployment, kind) or {}
    same = before.get("status") == value
    if same and before.get("reason") == text[0] and before.get("message") == text[1]:
        return before
    moved = before["lastTransitionTime"] if same else timestamp(now)
    return {"type": kind, "status": value, "lastUpdateTime": timestamp(now),
            "lastTransitionTime": moved, "reason": text[0], "message": text[1]}  # fmt: skip
