"""
Intents: what switches must do, in the imperative, declarative and switch-neutral.

An intent carries every choice that must not differ between two runs. `compile` (dunlin.pipeline)
turns one intent into flows and groups, as a pure function of the intent and the switch.
Intents of scope "all" concern every switch and are published once.
"""

from typing import Annotated, Literal, TypeAlias

import msgspec

from dunlin import subjects
from dunlin.events.facts import (
    Bandwidth,
    Event,
    NextHop,
    NodeAddress,
    PortNumber,
    Protocol,
    kind_of,
)
from dunlin.model.addresses import IPAddress, IPNetwork, MacAddress
from dunlin.model.ids import IntentId

GroupId: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFEFF)]


class Intent(Event, frozen=True, kw_only=True, tag_field="kind"):
    """
    One decision. `scope`: "all" or a node's name; `key`: unique within scope and kind.

    `object`: the Kubernetes object that caused it, `<kind>/<namespace>/<name>` (or
    `<kind>/<name>`), for people. `trigger_ms`: Unix time of the change that caused this version,
    where known. `change`: it belongs to a change of policy and comes into force with all of it,
    when a PolicyCommitIntent reaches that number; 0: at once.
    """

    scope: str
    key: str
    object: str = ""
    trigger_ms: int | None = None
    change: Annotated[int, msgspec.Meta(ge=0)] = 0

    @property
    def id(self) -> IntentId:
        """`<scope>/<kind>/<key>`."""
        return intent_id(self.scope, kind_of(type(self)), self.key)

    @property
    def subject(self) -> str:
        """Where this intent is published."""
        return subjects.intent(self.scope, kind_of(type(self)), self.key)


class SwitchIntent(Intent, frozen=True, kw_only=True, tag="switch"):
    """
    The pipeline of one node's integration bridge itself; scope = the node, key = "pipeline".

    By the planner, from SwitchFact, NodeFact and settings. Until it exists flowctl writes nothing
    to that switch. Ports, MACs and addresses as in SwitchFact. `pod_cidrs`: the cluster's pools;
    `service_cidrs`: ClusterIPs; both are never sent to the world outside.
    `local_cidrs`: this node's blocks: what no Pod here has is dropped, not routed. `zone`: of the
    node, "" for none. `node_port_ips`: own addresses where NodePorts are served. `sctp`: this OVS
    tracks SCTP ports (3.2 and later); where not, SCTP Services are refused. `null_nat`: this OVS
    survives a connection that is translated to what it is already (3.1.3, 3.2.3, 3.3; ADR 0044).
    """

    dpid: int
    router_mac: MacAddress
    gateway_port: int
    uplink_port: int = 0
    tunnel_port: int = 0
    gateway_ips: tuple[IPAddress, ...] = ()
    addresses: tuple[NodeAddress, ...] = ()
    next_hops: tuple[NextHop, ...] = ()
    pod_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    local_cidrs: tuple[IPNetwork, ...] = ()
    zone: str = ""
    node_port_ips: tuple[IPAddress, ...] = ()
    sctp: bool = False
    null_nat: bool = False


class EndpointIntent(Intent, frozen=True, kw_only=True, tag="endpoint"):
    """
    A Pod's interface on its node; scope = the node, key = `<namespace>/<pod>/<ifname>`.

    By ipam, from the attachment and the ledger. `ingress_bps`, `egress_bps`: bits a second that
    it may receive and send, of the Pod; 0: no limit.
    """

    pod_namespace: str
    pod_name: str
    ofport: int
    mac: MacAddress
    ips: tuple[IPAddress, ...]
    ingress_bps: Bandwidth = 0
    egress_bps: Bandwidth = 0


class RouteIntent(Intent, frozen=True, kw_only=True, tag="route"):
    """
    How every other node reaches the Pods and the addresses of node `key`; scope "all".

    `encapsulation`: "auto" is none between nodes that share a subnet, else the tunnel.
    """

    cidrs: tuple[IPNetwork, ...]
    addresses: tuple[NodeAddress, ...]
    router_mac: MacAddress
    encapsulation: Literal["auto", "none", "tunnel"] = "auto"


class ServiceEndpoint(Event, frozen=True, kw_only=True):
    """Where a new connection may go. `target`: `<namespace>/<pod>` or "", for metrics, people."""

    ip: IPAddress
    port: PortNumber
    target: str = ""


class ServiceAddress(Event, frozen=True, kw_only=True):
    """One address of a ServicePort and the select group of its family."""

    ip: IPAddress
    group_id: GroupId


class ExternalAddress(Event, frozen=True, kw_only=True):
    """
    An external or load balancer IP of a ServicePort.

    `sources`: only these may connect (loadBalancerSourceRanges), disjoint; empty: everybody.
    """

    ip: IPAddress
    sources: tuple[IPNetwork, ...] = ()


class ZoneEndpoints(Event, frozen=True, kw_only=True):
    """Where traffic of the policy Cluster goes on the nodes of one zone, by topology hints."""

    zone: str
    group_id: GroupId
    endpoints: tuple[ServiceEndpoint, ...]


class ServiceFamily(Event, frozen=True, kw_only=True):
    """
    One IP version of a ServicePort: its groups.

    `group_id`: policy Cluster. `local_group_id`: policy Local, 0: none of its traffic has it.
    `node_group_id`: some nodes have endpoints of their own by node hints (0: none). What a
    node has of both is in its LocalServiceIntent.
    """

    version: Literal[4, 6]
    group_id: GroupId
    local_group_id: int = 0
    node_group_id: int = 0
    zones: tuple[ZoneEndpoints, ...] = ()


class ServicePortIntent(Intent, frozen=True, kw_only=True, tag="service"):
    """
    One ServicePort; scope "all", key = `<namespace>/<name>:<port name>/<protocol>`.

    `addresses`: cluster IPs. `external`: externalIPs and load balancer IPs, of families that have
    a cluster IP. `node_port` 0: none. `endpoints`: of the policy Cluster, of both families,
    sorted; a family without refuses. `internal_local`, `external_local`: traffic policy Local.
    `affinity_timeout_s` 0: no ClientIP affinity. `health_check_node_port`: HTTP on every node.
    `traffic`: switches count the bytes and packets of each endpoint.
    """

    service_namespace: str
    service_name: str
    port_name: str = ""
    protocol: Protocol
    port: PortNumber
    addresses: tuple[ServiceAddress, ...]
    endpoints: tuple[ServiceEndpoint, ...] = ()
    external: tuple[ExternalAddress, ...] = ()
    node_port: int = 0
    families: tuple[ServiceFamily, ...] = ()
    internal_local: bool = False
    external_local: bool = False
    affinity_timeout_s: int = 0
    health_check_node_port: int = 0
    traffic: bool = False


class LocalFamily(Event, frozen=True, kw_only=True):
    """
    One IP version of what a node has of its own of a ServicePort; group ids as in ServiceFamily.

    `local`: its endpoints on this node, for the policy Local. `node`: those that node hints name
    for it; they replace the policy Cluster's.
    """

    version: Literal[4, 6]
    group_id: GroupId
    local_group_id: int = 0
    local: tuple[ServiceEndpoint, ...] = ()
    node_group_id: int = 0
    node: tuple[ServiceEndpoint, ...] = ()


class LocalServiceIntent(Intent, frozen=True, kw_only=True, tag="localservice"):
    """
    What one node has of its own of a ServicePort; scope = the node, key as its ServicePortIntent's.

    Only nodes that have something: elsewhere the ServicePortIntent says all.
    """

    service_namespace: str
    service_name: str
    port_name: str = ""
    protocol: Protocol
    families: tuple[LocalFamily, ...]
    affinity_timeout_s: int = 0


class HostPortIntent(Intent, frozen=True, kw_only=True, tag="hostport"):
    """
    A port of a node that leads to one of its Pods; scope = the node.

    Key: `<namespace>/<pod>:<port>/<protocol>`, with a host IP `<namespace>/<pod>:<port>@<host
    IP>/<protocol>`. `host_ip`: this address of the node alone; None: all its addresses, its gateway
    addresses too, of the families of `endpoints`. `endpoints`: one of each family at most.
    """

    pod_namespace: str
    pod_name: str
    protocol: Protocol
    port: PortNumber
    host_ip: IPAddress | None = None
    endpoints: tuple[ServiceEndpoint, ...]


# --- policies: docs/design/policy.md says how they work together ---------------------------------

PolicyDirection: TypeAlias = Literal["ingress", "egress"]
PolicyTier: TypeAlias = Literal["admin", "default", "baseline"]
PolicyAction: TypeAlias = Literal["Accept", "Deny", "Pass"]
ClassRole: TypeAlias = Literal["ingress", "egress", "peer", "network"]
ConjunctionId: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFFFF)]
ClassId: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)]


class Clause(Event, frozen=True, kw_only=True, array_like=True):
    """
    Clause `number` of `of` of one conjunction: where and at which OpenFlow priority it is matched.

    Clauses: 1 subject, 2 peer, 3 port. An array on the wire: there are many.
    """

    direction: PolicyDirection
    tier: PolicyTier
    priority: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    conj_id: ConjunctionId
    number: Annotated[int, msgspec.Meta(ge=1, le=3)]
    of: Annotated[int, msgspec.Meta(ge=2, le=3)]


class NameClause(Clause, frozen=True, kw_only=True, array_like=True):
    """
    One of four, for a named port in a network: clause 4 is a Pod that has this port by this name.

    Apart from `Clause`: a release that knows no more than three reads everything else (ADR 0047).
    """

    number: Annotated[int, msgspec.Meta(ge=1, le=4)]
    of: Annotated[int, msgspec.Meta(ge=4, le=4)]


class PolicyRule(Event, frozen=True, kw_only=True):
    """What happens when a conjunction holds. `index`: as the object lists its rules."""

    conj_id: ConjunctionId
    direction: PolicyDirection
    index: int
    action: PolicyAction = "Accept"
    name: str = ""


class PolicyIntent(Intent, frozen=True, kw_only=True, tag="policy"):
    """
    The verdicts of one policy; scope "all".

    Key: `<namespace>/<name>` (cluster-wide: `/<name>`). `log`: what its rules deny is logged.
    """

    tier: PolicyTier
    priority: Annotated[int, msgspec.Meta(ge=1, le=65535)]
    rules: tuple[PolicyRule, ...] = ()
    log: bool = False


class PolicyClassIntent(Intent, frozen=True, kw_only=True, tag="policyclass"):
    """
    Addresses that policies do not tell apart share a class; scope "all", key = its id in hex.

    `role`: subjects of ingress or of egress policies, peers that are Pods (or nodes), or peers
    that are
    networks. `isolated`: some NetworkPolicy (tier "default") selects these subjects: what no rule
    allows is dropped. `policies`: who selects these subjects (`<namespace>/<name>`), for people.
    `log`: what is dropped so is logged. `names`: more clauses, of rules about a named port in a
    network.
    """

    class_id: ClassId
    role: ClassRole
    clauses: tuple[Clause, ...] = ()
    isolated: bool = False
    policies: tuple[str, ...] = ()
    log: bool = False
    names: tuple[NameClause, ...] = ()


class PolicyPortIntent(Intent, frozen=True, kw_only=True, tag="policyport"):
    """
    Clauses that a range of ports fulfils; scope "all".

    Key: `TCP/80/ffff` (value and mask), or `any`.

    `protocol` None ("any"): every packet, whatever its peer and protocol. `mask` 0: every port.
    `names`: more clauses, of rules about a named port in a network.
    """

    protocol: Protocol | None = None
    value: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    mask: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    clauses: tuple[Clause, ...] = ()
    names: tuple[NameClause, ...] = ()


class PolicyPeerIntent(Intent, frozen=True, kw_only=True, tag="policypeer"):
    """The class that a Pod (or node) is in as a peer; scope "all", key = `<namespace>/<pod>`."""

    ips: tuple[IPAddress, ...]
    class_id: ClassId


class PolicyNetworkIntent(Intent, frozen=True, kw_only=True, tag="policynetwork"):
    """The class of a network's addresses; of several the longest prefix counts; key = the CIDR."""

    cidr: IPNetwork
    class_id: ClassId


class PolicySubjectIntent(Intent, frozen=True, kw_only=True, tag="policysubject"):
    """
    A Pod on its own node: lifts the fence of its endpoint, because its policies are known.

    Scope = the node, key = `<namespace>/<pod>`. Class 0: no policy selects it in that direction.
    """

    ips: tuple[IPAddress, ...]
    ingress_class: ClassId = 0
    egress_class: ClassId = 0


class PolicyGenerationIntent(Intent, frozen=True, kw_only=True, tag="policygeneration"):
    """
    Connections that were judged under another generation are judged again; scope "all".

    Absent: no policy has been seen, and nothing is judged again.
    """

    generation: Annotated[int, msgspec.Meta(ge=1, le=0xFFFFFF)]


class PolicyCommitIntent(Intent, frozen=True, kw_only=True, tag="policycommit"):
    """
    Every change of policy up to `committed` is complete in the stream; scope "all", key "all".

    The last message of a change (ADR 0020): a switch gets all of it in one atomic bundle. `gone`:
    ids of intents that this change withdraws; their tombstones follow. `prepared`, where larger
    than `committed`: changes up to it are complete too, and switches let through only what policy
    allows both without and with them, until they are committed (ADR 0030).
    """

    committed: Annotated[int, msgspec.Meta(ge=0)]
    prepared: Annotated[int, msgspec.Meta(ge=0)] = 0
    gone: tuple[str, ...] = ()


AnyIntent: TypeAlias = (
    SwitchIntent
    | EndpointIntent
    | RouteIntent
    | ServicePortIntent
    | LocalServiceIntent
    | HostPortIntent
    | PolicyIntent
    | PolicyClassIntent
    | PolicyPortIntent
    | PolicyPeerIntent
    | PolicyNetworkIntent
    | PolicySubjectIntent
    | PolicyGenerationIntent
    | PolicyCommitIntent
)


def intent_id(scope: str, kind: str, key: str) -> IntentId:
    """The name of an intent everywhere: REST, cookies, logs."""
    return IntentId(f"{scope}/{kind}/{key}")
