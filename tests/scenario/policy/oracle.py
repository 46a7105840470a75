"""
The second opinion: who may reach whom, written from the Kubernetes API reference alone.

Deliberately naive: it reads objects as the API server returns them, looks at one packet at a
time, and
shares nothing with the planner: no classes, no groups, no indexes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any


@dataclass
class Pod:
    """A Pod; `ports`: (name, protocol, number)."""

    namespace: str
    name: str
    labels: dict[str, str]
    node: str
    number: int
    ports: tuple[tuple[str, str, int], ...] = ()

    @property
    def ips(self) -> tuple[str, str]:
        """Its IPv4 and IPv6 address."""
        subnet = self.node[1:]
        return f"10.0.{subnet}.{self.number}", f"fd00:{subnet}::{self.number:x}"


@dataclass
class Cluster:
    """Objects as Kubernetes has them; policies as their manifests."""

    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)
    pods: list[Pod] = field(default_factory=list)
    policies: list[dict[str, Any]] = field(default_factory=list)
    cluster_policies: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Packet:
    """A new connection's first packet; a `port` of 0: a protocol without ports (ICMP)."""

    src: str
    dst: str
    protocol: str
    port: int


def selector_matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """meta/v1.LabelSelector; an empty one matches everything."""
    selector = selector or {}
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for item in selector.get("matchExpressions") or []:
        key, operator, values = item["key"], item["operator"], item.get("values") or []
        if operator == "In" and (key not in labels or labels[key] not in values):
            return False
        if operator == "NotIn" and key in labels and labels[key] in values:
            return False
        if operator == "Exists" and key not in labels:
            return False
        if operator == "DoesNotExist" and key in labels:
            return False
    return True


def pod_with(cluster: Cluster, ip: str) -> Pod | None:
    """The Pod that has this address."""
    return next((pod for pod in cluster.pods if ip in pod.ips), None)


def allowed(cluster: Cluster, packet: Packet) -> bool:
    """Both the source's egress and the destination's ingress must allow it."""
    src, dst = pod_with(cluster, packet.src), pod_with(cluster, packet.dst)
    if src is not None and not direction_allows(cluster, "egress", src, packet):
        return False
    return dst is None or direction_allows(cluster, "ingress", dst, packet)


def direction_allows(cluster: Cluster, direction: str, pod: Pod, packet: Packet) -> bool:
    """Admin tier, then NetworkPolicies, then Baseline tier, then the default: allowed."""
    verdict = cluster_verdict(cluster, "Admin", direction, pod, packet)
    if verdict in ("Accept", "Deny"):
        return verdict == "Accept"
    selecting = [p for p in cluster.policies if applies(p, direction, pod)]
    if selecting:
        return any(
            rule_allows(cluster, policy, rule, direction, packet)
            for policy in selecting
            for rule in policy["spec"].get(direction) or []
        )
    return cluster_verdict(cluster, "Baseline", direction, pod, packet) != "Deny"


def applies(policy: dict[str, Any], direction: str, pod: Pod) -> bool:
    """The policy isolates this Pod in this direction."""
    if policy["metadata"]["namespace"] != pod.namespace:
        return False
    spec = policy["spec"]
    if not selector_matches(spec.get("podSelector"), pod.labels):
        return False
    types = spec.get("policyTypes")
    if not types:
        types = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]
    return {"ingress": "Ingress", "egress": "Egress"}[direction] in types


def rule_allows(
    cluster: Cluster, policy: dict[str, Any], rule: dict[str, Any], direction: str, packet: Packet
) -> bool:
    """One of its peers and one of its ports; no list, or an empty one, is everything."""
    peers = rule.get("from" if direction == "ingress" else "to")
    other = packet.src if direction == "ingress" else packet.dst
    namespace = policy["metadata"]["namespace"]
    if peers and not any(peer_matches(cluster, namespace, peer, other) for peer in peers):
        return False
    ports = rule.get("ports")
    return not ports or any(port_matches(cluster, port, packet) for port in ports)


def peer_matches(cluster: Cluster, namespace: str, peer: dict[str, Any], ip: str) -> bool:
    """NetworkPolicyPeer."""
    if "ipBlock" in peer:
        return block_matches(peer["ipBlock"], ip)
    pod = pod_with(cluster, ip)
    if pod is None:
        return False
    if "namespaceSelector" in peer:
        if not selector_matches(peer["namespaceSelector"], cluster.namespaces[pod.namespace]):
            return False
    elif pod.namespace != namespace:
        return False
    return selector_matches(peer.get("podSelector"), pod.labels)


def block_matches(block: dict[str, Any], ip: str) -> bool:
    """IPBlock: inside of cidr, and in none of except."""
    address = ip_address(ip)
    if address not in ip_network(block["cidr"]):
        return False
    return not any(address in ip_network(hole) for hole in block.get("except") or [])


def port_matches(cluster: Cluster, port: dict[str, Any], packet: Packet) -> bool:
    """NetworkPolicyPort; a name is looked up in the Pod that is connected to."""
    protocol = port.get("protocol", "TCP")
    if protocol != packet.protocol:
        return False
    number = port.get("port")
    if number is None:
        return True
    if isinstance(number, str):
        pod = pod_with(cluster, packet.dst)
        return pod is not None and (number, protocol, packet.port) in pod.ports
    return bool(number <= packet.port <= port.get("endPort", number))


# --- policy.networking.k8s.io/v1alpha2 ------------------------------------------------------------


def cluster_verdict(
    cluster: Cluster, tier: str, direction: str, pod: Pod, packet: Packet
) -> str | None:
    """The action of the first rule that matches, by priority; Pass leaves the tier."""
    policies = [p for p in cluster.cluster_policies if p["spec"]["tier"] == tier]
    for policy in sorted(policies, key=lambda p: p["spec"]["priority"]):
        spec = policy["spec"]
        if not cluster_subject(cluster, spec["subject"], pod):
            continue
        for rule in spec.get(direction) or []:
            if cluster_rule_matches(cluster, rule, direction, packet):
                return None if rule["action"] == "Pass" else str(rule["action"])
    return None


def cluster_subject(cluster: Cluster, subject: dict[str, Any], pod: Pod) -> bool:
    """ClusterNetworkPolicySubject: namespaces, or pods of namespaces."""
    labels = cluster.namespaces[pod.namespace]
    if "namespaces" in subject:
        return selector_matches(subject["namespaces"], labels)
    pods = subject["pods"]
    return selector_matches(pods["namespaceSelector"], labels) and selector_matches(
        pods["podSelector"], pod.labels
    )


def cluster_rule_matches(
    cluster: Cluster, rule: dict[str, Any], direction: str, packet: Packet
) -> bool:
    """One of its peers and, where protocols are given, one of those."""
    other = packet.src if direction == "ingress" else packet.dst
    peers = rule["from" if direction == "ingress" else "to"]
    if not any(cluster_peer_matches(cluster, peer, other) for peer in peers):
        return False
    protocols = rule.get("protocols")
    return not protocols or any(protocol_matches(cluster, p, packet) for p in protocols)


def cluster_peer_matches(cluster: Cluster, peer: dict[str, Any], ip: str) -> bool:
    """Namespaces, pods or (egress) networks."""
    if "networks" in peer:
        return any(ip_address(ip) in ip_network(network) for network in peer["networks"])
    pod = pod_with(cluster, ip)
    return pod is not None and cluster_subject(cluster, peer, pod)


def protocol_matches(cluster: Cluster, protocol: dict[str, Any], packet: Packet) -> bool:
    """ClusterNetworkPolicyProtocol: a destination port or range of tcp, udp, sctp."""
    if "destinationNamedPort" in protocol:
        pod = pod_with(cluster, packet.dst)
        wanted = (protocol["destinationNamedPort"], packet.protocol, packet.port)
        return pod is not None and wanted in pod.ports
    ((name, value),) = protocol.items()
    if name.upper() != packet.protocol:
        return False
    port = (value or {}).get("destinationPort")
    if not port:
        return True
    if "number" in port:
        return bool(packet.port == port["number"])
    return bool(port["range"]["start"] <= packet.port <= port["range"]["end"])
