"""What is there before any client: namespaces, the API server's own Service, the Service CIDRs."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.resources import (
    ENDPOINTS,
    ENDPOINTSLICES,
    NAMESPACES,
    SERVICECIDRS,
    SERVICES,
)
from dunlin_lab.apiserver.values import Obj, thaw

if TYPE_CHECKING:
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.resources import Resource

_NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")
_NAME = "kubernetes"


def bootstrap(registry: Registry, host: str, port: int) -> None:
    """Make what is missing, and update the server's own endpoint; `host` is an IP address."""
    for name in _NAMESPACES:
        if registry.store.of(NAMESPACES).get("", name) is None:
            registry.create(NAMESPACES, "", {"metadata": {"name": name}})
    if registry.store.of(SERVICECIDRS).get("", _NAME) is None:
        cidrs = [str(pool.cidr) for pool in registry.pools]
        registry.create(SERVICECIDRS, "", {"metadata": {"name": _NAME}, "spec": {"cidrs": cidrs}})
    if registry.store.of(SERVICES).get("default", _NAME) is None:
        registry.create(SERVICES, "default", _service(str(registry.pools[0].first), port))
    if ip_address(host).is_loopback:
        return  # as the real one: a loopback address is no endpoint for anybody else
    version = ip_address(host).version
    port_entry = {"name": "https", "port": port, "protocol": "TCP"}
    _put(registry, ENDPOINTS, {
        "metadata": {"name": _NAME, "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": host}], "ports": [port_entry]}],
    })  # fmt: skip
    _put(registry, ENDPOINTSLICES, {
        "metadata": {"name": _NAME, "labels": {"kubernetes.io/service-name": _NAME}},
        "addressType": f"IPv{version}",
        "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
        "ports": [port_entry],
    })  # fmt: skip


def _service(cluster_ip: str, port: int) -> Obj:
    return {
        "metadata": {
            "name": _NAME, "labels": {"component": "apiserver", "provider": "kubernetes"},
        },
        "spec": {
            "clusterIP": cluster_ip, "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    }  # fmt: skip


def _put(registry: Registry, resource: Resource, obj: Obj) -> None:
    found = registry.store.of(resource).get("default", _NAME)
    if found is None:
        registry.create(resource, "default", thaw(obj))
    else:
        registry.update(resource, "default", _NAME, thaw(obj))
