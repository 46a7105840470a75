"""Frontends that are endpoints of their own, address and port: what a switch makes of them."""

from ipaddress import ip_address, ip_network

import pytest

from dunlin.events.facts import Endpoint, LoadBalancerIngress, ServicePort
from tests.packets.world import (
    CLIENT,
    CLUSTER_IP,
    DROP,
    NODE_IP,
    World,
    at,
    endpoints,
    service,
    to,
)


@pytest.mark.parametrize("version", ["3.1.0", "3.5.0"])
def test_an_endpoint_that_is_the_frontend(version: str) -> None:
    """An old Open vSwitch would end by a translation to the same (ADR 0044): there is none."""
    here = Endpoint(ip=ip_address(NODE_IP), node="n1")
    old, both, itself = version == "3.1.0", to("192.0.2.1:8080", (2, 1)), to("192.0.2.1:8080")
    expected = itself if old else both
    port = ServicePort(name="http", port=8080, node_port=30080)
    web = service(ports=(port,), external_ips=(ip_address(NODE_IP),))
    world = World.of(web, endpoints(here, at(2, 1)), ovs_version=version)
    assert world.verdict("p12", NODE_IP, 8080) == expected
    assert world.verdict("p12", CLUSTER_IP, 8080) == both
    assert world.verdict("p12", NODE_IP, 30080) == both
    port = ServicePort(name="http", port=80, node_port=8080)
    world = World.of(service(ports=(port,)), endpoints(here, at(2, 1)), ovs_version=version)
    assert world.verdict("p12", NODE_IP, 8080) == expected
    assert world.verdict("p12", CLUSTER_IP, 80) == both
    translated = world.send("p12", NODE_IP, 8080).conntrack.connections[0].nat == "dst"
    assert translated != old


def test_the_frontend_itself_keeps_its_source_ranges() -> None:
    """Who may not call it is dropped, also where it is not translated."""
    here = Endpoint(ip=ip_address(NODE_IP), node="n1")
    web = service(
        ports=(ServicePort(name="http", port=8080),),
        load_balancer_ingress=(LoadBalancerIngress(ip=ip_address(NODE_IP)),),
        load_balancer_source_ranges=(ip_network("203.0.113.0/24"),),
    )
    world = World.of(web, endpoints(here), ovs_version="3.1.0")
    assert world.verdict("p12", NODE_IP, 8080) == DROP
    assert world.verdict(CLIENT, NODE_IP, 8080) != DROP
