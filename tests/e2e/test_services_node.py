"""The node's own processes reach Services as with kube-proxy, and each other as ever."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest

from dunlin_lab import netns
from tests.e2e.host_process import address_on, listening
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.test_services_external import (
    node_port_of,
    patch,
    refuses,
    routed,
    same_family,
    set_vips,
    web,
)
from tests.e2e.test_services_runtime import AT_ONCE_S, refused
from tests.e2e.traffic import ask, family, get, gets

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

__all__ = ["web"]  # A fixture.

VIP, VIP6, EXTERNAL = "198.51.100.20", "2001:db8:f::20", "198.51.100.21"
# Each test has addresses of its own: of two Services with one address the first has it.
RANGED, LOCAL, LOCAL_EXTERNAL = "198.51.100.22", "198.51.100.23", "198.51.100.24"
UNSERVED = 32111
"""In the NodePort range, and no Service's."""
BOTH = {"web-1", "web-2"}


def from_itself(node: dict[str, Any], address: str, port: int, count: int = 20) -> set[str]:
    """Who answers the node's own processes."""
    return {answer["pod"] for answer in gets(node["netns"], address, count, port)}


def until_reached(node: dict[str, Any], address: str, port: int) -> None:
    """The agent tells the kernel a moment after the switches know a Service."""
    what = f"{node['name']} reaches {address} port {port}"
    eventually(what, lambda: not refuses(node["netns"], address, port), 15.0)


def bound(place: str, source: str, address: str, port: int) -> str:
    """Who answers a process that has chosen its source address."""

    def call() -> str:
        link = http.client.HTTPConnection(address, port, timeout=3, source_address=(source, 0))
        try:
            link.request("GET", "/")
            return str(json.loads(link.getresponse().read())["pod"])
        finally:
            link.close()

    return netns.run_in(place, call)


@pytest.mark.timeout(240)
def test_own_node_port(cluster: LabCluster, web: dict[str, Any]) -> None:
    """Each node reaches its own NodePorts at all its addresses, TCP and UDP; so do its Pods."""
    for number, node in enumerate(cluster.nodes):
        for address in node["ips"]:
            until_reached(node, address, web["port"])
            assert from_itself(node, address, web["port"]) == BOTH
            assert ask(node["netns"], address, web["dns"])["pod"].startswith("web-")
            if number:
                answers = gets(node["netns"], address, 20, web["port"])
                clients = {a["client"] for a in answers if a["pod"] == f"web-{number}"}
                assert clients == {address}, "its own Pod sees the node's own address"
    client = web["pods"]["client"]["netns"]
    for address in cluster.nodes[0]["ips"]:
        assert {a["pod"] for a in gets(client, address, 20, web["port"])} == BOTH
        assert ask(client, address, web["dns"])["pod"].startswith("web-")
    # As kube-proxy in nftables mode: not on loopback.
    assert refuses(cluster.nodes[0]["netns"], "127.0.0.1", web["port"])


@pytest.mark.timeout(240)
def test_other_nodes_node_ports(cluster: LabCluster, web: dict[str, Any]) -> None:
    """From every node through every other."""
    for node in cluster.nodes:
        for other in cluster.nodes:
            for address in other["ips"]:
                until_reached(node, address, web["port"])
                assert from_itself(node, address, web["port"]) == BOTH


@pytest.mark.timeout(240)
def test_external_and_load_balancer_ips(cluster: LabCluster, web: dict[str, Any]) -> None:
    """From every node, both families, at the Service's ports alone, as long as they are its."""
    spec = {"type": "LoadBalancer", "externalIPs": [EXTERNAL]}
    patch(cluster, web["namespace"], "web", spec)
    set_vips(cluster, web["namespace"], "web", [{"ip": VIP}, {"ip": VIP6}])
    for node in cluster.nodes:
        for address in (VIP, VIP6, EXTERNAL):
            until_reached(node, address, 80)
            assert from_itself(node, address, 80) == BOTH
            assert ask(node["netns"], address, 53)["pod"].startswith("web-")
    node, outside = cluster.nodes[0], cluster.outside
    via = same_family(VIP, outside["ips"])
    with (
        routed(node["netns"], VIP, via),
        address_on(outside["netns"], f"{VIP}/32"),
        listening(outside["netns"], 443, "beyond"),
    ):
        # The owner of the address answers at the ports that are no Service's.
        assert get(node["netns"], VIP, 443)["pod"] == "beyond"
        assert from_itself(node, VIP, 80) == BOTH
        set_vips(cluster, web["namespace"], "web", [{"ip": VIP, "ipMode": "Proxy"}])
        what = "an address of mode Proxy is left to the load balancer"
        eventually(what, lambda: not from_itself(node, VIP, 80, 1) & BOTH, 15.0)


@pytest.mark.timeout(240)
def test_source_ranges_name_the_node_by_its_own_address(
    cluster: LabCluster, web: dict[str, Any]
) -> None:
    """Allowed where they hold the node's address, and dropped where they do not."""
    node = cluster.nodes[0]
    own = same_family(RANGED, node["ips"])
    patch(cluster, web["namespace"], "web", {"type": "LoadBalancer"})
    set_vips(cluster, web["namespace"], "web", [{"ip": RANGED}])
    until_reached(node, RANGED, 80)
    patch(cluster, web["namespace"], "web", {"loadBalancerSourceRanges": ["192.0.2.0/24"]})
    assert refuses(node["netns"], RANGED, 80)
    patch(cluster, web["namespace"], "web", {"loadBalancerSourceRanges": [f"{own}/32"]})
    assert from_itself(node, RANGED, 80) == BOTH
    assert refuses(cluster.nodes[1]["netns"], RANGED, 80)


@pytest.mark.timeout(240)
def test_policy_local_does_not_bind_the_node(cluster: LabCluster, web: dict[str, Any]) -> None:
    """A node without endpoints refuses the outside, and its own processes reach all of them."""
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "externalIPs": [LOCAL_EXTERNAL],
    }
    patch(cluster, web["namespace"], "web", spec)
    set_vips(cluster, web["namespace"], "web", [{"ip": LOCAL}])
    node = cluster.nodes[0]
    for address, port in (
        *((ip, web["port"]) for ip in node["ips"]),
        (LOCAL, 80),
        (LOCAL_EXTERNAL, 80),
    ):
        until_reached(node, address, port)
        assert from_itself(node, address, port) == BOTH
    assert refuses(cluster.outside["netns"], node["ips"][0], web["port"])


@pytest.mark.timeout(120)
def test_no_endpoints_refuse_the_node_itself(cluster: LabCluster) -> None:
    """At once, at its own NodePort, TCP and UDP, both families."""
    namespace = cluster.namespace("noderefuse")
    cluster.service(namespace, "none", {"app": "nobody"}, type="NodePort")
    cluster.wait()
    node = cluster.nodes[0]
    for name, kind in (("http", socket.SOCK_STREAM), ("dns", socket.SOCK_DGRAM)):
        port = node_port_of(cluster, namespace, "none", name)
        for address in node["ips"]:
            took = [refused(node["netns"], address, port, kind) for _ in range(3)]
            assert max(took) < AT_ONCE_S


@pytest.mark.timeout(240)
def test_a_chosen_source_address(cluster: LabCluster, web: dict[str, Any]) -> None:
    """A process bound to the node's address reaches cluster IPs with endpoints elsewhere."""
    node = cluster.nodes[0]
    path = f"/api/v1/namespaces/{web['namespace']}/services/web"
    for address in cluster.api.get(path).json()["spec"]["clusterIPs"]:
        own = same_family(address, node["ips"])
        assert {bound(node["netns"], own, address, 80) for _ in range(20)} == BOTH


@pytest.mark.timeout(240)
def test_ports_of_the_range_that_are_no_services(cluster: LabCluster, web: dict[str, Any]) -> None:
    """
    A process that listens there is reached: by the node itself, other nodes, Pods, the outside.

    By the node itself also while ovs-vswitchd is dead and after it is back.
    """
    node = cluster.nodes[0]
    until_reached(node, node["ips"][0], web["port"])  # The range is steered.
    with listening(node["netns"], UNSERVED, "host"):
        for address in node["ips"]:
            own = get(node["netns"], address, UNSERVED)
            assert (own["pod"], own["client"]) == ("host", address)
            assert ask(node["netns"], address, UNSERVED)["pod"] == "host"
            chosen = bound(node["netns"], node["ips"][family(address) == socket.AF_INET6], address,
                           UNSERVED)  # fmt: skip
            assert chosen == "host"
            for place in (
                cluster.nodes[1]["netns"],
                cluster.outside["netns"],
                web["pods"]["client"]["netns"],
                web["pods"]["web-1"]["netns"],
            ):
                assert get(place, address, UNSERVED)["pod"] == "host"
        in_range = clients_port_in_the_range(node["netns"], node["ips"][0])
        assert in_range == "host"
        cluster.kill(f"ovs-vswitchd/{node['name']}")
        for address in node["ips"]:
            until_reached(node, address, UNSERVED)
        cluster.start(f"ovs-vswitchd/{node['name']}")
        cluster.ready()
        cluster.wait(60.0)
        for address in node["ips"]:
            until_reached(node, address, web["port"])
            assert from_itself(node, address, web["port"]) == BOTH
            assert get(node["netns"], address, UNSERVED)["pod"] == "host"


def clients_port_in_the_range(place: str, address: str) -> str:
    """Its answers are for a port of the range too."""

    def call() -> str:
        link = http.client.HTTPConnection(
            address, UNSERVED, timeout=3, source_address=(address, UNSERVED + 1)
        )
        try:
            link.request("GET", "/")
            return str(json.loads(link.getresponse().read())["pod"])
        finally:
            link.close()

    return netns.run_in(place, call)


@pytest.mark.timeout(240)
def test_an_external_ip_that_is_a_nodes_own(cluster: LabCluster, web: dict[str, Any]) -> None:
    """Served to everybody at the Service's port; the node keeps all its other ports."""
    node = cluster.nodes[0]
    patch(cluster, web["namespace"], "web", {"externalIPs": list(node["ips"])})
    places = {
        "itself": node["netns"],
        "other node": cluster.nodes[1]["netns"],
        "outside": cluster.outside["netns"],
        "its Pod": web["pods"]["client"]["netns"],
        "other Pod": web["pods"]["web-1"]["netns"],
    }
    with listening(node["netns"], 8081, "host"):
        for address in node["ips"]:
            for who, place in places.items():
                until_reached({"name": who, "netns": place}, address, 80)
                assert {a["pod"] for a in gets(place, address, 20)} == BOTH, who
                assert ask(place, address, 53)["pod"].startswith("web-"), who
                assert get(place, address, 8081)["pod"] == "host", who
    patch(cluster, web["namespace"], "web", {"externalIPs": None})
    with listening(node["netns"], 80, "host"):
        for who, place in places.items():
            given = lambda p=place: get(p, node["ips"][0])["pod"] == "host"  # noqa: E731
            eventually(f"port 80 is the node's again, for {who}", given, 15.0)


@pytest.mark.timeout(240)
def test_an_endpoint_beyond_the_cluster(cluster: LabCluster) -> None:
    """A Service without selector, such as of an API server that is no node: from node and Pod."""
    namespace = cluster.namespace("beyond")
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    ports = [{"name": "http", "port": 80, "targetPort": 8088, "protocol": "TCP"}]
    body = {"ports": ports, "type": "NodePort", "ipFamilyPolicy": "PreferDualStack"}
    created = cluster.create(
        f"/api/v1/namespaces/{namespace}/services", {"metadata": {"name": "far"}, "spec": body}
    )
    for address in cluster.outside["ips"]:
        kind = "IPv6" if ":" in address else "IPv4"
        cluster.create(
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            {
                "metadata": {
                    "name": f"far-{kind.lower()}",
                    "labels": {"kubernetes.io/service-name": "far"},
                },
                "addressType": kind,
                "ports": [{"name": "http", "port": 8088, "protocol": "TCP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            },
        )
    (client,) = cluster.pods_ready(namespace, 1)
    cluster.wait()
    node_port = created["spec"]["ports"][0]["nodePort"]
    with listening(cluster.outside["netns"], 8088, "outside"):
        for address in created["spec"]["clusterIPs"]:
            for node in cluster.nodes:
                assert get(node["netns"], address)["pod"] == "outside"
            assert get(client["netns"], address)["pod"] == "outside"
        for node in cluster.nodes:
            for address in node["ips"]:
                until_reached(node, address, node_port)
                assert from_itself(node, address, node_port, 3) == {"outside"}
