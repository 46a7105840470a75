"""Between nodes through a Geneve tunnel in Open vSwitch, which must not lose the first packet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.lab_cluster import LabCluster, a_lab
from tests.e2e.test_policy import Shop
from tests.e2e.test_policy_nodes import judged_by_its_address
from tests.e2e.traffic import get, matrix, ping

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]
GENEVE_MTU_BYTES = 1450


@pytest.fixture(scope="module")
def tunnel() -> Iterator[LabCluster]:
    """A lab of two nodes that never route directly."""
    with a_lab("tun", "--nodes", "2", "--encapsulation", "geneve") as lab:
        yield lab


@pytest.mark.timeout(180)
def test_pods_talk_through_the_tunnel(tunnel: LabCluster) -> None:
    """Every Pod reaches every other, a Service, the outside; the MTU leaves room for the tunnel."""
    namespace = tunnel.namespace("tunnel")
    for node in tunnel.nodes:
        for number in range(2):
            tunnel.pod(namespace, f"{node['name']}-{number}", node["name"], labels={"app": "web"})
    (address, *_) = tunnel.service(namespace, "web", {"app": "web"})
    pods = tunnel.pods_ready(namespace, 4)
    tunnel.endpoints_ready(namespace, "web", 4)
    tunnel.wait()
    first, far = pods[0], pods[-1]
    assert first["node"] != far["node"]
    # Before anything else: neighbours are seeded, so not even the first packet is lost.
    assert ping(first["netns"], far["ips"][0], count=1) == 0
    for pod in pods:
        others = [(ip, 8080) for other in pods if other is not pod for ip in other["ips"]]
        assert not matrix(pod["netns"], others)
        assert get(pod["netns"], address)["pod"].split("-")[0] in ("n1", "n2")
        assert get(pod["netns"], tunnel.outside["ips"][0])["pod"] == "outside"
    assert ping(first["netns"], far["ips"][0], count=3, size=GENEVE_MTU_BYTES - 28, tries=2) == 0
    flows = "\n".join(tunnel.flows(tunnel.nodes[0]))
    assert "TUN_IPV4_DST" in flows


@pytest.mark.timeout(180)
def test_policies_know_nodes_by_their_addresses(tunnel: LabCluster) -> None:
    """Through the tunnel as without: what a node's processes send has the node's own address."""
    judged_by_its_address(Shop(tunnel, "tunnel-nodes"))
