"""Pods."""

from collections.abc import Iterator

from dunlin.events.facts import ContainerPort, PodFact
from dunlin.model.addresses import IPAddress
from dunlin_watcher import kube
from dunlin_watcher.normalise.cluster import ready
from dunlin_watcher.normalise.reader import ANNOTATION_PREFIX, Reader

INGRESS_BANDWIDTH = "kubernetes.io/ingress-bandwidth"
EGRESS_BANDWIDTH = "kubernetes.io/egress-bandwidth"
FINISHED = ("Succeeded", "Failed")


def pod(reader: Reader, namespace: str, name: str, obj: kube.Pod) -> PodFact:
    """A Pod with its good addresses and good ports."""
    spec, status = obj.spec or kube.PodSpec(), obj.status or kube.PodStatus()
    host_network = reader.flag("spec.hostNetwork", spec.host_network)
    ports = tuple(_ports(reader, spec, host_network=host_network))
    return PodFact(
        namespace=namespace,
        name=name,
        node=reader.text("spec.nodeName", spec.node_name),
        ips=_ips(reader, status),
        host_network=host_network,
        labels=reader.text_map("metadata.labels", obj.metadata.labels),
        annotations=reader.text_map(
            "metadata.annotations", obj.metadata.annotations, ANNOTATION_PREFIX
        ),
        ports=ports,
        ready=ready(status.conditions),
        terminating=obj.metadata.deletion_timestamp is not None,
        finished=reader.text("status.phase", status.phase) in FINISHED,
        created_ms=_created(reader, obj) if any(port.host_port for port in ports) else 0,
        ingress_bps=reader.bandwidth(obj.metadata.annotations, INGRESS_BANDWIDTH),
        egress_bps=reader.bandwidth(obj.metadata.annotations, EGRESS_BANDWIDTH),
    )


def _created(reader: Reader, obj: kube.Pod) -> int:
    field = "metadata.creationTimestamp"
    return reader.time_ms(field, obj.metadata.creation_timestamp) or 0


def _ips(reader: Reader, status: kube.PodStatus) -> tuple[IPAddress, ...]:
    if status.pod_ips:
        found = [reader.ip(f"status.podIPs[{i}].ip", ip.ip) for i, ip in enumerate(status.pod_ips)]
    elif status.pod_ip:
        found = [reader.ip("status.podIP", status.pod_ip)]
    else:
        return ()
    return tuple(ip for ip in found if ip is not None)


def listening(spec: kube.PodSpec) -> Iterator[tuple[str, kube.Container]]:
    """The containers that run as long as the Pod, with their field: also restartable init ones."""
    for i, container in enumerate(spec.containers or ()):
        yield f"spec.containers[{i}]", container
    for i, container in enumerate(spec.init_containers or ()):
        if container.restart_policy == "Always":
            yield f"spec.initContainers[{i}]", container


def _ports(reader: Reader, spec: kube.PodSpec, *, host_network: bool) -> Iterator[ContainerPort]:
    for field, container in listening(spec):
        for j, port in enumerate(container.ports or ()):
            at = f"{field}.ports[{j}]"
            protocol = reader.protocol(f"{at}.protocol", port.protocol)
            number = reader.port(f"{at}.containerPort", port.container_port)
            name = reader.text(f"{at}.name", port.name)
            # On host network they are the node's ports, and the API server writes each hostPort.
            host = (0, None) if host_network else _host_port(reader, at, port)
            if protocol is not None and number is not None:
                yield ContainerPort(
                    name=name, protocol=protocol, port=number, host_port=host[0], host_ip=host[1]
                )


def _host_port(reader: Reader, at: str, port: kube.ContainerPort) -> tuple[int, IPAddress | None]:
    """The port of the node and, where it is not to be all of them, its address; (0, None): none."""
    number = reader.number(f"{at}.hostPort", port.host_port, 0, 65535)
    if not number or port.host_ip in (None, ""):
        return number, None
    address = reader.ip(f"{at}.hostIP", port.host_ip)
    # Served nowhere rather than everywhere.
    return (number, address) if address is not None else (0, None)
