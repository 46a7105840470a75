"""ClusterIP Services on real packets: spread, hairpin, changes under load."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import HttpProbe, ask, asks, get, gets
from tests.fixtures.spread import chance, is_even

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

CONNECTIONS = 2000


@pytest.mark.timeout(240)
def test_cluster_ip(cluster: LabCluster) -> None:
    """2,000 connections spread evenly over 10 endpoints, both families, TCP and UDP."""
    namespace = cluster.namespace("spread")
    cluster.deployment(namespace, "web", 10)
    addresses = cluster.service(namespace, "web", {"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    pods = cluster.pods_ready(namespace, 11)
    cluster.endpoints_ready(namespace, "web", 10)
    cluster.wait()
    client = next(pod for pod in pods if pod["name"] == "client")
    assert len(addresses) == 2
    for address in addresses:
        answers = gets(client["netns"], address, CONNECTIONS)
        assert {answer["client"] for answer in answers} <= set(client["ips"])
        counts = Counter(answer["pod"] for answer in answers)
        assert is_even(counts, 10), (chance(counts, 10), counts)
        # Flows of one client: datagrams spread by their ports, too.
        counts = Counter(a["pod"] for a in asks(client["netns"], address, CONNECTIONS, 53))
        assert is_even(counts, 10), (chance(counts, 10), counts)
    for node in cluster.nodes:
        for address in addresses:
            assert get(node["netns"], address)["pod"].startswith("web-")


def test_hairpin(cluster: LabCluster) -> None:
    """A Pod that is the only endpoint of a Service reaches itself through it."""
    namespace = cluster.namespace("hairpin")
    cluster.pod(namespace, "alone", cluster.nodes[1]["name"])
    addresses = cluster.service(namespace, "self", {"app": "alone"})
    (pod,) = cluster.pods_ready(namespace, 1)
    cluster.endpoints_ready(namespace, "self", 1)
    cluster.wait()
    for address in addresses:
        for _ in range(3):
            assert get(pod["netns"], address)["pod"] == "alone"
        assert ask(pod["netns"], address, 53)["pod"] == "alone"


@pytest.mark.timeout(240)
def test_endpoints_come_and_go(cluster: LabCluster) -> None:
    """New endpoints get connections at once, removed ones none; kept connections never break."""
    namespace = cluster.namespace("churn")
    names = [f"web-{number}" for number in range(3)]
    for number, name in enumerate(names):
        node = cluster.nodes[number % len(cluster.nodes)]["name"]
        cluster.pod(namespace, name, node, labels={"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    pods = cluster.pods_ready(namespace, 4)
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    client = next(pod for pod in pods if pod["name"] == "client")["netns"]
    kept = [HttpProbe(client, address, keep=True, pause_s=0.02) for _ in range(6)]
    eventually("kept connections run", lambda: all(probe.counts.answered for probe in kept))

    cluster.pod(namespace, "web-3", cluster.nodes[2]["name"], labels={"app": "web"})
    cluster.pods_ready(namespace, 5)
    cluster.endpoints_ready(namespace, "web", 4)
    cluster.wait()
    assert "web-3" in Counter(a["pod"] for a in gets(client, address, 60))

    # The Pod stays, it is no endpoint any more: its kept connections must live on.
    path = f"/api/v1/namespaces/{namespace}/pods/web-0"
    cluster.patch(path, {"metadata": {"labels": {"app": "other"}}})
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    assert "web-0" not in Counter(a["pod"] for a in gets(client, address, 60))
    results = [probe.stop() for probe in kept]
    assert all(not counts.errors for counts in results), results
    assert all(counts.lost == 0 for counts in results), results


@pytest.mark.timeout(240)
def test_scale_while_a_client_runs(cluster: LabCluster) -> None:
    """A Deployment is scaled up and down by kubectl while clients run: no request fails."""
    namespace = cluster.namespace("scale")
    cluster.deployment(namespace, "web", 3)
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    pods = cluster.pods_ready(namespace, 4)
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    client = next(pod for pod in pods if pod["name"] == "client")["netns"]
    probes = [HttpProbe(client, address) for _ in range(3)]
    for replicas in (8, 2, 6, 3):
        cluster.kubectl("-n", namespace, "scale", "deployment", "web", f"--replicas={replicas}")
        cluster.pods_ready(namespace, replicas + 1)
        cluster.endpoints_ready(namespace, "web", replicas)
        cluster.wait()
    results = [probe.stop() for probe in probes]
    assert all(counts.lost == 0 for counts in results), results
    assert sum(counts.answered for counts in results) > 100
