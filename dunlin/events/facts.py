"""
Facts: what is known, in the past tense, each carrying the whole current state of its object.

Published by the watcher (what the Kubernetes API holds), the agents (what stands on a node) and
ipam (its ledger). A delete is a tombstone: a message without payload on the same subject.
"""

from enum import StrEnum
from functools import cache
from typing import Annotated, Literal, TypeAlias

import msgspec

from dunlin import subjects
from dunlin.model.addresses import IPAddress, IPNetwork, MacAddress

PortNumber: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]


Bandwidth: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
"""Bits a second, 0: no limit."""


class Protocol(StrEnum):
    """`core/v1.Protocol`."""

    TCP = "TCP"
    UDP = "UDP"
    SCTP = "SCTP"


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """
    Base of all on the bus; readers ignore fields they do not know (N and N+1 side by side).

    The garbage collector does not look at them: a cycle of them is not possible.
    """


class Meta(Event, frozen=True, kw_only=True):
    """
    Where a fact comes from.

    `observed_ms`: Unix time in milliseconds when its publisher saw it. `trigger_ms`: Unix time of
    `endpoints.kubernetes.io/last-change-trigger-time`, where the object has it.
    """

    uid: str = ""
    resource_version: str = ""
    observed_ms: int = 0
    trigger_ms: int | None = None


class Fact(Event, frozen=True, kw_only=True, tag_field="kind"):
    """One object's state. `namespace` is "" where the object has none."""

    namespace: str = ""
    name: str
    meta: Meta = Meta()

    @property
    def subject(self) -> str:
        """Where this fact is published."""
        return subjects.fact(kind_of(type(self)), self.namespace, self.name)


class NodeFact(Fact, frozen=True, kw_only=True, tag="node"):
    """
    A Kubernetes Node: `ips` are its InternalIPs, `pod_cidrs` its spec.podCIDRs.

    `deleting`: it is going away, and load balancers should leave it.
    """

    ips: tuple[IPAddress, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    zone: str = ""
    labels: dict[str, str] = {}
    ready: bool = False
    deleting: bool = False


class NamespaceFact(Fact, frozen=True, kw_only=True, tag="namespace"):
    """
    A Kubernetes Namespace.

    `log_denied`: its annotation `dunlin.dev/log-denied`: what is denied to its Pods is logged.
    """

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    log_denied: bool = False


class ContainerPort(Event, frozen=True, kw_only=True):
    """
    A port that a container names; `name` may be "".

    `host_port`: where its node serves it too (0: nowhere), on `host_ip` alone: 0.0.0.0 and :: are
    all addresses of their family, None all addresses. Never of a Pod on host network.
    """

    name: str = ""
    protocol: Protocol = Protocol.TCP
    port: PortNumber
    host_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    host_ip: IPAddress | None = None


class PodFact(Fact, frozen=True, kw_only=True, tag="pod"):
    """
    A Kubernetes Pod. `node` is "" before it is bound; `ips` are status.podIPs.

    `finished`: phase is Succeeded or Failed: its addresses are free. `annotations`: those
    under `dunlin.dev/` only. `ingress_bps`, `egress_bps`: bits a second that it may receive and
    send, by its annotations `kubernetes.io/ingress-bandwidth`, `…/egress-bandwidth`; 0: no limit.
    `created_ms`: Unix time of its creation, 0 unless it asks for a
    host port: of two Pods that ask for one the older has it.
    """

    node: str = ""
    ips: tuple[IPAddress, ...] = ()
    host_network: bool = False
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    ports: tuple[ContainerPort, ...] = ()
    ready: bool = False
    terminating: bool = False
    finished: bool = False
    created_ms: int = 0
    ingress_bps: Bandwidth = 0
    egress_bps: Bandwidth = 0


class ServiceType(StrEnum):
    """`core/v1.ServiceType`."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class ServicePort(Event, frozen=True, kw_only=True):
    """`core/v1.ServicePort`; the target port is in the EndpointSlices. `node_port` 0: none."""

    name: str = ""
    protocol: Protocol = Protocol.TCP
    port: PortNumber
    node_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0


class LoadBalancerIngress(Event, frozen=True, kw_only=True):
    """One status.loadBalancer.ingress with an address."""

    ip: IPAddress
    ip_mode: Literal["VIP", "Proxy"] = "VIP"


class ServiceFact(Fact, frozen=True, kw_only=True, tag="service"):
    """
    A Kubernetes Service. `cluster_ips` is empty for headless and ExternalName Services.

    `proxy_name`: label service.kubernetes.io/service-proxy-name; `headless_label`: label
    service.kubernetes.io/headless is there. `affinity_timeout_s` 0: no ClientIP affinity.
    """

    type: ServiceType = ServiceType.CLUSTER_IP
    cluster_ips: tuple[IPAddress, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    affinity_timeout_s: int = 0
    external_policy_local: bool = False
    internal_policy_local: bool = False
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ingress: tuple[LoadBalancerIngress, ...] = ()
    load_balancer_source_ranges: tuple[IPNetwork, ...] = ()
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    traffic_distribution: str = ""
    proxy_name: str = ""
    headless_label: bool = False


class EndpointPort(Event, frozen=True, kw_only=True):
    """One port of an EndpointSlice; matched with a ServicePort by name."""

    name: str = ""
    protocol: Protocol = Protocol.TCP
    port: PortNumber


class Endpoint(Event, frozen=True, kw_only=True):
    """One endpoint address of an EndpointSlice. `target`: `<namespace>/<pod>` or ""."""

    ip: IPAddress
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    target: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()


class EndpointSliceFact(Fact, frozen=True, kw_only=True, tag="endpointslice"):
    """A discovery.k8s.io/v1 EndpointSlice; `service` is its kubernetes.io/service-name."""

    service: str = ""
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()


class NetworkPolicyFact(Fact, frozen=True, kw_only=True, tag="networkpolicy"):
    """
    A networking.k8s.io/v1 NetworkPolicy; `spec` as the API server returns it.

    `log_denied`: its annotation `dunlin.dev/log-denied`.
    """

    spec: msgspec.Raw = msgspec.Raw(b"{}")
    log_denied: bool = False


class ClusterNetworkPolicyFact(Fact, frozen=True, kw_only=True, tag="clusternetworkpolicy"):
    """
    A policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy.

    `spec` as the API server returns it. `log_denied`: its annotation `dunlin.dev/log-denied`.
    """

    spec: msgspec.Raw = msgspec.Raw(b"{}")
    log_denied: bool = False


class ServiceCIDRFact(Fact, frozen=True, kw_only=True, tag="servicecidr"):
    """A networking.k8s.io/v1 ServiceCIDR."""

    cidrs: tuple[IPNetwork, ...] = ()


# --- what the agents know -------------------------------------------------------------------------


class NodeAddress(Event, frozen=True, kw_only=True):
    """An address of a node and the subnet that it is on."""

    ip: IPAddress
    subnet: IPNetwork


class NextHop(Event, frozen=True, kw_only=True):
    """The default gateway of a node in one family, resolved."""

    ip: IPAddress
    mac: MacAddress


class SwitchFact(Fact, frozen=True, kw_only=True, tag="switch"):
    """
    The integration bridge of the node `name`, published after all attachments of that node.

    `router_mac`: unique to the node; frames to it enter the bridge from the underlay.
    `uplink_mac`: what the node's own addresses answer ARP with. OpenFlow ports are 0 where absent.
    `incarnation`: changes whenever ovs-vswitchd restarts. `mtu` in bytes, of Pods.
    """

    dpid: int
    router_mac: MacAddress
    uplink_mac: MacAddress
    gateway_port: int
    uplink_port: int = 0
    tunnel_port: int = 0
    tunnel_type: Literal["", "geneve", "vxlan"] = ""
    gateway_ips: tuple[IPAddress, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    next_hops: tuple[NextHop, ...] = ()
    mtu: int = 1500
    ovs_version: str = ""
    datapath: Literal["netdev", "dpdk"] = "netdev"
    userspace_tso: bool = False
    incarnation: str = ""


class AttachmentFact(Fact, frozen=True, kw_only=True, tag="attachment"):
    """
    A Pod interface that stands on a node; namespace = the node, name = `<container id>/<ifname>`.

    `port_name`: the OVS interface. The addresses are the ones in the ledger of ipam.
    """

    pod_namespace: str
    pod_name: str
    pod_uid: str = ""
    container_id: str
    ifname: str = "eth0"
    netns: str = ""
    ips: tuple[IPAddress, ...] = ()
    mac: MacAddress
    ofport: int
    port_name: str

    @property
    def node(self) -> str:
        """The node that this attachment is on."""
        return self.namespace


# --- the ledger of ipam ---------------------------------------------------------------------------


class BlockFact(Fact, frozen=True, kw_only=True, tag="block"):
    """A block of Pod addresses of one node; name = its CIDR. `own`: not from spec.podCIDRs."""

    cidr: IPNetwork
    node: str
    own: bool = False


class AddressFact(Fact, frozen=True, kw_only=True, tag="address"):
    """
    One line of the ledger; name = the address. Written by compare-and-set on its subject only.

    `state` released: in its cool-down since `since_ms` (Unix milliseconds), free afterwards.
    """

    ip: IPAddress
    node: str
    state: Literal["allocated", "released"] = "allocated"
    owner: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    since_ms: int = 0


class SyncFact(Fact, frozen=True, kw_only=True, tag="sync"):
    """`name` (watcher, or agent:<node>) has published everything it held when it started."""


AnyFact: TypeAlias = (
    NodeFact
    | NamespaceFact
    | PodFact
    | ServiceFact
    | EndpointSliceFact
    | NetworkPolicyFact
    | ClusterNetworkPolicyFact
    | ServiceCIDRFact
    | SwitchFact
    | AttachmentFact
    | BlockFact
    | AddressFact
    | SyncFact
)


@cache
def kind_of(fact_type: type[Event]) -> str:
    """The `kind` of a fact or intent type: its tag."""
    tag = fact_type.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
