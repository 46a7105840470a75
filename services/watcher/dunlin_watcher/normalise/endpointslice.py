"""EndpointSlices."""

from collections.abc import Iterator

from dunlin.events.facts import Endpoint, EndpointPort, EndpointSliceFact
from dunlin_watcher import kube
from dunlin_watcher.normalise.reader import Reader, item, quoted

SERVICE_LABEL = "kubernetes.io/service-name"
VERSIONS = {"IPv4": 4, "IPv6": 6}


def endpoint_slice(
    reader: Reader, namespace: str, name: str, obj: kube.EndpointSlice
) -> EndpointSliceFact | None:
    """
    A slice with its good endpoints and good ports; one of FQDNs has none (unsupported).

    None (bad) when its addressType is unknown: its addresses cannot be judged.
    """
    if obj.address_type not in (*VERSIONS, "FQDN"):
        reader.bad("addressType", "value", f"unknown address type {quoted(obj.address_type)}")
        return None
    version = VERSIONS.get(obj.address_type)
    return EndpointSliceFact(
        namespace=namespace,
        name=name,
        service=reader.text(
            f"metadata.labels[{quoted(SERVICE_LABEL)}]", item(obj.metadata.labels, SERVICE_LABEL)
        ),
        ports=tuple(_ports(reader, obj.ports or [])),
        endpoints=() if version is None else tuple(_endpoints(reader, version, obj)),
    )


def _ports(reader: Reader, ports: list[kube.EndpointPort]) -> Iterator[EndpointPort]:
    """A port without a number means every port: it is unsupported, and left out here."""
    for i, port in enumerate(ports):
        protocol = reader.protocol(f"ports[{i}].protocol", port.protocol)
        name = reader.text(f"ports[{i}].name", port.name)
        number = None if port.port is None else reader.port(f"ports[{i}].port", port.port)
        if protocol is not None and number is not None:
            yield EndpointPort(name=name, protocol=protocol, port=number)


def _endpoints(reader: Reader, version: int, obj: kube.EndpointSlice) -> Iterator[Endpoint]:
    for i, endpoint in enumerate(obj.endpoints or ()):
        found = _endpoint(reader, f"endpoints[{i}]", version, endpoint)
        if found is not None:
            yield found


def _endpoint(reader: Reader, at: str, version: int, obj: kube.Endpoint) -> Endpoint | None:
    """The first address counts, as discovery/v1 defines no meaning for more."""
    if not obj.addresses:
        reader.bad(f"{at}.addresses", "address", "an endpoint without an address")
        return None
    ip = reader.ip(f"{at}.addresses[0]", obj.addresses[0], version)
    conditions = obj.conditions or kube.EndpointConditions()
    # discovery/v1: null ready is ready; null serving is whatever ready is.
    ready = reader.flag(f"{at}.conditions.ready", conditions.ready, default=True)
    serving = reader.flag(f"{at}.conditions.serving", conditions.serving, default=ready)
    terminating = reader.flag(f"{at}.conditions.terminating", conditions.terminating)
    hints = obj.hints or kube.Hints()
    if ip is None:
        return None
    return Endpoint(
        ip=ip,
        ready=ready,
        serving=serving,
        terminating=terminating,
        node=reader.text(f"{at}.nodeName", obj.node_name),
        zone=reader.text(f"{at}.zone", obj.zone),
        target=_target(reader, at, obj.target_ref),
        hint_zones=_hints(reader, f"{at}.hints.forZones", hints.for_zones),
        hint_nodes=_hints(reader, f"{at}.hints.forNodes", hints.for_nodes),
    )


def _target(reader: Reader, at: str, ref: kube.TargetRef | None) -> str:
    if ref is None or ref.kind != "Pod":
        return ""
    namespace = reader.text(f"{at}.targetRef.namespace", ref.namespace)
    name = reader.text(f"{at}.targetRef.name", ref.name)
    return f"{namespace}/{name}" if namespace and name else ""


def _hints(reader: Reader, field: str, hints: list[kube.Hint] | None) -> tuple[str, ...]:
    names = (reader.text(f"{field}[{i}].name", hint.name) for i, hint in enumerate(hints or ()))
    return tuple(name for name in names if name)
