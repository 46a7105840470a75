"""What the planner knows: the newest facts and the indexes that keep one change cheap."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, NamedTuple
from zlib import crc32

from dunlin.events.facts import (
    AttachmentFact,
    BlockFact,
    ClusterNetworkPolicyFact,
    EndpointSliceFact,
    Fact,
    NamespaceFact,
    NetworkPolicyFact,
    NodeFact,
    PodFact,
    Protocol,
    ServiceCIDRFact,
    ServiceFact,
    ServiceType,
    SwitchFact,
    SyncFact,
    kind_of,
)
from dunlin.events.findings import Finding
from dunlin.events.intents import AnyIntent
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_planner.core.claims import Claims
from dunlin_planner.core.events import Unit
from dunlin_planner.core.groups import GroupIds, GroupKey
from dunlin_planner.core.host_ports import HostPorts
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import PolicyIndex
from dunlin_planner.core.policy.model import PolicyName
from dunlin_planner.core.policy.parse import parse_policy
from dunlin_planner.core.policy.parse_cluster import parse_cluster_policy
from dunlin_planner.core.policy.plan import UNIT_KINDS
from dunlin_planner.ovs_version import tracks_sctp

SHARD_COUNT = 16
ALL_SHARDS = frozenset(range(SHARD_COUNT))

KINDS: dict[str, type[Fact]] = {
    kind_of(fact_type): fact_type
    for fact_type in (
        NodeFact,
        SwitchFact,
        BlockFact,
        ServiceFact,
        EndpointSliceFact,
        ServiceCIDRFact,
        NamespaceFact,
        NetworkPolicyFact,
        ClusterNetworkPolicyFact,
        PodFact,
        AttachmentFact,
        SyncFact,
    )
}
"""The facts that the planner uses, by kind."""

PlannerIntent = AnyIntent

POLICY_SHARD = 0
"""One replica plans all that is about policy: a change of it touches many intents, in order."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """
    Settings of the installation.

    `pod_cidrs`: the pools; `service_cidrs`: unless ServiceCIDR objects exist. `node_port_cidrs`:
    NodePorts are served on the nodes' addresses in these; empty: on all.
    `service_traffic`: switches count what each Service endpoint sends and receives.
    """

    pod_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    encapsulation: Literal["auto", "none", "geneve", "vxlan"] = "auto"
    node_port_cidrs: tuple[IPNetwork, ...] = ()
    service_traffic: bool = True


class Name(NamedTuple):
    """A namespace ("" for none) and a name."""

    namespace: str
    name: str


class ServicePortKey(NamedTuple):
    """What everything about a Service is keyed by."""

    namespace: str
    service: str
    port_name: str
    protocol: str


class Frontend(NamedTuple):
    """What a ServicePort listens on; only one ServicePort may. `ip` None: a NodePort."""

    ip: IPv4Address | IPv6Address | None
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that one unit leads to. Intents carry no `trigger_ms` here."""

    intents: tuple[PlannerIntent, ...] = ()
    findings: tuple[Finding, ...] = ()


def shard_of(unit: Unit) -> int:
    """Which share of the work a unit is in."""
    if unit.kind in UNIT_KINDS:
        return POLICY_SHARD
    text = f"{unit.namespace}/{unit.name}" if unit.namespace else unit.name
    return crc32(text.encode()) % SHARD_COUNT


def is_proxied(service: ServiceFact) -> bool:
    """kube-proxy's rule: it has cluster IPs, is no ExternalName and is left to us."""
    return (
        bool(service.cluster_ips)
        and service.type != ServiceType.EXTERNAL_NAME
        and not service.proxy_name
        and not service.headless_label
    )


def frontends_of(service: ServiceFact) -> Iterator[tuple[ServicePortKey, Frontend]]:
    """Every address and port that a Service listens on; nothing for one that is not proxied."""
    if not is_proxied(service):
        return
    addresses = (*service.cluster_ips, *external_ips_of(service))
    for port in service.ports:
        key = ServicePortKey(service.namespace, service.name, port.name, port.protocol.value)
        for ip in dict.fromkeys(addresses):
            yield key, Frontend(ip, port.protocol, port.port)
        if port.node_port:
            yield key, Frontend(None, port.protocol, port.node_port)


def external_ips_of(service: ServiceFact) -> tuple[IPAddress, ...]:
    """
    All external and load balancer IPs that switches answer for, of families with a cluster IP.

    kube-proxy's rules: a load balancer of mode Proxy gets its traffic itself; a family without a
    cluster IP does not exist.
    """
    versions = {ip.version for ip in service.cluster_ips}
    vips = (i.ip for i in service.load_balancer_ingress if i.ip_mode == "VIP")
    found = (*service.external_ips, *vips)
    return tuple(ip for ip in dict.fromkeys(found) if ip.version in versions)


def uses_local(service: ServiceFact) -> bool:
    """Some of its traffic follows a policy Local."""
    return service.internal_policy_local or (service.external_policy_local and is_external(service))


def is_external(service: ServiceFact) -> bool:
    """kube-proxy's ExternallyAccessible: traffic from outside may come."""
    node_ports = any(port.node_port for port in service.ports)
    return node_ports or bool(external_ips_of(service))


def group_keys_of(service: ServiceFact, slices: Iterable[EndpointSliceFact]) -> frozenset[GroupKey]:
    """Every select group that a Service may need: which ones it has is for its plan to say."""
    if not is_proxied(service):
        return frozenset()
    variants = {"", "local"} if uses_local(service) else {""}
    for endpoint_slice in slices:
        for endpoint in endpoint_slice.endpoints:
            variants.update(f"zone/{zone}" for zone in endpoint.hint_zones)
            if endpoint.hint_nodes:
                variants.add("node")
    versions = {ip.version for ip in service.cluster_ips}
    return frozenset(
        GroupKey(service.namespace, service.name, port.name, port.protocol.value, version, variant)
        for port in service.ports
        for version in versions
        for variant in variants
    )


def has_sctp(service: ServiceFact) -> bool:
    """One of its ports is SCTP."""
    return any(port.protocol == Protocol.SCTP for port in service.ports)


def group_key(key: ServicePortKey, version: int, variant: str = "") -> GroupKey:
    """The select group of a ServicePort in one family; `variant` as in GroupKey."""
    return GroupKey(*key, version, variant)


def network_order(network: IPNetwork) -> tuple[int, int, int]:
    """IPv4 before IPv6, then by address, wide before narrow."""
    return network.version, int(network.network_address), network.prefixlen


def _node(name: str) -> Unit:
    return Unit("node", "", name)


def _service(namespace: str, name: str) -> Unit:
    return Unit("service", namespace, name)


@dataclass
class State:
    """
    The newest fact of each object, with indexes; changed only by `put` and `drop`.

    Both return the units whose plan may change by that, and do nothing about the plans themselves.
    `generation` of policy (24 bits; 0: nothing is judged again): the one thing that is history, see
    docs/design/policy.md.
    """

    cluster: Cluster = field(default_factory=Cluster)
    shards: frozenset[int] = ALL_SHARDS
    groups: GroupIds = field(default_factory=GroupIds)
    facts: dict[str, dict[Name, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    planned: dict[Unit, Plan] = field(default_factory=dict)
    groups_of: dict[Name, frozenset[GroupKey]] = field(default_factory=dict)
    without_sctp: set[str] = field(default_factory=set)
    sctp_services: set[Name] = field(default_factory=set)
    slices_of: dict[Name, dict[str, EndpointSliceFact]] = field(default_factory=dict)
    blocks_of: dict[str, dict[str, BlockFact]] = field(default_factory=dict)
    frontends: Claims[Frontend, ServicePortKey] = field(default_factory=Claims)
    dpids: Claims[int, tuple[str]] = field(default_factory=Claims)
    pod_cidrs: Claims[IPNetwork, tuple[str]] = field(default_factory=Claims)
    policy: PolicyIndex = field(default_factory=PolicyIndex)
    host_ports: HostPorts = field(default_factory=HostPorts)
    generation: int = 0

    # --- queries ---------------------------------------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Any:
        """The newest fact of an object, None if there is none."""
        return self.facts[kind].get(Name(namespace, name))

    @property
    def synced(self) -> bool:
        """The watcher has published all of the cluster."""
        return Name("", "watcher") in self.facts["sync"]

    def slices(self, service: ServiceFact) -> list[EndpointSliceFact]:
        """The EndpointSlices of a Service, by name."""
        found = self.slices_of.get(Name(service.namespace, service.name), {})
        return [found[name] for name in sorted(found)]

    def units(self) -> set[Unit]:
        """Everything that may have a plan."""
        nodes = {_node(name) for kind in ("node", "switch") for _, name in self.facts[kind]}
        services = {_service(*name) for name in self.facts["service"]}
        return nodes | services | self.policy.units() | self.host_ports.units()

    # --- changes ---------------------------------------------------------------------------------

    def put(self, fact: Fact) -> set[Unit]:
        """
        Take in the newest state of an object.

        Kinds that the planner does not use change nothing.
        """
        kind = kind_of(type(fact))
        if kind not in self.facts:
            return set()
        name = Name(fact.namespace, fact.name)
        old = self.facts[kind].get(name)
        self.facts[kind][name] = fact
        return self._index(kind, name, old, fact)

    def drop(self, kind: str, namespace: str, name: str) -> set[Unit]:
        """Forget an object."""
        old = self.facts.get(kind, {}).pop(Name(namespace, name), None)
        return set() if old is None else self._index(kind, Name(namespace, name), old, None)

    def _index(self, kind: str, name: Name, old: Any, new: Any) -> set[Unit]:
        """Bring the indexes from `old` to `new` (None: not there)."""
        match kind:
            case "sync":
                return self._index_sync(name, old, new)
            case "node":
                return self._index_node(name, old, new)
            case "switch":
                return self._index_switch(name, old, new)
            case "block":
                return self._index_block(name, old, new)
            case "servicecidr":
                return self._index_servicecidr(name, old, new)
            case "networkpolicy":
                return self._index_networkpolicy(name, old, new)
            case "clusternetworkpolicy":
                return self._index_clusternetworkpolicy(name, old, new)
            case "pod":
                return self._index_pod(name, old, new)
            case "namespace":
                return self._index_namespace(name, old, new)
            case "attachment":
                return self._index_attachment(name, old, new)
            case "endpointslice":
                return self._index_endpointslice(name, old, new)
            case "service":
                return self._index_service(name, old, new)
        raise ValueError(f"no index of {kind}")

    def _index_sync(self, _name: Name, _old: SyncFact | None, _new: SyncFact | None) -> set[Unit]:
        return set()

    def _index_node(self, name: Name, _old: NodeFact | None, new: NodeFact | None) -> set[Unit]:
        rivals = self.pod_cidrs.replace((name.name,), new.pod_cidrs if new else ())
        return {_node(name.name)} | {_node(name) for (name,) in rivals}

    def _index_switch(
        self, name: Name, _old: SwitchFact | None, new: SwitchFact | None
    ) -> set[Unit]:
        rivals = self.dpids.replace((name.name,), (new.dpid,) if new else ())
        touched = {_node(name.name)} | {_node(rival) for (rival,) in rivals}
        touched |= self.host_ports.on(name.name)
        old_fashioned = new is not None and not tracks_sctp(new.ovs_version)
        if old_fashioned != (name.name in self.without_sctp):
            self.without_sctp ^= {name.name}
            touched |= {_service(*key) for key in self.sctp_services}
        return touched

    def _index_block(self, name: Name, old: BlockFact | None, new: BlockFact | None) -> set[Unit]:
        cidrs = {block.cidr for block in (old, new) if block}
        touched = {name for cidr in cidrs for (name,) in self.pod_cidrs.claimants(cidr)}
        if old is not None:
            touched.add(old.node)
            blocks = self.blocks_of[old.node]
            blocks.pop(name.name, None)
            if not blocks:
                del self.blocks_of[old.node]
        if new is not None:
            touched.add(new.node)
            self.blocks_of.setdefault(new.node, {})[new.name] = new
        return {_node(name) for name in touched}

    def _index_servicecidr(
        self, _name: Name, _old: ServiceCIDRFact | None, _new: ServiceCIDRFact | None
    ) -> set[Unit]:
        return {_node(name) for _, name in self.facts["switch"]}

    def _index_networkpolicy(
        self, name: Name, _old: NetworkPolicyFact | None, new: NetworkPolicyFact | None
    ) -> set[Unit]:
        policy = PolicyName(*name)
        if new is None:
            return self.policy.put_policy(policy, None)
        found, faults = parse_policy(new.namespace, new.name, bytes(new.spec))
        return self.policy.put_policy(policy, replace(found, log=new.log_denied), faults)

    def _index_clusternetworkpolicy(
        self,
        name: Name,
        _old: ClusterNetworkPolicyFact | None,
        new: ClusterNetworkPolicyFact | None,
    ) -> set[Unit]:
        policy = PolicyName("", name.name)
        if new is None:
            return self.policy.put_policy(policy, None)
        found, faults = parse_cluster_policy(new.name, bytes(new.spec))
        logged = found and replace(found, log=new.log_denied)
        return self.policy.put_policy(policy, logged, faults)

    def _index_pod(self, name: Name, _old: PodFact | None, new: PodFact | None) -> set[Unit]:
        pod = PodName(*name)
        return self.policy.put_pod(pod, new) | self.host_ports.put(pod, new)

    def _index_namespace(
        self, name: Name, _old: NamespaceFact | None, new: NamespaceFact | None
    ) -> set[Unit]:
        labels, log = (new.labels, new.log_denied) if new else (None, False)
        return self.policy.put_namespace(name.name, labels, log=log)

    def _index_attachment(
        self, _name: Name, old: AttachmentFact | None, new: AttachmentFact | None
    ) -> set[Unit]:
        pods = {PodName(a.pod_namespace, a.pod_name) for a in (old, new) if a is not None}
        touched = self.policy.put_attachment(old, new)
        return touched.union(*map(self.host_ports.of, pods))

    def _index_endpointslice(
        self, _name: Name, old: EndpointSliceFact | None, new: EndpointSliceFact | None
    ) -> set[Unit]:
        touched: set[Unit] = set()
        if old is not None:
            name = Name(old.namespace, old.service)
            slices = self.slices_of[name]
            slices.pop(old.name, None)
            if not slices:
                del self.slices_of[name]
            touched |= {_service(*name)} | self._regroup(name)
        if new is not None:
            name = Name(new.namespace, new.service)
            self.slices_of.setdefault(name, {})[new.name] = new
            touched |= {_service(*name)} | self._regroup(name)
        return touched

    def _index_service(
        self, name: Name, old: ServiceFact | None, new: ServiceFact | None
    ) -> set[Unit]:
        if new is not None and has_sctp(new):
            self.sctp_services.add(name)
        else:
            self.sctp_services.discard(name)
        before = _claims(old)
        after = _claims(new)
        touched = {_service(name.namespace, name.name)}
        for frontend in set[Frontend]().union(*before.values()) ^ set().union(*after.values()):
            if frontend.ip is None:
                touched |= self.host_ports.at_number(frontend.protocol, frontend.port)
        for key in before.keys() | after.keys():
            for rival in self.frontends.replace(key, after.get(key, ())):
                touched.add(_service(rival.namespace, rival.service))
        return touched | self._regroup(name)

    def _regroup(self, name: Name) -> set[Unit]:
        """Give a Service the groups that it may need; returns Services whose ids moved."""
        service: ServiceFact | None = self.facts["service"].get(name)
        slices = self.slices_of.get(name, {}).values()
        new = group_keys_of(service, slices) if service else frozenset[GroupKey]()
        old = self.groups_of.pop(name, frozenset())
        if new:
            self.groups_of[name] = new
        moved: set[GroupKey] = set()
        for key in sorted(old - new):
            moved |= self.groups.remove(key)
        for key in sorted(new - old):
            moved |= self.groups.add(key)
        return {_service(key.namespace, key.service) for key in moved}


def _claims(service: ServiceFact | None) -> dict[ServicePortKey, set[Frontend]]:
    found: dict[ServicePortKey, set[Frontend]] = {}
    for key, frontend in frontends_of(service) if service else ():
        found.setdefault(key, set()).add(frontend)
    return found
