"""A node's processes, host-network Pods among them, are what policies' ipBlocks say of the node."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from typing import Any

import pytest

from tests.e2e.lab_cluster import LabCluster
from tests.e2e.test_policy import Shop, answers
from tests.e2e.test_policy_explain import explained
from tests.e2e.test_services_external import node_port_of, same_family
from tests.e2e.test_services_node import until_reached
from tests.e2e.traffic import ask, get

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]

SERVER = {"matchLabels": {"app": "server"}}


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Iterator[Shop]:
    """Three Pods, in a namespace of its own."""
    shop = Shop(cluster, "policy-nodes")
    yield shop
    shop.without_all()


def test_ipblocks_of_nodes(shop: Shop) -> None:
    """To a Pod and through each kind of Service address, TCP and UDP, both families."""
    judged_by_its_address(shop)


def judged_by_its_address(shop: Shop) -> None:
    """The server Pod is on the second node: what the first one's processes may is asked."""
    first, second = shop.cluster.nodes[:2]
    ways = _ways(shop)
    for address, port in ways:
        assert get(first["netns"], address, port)["client"] in first["ips"], (address, port)
    for ip in shop.pods["server"]["ips"]:
        for node in (first, second):
            own = same_family(ip, node["ips"])
            assert get(node["netns"], ip, 8080)["client"] == own
            assert ask(node["netns"], ip, 8080)["client"] == own
    peer = _blocks(first)
    shop.policy("p", podSelector=SERVER, ingress=[{"from": peer}])
    assert _reached(first, ways) == set(ways)
    assert _explained(shop, first) == "ALLOWED"
    assert not shop.everywhere("client", "server"), "its Pods have addresses of their own"
    shop.replace("p", podSelector=SERVER, ingress=[{"from": _blocks(second)}])
    assert not _reached(first, ways), "another node's address"
    assert _explained(shop, first) == "DENIED"
    assert shop.everywhere_from(second["netns"], "server"), "its own node always passes"
    around = [
        {"ipBlock": {"cidr": "0.0.0.0/0" if "." in ip else "::/0", "except": [str(ip_network(ip))]}}
        for ip in first["ips"]
    ]
    shop.replace("p", podSelector=SERVER, ingress=[{"from": around}])
    assert not _reached(first, ways), "all but its address"
    assert _explained(shop, first) == "DENIED"
    assert shop.everywhere("client", "server")
    shop.without("p")


def _ways(shop: Shop) -> list[tuple[str, int]]:
    """Addresses and ports that lead to the server: Pod, cluster IPs, node ports of both nodes."""
    cluster, namespace = shop.cluster, shop.namespace
    cluster.service(namespace, "server", SERVER["matchLabels"], type="NodePort")
    cluster.endpoints_ready(namespace, "server", 1)
    cluster.wait()
    path = f"/api/v1/namespaces/{namespace}/services/server"
    node_port = node_port_of(cluster, namespace, "server", "http")
    first, second = cluster.nodes[:2]
    for address in (*first["ips"], *second["ips"]):
        until_reached(first, address, node_port)
    return [
        *((ip, 8080) for ip in shop.pods["server"]["ips"]),
        *((ip, 80) for ip in cluster.api.get(path).json()["spec"]["clusterIPs"]),
        *((ip, node_port) for ip in (*first["ips"], *second["ips"])),
    ]


def _blocks(node: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"ipBlock": {"cidr": str(ip_network(ip))}} for ip in node["ips"]]


def _reached(node: dict[str, Any], ways: list[tuple[str, int]]) -> set[tuple[str, int]]:
    """The ways by which the node's processes get an answer; all are tried at once."""
    with ThreadPoolExecutor(len(ways)) as pool:
        found = pool.map(lambda way: answers(node["netns"], *way), ways)
        return {way for way, answered in zip(ways, found, strict=True) if answered}


def _explained(shop: Shop, node: dict[str, Any]) -> str:
    """What `dunlin policy explain` says of the node and the server: of each family the same."""
    pod = f"{shop.namespace}/server"
    words = [explained(shop, ip, pod, "8080")["verdict"] for ip in node["ips"]]
    assert len(set(words)) == 1, words
    return str(words[0])
