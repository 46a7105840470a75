"""Namespaces, Nodes, Secrets, and kinds that have nothing but a status."""

from __future__ import annotations

import base64
from ipaddress import ip_network
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.errors import Cause, invalid_value
from dunlin_lab.apiserver.resources import EMPTY_NODE_STATUS
from dunlin_lab.apiserver.strategies.base import Context, Plain, keep_status

if TYPE_CHECKING:
    from dunlin_lab.apiserver.values import Obj

NOT_READY_TAINT: Obj = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}


class NamespaceStrategy(Plain):
    """Namespaces: the finalizer holds them until they are empty."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Set the name label, the finalizer and the phase."""
        metadata = obj["metadata"]
        metadata.setdefault("labels", {})["kubernetes.io/metadata.name"] = metadata["name"]
        if old is None:
            obj["spec"] = {"finalizers": ["kubernetes"]}
        elif context.subresource != "finalize":
            obj["spec"] = old["spec"]
        keep_status(obj, old, context, {"phase": "Active"})


class NodeStrategy(Plain):
    """Nodes; a kubelet registers with a status, so a create keeps it."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Taint a new node, and fill the status."""
        if context.subresource == "status" and old is not None:
            obj["spec"] = old["spec"]
        elif old is not None:
            obj["status"] = old["status"]
        spec = obj.setdefault("spec", {})
        cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
        if cidrs:
            spec["podCIDR"], spec["podCIDRs"] = cidrs[0], cidrs
        if old is None:
            taints = spec.setdefault("taints", [])
            if not any(taint.get("key") == NOT_READY_TAINT["key"] for taint in taints):
                taints.append(dict(NOT_READY_TAINT))
        status = {**EMPTY_NODE_STATUS, **(obj.get("status") or {})}
        for found in status.get("conditions") or ():
            found.setdefault("lastHeartbeatTime", None)
            found.setdefault("lastTransitionTime", None)
        obj["status"] = status

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check the Pod CIDRs."""
        found: list[Cause] = []
        cidrs = obj["spec"].get("podCIDRs") or []
        for index, item in enumerate(cidrs):
            try:
                ip_network(item)
            except ValueError:
                text = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
                found.append(invalid_value(f"spec.podCIDRs[{index}]", item, text))
        before = (old or {}).get("spec", {}).get("podCIDRs") or []
        if before and cidrs != before:
            text = 'node updates may not change podCIDR except from "" to valid'
            found.append(Cause("FieldValueForbidden", f"Forbidden: {text}", "spec.podCIDRs"))
        return found


class SecretStrategy(Plain):
    """Secrets."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Default the type, and fold stringData into data."""
        obj.setdefault("type", "Opaque")
        for key, value in (obj.pop("stringData", None) or {}).items():
            encoded = base64.b64encode(value.encode()).decode()
            obj.setdefault("data", {})[key] = encoded


class StatusStrategy(Plain):
    """A kind with a spec and a status subresource and no defaults."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Keep spec and status apart."""
        if context.subresource == "status" and old is not None:
            if "spec" in old:
                obj["spec"] = old["spec"]
        else:
            keep_status(obj, old, context, None)
