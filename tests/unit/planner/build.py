"""Facts in few words, for the planner's tests."""

from ipaddress import ip_address, ip_network

from dunlin.events.facts import (
    BlockFact,
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
from dunlin.model.addresses import derived_dpid, derived_mac, parse_mac
from dunlin_planner.state import Cluster

CLUSTER = Cluster(
    pod_cidrs=(ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")),
    service_cidrs=(ip_network("10.96.0.0/12"), ip_network("fd00:10:96::/112")),
)


def node(name: str, number: int = 1, **changes: object) -> NodeFact:
    """A ready dual-stack node whose addresses and podCIDRs follow from its number."""
    values: dict[str, object] = {
        "name": name,
        "ips": (ip_address(f"192.0.2.{number}"), ip_address(f"2001:db8::{number:x}")),
        "pod_cidrs": (
            ip_network(f"10.244.{number}.0/24"),
            ip_network(f"fd00:10:244:{number:x}::/64"),
        ),
        "ready": True,
    }
    return NodeFact(**(values | changes))  # type: ignore[arg-type]


def switch(name: str, number: int = 1, **changes: object) -> SwitchFact:
    """The switch of `node(name, number)`, with an uplink and a Geneve port."""
    values: dict[str, object] = {
        "name": name,
        "dpid": derived_dpid(name),
        "router_mac": derived_mac("router", name),
        "uplink_mac": parse_mac("02:00:00:00:00:01"),
        "gateway_port": 1,
        "uplink_port": 2,
        "tunnel_port": 3,
        "tunnel_type": "geneve",
        "gateway_ips": (ip_address(f"10.244.{number}.1"), ip_address(f"fd00:10:244:{number:x}::1")),
        "addresses": (
            NodeAddress(ip=ip_address(f"192.0.2.{number}"), subnet=ip_network("192.0.2.0/24")),
            NodeAddress(ip=ip_address(f"2001:db8::{number:x}"), subnet=ip_network("2001:db8::/64")),
        ),
    }
    return SwitchFact(**(values | changes))  # type: ignore[arg-type]


def block(cidr: str, owner: str) -> BlockFact:
    """A block of ipam."""
    return BlockFact(name=str(ip_network(cidr)), cidr=ip_network(cidr), node=owner)


def service(name: str = "web", *ips: str, **changes: object) -> ServiceFact:
    """A ClusterIP Service in `default` with one port, 80/TCP, named http."""
    values: dict[str, object] = {
        "namespace": "default",
        "name": name,
        "cluster_ips": tuple(map(ip_address, ips or ("10.96.0.10",))),
        "ports": (ServicePort(name="http", port=80),),
    }
    return ServiceFact(**(values | changes))  # type: ignore[arg-type]


def endpoint(ip: str, state: str = "ready", **changes: object) -> Endpoint:
    """`state`: ready, serving (and terminating), terminating (not serving), or unready."""
    return Endpoint(
        ip=ip_address(ip),
        ready=state == "ready",
        serving=state in ("ready", "serving"),
        terminating=state in ("serving", "terminating"),
        **changes,  # type: ignore[arg-type]
    )


def slice_of(
    owner: str = "web",
    *endpoints: Endpoint,
    name: str = "web-1",
    port_name: str = "http",
    port: int = 8080,
    protocol: Protocol = Protocol.TCP,
    trigger_ms: int | None = None,
) -> EndpointSliceFact:
    """An EndpointSlice in `default` with one port."""
    return EndpointSliceFact(
        namespace="default",
        name=name,
        service=owner,
        ports=(EndpointPort(name=port_name, protocol=protocol, port=port),),
        endpoints=endpoints,
        meta=Meta(trigger_ms=trigger_ms),
    )
