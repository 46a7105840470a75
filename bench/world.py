"""A cluster as large as asked for: the same Services as intents and as facts."""

from ipaddress import ip_address, ip_network

from dunlin.events.facts import (
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    Meta,
    NodeAddress,
    NodeFact,
    Protocol,
    ServiceFact,
    ServicePort,
    SwitchFact,
)
from dunlin.events.intents import (
    AnyIntent,
    RouteIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import IPAddress, IPNetwork, derived_mac

POD_CIDRS = (ip_network("10.244.0.0/16"),)
SERVICE_CIDRS = (ip_network("10.96.0.0/12"),)
NAMESPACE = "bench"


def _block(node: int) -> IPNetwork:
    return ip_network(f"10.244.{node}.0/24")


def _node_address(node: int) -> NodeAddress:
    return NodeAddress(ip=ip_address(f"192.0.2.{node}"), subnet=ip_network("192.0.2.0/24"))


def cluster_ip(number: int) -> IPAddress:
    """Of Service `number`, 0 …."""
    return SERVICE_CIDRS[0][1000 + number]


def endpoint_ip(service: int, number: int) -> IPAddress:
    """Endpoint `number` of a Service: all over the cluster's Pods."""
    return POD_CIDRS[0][256 + (service * 10 + number) % 65000]


def switch_intent(node: int, dpid: int) -> SwitchIntent:
    """Node n<node>: gateway on port 1, uplink on 2."""
    return SwitchIntent(
        scope=f"n{node}",
        key="pipeline",
        dpid=dpid,
        router_mac=derived_mac("router", f"n{node}"),
        gateway_port=1,
        uplink_port=2,
        gateway_ips=(_block(node)[1],),
        addresses=(_node_address(node),),
        pod_cidrs=POD_CIDRS,
        service_cidrs=SERVICE_CIDRS,
        local_cidrs=(_block(node),),
    )


def route_intent(node: int) -> RouteIntent:
    """To node n<node>."""
    return RouteIntent(
        scope="all",
        key=f"n{node}",
        object=f"node/n{node}",
        cidrs=(_block(node),),
        addresses=(_node_address(node),),
        router_mac=derived_mac("router", f"n{node}"),
    )


def service_intent(number: int, endpoints: int) -> ServicePortIntent:
    """One TCP ServicePort."""
    return ServicePortIntent(
        scope="all",
        key=f"{NAMESPACE}/s{number}:http/TCP",
        object=f"service/{NAMESPACE}/s{number}",
        service_namespace=NAMESPACE,
        service_name=f"s{number}",
        port_name="http",
        protocol=Protocol.TCP,
        port=80,
        traffic=True,
        addresses=(ServiceAddress(ip=cluster_ip(number), group_id=number + 1 << 8),),
        endpoints=tuple(
            ServiceEndpoint(ip=endpoint_ip(number, i), port=8080, target=f"{NAMESPACE}/p{i}")
            for i in range(endpoints)
        ),
    )


def intents(services: int, endpoints: int, nodes: int = 2) -> list[AnyIntent]:
    """Everything that the switch of n1 (dpid 1) and of n2 (dpid 2) … should hold."""
    return [
        *(switch_intent(node, node) for node in range(1, nodes + 1)),
        *(route_intent(node) for node in range(1, nodes + 1)),
        *(service_intent(number, endpoints) for number in range(services)),
    ]


def node_facts(node: int) -> tuple[NodeFact, SwitchFact]:
    """A node, and its switch of dpid `node`."""
    mac = derived_mac("router", f"n{node}")
    return (
        NodeFact(
            name=f"n{node}", ips=(_node_address(node).ip,), pod_cidrs=(_block(node),), ready=True
        ),
        SwitchFact(
            name=f"n{node}",
            dpid=node,
            router_mac=mac,
            uplink_mac=derived_mac("uplink", f"n{node}"),
            gateway_port=1,
            uplink_port=2,
            gateway_ips=(_block(node)[1],),
            addresses=(_node_address(node),),
        ),
    )


def service_fact(number: int) -> ServiceFact:
    """One ClusterIP Service."""
    return ServiceFact(
        namespace=NAMESPACE,
        name=f"s{number}",
        cluster_ips=(cluster_ip(number),),
        ports=(ServicePort(name="http", port=80),),
    )


def slice_fact(number: int, endpoints: int, change: int = 0) -> EndpointSliceFact:
    """Its EndpointSlice; another `change` has another last endpoint."""
    ips = [endpoint_ip(number, i) for i in range(endpoints - 1)]
    ips.append(POD_CIDRS[0][40_000 + change % 20_000])
    return EndpointSliceFact(
        namespace=NAMESPACE,
        name=f"s{number}-slice",
        service=f"s{number}",
        ports=(EndpointPort(name="http", port=8080),),
        endpoints=tuple(Endpoint(ip=ip, node="n1", target=f"{NAMESPACE}/p") for ip in ips),
        meta=Meta(resource_version=str(change)),
    )
