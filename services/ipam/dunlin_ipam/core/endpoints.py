"""Attachments whose addresses the ledger gives them -> endpoint intents; the others are named."""

from collections.abc import Iterator
from dataclasses import dataclass

from dunlin.events.facts import AttachmentFact, PodFact
from dunlin.events.findings import Finding, Severity
from dunlin.events.intents import EndpointIntent
from dunlin.model.addresses import IPAddress
from dunlin_ipam.core.blocks import can_be_given
from dunlin_ipam.core.choose import block_of
from dunlin_ipam.state import Name, Owner, State, evidence_of


@dataclass(frozen=True, slots=True)
class Plan:
    """The endpoint intents of one node (`trigger_ms`: seen by the agent), and what is wrong."""

    intents: tuple[EndpointIntent, ...] = ()
    findings: tuple[Finding, ...] = ()


def plan_node(state: State, node: str) -> Plan:
    """A function of the facts: the attachments of one node, the ledger, the Pods."""
    findings: list[Finding] = []
    best: dict[str, AttachmentFact] = {}
    for attachment in state.attachments(node):
        wrong = next(_problems(state, attachment), None)
        if wrong is not None:
            findings.append(wrong)
            continue
        key = f"{attachment.pod_namespace}/{attachment.pod_name}/{attachment.ifname}"
        rivals = [attachment, *([best[key]] if key in best else [])]
        rivals.sort(key=lambda rival: _rank(state, rival))
        best[key] = rivals.pop()
        findings.extend(map(_replaced, rivals))
    findings.extend(_pod_findings(state, node))
    intents = tuple(_intent(state, best[key], key) for key in sorted(best))
    return Plan(intents, tuple(findings))


def _intent(state: State, attachment: AttachmentFact, key: str) -> EndpointIntent:
    pod = _pod_of(state, attachment)
    return EndpointIntent(
        scope=attachment.node,
        key=key,
        object=f"pod/{attachment.pod_namespace}/{attachment.pod_name}",
        trigger_ms=attachment.meta.observed_ms or None,
        pod_namespace=attachment.pod_namespace,
        pod_name=attachment.pod_name,
        ofport=attachment.ofport,
        mac=attachment.mac,
        ips=attachment.ips,
        ingress_bps=pod.ingress_bps if pod is not None else 0,
        egress_bps=pod.egress_bps if pod is not None else 0,
    )


def _pod_of(state: State, attachment: AttachmentFact) -> PodFact | None:
    """The Pod that lives in this sandbox; None: it is an earlier one's of that name."""
    pod: PodFact | None = state.find("pod", attachment.pod_namespace, attachment.pod_name)
    return pod if pod is not None and attachment.pod_uid in ("", pod.meta.uid) else None


def _rank(state: State, attachment: AttachmentFact) -> tuple[bool, int, str]:
    """Of two sandboxes: the one of the living Pod, then the one that got addresses last."""
    living = _pod_of(state, attachment) is not None
    since = max(state.lines[ip].fact.since_ms for ip in attachment.ips)
    return living, since, attachment.name


def _problems(state: State, attachment: AttachmentFact) -> Iterator[Finding]:
    if not attachment.ips:
        yield _about(attachment, "ips", "invalid", "it has no address")
    if attachment.ofport <= 0:
        reason = (
            f"OpenFlow port {attachment.ofport}: Open vSwitch could not add {attachment.port_name}"
        )
        yield _about(attachment, "ofport", "invalid", reason)
    for ip in attachment.ips:
        line = state.lines.get(ip)
        if line is not None and line.is_allocated and line.owner == _owner(attachment):
            continue
        if line is not None and line.is_allocated and line.fact.owner:
            holder = f"Pod {line.fact.pod_namespace}/{line.fact.pod_name} ({line.fact.owner})"
            yield _about(attachment, "ips", "conflict", f"{ip} belongs to {holder}")
        elif block_of(state, attachment.node, ip) is None:
            yield _about(attachment, "ips", "invalid", f"{ip} is in no block of {attachment.node}")
        else:
            yield _about(attachment, "ips", "waiting", f"{ip} is not in the ledger as its own")


def _owner(attachment: AttachmentFact) -> Owner:
    return Owner(attachment.node, attachment.name)


def _about(attachment: AttachmentFact, field: str, severity: Severity, reason: str) -> Finding:
    pod = f"interface {attachment.name} of Pod {attachment.pod_namespace}/{attachment.pod_name}"
    return Finding(
        kind="Attachment",
        namespace=attachment.node,
        name=attachment.name,
        field=field,
        severity=severity,
        reason=f"{pod}: {reason}: no flows for it",
    )


def _replaced(attachment: AttachmentFact) -> Finding:
    return _about(
        attachment, "containerID", "conflict", "a newer sandbox of the Pod stands beside it"
    )


def _pod_findings(state: State, node: str) -> Iterator[Finding]:
    """Pods whose status shows an address that cannot be theirs."""
    for name in sorted(state.pods_of_node.get(node, ())):
        pod: PodFact = state.facts["pod"][name]
        for ip in evidence_of(pod):
            wrong = _wrong_with(state, pod, ip)
            if wrong is not None:
                yield Finding(
                    kind="Pod",
                    namespace=pod.namespace,
                    name=pod.name,
                    field="status.podIPs",
                    severity=wrong[0],
                    reason=wrong[1],
                )


def _wrong_with(state: State, pod: PodFact, ip: IPAddress) -> tuple[Severity, str] | None:
    cidr = block_of(state, pod.node, ip)
    if cidr is None:
        return "invalid", f"{ip} is in no block of node {pod.node}: left out"
    if not can_be_given(cidr, ip):
        return "invalid", f"{ip} is the network, gateway or broadcast address of {cidr}: left out"
    line = state.lines.get(ip)
    if line is None or not line.is_allocated or not line.fact.pod_name:
        return None
    holder = Name(line.fact.pod_namespace, line.fact.pod_name)
    if holder == Name(pod.namespace, pod.name):
        return None
    return "conflict", f"{ip} belongs to Pod {holder.namespace}/{holder.name}"
