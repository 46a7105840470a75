"""Intents as the real planner and ipam would write them."""

from ipaddress import ip_address, ip_network

from dunlin.events.facts import NextHop, NodeAddress, Protocol
from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    RouteIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import MacAddress, derived_mac

POD_CIDRS = (ip_network("10.244.0.0/16"), ip_network("fd00:244::/48"))
SERVICE_CIDRS = (ip_network("10.96.0.0/12"), ip_network("fd00:96::/108"))


def _addresses(number: int) -> tuple[NodeAddress, ...]:
    return (
        NodeAddress(ip=ip_address(f"192.0.2.{number}"), subnet=ip_network("192.0.2.0/24")),
        NodeAddress(ip=ip_address(f"2001:db8::{number:x}"), subnet=ip_network("2001:db8::/64")),
    )


def _blocks(number: int) -> tuple:  # type: ignore[type-arg]
    return (ip_network(f"10.244.{number}.0/24"), ip_network(f"fd00:244:0:{number:x}::/64"))


def switch(number: int, dpid: int) -> SwitchIntent:
    """Node n<number>: gateway on port 1, uplink on 2, tunnel on 3."""
    v4, v6 = _blocks(number)
    return SwitchIntent(
        scope=f"n{number}",
        key="pipeline",
        dpid=dpid,
        router_mac=derived_mac("router", f"n{number}"),
        gateway_port=1,
        uplink_port=2,
        tunnel_port=3,
        gateway_ips=(v4[1], v6[1]),
        addresses=_addresses(number),
        next_hops=(NextHop(ip=ip_address("192.0.2.254"), mac=MacAddress("02:00:00:00:00:fe")),),
        pod_cidrs=POD_CIDRS,
        service_cidrs=SERVICE_CIDRS,
        local_cidrs=(v4, v6),
    )


def route(number: int, encapsulation: str = "auto") -> RouteIntent:
    """To node n<number>."""
    return RouteIntent(
        scope="all",
        key=f"n{number}",
        object=f"node/n{number}",
        cidrs=_blocks(number),
        addresses=_addresses(number),
        router_mac=derived_mac("router", f"n{number}"),
        encapsulation=encapsulation,  # type: ignore[arg-type]
    )


def endpoint(node: int, number: int) -> EndpointIntent:
    """Pod p<number> on port 100 + number."""
    v4, v6 = _blocks(node)
    return EndpointIntent(
        scope=f"n{node}",
        key=f"default/p{number}/eth0",
        object=f"pod/default/p{number}",
        pod_namespace="default",
        pod_name=f"p{number}",
        ofport=100 + number,
        mac=derived_mac("pod", str(number)),
        ips=(v4[number + 2], v6[number + 2]),
    )


def service(number: int, endpoints: int, protocol: Protocol = Protocol.TCP) -> ServicePortIntent:
    """A dual-stack ServicePort; endpoint ports 8000 …."""
    v4 = ip_address(int(ip_address("10.96.0.10")) + number)
    v6 = ip_address(int(ip_address("fd00:96::10")) + number)
    group = 2 * number + 1 << 8
    pods = [
        ServiceEndpoint(ip=_blocks(1 + i % 3)[family][number % 200 + 2], port=8000 + i, target="")
        for family in (0, 1)
        for i in range(endpoints)
    ]
    return ServicePortIntent(
        scope="all",
        key=f"default/s{number}:/{protocol}",
        object=f"service/default/s{number}",
        service_namespace="default",
        service_name=f"s{number}",
        protocol=protocol,
        port=80,
        addresses=(
            ServiceAddress(ip=v4, group_id=group),
            ServiceAddress(ip=v6, group_id=group + (1 << 8)),
        ),
        endpoints=tuple(pods),
    )


def everything() -> list[AnyIntent]:
    """Node n1 with every kind of intent, both families, TCP and UDP, none to many endpoints."""
    services = [service(i, n) for i, n in enumerate((0, 1, 2, 3, 10, 15, 33, 64, 100, 300))]
    return [
        switch(1, 0x11),
        route(1),
        route(2),
        route(3, "tunnel"),
        *(endpoint(1, i) for i in range(5)),
        *services,
        service(50, 3, Protocol.UDP),
    ]
