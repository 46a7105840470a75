"""
Services -> intents, from EndpointSlices (never from Pod labels).

One ServicePortIntent a ServicePort, for all switches; and a LocalServiceIntent for each node that
has endpoints of its own to choose from (policy Local, node hints).
"""

from collections.abc import Iterator
from ipaddress import collapse_addresses
from typing import Literal

from dunlin.events.facts import ServiceFact, ServicePort
from dunlin.events.findings import Finding
from dunlin.events.intents import (
    ExternalAddress,
    LocalFamily,
    LocalServiceIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServiceFamily,
    ServicePortIntent,
    ZoneEndpoints,
)
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_planner.core.endpoints import (
    Candidate,
    EndpointSets,
    candidates,
    categorize,
    service_endpoint,
)
from dunlin_planner.core.service_findings import finding_of, not_honoured, twice
from dunlin_planner.state import (
    Frontend,
    Plan,
    ServicePortKey,
    State,
    external_ips_of,
    group_key,
    is_external,
    is_proxied,
    uses_local,
)

Version = Literal[4, 6]
Sets = dict[Version, EndpointSets]


def plan_service(state: State, namespace: str, name: str) -> Plan:
    """Every ServicePort of one Service; nothing for headless and ExternalName Services."""
    service: ServiceFact | None = state.find("service", namespace, name)
    if service is None or not is_proxied(service):
        return Plan()
    intents: list[ServicePortIntent | LocalServiceIntent] = []
    findings = list(not_honoured(state, service))
    keys: set[ServicePortKey] = set()
    for port in sorted(service.ports, key=lambda port: (port.name, port.protocol, port.port)):
        key = ServicePortKey(namespace, name, port.name, port.protocol.value)
        if key in keys:
            findings.append(twice(service, port))
            continue
        keys.add(key)
        intents.extend(_plan_port(state, service, port, key, findings))
    return Plan(tuple(intents), tuple(findings))


def _plan_port(
    state: State,
    service: ServiceFact,
    port: ServicePort,
    key: ServicePortKey,
    findings: list[Finding],
) -> Iterator[ServicePortIntent | LocalServiceIntent]:
    held = {f for f in _frontends(service, port) if _holds(state, service, key, f, findings)}
    if not held:
        return
    pool = candidates(state.slices(service), port.name, port.protocol)
    local = uses_local(service)
    sets = {
        # Families are served apart: one may have to fall back to terminating endpoints alone.
        version: categorize((c for c in pool if c.ip.version == version), uses_local=local)
        for version in sorted({ip.version for ip in service.cluster_ips})
    }
    yield _shared(state, service, port, key, held, sets)
    yield from _own(state, service, port, key, sets)


def _frontends(service: ServiceFact, port: ServicePort) -> Iterator[Frontend]:
    for ip in dict.fromkeys((*service.cluster_ips, *external_ips_of(service))):
        yield Frontend(ip, port.protocol, port.port)
    if port.node_port:
        yield Frontend(None, port.protocol, port.node_port)


def _holds(
    state: State,
    service: ServiceFact,
    key: ServicePortKey,
    frontend: Frontend,
    findings: list[Finding],
) -> bool:
    """The address or node port is this ServicePort's own; if not, `findings` say whose."""
    holder = state.frontends.holder(frontend)
    if holder == key:
        return True
    assert holder is not None, frontend
    what = "node" if frontend.ip is None else str(frontend.ip)
    field = "spec.clusterIPs" if frontend.ip in service.cluster_ips else "spec.externalIPs"
    if frontend.ip is None:
        field = "spec.ports.nodePort"
    elif any(frontend.ip == ingress.ip for ingress in service.load_balancer_ingress):
        field = "status.loadBalancer.ingress"
    reason = (
        f"{what} port {frontend.port}/{frontend.protocol} belongs to Service "
        f"{holder.namespace}/{holder.service}: left out here"
    )
    findings.append(finding_of(service, field, reason, "conflict"))
    return False


def _shared(
    state: State,
    service: ServiceFact,
    port: ServicePort,
    key: ServicePortKey,
    held: set[Frontend],
    sets: Sets,
) -> ServicePortIntent:
    groups = _Groups(state, key)
    cluster = [c for version in sorted(sets) for c in sets[version].cluster]
    return ServicePortIntent(
        scope="all",
        key=_name(key),
        object=f"service/{key.namespace}/{key.service}",
        service_namespace=key.namespace,
        service_name=key.service,
        port_name=key.port_name,
        protocol=port.protocol,
        port=port.port,
        addresses=tuple(
            ServiceAddress(ip=ip, group_id=groups.id(ip.version))
            for ip in dict.fromkeys(service.cluster_ips)
            if Frontend(ip, port.protocol, port.port) in held
        ),
        endpoints=tuple(map(service_endpoint, cluster)),
        external=tuple(
            _external(service, address)
            for address in external_ips_of(service)
            if address not in service.cluster_ips
            and Frontend(address, port.protocol, port.port) in held
        ),
        node_port=port.node_port if Frontend(None, port.protocol, port.node_port) in held else 0,
        families=tuple(
            _family(groups, v, sets[v], local=uses_local(service)) for v in sorted(sets)
        ),
        internal_local=service.internal_policy_local,
        external_local=service.external_policy_local and is_external(service),
        affinity_timeout_s=service.affinity_timeout_s,
        health_check_node_port=service.health_check_node_port,
        traffic=state.cluster.service_traffic,
    )


class _Groups:
    """Group ids of one ServicePort."""

    def __init__(self, state: State, key: ServicePortKey) -> None:
        self._state = state
        self._key = key

    def id(self, version: Version, variant: str = "") -> int:
        """Of one family and set of endpoints."""
        return self._state.groups.group_id(group_key(self._key, version, variant))


def _external(service: ServiceFact, ip: IPAddress) -> ExternalAddress:
    """Source ranges guard load balancer IPs; a family without any range is open."""
    if not any(i.ip == ip and i.ip_mode == "VIP" for i in service.load_balancer_ingress):
        return ExternalAddress(ip=ip)
    ranges = [r for r in service.load_balancer_source_ranges if r.version == ip.version]
    sources: Iterator[IPNetwork] = collapse_addresses(ranges)  # type: ignore[type-var]
    return ExternalAddress(ip=ip, sources=tuple(sources))


def _family(groups: _Groups, version: Version, sets: EndpointSets, *, local: bool) -> ServiceFamily:
    """
    One family; node hints come before zone hints.

    Also where every endpoint has node hints: zones then serve the nodes without any.
    """
    return ServiceFamily(
        version=version,
        group_id=groups.id(version),
        local_group_id=groups.id(version, "local") if local else 0,
        node_group_id=groups.id(version, "node") if sets.nodes else 0,
        zones=tuple(
            ZoneEndpoints(
                zone=zone,
                group_id=groups.id(version, f"zone/{zone}"),
                endpoints=_ends(sets.zones[zone]),
            )
            for zone in sorted(sets.zones)
        ),
    )


def _own(
    state: State, service: ServiceFact, port: ServicePort, key: ServicePortKey, sets: Sets
) -> Iterator[LocalServiceIntent]:
    """What each node has of its own, by the names of nodes."""
    groups = _Groups(state, key)
    for node in sorted({n for found in sets.values() for n in (*found.local, *found.nodes)}):
        families = tuple(
            _local_family(groups, version, found, node)
            for version, found in sorted(sets.items())
            if node in found.local or node in found.nodes
        )
        yield LocalServiceIntent(
            scope=node,
            key=_name(key),
            object=f"service/{key.namespace}/{key.service}",
            service_namespace=key.namespace,
            service_name=key.service,
            port_name=key.port_name,
            protocol=port.protocol,
            families=families,
            affinity_timeout_s=service.affinity_timeout_s,
        )


def _local_family(groups: _Groups, version: Version, sets: EndpointSets, node: str) -> LocalFamily:
    local, hinted = sets.local.get(node, ()), sets.nodes.get(node, ())
    return LocalFamily(
        version=version,
        group_id=groups.id(version),
        local_group_id=groups.id(version, "local") if local else 0,
        local=_ends(local),
        node_group_id=groups.id(version, "node") if hinted else 0,
        node=_ends(hinted),
    )


def _ends(chosen: tuple[Candidate, ...]) -> tuple[ServiceEndpoint, ...]:
    return tuple(map(service_endpoint, chosen))


def _name(key: ServicePortKey) -> str:
    return f"{key.namespace}/{key.service}:{key.port_name}/{key.protocol}"
