"""hostPorts of a Pod -> intents for its node alone."""

from collections.abc import Iterator

from dunlin.events.facts import Protocol, SwitchFact
from dunlin.events.findings import Finding, Severity
from dunlin.events.intents import HostPortIntent, ServiceEndpoint
from dunlin_planner.core.host_ports import Wish
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.state import Frontend, Plan, State

FIELD = "spec.containers[].ports[].hostPort"
FIELD_IP = "spec.containers[].ports[].hostIP"


def plan_host_ports(state: State, namespace: str, name: str) -> Plan:
    """The intents of a Pod's hostPorts, from when it has an address."""
    pod = PodName(namespace, name)
    claim = state.host_ports.claims.get(pod)
    intents: list[HostPortIntent] = []
    findings: list[Finding] = []
    for wish in claim.wishes if claim is not None else ():
        refused = tuple(_refused(state, pod, wish))
        findings += (*refused, *_hidden(state, pod, wish))
        endpoints = tuple(_endpoints(state, pod, wish))
        if endpoints and not refused:
            intents.append(_intent(pod, wish, endpoints))
    return Plan(tuple(intents), tuple(findings))


def _intent(pod: PodName, wish: Wish, endpoints: tuple[ServiceEndpoint, ...]) -> HostPortIntent:
    return HostPortIntent(
        scope=wish.place.node,
        key=f"{pod.namespace}/{pod.name}:{wish.key}",
        object=f"pod/{pod.namespace}/{pod.name}",
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        protocol=wish.place.protocol,
        port=wish.place.port,
        host_ip=wish.ip,
        endpoints=endpoints,
    )


def _endpoints(state: State, pod: PodName, wish: Wish) -> Iterator[ServiceEndpoint]:
    """The Pod's first address of each family; its node's word comes before its status."""
    versions: set[int] = set()
    for ip in state.policy.addresses(pod):
        if wish.version in (None, ip.version) and ip.version not in versions:
            versions.add(ip.version)
            yield ServiceEndpoint(ip=ip, port=wish.target, target=f"{pod.namespace}/{pod.name}")


def _refused(state: State, pod: PodName, wish: Wish) -> Iterator[Finding]:
    """Why no switch is told of it."""
    node, protocol, port = wish.place
    holder = state.host_ports.holder(pod, wish)
    if holder is not None:
        reason = (
            f"port {port}/{protocol} of node {node} belongs to Pod "
            f"{holder.namespace}/{holder.name}, which is older: left out here"
        )
        yield _finding(pod, FIELD, "conflict", reason)
    switch: SwitchFact | None = state.find("switch", "", node)
    if wish.ip is None or switch is None:
        return
    if wish.ip.is_loopback:
        reason = f"{wish.ip}: a node serves hostPorts at its own addresses, not at its loopback"
        yield _finding(pod, FIELD_IP, "unsupported", reason)
    elif wish.ip not in {*switch.gateway_ips, *(a.ip for a in switch.addresses)}:
        yield _finding(pod, FIELD_IP, "invalid", f"{wish.ip} is no address of node {node}")


def _hidden(state: State, pod: PodName, wish: Wish) -> Iterator[Finding]:
    """Why no packet meets it although switches are told."""
    node, protocol, port = wish.place
    service = state.frontends.holder(Frontend(None, protocol, port))
    if service is not None:
        reason = (
            f"port {port}/{protocol} is the node port of Service "
            f"{service.namespace}/{service.service}, which comes first"
        )
        yield _finding(pod, FIELD, "conflict", reason)
    if protocol is Protocol.SCTP and node in state.without_sctp:
        reason = f"SCTP is refused where Open vSwitch is older than 3.2: {node}"
        yield _finding(pod, "spec.containers[].ports[].protocol", "unsupported", reason)


def _finding(pod: PodName, field: str, severity: Severity, reason: str) -> Finding:
    return Finding(
        kind="Pod",
        namespace=pod.namespace,
        name=pod.name,
        field=field,
        severity=severity,
        reason=reason,
    )
