"""A cluster as large as asked for, as Kubernetes' API and as its nodes' agents would tell it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

from dunlin.events.facts import AttachmentFact, Fact, NodeAddress, SwitchFact
from dunlin.model.addresses import derived_mac

PODS_A_NODE = 30
ENDPOINTS = 10
NAMESPACES = 50
APP_PODS = 30
POD_CIDR = IPv4Network("10.128.0.0/9")
SERVICE_CIDR = IPv4Network("10.96.0.0/12")
NODE_CIDR = IPv4Network("172.16.0.0/12")
SPARE = 250
"""Host parts of a block from here on are free for Pods that a bench adds."""

Object = dict[str, Any]
NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
POLICIES = "/apis/networking.k8s.io/v1/networkpolicies"


@dataclass(frozen=True, slots=True)
class Size:
    """How large the cluster is."""

    nodes: int
    services: int

    @property
    def pods(self) -> int:
        """On all nodes."""
        return self.nodes * PODS_A_NODE

    @property
    def apps(self) -> int:
        """Of `APP_PODS` Pods each, whatever the size; at least two in each namespace."""
        return max(self.pods // APP_PODS // NAMESPACES, 2) * NAMESPACES

    def __str__(self) -> str:
        """The name of its row."""
        return f"{self.nodes:,} nodes, {self.pods:,} Pods, {self.services:,} Services"


def block(node: int) -> IPv4Network:
    """The Pods of node 0 …."""
    return IPv4Network((int(POD_CIDR.network_address) + node * 256, 24))


def pod_ip(number: int) -> IPv4Address:
    """Pod `number` of the cluster."""
    node, index = divmod(number, PODS_A_NODE)
    return block(node)[index + 2]


def node_ip(node: int) -> IPv4Address:
    """A node's own address."""
    return NODE_CIDR[node + 1]


def _meta(name: str, namespace: str = "", **more: Any) -> Object:
    place = {"namespace": namespace} if namespace else {}
    return {"name": name, "uid": f"uid-{namespace}-{name}", **place, **more}


# --- the Kubernetes API ---------------------------------------------------------------------------


def node_object(node: int) -> Object:
    """A ready Node with a podCIDR."""
    return {
        "metadata": _meta(f"n{node}"),
        "spec": {"podCIDR": str(block(node)), "podCIDRs": [str(block(node))]},
        "status": {
            "addresses": [{"type": "InternalIP", "address": str(node_ip(node))}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def pod_object(size: Size, number: int, change: int = 0) -> Object:
    """A running Pod; another `change` has another label."""
    return any_pod(
        f"p{number}", f"ns{number % NAMESPACES}", number // PODS_A_NODE, pod_ip(number),
        {"app": f"s{number % size.apps}", "change": str(change)},
    )  # fmt: skip


def any_pod(
    name: str, namespace: str, node: int, ip: IPv4Address, labels: dict[str, str]
) -> Object:
    """A running Pod of one container."""
    return {
        "metadata": _meta(name, namespace, labels=labels),
        "spec": {
            "nodeName": f"n{node}",
            "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {
            "phase": "Running",
            "podIP": str(ip),
            "podIPs": [{"ip": str(ip)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def service_object(service: int) -> Object:
    """A ClusterIP Service of one port."""
    ip = str(SERVICE_CIDR[1000 + service])
    return {
        "metadata": _meta(f"s{service}", "bench"),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
        },
    }


def slice_object(size: Size, service: int, change: int = 0, trigger: str = "") -> Object:
    """Its ten endpoints, spread over the cluster; another `change` has another last one."""
    chosen = [(service * 97 + i * 31) % size.pods for i in range(ENDPOINTS - 1)]
    chosen.append((service * 97 + 31 * ENDPOINTS + change) % size.pods)
    annotations = {"endpoints.kubernetes.io/last-change-trigger-time": trigger} if trigger else {}
    return {
        "metadata": _meta(
            f"s{service}-slice", "bench",
            labels={"kubernetes.io/service-name": f"s{service}"}, annotations=annotations,
        ),
        "addressType": "IPv4",
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
        "endpoints": [
            {
                "addresses": [str(pod_ip(number))],
                "nodeName": f"n{number // PODS_A_NODE}",
                "conditions": {"ready": True, "serving": True},
                "targetRef": {
                    "kind": "Pod", "namespace": f"ns{number % NAMESPACES}", "name": f"p{number}"
                },
            }
            for number in chosen
        ],
    }  # fmt: skip


def policy_object(size: Size, number: int) -> Object:
    """The Pods of one application take connections from another one's only."""
    peer = {"podSelector": {"matchLabels": {"app": f"s{(number + NAMESPACES) % size.apps}"}}}
    rule = {"from": [peer], "ports": [{"protocol": "TCP", "port": 8080}]}
    return {
        "metadata": _meta(f"policy{number}", f"ns{number % NAMESPACES}"),
        "spec": {
            "podSelector": {"matchLabels": {"app": f"s{number % size.apps}"}},
            "policyTypes": ["Ingress"],
            "ingress": [rule],
        },
    }


def objects(size: Size) -> Iterator[tuple[str, Object]]:
    """Everything that the API server holds: (path of its collection, object)."""
    for node in range(size.nodes):
        yield NODES, node_object(node)
    for name in ("bench", *(f"ns{i}" for i in range(NAMESPACES))):
        labels = {"kubernetes.io/metadata.name": name}
        yield "/api/v1/namespaces", {"metadata": _meta(name, labels=labels)}
    for number in range(size.pods):
        yield PODS, pod_object(size, number)
    for service in range(size.services):
        yield SERVICES, service_object(service)
        yield SLICES, slice_object(size, service)


def encoded(value: Object) -> bytes:
    """As JSON."""
    return json.dumps(value, separators=(",", ":")).encode()


# --- the agents -----------------------------------------------------------------------------------


def switch_fact(node: int) -> SwitchFact:
    """The bridge of a node; its dpid is one more than its number."""
    name, addresses = f"n{node}", (node_ip(node),)
    return SwitchFact(
        name=name,
        dpid=node + 1,
        router_mac=derived_mac("router", name),
        uplink_mac=derived_mac("uplink", name),
        gateway_port=1,
        uplink_port=2,
        gateway_ips=(block(node)[1],),
        addresses=tuple(NodeAddress(ip=ip, subnet=ip_network(NODE_CIDR)) for ip in addresses),
    )


def attachment(
    name: str, namespace: str, node: int, ip: IPv4Address, ofport: int
) -> AttachmentFact:
    """A Pod's interface stands."""
    return AttachmentFact(
        namespace=f"n{node}",
        name=f"c-{name}/eth0",
        pod_namespace=namespace,
        pod_name=name,
        pod_uid=f"uid-{namespace}-{name}",
        container_id=f"c-{name}",
        ips=(ip,),
        mac=derived_mac("pod", name),
        ofport=ofport,
        port_name=f"v{name}",
    )


def agents(size: Size) -> Iterator[Fact]:
    """What all agents publish: of each node its attachments, then its switch."""
    for node in range(size.nodes):
        for index in range(PODS_A_NODE):
            number = node * PODS_A_NODE + index
            namespace = f"ns{number % NAMESPACES}"
            yield attachment(f"p{number}", namespace, node, pod_ip(number), 10 + index)
        yield switch_fact(node)
