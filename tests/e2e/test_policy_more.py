"""NetworkPolicies in the lab: namespaces and their labels, host-network Pods, a Pod and itself."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest

from tests.e2e.lab_cluster import LabCluster
from tests.e2e.test_policy import Held, Shop, answers, no_policies
from tests.e2e.traffic import get

__all__ = ["no_policies"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

GUESTS = "policy-guests"
SERVER = {"matchLabels": {"app": "server"}}


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods and no policy, in a namespace of its own."""
    return Shop(cluster, "policy-more")


@pytest.fixture(scope="module")
def guest(shop: Shop) -> dict[str, Any]:
    """A Pod of another namespace, on the first node."""
    cluster = shop.cluster
    cluster.namespace(GUESTS)
    cluster.pod(GUESTS, "guest", cluster.nodes[0]["name"], labels={"role": "guest"})
    (found,) = cluster.pods_ready(GUESTS, 1)
    cluster.wait()
    return found


@pytest.fixture
def unlabelled(shop: Shop) -> Iterator[None]:
    """The guests' namespace has no label of ours before and after."""
    yield
    label_namespace(shop, team=None)


def label_namespace(shop: Shop, **labels: str | None) -> None:
    """Change labels of the guests' namespace, and wait until that is in force everywhere."""
    shop.cluster.patch(f"/api/v1/namespaces/{GUESTS}", {"metadata": {"labels": labels}})
    shop.cluster.wait()


@pytest.mark.usefixtures("unlabelled")
def test_namespaces_and_their_labels(shop: Shop, guest: dict[str, Any]) -> None:
    """Peers by namespace, alone and with a podSelector; a label acts on running connections too."""
    team = {"matchExpressions": [{"key": "team", "operator": "In", "values": ["red", "blue"]}]}
    shop.policy("p", podSelector=SERVER, ingress=[{"from": [{"namespaceSelector": team}]}])
    assert not shop.everywhere_from(guest["netns"], "server")
    assert not shop.everywhere("client", "server"), "its own namespace has no such label"
    label_namespace(shop, team="red")
    assert shop.everywhere_from(guest["netns"], "server")
    running = [Held(guest["netns"], ip) for ip in shop.pods["server"]["ips"]]
    assert all(link.works() for link in running)
    label_namespace(shop, team="green")
    assert not any(link.works() for link in running)
    assert not shop.everywhere_from(guest["netns"], "server")
    label_namespace(shop, team="blue")
    for operator, passes in (("Exists", True), ("DoesNotExist", False)):
        role = {"matchExpressions": [{"key": "role", "operator": operator}]}
        peer = {"namespaceSelector": team, "podSelector": role}
        shop.replace("p", podSelector=SERVER, ingress=[{"from": [peer]}])
        assert shop.everywhere_from(guest["netns"], "server") is passes
    label_namespace(shop, team=None)
    peers = [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn",
             "values": ["red"]}]}}]  # fmt: skip
    shop.replace("p", podSelector=SERVER, ingress=[{"from": peers}])
    assert shop.everywhere_from(guest["netns"], "server"), "NotIn holds where the key is absent"
    assert shop.everywhere("client", "server")


def test_host_network_pods(shop: Shop) -> None:
    """No policy selects one, no selector of a peer means one; the addresses it sends from do."""
    cluster, node = shop.cluster, shop.cluster.nodes[0]
    labels = {"app": "daemon"}
    cluster.pod(shop.namespace, "daemon", node["name"], labels=labels, spec={"hostNetwork": True})
    (daemon,) = [p for p in cluster.pods_ready(shop.namespace, 4) if p["name"] == "daemon"]
    cluster.wait()
    sources = [get(daemon["netns"], ip, 8080)["client"] for ip in shop.pods["server"]["ips"]]
    try:
        assert sorted(daemon["ips"]) == sorted(node["ips"])
        shop.policy("own", podSelector={"matchLabels": labels}, policyTypes=["Ingress"])
        for ip in daemon["ips"]:
            assert answers(shop.pods["client"]["netns"], ip)
            assert answers(shop.pods["other"]["netns"], ip)
        peer = {"podSelector": {"matchLabels": labels}}
        shop.policy("p", podSelector=SERVER, ingress=[{"from": [peer]}])
        assert not shop.everywhere_from(daemon["netns"], "server")
        blocks = [{"ipBlock": {"cidr": str(ip_network(ip))}} for ip in sources]
        shop.replace("p", podSelector=SERVER, ingress=[{"from": blocks}])
        assert shop.everywhere_from(daemon["netns"], "server")
        assert not shop.everywhere("client", "server")
    finally:
        path = f"/api/v1/namespaces/{shop.namespace}/pods/daemon"
        cluster.api.delete(path).raise_for_status()
        cluster.pods_ready(shop.namespace, 3)


def test_a_pod_and_itself_through_a_service(shop: Shop) -> None:
    """It reaches itself though everything is denied; nobody else does, it reaches nobody else."""
    addresses = shop.cluster.service(shop.namespace, "mirror", SERVER["matchLabels"])
    shop.cluster.endpoints_ready(shop.namespace, "mirror", 1)
    shop.policy("deny", podSelector=SERVER, policyTypes=["Ingress", "Egress"])
    for address in addresses:
        for _ in range(5):
            assert get(shop.pods["server"]["netns"], address)["pod"] == "server"
        assert not answers(shop.pods["client"]["netns"], address, 80)
    assert not shop.everywhere("server", "client")
