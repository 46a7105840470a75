"""What of a Service is not as it asks: findings."""

from collections.abc import Iterator

from dunlin.events.facts import ServiceFact, ServicePort
from dunlin.events.findings import Finding, Severity
from dunlin_planner.state import State, has_sctp

AFFINITY_MAX_S = 0xFFFF
DISTRIBUTIONS = ("", "PreferClose", "PreferSameZone", "PreferSameNode")


def finding_of(
    service: ServiceFact, field: str, reason: str, severity: Severity = "unsupported"
) -> Finding:
    """About one field of a Service, as Kubernetes spells it."""
    return Finding(
        kind="Service",
        namespace=service.namespace,
        name=service.name,
        field=field,
        severity=severity,
        reason=reason,
    )


def twice(service: ServiceFact, port: ServicePort) -> Finding:
    """Two ports of one name and protocol."""
    reason = f"port {port.name!r}/{port.protocol} is there twice: only the lowest number is served"
    return finding_of(service, "spec.ports", reason, "conflict")


def not_honoured(state: State, service: ServiceFact) -> Iterator[Finding]:
    """Fields that are honoured in part or not at all."""
    if has_sctp(service) and state.without_sctp:
        old = sorted(state.without_sctp)
        nodes = ", ".join(old[:5]) + (", ..." if len(old) > 5 else "")
        reason = f"SCTP is refused where Open vSwitch is older than 3.2: {nodes}"
        yield finding_of(service, "spec.ports.protocol", reason)
    if service.affinity_timeout_s > AFFINITY_MAX_S:
        reason = (
            f"after {AFFINITY_MAX_S} s without a new connection a client keeps its endpoint only "
            "as long as none is added"
        )
        yield finding_of(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", reason)
    if service.traffic_distribution not in DISTRIBUTIONS:
        reason = f"{service.traffic_distribution}: only its hints in EndpointSlices count"
        yield finding_of(service, "spec.trafficDistribution", reason)
    versions = {ip.version for ip in service.cluster_ips}
    if any(ip.version not in versions for ip in service.external_ips):
        reason = "addresses of a family in which the Service has no cluster IP are not served"
        yield finding_of(service, "spec.externalIPs", reason, "invalid")
