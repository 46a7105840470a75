"""Services."""

from collections.abc import Iterator

from dunlin.events.facts import LoadBalancerIngress, ServiceFact, ServicePort, ServiceType
from dunlin.model.addresses import IPAddress
from dunlin_watcher import kube
from dunlin_watcher.normalise.reader import Reader, item, quoted

AFFINITY_DEFAULT_S = 10_800
AFFINITY_MAX_S = 86_400
PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"


def service(reader: Reader, namespace: str, name: str, obj: kube.Service) -> ServiceFact | None:
    """
    A Service with its good addresses and good ports.

    None (bad) when its type is unknown: what it wants cannot be told from the rest.
    """
    spec = obj.spec or kube.ServiceSpec()
    kind = _type(reader, spec)
    if kind is None:
        return None
    labels = obj.metadata.labels
    return ServiceFact(
        namespace=namespace,
        name=name,
        type=kind,
        cluster_ips=() if kind is ServiceType.EXTERNAL_NAME else _cluster_ips(reader, spec),
        ports=tuple(_ports(reader, spec)),
        affinity_timeout_s=_affinity(reader, spec),
        external_policy_local=_local(
            reader, "spec.externalTrafficPolicy", spec.external_traffic_policy
        ),
        internal_policy_local=_local(
            reader, "spec.internalTrafficPolicy", spec.internal_traffic_policy
        ),
        external_ips=reader.ips("spec.externalIPs", spec.external_ips),
        load_balancer_ingress=tuple(_ingress(reader, obj.status)),
        load_balancer_source_ranges=reader.networks(
            "spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges
        ),
        health_check_node_port=reader.number(
            "spec.healthCheckNodePort", spec.health_check_node_port, 0, 65535
        ),
        publish_not_ready_addresses=reader.flag(
            "spec.publishNotReadyAddresses", spec.publish_not_ready_addresses
        ),
        traffic_distribution=reader.text("spec.trafficDistribution", spec.traffic_distribution),
        proxy_name=reader.text(
            f"metadata.labels[{quoted(PROXY_NAME_LABEL)}]", item(labels, PROXY_NAME_LABEL)
        ),
        headless_label=isinstance(labels, dict) and HEADLESS_LABEL in labels,
    )


def _type(reader: Reader, spec: kube.ServiceSpec) -> ServiceType | None:
    if spec.type is None:
        return ServiceType.CLUSTER_IP
    try:
        return ServiceType(spec.type)
    except ValueError:
        reader.bad("spec.type", "value", f"unknown type {quoted(spec.type)}")
        return None


def _cluster_ips(reader: Reader, spec: kube.ServiceSpec) -> tuple[IPAddress, ...]:
    """Empty for a headless Service ("None") and for one that has none yet ("")."""
    if spec.cluster_ips:
        if spec.cluster_ips[0] == "None":
            return ()
        return reader.ips("spec.clusterIPs", spec.cluster_ips)
    if spec.cluster_ip in (None, "", "None"):
        return ()
    one = reader.ip("spec.clusterIP", spec.cluster_ip)
    return (one,) if one is not None else ()


def _ports(reader: Reader, spec: kube.ServiceSpec) -> Iterator[ServicePort]:
    for i, port in enumerate(spec.ports or ()):
        at = f"spec.ports[{i}]"
        protocol = reader.protocol(f"{at}.protocol", port.protocol)
        number = reader.port(f"{at}.port", port.port)
        name = reader.text(f"{at}.name", port.name)
        node_port = reader.number(f"{at}.nodePort", port.node_port, 0, 65535)
        if protocol is not None and number is not None:
            yield ServicePort(name=name, protocol=protocol, port=number, node_port=node_port)


def _affinity(reader: Reader, spec: kube.ServiceSpec) -> int:
    if spec.session_affinity in (None, "", "None"):
        return 0
    if spec.session_affinity != "ClientIP":
        reader.bad("spec.sessionAffinity", "value", f"unknown {quoted(spec.session_affinity)}")
        return 0
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    return reader.number(field, seconds, 1, AFFINITY_MAX_S, AFFINITY_DEFAULT_S)


def _local(reader: Reader, field: str, policy: kube.Leaf) -> bool:
    if policy not in (None, "", "Cluster", "Local"):
        reader.bad(field, "value", f"unknown policy {quoted(policy)}")
    return bool(policy == "Local")


def _ingress(reader: Reader, status: kube.ServiceStatus | None) -> Iterator[LoadBalancerIngress]:
    """Ingress points with an address; those with a host name only are for DNS, not for us."""
    balancer = status.load_balancer if status else None
    for i, ingress in enumerate((balancer.ingress if balancer else None) or ()):
        if not ingress.ip:
            continue
        at = f"status.loadBalancer.ingress[{i}]"
        ip = reader.ip(f"{at}.ip", ingress.ip)
        if ingress.ip_mode not in (None, "VIP", "Proxy"):
            reader.bad(f"{at}.ipMode", "value", f"unknown mode {quoted(ingress.ip_mode)}")
        elif ip is not None:
            yield LoadBalancerIngress(ip=ip, ip_mode=ingress.ip_mode or "VIP")
