"""EndpointSlices of Services with a selector."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeAlias

from dunlin_lab.apiserver.controllers.base import split_key
from dunlin_lab.apiserver.controllers.index import ControlledIndex
from dunlin_lab.apiserver.controllers.services import ServiceController
from dunlin_lab.apiserver.deletion import delete
from dunlin_lab.apiserver.registry import WriteOptions, is_injected
from dunlin_lab.apiserver.resources import ENDPOINTSLICES, NODES, SERVICES
from dunlin_lab.apiserver.values import (
    Obj,
    encode,
    is_ready,
    labels_of,
    meta,
    thaw,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dunlin_lab.apiserver.controllers.index import LabelIndex, ServiceIndex
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change, Stored

_log = logging.getLogger(__name__)

ENDPOINTS_MAX = 100
"""Endpoints of one slice."""

SERVICE_NAME = "kubernetes.io/service-name"
MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
CONTROLLER = "endpointslice-controller.k8s.io"
HEADLESS_LABEL = "service.kubernetes.io/headless"
TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
_ZONE = "topology.kubernetes.io/zone"
_FINISHED = ("Failed", "Succeeded")

PortKey: TypeAlias = bytes
"""The JSON of a slice's ports: endpoints with equal ports share slices."""


@dataclass(slots=True)
class Desired:
    """The endpoints of one address type and one set of ports, by the uid of their Pod."""

    address_type: str
    ports: list[Obj]
    endpoints: dict[str, Obj] = field(default_factory=dict)


@dataclass(slots=True)
class Plan:
    """What to write; created slices have no name yet."""

    create: list[Obj] = field(default_factory=list)
    update: list[Obj] = field(default_factory=list)
    delete: list[str] = field(default_factory=list)


def address_of(pod: Obj, family: str) -> str | None:
    """Return a Pod's first valid address of a family (`IPv4`, `IPv6`)."""
    for item in pod["status"].get("podIPs") or ():
        try:
            found = ip_address(item.get("ip", ""))
        except ValueError:
            _log.warning(
                "Pod %s/%s: status.podIPs: invalid address %r is in no EndpointSlice",
                meta(pod)["namespace"], meta(pod)["name"], item.get("ip"),
            )  # fmt: skip
            continue
        if f"IPv{found.version}" == family:
            return str(found)
    return None


def ports_of(service: Obj, pod: Obj) -> list[Obj]:
    """Return the slice ports of a Service for one Pod; a name the Pod does not have is left out."""
    found = []
    for port in service["spec"].get("ports") or ():
        number = target_port(port, pod)
        if number is None:
            continue
        entry = {"name": port.get("name", ""), "protocol": port["protocol"], "port": number}
        if port.get("appProtocol"):
            entry["appProtocol"] = port["appProtocol"]
        found.append(entry)
    return found


def target_port(port: Obj, pod: Obj) -> int | None:
    """Return the number a Service port's targetPort has in a Pod."""
    target = port.get("targetPort", port.get("port"))
    if isinstance(target, int):
        return target
    for container in pod["spec"].get("containers") or ():
        for item in container.get("ports") or ():
            if item.get("name") == target and item.get("protocol") == port["protocol"]:
                number: int | None = item.get("containerPort")
                return number
    return None


def endpoint_of(service: Obj, pod: Obj, address: str, zones: Mapping[str, str]) -> Obj:
    """Return the endpoint a Pod is; `zones` maps node names."""
    serving = is_ready(pod)
    terminating = "deletionTimestamp" in meta(pod)
    always = bool(service["spec"].get("publishNotReadyAddresses"))
    endpoint: Obj = {
        "addresses": [address],
        "conditions": {
            "ready": always or (serving and not terminating),
            "serving": serving,
            "terminating": terminating,
        },
    }
    spec = pod["spec"]
    if spec.get("hostname") and spec.get("subdomain") == meta(service)["name"]:
        endpoint["hostname"] = spec["hostname"]
    endpoint["targetRef"] = {
        "kind": "Pod", "namespace": meta(pod)["namespace"], "name": meta(pod)["name"],
        "uid": meta(pod)["uid"],
    }  # fmt: skip
    node = spec.get("nodeName")
    if node:
        endpoint["nodeName"] = node
        if node in zones:
            endpoint["zone"] = zones[node]
    return endpoint


def desired_of(
    service: Obj, pods: Iterable[Obj], zones: Mapping[str, str]
) -> dict[tuple[str, PortKey], Desired]:
    """Return the endpoints a Service shall have, by address type and ports."""
    found: dict[tuple[str, PortKey], Desired] = {}
    for pod in pods:
        if pod["status"].get("phase") in _FINISHED:
            continue
        for family in service["spec"].get("ipFamilies") or ():
            address = address_of(pod, family)
            if address is None:
                continue
            ports = ports_of(service, pod)
            group = found.setdefault((family, encode(ports)), Desired(family, ports))
            endpoint = endpoint_of(service, pod, address, zones)
            group.endpoints[meta(pod)["uid"]] = endpoint
    for family in service["spec"].get("ipFamilies") or ():
        if not any(key[0] == family for key in found):
            found[family, b"[]"] = Desired(family, [])  # an empty slice says: known, no endpoints
    return found


def labels_for(service: Obj, managed_by: str) -> dict[str, str]:
    """Return the labels of a Service's slices: its own, and ours."""
    labels = {
        key: value for key, value in labels_of(service).items()
        if key not in (SERVICE_NAME, MANAGED_BY, HEADLESS_LABEL)
    }  # fmt: skip
    if service["spec"].get("clusterIP") == "None":
        labels[HEADLESS_LABEL] = ""
    return {**labels, MANAGED_BY: managed_by, SERVICE_NAME: meta(service)["name"]}


def plan_slices(
    service: Obj, desired: dict[tuple[str, PortKey], Desired], existing: Iterable[Obj]
) -> Plan:
    """
    Compare desired endpoints with the slices there are, moving as little as possible.

    An endpoint stays in its slice; new ones fill slices with room in name order; a slice whose
    ports nobody has any more is used again for new ones before another is created.
    """
    plan = Plan()
    groups: dict[tuple[str, PortKey], list[Obj]] = {key: [] for key in desired}
    spare: dict[str, list[Obj]] = {}
    for item in sorted(existing, key=lambda item: str(meta(item)["name"])):
        key = (item["addressType"], encode(item.get("ports") or []))
        if key in groups:
            groups[key].append(item)
        else:
            spare.setdefault(item["addressType"], []).append(item)
    labels = labels_for(service, CONTROLLER)
    for key, group in desired.items():
        _plan_group(plan, group, groups[key], spare.get(key[0], []), labels)
    for leftover in spare.values():
        plan.delete += [meta(item)["name"] for item in leftover]
    return plan


def _plan_group(
    plan: Plan, group: Desired, slices: list[Obj], spare: list[Obj], labels: dict[str, str]
) -> None:
    missing = dict(group.endpoints)
    contents: list[tuple[Obj | None, list[Obj]]] = []
    item: Obj | None
    for item in slices:
        kept = []
        for endpoint in item.get("endpoints") or ():
            uid = (endpoint.get("targetRef") or {}).get("uid", "")
            if uid in missing:
                kept.append(missing.pop(uid))
        contents.append((item, kept))
    waiting = sorted(missing.values(), key=lambda item: ip_address(item["addresses"][0]).packed)
    for _, kept in contents:
        room = ENDPOINTS_MAX - len(kept)
        kept.extend(waiting[:room])
        waiting = waiting[room:]
    while waiting or not contents:
        again = spare.pop(0) if spare else None
        contents.append((again, waiting[:ENDPOINTS_MAX]))
        waiting = waiting[ENDPOINTS_MAX:]
    some = any(kept for _, kept in contents)
    for index, (item, kept) in enumerate(contents):
        if item is not None and not kept and (some or index):
            plan.delete.append(meta(item)["name"])
        else:
            _plan_slice(plan, group, item, kept, labels)


def _plan_slice(
    plan: Plan, group: Desired, item: Obj | None, kept: list[Obj], labels: dict[str, str]
) -> None:
    content = {"addressType": group.address_type, "endpoints": kept or None,
               "ports": group.ports or None}  # fmt: skip
    if item is None:
        plan.create.append({"metadata": {"labels": labels}, **content})
        return
    same = all(item.get(key) == value for key, value in content.items())
    if same and labels_of(item) == labels:
        return
    plan.update.append({"metadata": {**meta(item), "labels": labels}, **content})


@dataclass(frozen=True, slots=True)
class Triggers:
    """When a Service and its Pods last changed, as far as it was announced (RFC 3339)."""

    service: str = ""
    pods: Mapping[str, str] = field(default_factory=dict)


def next_triggers(before: Triggers, service: Obj, pods: Iterable[Obj]) -> tuple[Triggers, str]:
    """Return what is announced now, and the earliest change that was not yet (else empty)."""
    created = meta(service)["creationTimestamp"]
    times: dict[str, str] = {}
    news = [created] if created > before.service else []
    for pod in pods:
        for item in pod["status"].get("conditions") or ():
            moved = item.get("lastTransitionTime")
            if item.get("type") == "Ready" and moved:
                times[meta(pod)["name"]] = moved
                if moved > before.pods.get(meta(pod)["name"], ""):
                    news.append(moved)
    return Triggers(created, times), min(news, default="")


class EndpointSliceController(ServiceController):
    """Keeps the slices of every Service with a selector."""

    name = "endpointslice"

    def __init__(self, registry: Registry, pods: LabelIndex, services: ServiceIndex) -> None:
        """Follow slices and nodes too."""
        super().__init__(registry, pods, services)
        self._triggers: dict[str, Triggers] = {}
        self.watch(ENDPOINTSLICES, self._on_slice)
        self.watch(NODES, self._on_node)
        self._slices = ControlledIndex(self.store, ENDPOINTSLICES)

    def _on_slice(self, change: Change) -> None:
        labels = labels_of(change.latest.obj)
        if labels.get(MANAGED_BY) == CONTROLLER and SERVICE_NAME in labels:
            self.enqueue(f"{change.latest.namespace}/{labels[SERVICE_NAME]}")

    def _on_node(self, change: Change) -> None:
        versions = [item and labels_of(item.obj).get(_ZONE) for item in (change.old, change.new)]
        if versions[0] != versions[1]:
            self._enqueue_all()

    def _zones(self, pods: Iterable[Stored]) -> dict[str, str]:
        found = {}
        nodes = self.store.of(NODES)
        for name in {item.obj["spec"].get("nodeName", "") for item in pods}:
            node = nodes.get("", name)
            if node is not None and _ZONE in labels_of(node.obj):
                found[name] = labels_of(node.obj)[_ZONE]
        return found

    def _slices_of(self, service: Stored) -> list[Obj]:
        owned = self._slices.of(meta(service.obj)["uid"])
        return [item.obj for item in owned if labels_of(item.obj).get(MANAGED_BY) == CONTROLLER]

    def sync(self, key: str) -> None:
        """Bring one Service's slices up to date."""
        namespace, name = split_key(key)
        service = self.store.of(SERVICES).get(namespace, name)
        if service is None:
            self._triggers.pop(key, None)
            return  # its slices go by their ownerReference
        spec = service.obj["spec"]
        if not spec.get("selector") or spec["type"] == "ExternalName":
            return
        if "deletionTimestamp" in meta(service.obj):
            return
        pods = self._pods.select(namespace, spec["selector"])
        bodies = [item.obj for item in pods]
        desired = desired_of(service.obj, bodies, self._zones(pods))
        plan = plan_slices(service.obj, desired, self._slices_of(service))
        triggers = self._triggers.get(key, Triggers())
        self._triggers[key], stamp = next_triggers(triggers, service.obj, bodies)
        self._write(service, plan, stamp)

    def _write(self, service: Stored, plan: Plan, stamp: str) -> None:
        reference = {
            "apiVersion": "v1", "kind": "Service", "name": service.name,
            "uid": meta(service.obj)["uid"], "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        annotations = {"annotations": {TRIGGER_TIME: stamp}} if stamp else {}
        options = WriteOptions(validate=not is_injected(service.obj))
        for item in plan.create:
            item["metadata"] |= {
                "generateName": f"{service.name}-", "ownerReferences": [reference], **annotations,
            }  # fmt: skip
            self.registry.create(ENDPOINTSLICES, service.namespace, thaw(item), options)
        for item in plan.update:
            item["metadata"].pop("annotations", None)
            item["metadata"] |= annotations
            name = item["metadata"]["name"]
            self.registry.update(ENDPOINTSLICES, service.namespace, name, thaw(item), options)
        for name in plan.delete:
            delete(self.registry, ENDPOINTSLICES, service.namespace, name)
