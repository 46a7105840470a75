"""Deployments, ReplicaSets and the workloads that are only stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.errors import Cause, invalid_value, required
from dunlin_lab.apiserver.selectors import from_object
from dunlin_lab.apiserver.strategies.base import Context, Plain, keep_status
from dunlin_lab.apiserver.strategies.checks import check_count, check_selector
from dunlin_lab.apiserver.strategies.pod import check_pod_spec, default_pod_spec

if TYPE_CHECKING:
    from dunlin_lab.apiserver.values import Obj

_QUARTER = "25%"


class WorkloadStrategy(Plain):
    """A kind with replicas, a selector and a Pod template; `initial` is its first status."""

    def __init__(self, initial: Obj) -> None:
        """Keep the first status."""
        self._initial = initial

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Default the template."""
        if context.subresource == "status" and old is not None:
            obj["spec"] = old["spec"]
        keep_status(obj, old, context, dict(self._initial))
        spec = obj.setdefault("spec", {})
        template = spec.setdefault("template", {})
        default_pod_spec(template.setdefault("spec", {}))
        template.get("metadata", {}).pop("creationTimestamp", None)
        self._default(spec)

    def _default(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check the selector against the template."""
        spec = obj["spec"]
        found = check_count("spec.replicas", spec.get("replicas", 0))
        selector = spec.get("selector")
        labels = spec["template"].get("metadata", {}).get("labels") or {}
        if not selector:
            found.append(required("spec.selector"))
        else:
            errors = check_selector("spec.selector", selector)
            found += errors
            if not errors and not from_object(selector).matches(labels):
                text = "`selector` does not match template `labels`"
                found.append(invalid_value("spec.template.metadata.labels", labels, text))
        if old is not None and selector != old["spec"].get("selector"):
            found.append(invalid_value("spec.selector", selector, "field is immutable"))
        return found + check_pod_spec("spec.template.spec", spec["template"]["spec"])


class DeploymentStrategy(WorkloadStrategy):
    """Deployments."""

    def _default(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)
        strategy = spec.setdefault("strategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", _QUARTER)
            rolling.setdefault("maxSurge", _QUARTER)
        spec.setdefault("revisionHistoryLimit", 10)
        spec.setdefault("progressDeadlineSeconds", 600)

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check the strategy too."""
        found = super().validate(obj, old, context)
        strategy = obj["spec"]["strategy"]
        if strategy["type"] == "Recreate" and strategy.get("rollingUpdate"):
            text = "may not be specified when strategy `type` is 'Recreate'"
            found.append(Cause("FieldValueForbidden", f"Forbidden: {text}",
                               "spec.strategy.rollingUpdate"))  # fmt: skip
        for name, value in (strategy.get("rollingUpdate") or {}).items():
            percent = isinstance(value, str) and value[:-1].isdigit() and value.endswith("%")
            if not percent and not (isinstance(value, int) and value >= 0):
                text = "a valid percent string must be a numeric string followed by an ending '%'"
                found.append(invalid_value(f"spec.strategy.rollingUpdate.{name}", value, text))
        return found


class DaemonSetStrategy(WorkloadStrategy):
    """DaemonSets, which have no replicas."""

    def _default(self, spec: Obj) -> None:
        spec.setdefault("revisionHistoryLimit", 10)
        strategy = spec.setdefault("updateStrategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            rolling = strategy.setdefault("rollingUpdate", {})
            rolling.setdefault("maxUnavailable", 1)
            rolling.setdefault("maxSurge", 0)


class StatefulSetStrategy(WorkloadStrategy):
    """StatefulSets."""

    def _default(self, spec: Obj) -> None:
        spec.setdefault("replicas", 1)
        spec.setdefault("podManagementPolicy", "OrderedReady")
        spec.setdefault("revisionHistoryLimit", 10)
        strategy = spec.setdefault("updateStrategy", {})
        if strategy.setdefault("type", "RollingUpdate") == "RollingUpdate":
            strategy.setdefault("rollingUpdate", {}).setdefault("partition", 0)
