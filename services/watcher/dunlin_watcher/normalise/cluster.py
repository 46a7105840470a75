"""Nodes, Namespaces, ServiceCIDRs and NetworkPolicies."""

import msgspec

from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    NamespaceFact,
    NetworkPolicyFact,
    NodeFact,
    ServiceCIDRFact,
)
from dunlin.model.addresses import IPAddress
from dunlin_watcher import kube
from dunlin_watcher.normalise.reader import ANNOTATION_PREFIX, LOG_DENIED, Reader

LEAVING_TAINT = "ToBeDeletedByClusterAutoscaler"
ZONE_LABEL = "topology.kubernetes.io/zone"


def ready(conditions: list[kube.Condition] | None) -> bool:
    """Condition Ready is True."""
    return any(c.type == "Ready" and c.status == "True" for c in conditions or ())


def node(reader: Reader, _namespace: str, name: str, obj: kube.Node) -> NodeFact:
    """InternalIPs and podCIDRs; a Node without either is a fact all the same."""
    spec, status = obj.spec or kube.NodeSpec(), obj.status or kube.NodeStatus()
    labels = reader.text_map("metadata.labels", obj.metadata.labels)
    if spec.pod_cidrs:
        cidrs = reader.networks("spec.podCIDRs", spec.pod_cidrs)
    else:
        one = reader.network("spec.podCIDR", spec.pod_cidr) if spec.pod_cidr else None
        cidrs = (one,) if one else ()
    return NodeFact(
        name=name,
        ips=_internal_ips(reader, status.addresses or []),
        pod_cidrs=cidrs,
        zone=labels.get(ZONE_LABEL, ""),
        labels=labels,
        ready=ready(status.conditions),
        deleting=obj.metadata.deletion_timestamp is not None
        or any(taint.key == LEAVING_TAINT for taint in spec.taints or ()),
    )


def _internal_ips(reader: Reader, addresses: list[kube.NodeAddress]) -> tuple[IPAddress, ...]:
    found = [
        reader.ip(f"status.addresses[{i}].address", address.address)
        for i, address in enumerate(addresses)
        if address.type == "InternalIP"
    ]
    return tuple(ip for ip in found if ip is not None)


def namespace(reader: Reader, _namespace: str, name: str, obj: kube.Object) -> NamespaceFact:
    """Labels, and Dunlin's own annotations."""
    return NamespaceFact(
        name=name,
        labels=reader.text_map("metadata.labels", obj.metadata.labels),
        annotations=reader.text_map(
            "metadata.annotations", obj.metadata.annotations, ANNOTATION_PREFIX
        ),
        log_denied=reader.switched(obj.metadata.annotations, LOG_DENIED),
    )


def service_cidr(
    reader: Reader, _namespace: str, name: str, obj: kube.ServiceCIDR
) -> ServiceCIDRFact:
    """The good ones of its cidrs."""
    spec = obj.spec or kube.ServiceCIDRSpec()
    return ServiceCIDRFact(name=name, cidrs=reader.networks("spec.cidrs", spec.cidrs))


def network_policy(
    reader: Reader, namespace: str, name: str, obj: kube.NetworkPolicy
) -> NetworkPolicyFact | None:
    """Its spec as it is; None (bad) when that is no object: half a policy must not be believed."""
    spec = _spec(reader, obj)
    if spec is None:
        return None
    log = reader.switched(obj.metadata.annotations, LOG_DENIED)
    return NetworkPolicyFact(namespace=namespace, name=name, spec=spec, log_denied=log)


def cluster_network_policy(
    reader: Reader, _namespace: str, name: str, obj: kube.NetworkPolicy
) -> ClusterNetworkPolicyFact | None:
    """The same for a ClusterNetworkPolicy."""
    spec = _spec(reader, obj)
    if spec is None:
        return None
    log = reader.switched(obj.metadata.annotations, LOG_DENIED)
    return ClusterNetworkPolicyFact(name=name, spec=spec, log_denied=log)


def _spec(reader: Reader, obj: kube.NetworkPolicy) -> msgspec.Raw | None:
    spec = bytes(obj.spec).strip()
    if spec.startswith(b"{"):
        return msgspec.Raw(spec)
    reader.bad("spec", "type", "expected an object")
    return None
