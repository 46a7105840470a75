"""Endpoints of Services with a selector: the older form of EndpointSlices, one family each."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import split_key
from dunlin_lab.apiserver.controllers.endpointslice import HEADLESS_LABEL, address_of, ports_of
from dunlin_lab.apiserver.controllers.services import ServiceController
from dunlin_lab.apiserver.deletion import delete
from dunlin_lab.apiserver.resources import ENDPOINTS, SERVICES
from dunlin_lab.apiserver.values import Obj, encode, is_ready, labels_of, meta, thaw

if TYPE_CHECKING:
    from collections.abc import Iterable


_MANAGED_BY = "endpoints.kubernetes.io/managed-by"
_CONTROLLER = "endpoint-controller"
_FINISHED = ("Failed", "Succeeded")


def subsets_of(service: Obj, pods: Iterable[Obj]) -> list[Obj]:
    """Return the subsets of a Service: Pods with equal ports together, addresses in order."""
    always = service["spec"].get("publishNotReadyAddresses", False)
    families = service["spec"].get("ipFamilies") or ["IPv4"]
    groups: dict[bytes, Obj] = {}
    for pod in pods:
        address = address_of(pod, families[0])
        leaving = "deletionTimestamp" in meta(pod) and not always
        if address is None or leaving or pod["status"].get("phase") in _FINISHED:
            continue
        ports = [
            {key: value for key, value in port.items() if value != ""}
            for port in ports_of(service, pod)
        ]
        if not ports and service["spec"].get("ports"):
            continue
        group = groups.setdefault(encode(ports), {"ports": ports})
        ready = always or is_ready(pod)
        group.setdefault("addresses" if ready else "notReadyAddresses", []).append(
            _address(pod, address)
        )
    for group in groups.values():
        for name in ("addresses", "notReadyAddresses"):
            if name in group:
                group[name].sort(key=lambda item: ip_address(item["ip"]).packed)
    return [groups[key] for key in sorted(groups)]


def _address(pod: Obj, address: str) -> Obj:
    found: Obj = {"ip": address}
    if pod["spec"].get("nodeName"):
        found["nodeName"] = pod["spec"]["nodeName"]
    found["targetRef"] = {"kind": "Pod", "namespace": meta(pod)["namespace"],
                          "name": meta(pod)["name"], "uid": meta(pod)["uid"]}  # fmt: skip
    return found


class EndpointsController(ServiceController):
    """Keeps the Endpoints of every Service with a selector."""

    name = "endpoints"

    def sync(self, key: str) -> None:
        """Bring one Service's Endpoints up to date; without the Service they go."""
        namespace, name = split_key(key)
        service = self.store.of(SERVICES).get(namespace, name)
        found = self.store.of(ENDPOINTS).get(namespace, name)
        if service is None:
            if found is not None and labels_of(found.obj).get(_MANAGED_BY) == _CONTROLLER:
                delete(self.registry, ENDPOINTS, namespace, name)
            return
        selector = service.obj["spec"].get("selector")
        if not selector or service.obj["spec"]["type"] == "ExternalName":
            return
        pods = [item.obj for item in self._pods.select(namespace, selector)]
        labels = {**labels_of(service.obj), _MANAGED_BY: _CONTROLLER}
        if service.obj["spec"].get("clusterIP") == "None":
            labels[HEADLESS_LABEL] = ""
        obj: Obj = {"metadata": {"name": name, "labels": labels}}
        subsets = subsets_of(service.obj, pods)
        if subsets:
            obj["subsets"] = subsets
        if found is None:
            self.registry.create(ENDPOINTS, namespace, thaw(obj))
        elif found.obj.get("subsets") != obj.get("subsets") or labels_of(found.obj) != labels:
            self.registry.update(ENDPOINTS, namespace, name, thaw(obj))
