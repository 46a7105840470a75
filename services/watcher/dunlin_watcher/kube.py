"""
The parts of Kubernetes objects that Dunlin reads, for msgspec to pick out of the JSON.

Objects and lists are typed, so that everything else is skipped without being built; leaves are
`Any` and judged one by one in `dunlin_watcher.normalise`, so that one bad leaf does not spoil its
object. Every field may be null or absent: Go writes both.
"""

from typing import Any

import msgspec

Leaf = Any


class Part(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Base: camelCase names; what is not named here is skipped."""


class ObjectMeta(Part, frozen=True, gc=False):
    """`meta/v1.ObjectMeta`."""

    name: Leaf = None
    namespace: Leaf = None
    uid: Leaf = None
    resource_version: Leaf = None
    labels: Leaf = None
    annotations: Leaf = None
    creation_timestamp: Leaf = None
    deletion_timestamp: Leaf = None


class Object(Part, frozen=True, gc=False):
    """Any object."""

    metadata: ObjectMeta = ObjectMeta()


class NodeAddress(Part, frozen=True, gc=False):
    """`core/v1.NodeAddress`."""

    type: Leaf = None
    address: Leaf = None


class Condition(Part, frozen=True, gc=False):
    """A condition of a Node or a Pod."""

    type: Leaf = None
    status: Leaf = None


class Taint(Part, frozen=True, gc=False):
    """`core/v1.Taint`."""

    key: Leaf = None


class NodeSpec(Part, frozen=True, gc=False):
    """`core/v1.NodeSpec`."""

    taints: list[Taint] | None = None
    pod_cidr: Leaf = msgspec.field(name="podCIDR", default=None)
    pod_cidrs: list[Leaf] | None = msgspec.field(name="podCIDRs", default=None)


class NodeStatus(Part, frozen=True, gc=False):
    """`core/v1.NodeStatus`."""

    addresses: list[NodeAddress] | None = None
    conditions: list[Condition] | None = None


class Node(Object, frozen=True, gc=False):
    """`core/v1.Node`."""

    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ContainerPort(Part, frozen=True, gc=False):
    """`core/v1.ContainerPort`."""

    name: Leaf = None
    protocol: Leaf = None
    container_port: Leaf = None
    host_port: Leaf = None
    host_ip: Leaf = msgspec.field(name="hostIP", default=None)


class Container(Part, frozen=True, gc=False):
    """`core/v1.Container`."""

    ports: list[ContainerPort] | None = None
    restart_policy: Leaf = None


class PodSpec(Part, frozen=True, gc=False):
    """`core/v1.PodSpec`."""

    node_name: Leaf = None
    host_network: Leaf = None
    containers: list[Container] | None = None
    init_containers: list[Container] | None = None


class PodIP(Part, frozen=True, gc=False):
    """`core/v1.PodIP`."""

    ip: Leaf = None


class PodStatus(Part, frozen=True, gc=False):
    """`core/v1.PodStatus`."""

    phase: Leaf = None
    pod_ip: Leaf = msgspec.field(name="podIP", default=None)
    pod_ips: list[PodIP] | None = msgspec.field(name="podIPs", default=None)
    conditions: list[Condition] | None = None


class Pod(Object, frozen=True, gc=False):
    """`core/v1.Pod`."""

    spec: PodSpec | None = None
    status: PodStatus | None = None


class ServicePort(Part, frozen=True, gc=False):
    """`core/v1.ServicePort`."""

    name: Leaf = None
    protocol: Leaf = None
    port: Leaf = None
    node_port: Leaf = None


class ClientIPConfig(Part, frozen=True, gc=False):
    """`core/v1.ClientIPConfig`."""

    timeout_seconds: Leaf = None


class SessionAffinityConfig(Part, frozen=True, gc=False):
    """`core/v1.SessionAffinityConfig`."""

    client_ip: ClientIPConfig | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(Part, frozen=True, gc=False):
    """`core/v1.ServiceSpec`."""

    type: Leaf = None
    cluster_ip: Leaf = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[Leaf] | None = msgspec.field(name="clusterIPs", default=None)
    ports: list[ServicePort] | None = None
    session_affinity: Leaf = None
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: Leaf = None
    internal_traffic_policy: Leaf = None
    external_ips: list[Leaf] | None = msgspec.field(name="externalIPs", default=None)
    load_balancer_source_ranges: list[Leaf] | None = None
    health_check_node_port: Leaf = None
    publish_not_ready_addresses: Leaf = None
    traffic_distribution: Leaf = None


class Ingress(Part, frozen=True, gc=False):
    """`core/v1.LoadBalancerIngress`."""

    ip: Leaf = None
    ip_mode: Leaf = None


class LoadBalancerStatus(Part, frozen=True, gc=False):
    """`core/v1.LoadBalancerStatus`."""

    ingress: list[Ingress] | None = None


class ServiceStatus(Part, frozen=True, gc=False):
    """`core/v1.ServiceStatus`."""

    load_balancer: LoadBalancerStatus | None = None


class Service(Object, frozen=True, gc=False):
    """`core/v1.Service`."""

    spec: ServiceSpec | None = None
    status: ServiceStatus | None = None


class EndpointConditions(Part, frozen=True, gc=False):
    """`discovery/v1.EndpointConditions`."""

    ready: Leaf = None
    serving: Leaf = None
    terminating: Leaf = None


class TargetRef(Part, frozen=True, gc=False):
    """`core/v1.ObjectReference`."""

    kind: Leaf = None
    namespace: Leaf = None
    name: Leaf = None


class Hint(Part, frozen=True, gc=False):
    """`discovery/v1.ForZone` or `ForNode`."""

    name: Leaf = None


class Hints(Part, frozen=True, gc=False):
    """`discovery/v1.EndpointHints`."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class Endpoint(Part, frozen=True, gc=False):
    """`discovery/v1.Endpoint`."""

    addresses: list[Leaf] | None = None
    conditions: EndpointConditions | None = None
    target_ref: TargetRef | None = None
    node_name: Leaf = None
    zone: Leaf = None
    hints: Hints | None = None


class EndpointPort(Part, frozen=True, gc=False):
    """`discovery/v1.EndpointPort`."""

    name: Leaf = None
    protocol: Leaf = None
    port: Leaf = None


class EndpointSlice(Object, frozen=True, gc=False):
    """`discovery/v1.EndpointSlice`."""

    address_type: Leaf = None
    ports: list[EndpointPort] | None = None
    endpoints: list[Endpoint] | None = None


class NetworkPolicy(Object, frozen=True, gc=False):
    """A NetworkPolicy or ClusterNetworkPolicy; its spec is passed on as it is."""

    spec: msgspec.Raw = msgspec.Raw(b"{}")


class ServiceCIDRSpec(Part, frozen=True, gc=False):
    """`networking/v1.ServiceCIDRSpec`."""

    cidrs: list[Leaf] | None = None


class ServiceCIDR(Object, frozen=True, gc=False):
    """`networking/v1.ServiceCIDR`."""

    spec: ServiceCIDRSpec | None = None


class ListMeta(Part, frozen=True, gc=False):
    """`meta/v1.ListMeta`."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class List(Part, frozen=True, gc=False):
    """One page of a list; the items stay JSON until they are normalised one by one."""

    metadata: ListMeta
    items: list[msgspec.Raw] | None = None


class MetadataList(Part, frozen=True, gc=False):
    """The same page as PartialObjectMetadataList; also reads a full list."""

    metadata: ListMeta
    items: list[Object] | None = None


class Status(Part, frozen=True, gc=False):
    """`meta/v1.Status`, the API server's way to say no."""

    code: Leaf = None
    reason: Leaf = None
    message: Leaf = None


class WatchEvent(Part, frozen=True, gc=False):
    """One line of a watch."""

    type: str
    object: msgspec.Raw
