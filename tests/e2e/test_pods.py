"""Pods reach Pods, nodes and the world: ping, TCP and UDP, IPv4 and IPv6, real packets."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.lab_cluster import LabCluster
from tests.e2e.traffic import ask, get, matrix, ping

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]
PODS_A_NODE = 10
MTU_BYTES = 1500


@pytest.mark.timeout(240)
def test_every_pod_reaches_every_other(cluster: LabCluster) -> None:
    """30 Pods on 3 nodes: every pair by ping, TCP and UDP, both families, no source NAT."""
    namespace = cluster.namespace("matrix")
    for node in cluster.nodes:
        for number in range(PODS_A_NODE):
            cluster.pod(namespace, f"{node['name']}-{number}", node["name"])
    pods = cluster.pods_ready(namespace, PODS_A_NODE * len(cluster.nodes))
    cluster.wait()
    for pod in pods:
        assert len(pod["ips"]) == 2, pod
    assert len({ip for pod in pods for ip in pod["ips"]}) == 2 * len(pods)

    def reach(pod: dict) -> dict:  # type: ignore[type-arg]
        others = [(ip, 8080) for other in pods if other is not pod for ip in other["ips"]]
        return {(pod["name"], *key): why for key, why in matrix(pod["netns"], others).items()}

    with ThreadPoolExecutor(max_workers=6) as pool:
        failed = {key: why for found in pool.map(reach, pods) for key, why in found.items()}
    assert not failed, f"{len(failed)} of {len(pods) * (len(pods) - 1) * 6}: {failed}"


@pytest.fixture(scope="module")
def pair(cluster: LabCluster) -> list[dict]:  # type: ignore[type-arg]
    """A Pod on the first node and one on the second."""
    namespace = cluster.namespace("pair")
    for node in cluster.nodes[:2]:
        cluster.pod(namespace, f"on-{node['name']}", node["name"])
    pods = cluster.pods_ready(namespace, 2)
    cluster.wait()
    return pods


def test_node_to_pod(cluster: LabCluster, pair: list[dict]) -> None:  # type: ignore[type-arg]
    """Every node's own processes reach Pods of every node, also kubelet's way."""
    for node in cluster.nodes:
        for pod in pair:
            for ip in pod["ips"]:
                assert get(node["netns"], ip, 8080)["pod"] == pod["name"]
                assert ask(node["netns"], ip, 8080)["pod"] == pod["name"]


def test_pod_to_node(cluster: LabCluster, pair: list[dict]) -> None:  # type: ignore[type-arg]
    """A Pod reaches its own node and the others at their addresses."""
    for pod in pair:
        for node in cluster.nodes:
            for ip in node["ips"]:
                assert ping(pod["netns"], ip, count=2, tries=2) == 0, (pod["name"], ip)


def test_pod_to_the_outside(cluster: LabCluster, pair: list[dict]) -> None:  # type: ignore[type-arg]
    """A Pod reaches the world by TCP, UDP and ping, with its node's address as source."""
    addresses = {node["name"]: node["ips"] for node in cluster.nodes}
    for pod in pair:
        for ip in cluster.outside["ips"]:
            assert get(pod["netns"], ip)["client"] in addresses[pod["node"]]
            assert ask(pod["netns"], ip, 80)["client"] in addresses[pod["node"]]
            assert ping(pod["netns"], ip, count=2, tries=2) == 0, ip


def test_large_pings_at_mtu(pair: list[dict]) -> None:  # type: ignore[type-arg]
    """An echo request of exactly the MTU passes between nodes; one octet more cannot be sent."""
    first, second = pair
    for ip in second["ips"]:
        headers = 48 if ":" in ip else 28
        assert ping(first["netns"], ip, size=MTU_BYTES - headers, tries=2) == 0, ip
    v4 = next(ip for ip in second["ips"] if ":" not in ip)
    assert ping(first["netns"], v4, count=1, size=MTU_BYTES - 28 + 1) == 1


def test_status_as_programs_read_it(cluster: LabCluster, pair: list[dict]) -> None:  # type: ignore[type-arg]
    """`dunlin lab status --json` prints what these tests go by; without it, a table for people."""
    told = json.loads(cluster.dunlin("lab", "status", "--json").stdout)
    known = cluster.status()
    assert told.keys() == known.keys()
    assert (told["nodes"], told["outside"]) == (known["nodes"], known["outside"])
    mine = {pod["name"]: pod for pod in told["pods"] if pod["namespace"] == "pair"}
    assert mine == {pod["name"]: pod for pod in pair}
    table = cluster.dunlin("lab", "status").stdout
    assert all(f"pair/{pod['name']}" in table for pod in pair)
