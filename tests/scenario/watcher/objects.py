"""Kubernetes objects as the API server would return them, in short."""

from typing import Any


def node(name: str, ip: str = "192.0.2.1", **labels: str) -> dict[str, Any]:
    """A ready Node."""
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
        "status": {
            "addresses": [
                {"type": "Hostname", "address": name},
                {"type": "InternalIP", "address": ip},
            ],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod(name: str, ip: str = "10.244.1.5", node_name: str = "n1", **labels: str) -> dict[str, Any]:
    """A running Pod with one port; without an address if `ip` is ""."""
    status: dict[str, Any] = {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}],
    }
    if ip:
        status |= {"podIP": ip, "podIPs": [{"ip": ip}]}
    return {
        "metadata": {"name": name, "namespace": "default", "labels": labels},
        "spec": {
            "nodeName": node_name,
            "containers": [
                {"name": "c", "image": "x", "ports": [{"name": "http", "containerPort": 80}]}
            ],
        },
        "status": status,
    }


def service(
    name: str, *ports: dict[str, Any], ip: str = "10.96.0.10", **spec: Any
) -> dict[str, Any]:
    """A ClusterIP Service."""
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": list(ports) or [{"name": "http", "port": 80, "protocol": "TCP"}],
            **spec,
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(name: str, service_name: str, *ips: str, port: int = 80) -> dict[str, Any]:
    """An IPv4 slice of ready endpoints."""
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
        "endpoints": [
            {"addresses": [ip], "conditions": {"ready": True}, "nodeName": "n1"} for ip in ips
        ],
    }
