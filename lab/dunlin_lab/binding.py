"""Which node a Pod goes to: pure, for the embedded API and for the node runner's binder."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.values import Obj, is_ready, labels_of, meta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SCHEDULER_NAME = "default-scheduler"
FINISHED = ("Failed", "Succeeded")
_REPELLING = ("NoSchedule", "NoExecute")


def tolerates(toleration: Obj, taint: Obj) -> bool:
    """Whether a toleration covers a taint."""
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("key") not in (None, "", taint.get("key")):
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("value", "") == taint.get("value", ""))


def why_not(pod: Obj, node: Obj, count: int, default_max_pods: int) -> str | None:
    """Return why a node cannot take a Pod, None if it can; `count` Pods are there already."""
    spec = node["spec"]
    if spec.get("unschedulable"):
        return "node(s) were unschedulable"
    if not is_ready(node):
        return "node(s) were not ready"
    wanted = pod["spec"].get("nodeSelector") or {}
    if not wanted.items() <= labels_of(node).items():
        return "node(s) didn't match Pod's node affinity/selector"
    tolerations = pod["spec"].get("tolerations") or ()
    for taint in spec.get("taints") or ():
        repels = taint.get("effect") in _REPELLING
        if repels and not any(tolerates(item, taint) for item in tolerations):
            return "node(s) had untolerated taint(s)"
    room = (node["status"].get("allocatable") or {}).get("pods", default_max_pods)
    return "Too many pods" if count >= int(room) else None


def choose(
    pod: Obj, nodes: Iterable[Obj], counts: Mapping[str, int], default_max_pods: int
) -> tuple[str | None, str]:
    """Return (the node with fewest Pods that takes this one, or None; why the others do not)."""
    reasons: Counter[str] = Counter()
    fitting: list[str] = []
    for node in nodes:
        name = meta(node)["name"]
        why = why_not(pod, node, counts.get(name, 0), default_max_pods)
        if why is None:
            fitting.append(name)
        else:
            reasons[why] += 1
    best = min(fitting, key=lambda name: (counts.get(name, 0), name), default=None)
    listed = ", ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
    total = len(fitting) + sum(reasons.values())
    return best, f"0/{total} nodes are available: {listed}." if total else "no nodes available"
