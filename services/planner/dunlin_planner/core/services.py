"""Services -> one ServicePortIntent a ServicePort, from EndpointSlices (never from Pod labels)."""

from collections.abc import Iterator

from dunlin.events.facts import Protocol, ServiceFact, ServicePort
from dunlin.events.findings import Finding, Severity
from dunlin.events.intents import ServiceAddress, ServiceEndpoint, ServicePortIntent
from dunlin_planner.core.endpoints import candidates, categorize, service_endpoint
from dunlin_planner.state import (
    Frontend,
    Plan,
    ServicePortKey,
    State,
    group_key,
    is_proxied,
)


def plan_service(state: State, namespace: str, name: str) -> Plan:
    """Every ServicePort of one Service; nothing for headless and ExternalName Services."""
    service: ServiceFact | None = state.find("service", namespace, name)
    if service is None or not is_proxied(service):
        return Plan()
    intents: list[ServicePortIntent] = []
    findings = list(_unsupported(service))
    keys: set[ServicePortKey] = set()
    for port in sorted(service.ports, key=lambda port: (port.name, port.protocol, port.port)):
        key = ServicePortKey(namespace, name, port.name, port.protocol.value)
        if key in keys:
            findings.append(_twice(service, port))
            continue
        keys.add(key)
        addresses = tuple(_addresses(state, service, port, key, findings))
        if addresses:
            intents.append(_intent(state, service, port, addresses))
    return Plan(tuple(intents), tuple(findings))


def _addresses(
    state: State,
    service: ServiceFact,
    port: ServicePort,
    key: ServicePortKey,
    findings: list[Finding],
) -> Iterator[ServiceAddress]:
    """
    The cluster IPs that are this ServicePort's own.

    Of the others `findings` say whose they are.
    """
    for ip in dict.fromkeys(service.cluster_ips):
        holder = state.frontends.holder(Frontend(ip, port.protocol, port.port))
        if holder == key:
            yield ServiceAddress(ip=ip, group_id=state.groups.group_id(group_key(key, ip)))
            continue
        assert holder is not None
        reason = (
            f"{ip} port {port.port}/{port.protocol} belongs to Service "
            f"{holder.namespace}/{holder.service}: left out here"
        )
        findings.append(_finding(service, "spec.clusterIPs", reason, "conflict"))


def _intent(
    state: State, service: ServiceFact, port: ServicePort, addresses: tuple[ServiceAddress, ...]
) -> ServicePortIntent:
    pool = candidates(state.slices(service), port.name, port.protocol)
    endpoints: list[ServiceEndpoint] = []
    for version in sorted({address.ip.version for address in addresses}):
        # Families are served apart: one may have to fall back to terminating endpoints alone.
        sets = categorize(c for c in pool if c.ip.version == version)
        endpoints.extend(map(service_endpoint, sets.cluster))
    return ServicePortIntent(
        scope="all",
        key=f"{service.namespace}/{service.name}:{port.name}/{port.protocol}",
        object=f"service/{service.namespace}/{service.name}",
        service_namespace=service.namespace,
        service_name=service.name,
        port_name=port.name,
        protocol=port.protocol,
        port=port.port,
        addresses=addresses,
        endpoints=tuple(endpoints),
    )


def _finding(
    service: ServiceFact, field: str, reason: str, severity: Severity = "unsupported"
) -> Finding:
    return Finding(
        kind="Service",
        namespace=service.namespace,
        name=service.name,
        field=field,
        severity=severity,
        reason=reason,
    )


def _twice(service: ServiceFact, port: ServicePort) -> Finding:
    reason = f"port {port.name!r}/{port.protocol} is there twice: only the lowest number is served"
    return _finding(service, "spec.ports", reason, "conflict")


def _unsupported(service: ServiceFact) -> Iterator[Finding]:
    """Fields that are not honoured yet; the cluster IPs of the Service work all the same."""
    asked: tuple[tuple[object, str, str], ...] = (
        (
            any(port.node_port for port in service.ports),
            "spec.ports.nodePort",
            "not opened on nodes",
        ),
        (service.external_ips, "spec.externalIPs", "not served"),
        (service.load_balancer_ingress, "status.loadBalancer.ingress", "not served"),
        (service.load_balancer_source_ranges, "spec.loadBalancerSourceRanges", "not enforced"),
        (service.affinity_timeout_s, "spec.sessionAffinity", "ClientIP is treated as None"),
        (
            service.external_policy_local,
            "spec.externalTrafficPolicy",
            "Local has no effect: no external traffic is served",
        ),
        (
            service.internal_policy_local,
            "spec.internalTrafficPolicy",
            "Local is treated as Cluster",
        ),
        (service.health_check_node_port, "spec.healthCheckNodePort", "nobody answers on it"),
        (
            service.traffic_distribution,
            "spec.trafficDistribution",
            f"{service.traffic_distribution} is ignored: all endpoints get equal shares",
        ),
        (
            any(port.protocol == Protocol.SCTP for port in service.ports),
            "spec.ports.protocol",
            "SCTP works on Open vSwitch 3.2 and later only",
        ),
    )
    for present, field, reason in asked:
        if present:
            yield _finding(service, field, reason)
