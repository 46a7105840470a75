"""Table output: what `kubectl get` shows of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from dunlin_lab.apiserver.selectors import from_object
from dunlin_lab.apiserver.values import Obj, condition, is_ready, meta, seconds_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.store import Stored

NONE = "<none>"
IncludeObject = Literal["None", "Metadata", "Object"]
_ROLE = "node-role.kubernetes.io/"
_SHOWN_MAX = 3
_MINUTE, _HOUR, _DAY, _YEAR = 60, 3600, 86400, 365 * 86400


class Column(NamedTuple):
    """One column; `wide` ones show with -o wide only."""

    name: str
    type: str = "string"
    wide: bool = False


class Printer(NamedTuple):
    """How a kind is shown; the row function gets the object and the time."""

    columns: tuple[Column, ...]
    row: Callable[[Obj, float], list[Any]]


def duration(seconds: float) -> str:
    """Render a span of time as kubectl does: two units at most."""
    left = max(int(seconds), 0)
    if left < 2 * _MINUTE:
        return f"{left}s"
    if left < 10 * _MINUTE:
        rest = left % _MINUTE
        return f"{left // _MINUTE}m{rest}s" if rest else f"{left // _MINUTE}m"
    if left < 3 * _HOUR:
        return f"{left // _MINUTE}m"
    if left < 8 * _HOUR:
        rest = left % _HOUR // _MINUTE
        return f"{left // _HOUR}h{rest}m" if rest else f"{left // _HOUR}h"
    if left < 2 * _DAY:
        return f"{left // _HOUR}h"
    return f"{left // _DAY}d" if left < 2 * _YEAR else f"{left // _YEAR}y"


def age(obj: Obj, now: float) -> str:
    """Render how old an object is."""
    created = meta(obj).get("creationTimestamp")
    return duration(now - seconds_of(created)) if created else "<unknown>"


def _selector(obj: Obj) -> str:
    return str(from_object(obj["spec"].get("selector"))) or NONE


def _plain_row(obj: Obj, now: float) -> list[Any]:
    return [meta(obj)["name"], age(obj, now)]


def _data_row(obj: Obj, now: float) -> list[Any]:
    count = len(obj.get("data") or {}) + len(obj.get("binaryData") or {})
    return [meta(obj)["name"], count, age(obj, now)]


def _secret_row(obj: Obj, now: float) -> list[Any]:
    return [meta(obj)["name"], obj.get("type", ""), len(obj.get("data") or {}), age(obj, now)]


def _namespace_row(obj: Obj, now: float) -> list[Any]:
    return [meta(obj)["name"], obj["status"].get("phase", ""), age(obj, now)]


def _sa_row(obj: Obj, now: float) -> list[Any]:
    return [meta(obj)["name"], len(obj.get("secrets") or ()), age(obj, now)]


def _pod_status(obj: Obj) -> str:
    status = obj["status"]
    reason: str = status.get("reason") or status.get("phase", "Unknown")
    for found in status.get("containerStatuses") or ():
        state = found.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        reason = waiting.get("reason") or ended.get("reason") or reason
    if "deletionTimestamp" in meta(obj) and reason not in ("Succeeded", "Failed"):
        return "Terminating"
    return reason


def _pod_row(obj: Obj, now: float) -> list[Any]:
    status, spec = obj["status"], obj["spec"]
    states = status.get("containerStatuses") or []
    ready = sum(1 for item in states if item.get("ready"))
    gates = spec.get("readinessGates") or []
    passed = sum(
        1 for gate in gates
        if (condition(obj, gate.get("conditionType", "")) or {}).get("status") == "True"
    )  # fmt: skip
    return [
        meta(obj)["name"],
        f"{ready}/{len(spec.get('containers') or ())}",
        _pod_status(obj),
        str(sum(item.get("restartCount", 0) for item in states)),
        age(obj, now),
        status.get("podIP") or NONE,
        spec.get("nodeName") or NONE,
        status.get("nominatedNodeName") or NONE,
        f"{passed}/{len(gates)}" if gates else NONE,
    ]


def _node_row(obj: Obj, now: float) -> list[Any]:
    labels, status = meta(obj).get("labels") or {}, obj["status"]
    ready = condition(obj, "Ready")
    words = ["Unknown" if ready is None else "Ready" if is_ready(obj) else "NotReady"]
    if obj["spec"].get("unschedulable"):
        words.append("SchedulingDisabled")
    roles = sorted(key.removeprefix(_ROLE) for key in labels if key.startswith(_ROLE))
    addresses = {item["type"]: item["address"] for item in reversed(status.get("addresses") or ())}
    info = status.get("nodeInfo") or {}
    return [
        meta(obj)["name"], ",".join(words), ",".join(roles) or NONE, age(obj, now),
        info.get("kubeletVersion", ""), addresses.get("InternalIP", NONE),
        addresses.get("ExternalIP", NONE), info.get("osImage") or "<unknown>",
        info.get("kernelVersion") or "<unknown>", info.get("containerRuntimeVersion")
        or "<unknown>",
    ]  # fmt: skip


def _service_row(obj: Obj, now: float) -> list[Any]:
    spec = obj["spec"]
    external = [item.get("ip") or item.get("hostname", "") for item in
                (obj["status"].get("loadBalancer") or {}).get("ingress") or ()]  # fmt: skip
    external += spec.get("externalIPs") or []
    if spec["type"] == "ExternalName":
        external = [spec.get("externalName", "")]
    pending = "<pending>" if spec["type"] == "LoadBalancer" else NONE
    ports = ",".join(
        f"{port.get('port')}" + (f":{port['nodePort']}" if port.get("nodePort") else "")
        + f"/{port.get('protocol')}"
        for port in spec.get("ports") or ()
    )  # fmt: skip
    pairs = sorted((spec.get("selector") or {}).items())
    return [
        meta(obj)["name"], spec["type"], spec.get("clusterIP") or NONE,
        ",".join(external) or pending, ports or NONE, age(obj, now),
        ",".join(f"{key}={value}" for key, value in pairs) or NONE,
    ]  # fmt: skip


def _images(obj: Obj) -> list[str]:
    containers = obj["spec"]["template"]["spec"].get("containers") or []
    names = ",".join(item.get("name", "") for item in containers)
    return [names, ",".join(item.get("image", "") for item in containers)]


def _deployment_row(obj: Obj, now: float) -> list[Any]:
    status = obj.get("status") or {}
    return [
        meta(obj)["name"], f"{status.get('readyReplicas', 0)}/{obj['spec'].get('replicas', 0)}",
        status.get("updatedReplicas", 0), status.get("availableReplicas", 0), age(obj, now),
        *_images(obj), _selector(obj),
    ]  # fmt: skip


def _replicaset_row(obj: Obj, now: float) -> list[Any]:
    status = obj.get("status") or {}
    return [
        meta(obj)["name"], obj["spec"].get("replicas", 0), status.get("replicas", 0),
        status.get("readyReplicas", 0), age(obj, now), *_images(obj), _selector(obj),
    ]  # fmt: skip


def _some(items: list[str]) -> str:
    if not items:
        return NONE
    more = len(items) - _SHOWN_MAX
    return ",".join(items[:_SHOWN_MAX]) + (f" + {more} more..." if more > 0 else "")


def _slice_row(obj: Obj, now: float) -> list[Any]:
    ports = [str(port.get("port", "*")) for port in obj.get("ports") or ()]
    addresses = [item for end in obj.get("endpoints") or () for item in end.get("addresses", ())]
    shown_ports = _some(ports) if ports else "<unset>"
    shown = _some(addresses) if addresses else "<unset>"
    return [meta(obj)["name"], obj.get("addressType", ""), shown_ports, shown, age(obj, now)]


def _bracketed(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


def _endpoints_row(obj: Obj, now: float) -> list[Any]:
    shown = []
    for subset in obj.get("subsets") or ():
        for address in subset.get("addresses") or ():
            ports = subset.get("ports") or ()
            shown += [f"{_bracketed(address['ip'])}:{port['port']}" for port in ports]
    return [meta(obj)["name"], _some(shown), age(obj, now)]


def _event_row(obj: Obj, now: float) -> list[Any]:
    about = obj.get("involvedObject") or {}
    seen = obj.get("lastTimestamp") or obj.get("eventTime") or meta(obj)["creationTimestamp"]
    return [
        duration(now - seconds_of(seen)), obj.get("type", ""), obj.get("reason", ""),
        f"{about.get('kind', '').lower()}/{about.get('name', '')}",
        obj.get("message", "").strip(),
    ]  # fmt: skip


def _lease_row(obj: Obj, now: float) -> list[Any]:
    return [meta(obj)["name"], (obj.get("spec") or {}).get("holderIdentity", ""), age(obj, now)]


def _policy_row(obj: Obj, now: float) -> list[Any]:
    selector = str(from_object(obj["spec"].get("podSelector"))) or NONE
    return [meta(obj)["name"], selector, age(obj, now)]


_NAME, _AGE = Column("Name"), Column("Age")
_CONTENT = (Column("Containers", wide=True), Column("Images", wide=True),
            Column("Selector", wide=True))  # fmt: skip
_PLAIN = Printer((_NAME, _AGE), _plain_row)


def _wide(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, wide=True) for name in names)


_PRINTERS: dict[str, Printer] = {
    "ConfigMap": Printer((_NAME, Column("Data", "string"), _AGE), _data_row),
    "Secret": Printer((_NAME, Column("Type"), Column("Data"), _AGE), _secret_row),
    "Namespace": Printer((_NAME, Column("Status"), _AGE), _namespace_row),
    "ServiceAccount": Printer((_NAME, Column("Secrets"), _AGE), _sa_row),
    "Pod": Printer(
        (_NAME, Column("Ready"), Column("Status"), Column("Restarts"), _AGE,
         *_wide("IP", "Node", "Nominated Node", "Readiness Gates")), _pod_row,
    ),
    "Node": Printer(
        (_NAME, Column("Status"), Column("Roles"), _AGE, Column("Version"),
         *_wide("Internal-IP", "External-IP", "OS-Image", "Kernel-Version",
                "Container-Runtime")), _node_row,
    ),
    "Service": Printer(
        (_NAME, Column("Type"), Column("Cluster-IP"), Column("External-IP"), Column("Port(s)"),
         _AGE, *_wide("Selector")), _service_row,
    ),
    "Deployment": Printer(
        (_NAME, Column("Ready"), Column("Up-to-date"), Column("Available"), _AGE, *_CONTENT),
        _deployment_row,
    ),
    "ReplicaSet": Printer(
        (_NAME, Column("Desired", "integer"), Column("Current", "integer"),
         Column("Ready", "integer"), _AGE, *_CONTENT), _replicaset_row,
    ),
    "EndpointSlice": Printer(
        (_NAME, Column("AddressType"), Column("Ports"), Column("Endpoints"), _AGE), _slice_row,
    ),
    "Endpoints": Printer((_NAME, Column("Endpoints"), _AGE), _endpoints_row),
    "Event": Printer(
        (Column("Last Seen"), Column("Type"), Column("Reason"), Column("Object"),
         Column("Message")), _event_row,
    ),
    "Lease": Printer((_NAME, Column("Holder"), _AGE), _lease_row),
    "NetworkPolicy": Printer((_NAME, Column("Pod-Selector"), _AGE), _policy_row),
}  # fmt: skip


def _column(column: Column) -> Obj:
    shown = "name" if column.name == "Name" else ""
    return {"name": column.name, "type": column.type, "format": shown, "description": column.name,
            "priority": int(column.wide)}  # fmt: skip


def table(
    resource: Resource,
    items: Iterable[Stored],
    metadata: Obj,
    *,
    now: float,
    include: IncludeObject = "Metadata",
    headers: bool = True,
) -> Obj:
    """Return a meta.k8s.io/v1 Table of these objects; `metadata` is that of the list."""
    printer = _PRINTERS.get(resource.kind, _PLAIN)
    columns = [_column(column) for column in printer.columns] if headers else None
    rows = []
    for item in items:
        row: Obj = {"cells": printer.row(item.obj, now)}
        if include == "Metadata":
            row["object"] = {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                             "metadata": meta(item.obj)}  # fmt: skip
        elif include == "Object":
            row["object"] = {
                "kind": resource.kind, "apiVersion": resource.api_version, **item.obj,
            }  # fmt: skip
        rows.append(row)
    return {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            "columnDefinitions": columns, "rows": rows}  # fmt: skip
