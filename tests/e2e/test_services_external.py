"""Services from outside, by node port, external IP and load balancer IP, on real packets."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import HttpProbe, ask, get, gets

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

NOTHING_S = 1.0
"""How long to wait for an answer that must not come."""


def node_port_of(cluster: LabCluster, namespace: str, name: str, port: str = "http") -> int:
    """The node port that the API server chose."""
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/services/{name}").json()
    (number,) = (p["nodePort"] for p in found["spec"]["ports"] if p["name"] == port)
    return int(number)


def patch(cluster: LabCluster, namespace: str, name: str, spec: dict[str, Any]) -> None:
    """Change a Service's spec and wait until it is in force."""
    path = f"/api/v1/namespaces/{namespace}/services/{name}"
    cluster.patch(path, {"spec": spec})
    cluster.wait()


def set_vips(cluster: LabCluster, namespace: str, name: str, vips: list[dict[str, str]]) -> None:
    """What a load balancer's controller would write."""
    path = f"/api/v1/namespaces/{namespace}/services/{name}/status"
    body = {"status": {"loadBalancer": {"ingress": vips}}}
    cluster.patch(path, body)
    cluster.wait()


@contextmanager
def routed(place: str, address: str, via: str) -> Iterator[None]:
    """Frames for an address that nobody has go to one node, as a load balancer would send them."""
    command = ["ip", "-n", Path(place).name]
    subprocess.run([*command, "route", "replace", address, "via", via], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run([*command, "route", "del", address, "via", via], check=True, timeout=10)


def refuses(place: str, address: str, port: int) -> bool:
    """Nobody answers, be it by silence or by a refusal."""
    try:
        get(place, address, port, NOTHING_S)
    except OSError:
        return True
    return False


def same_family(address: str, others: list[str]) -> str:
    """The one of these that has the version of `address`."""
    (found,) = [o for o in others if ip_address(o).version == ip_address(address).version]
    return found


def learned_flows(cluster: LabCluster, node: dict[str, Any]) -> set[str]:
    """Clients that a switch remembers: flows of Affinity, not those that teach them."""
    return {flow for flow in cluster.flows(node) if ", table=18, " in flow}


@pytest.fixture
def web(cluster: LabCluster, request: pytest.FixtureRequest) -> dict[str, Any]:
    """A Pod of `web` on the second and third node, a client on the first; a NodePort Service."""
    namespace = cluster.namespace(request.node.name.replace("_", "-").split("[")[0][:50])
    for number in (1, 2):
        node = cluster.nodes[number]["name"]
        cluster.pod(namespace, f"web-{number}", node, labels={"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    cluster.service(namespace, "web", {"app": "web"}, type="NodePort")
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    port = node_port_of(cluster, namespace, "web")
    dns = node_port_of(cluster, namespace, "web", "dns")
    return {"namespace": namespace, "pods": pods, "port": port, "dns": dns}


@pytest.mark.timeout(240)
def test_node_port_through_any_node(cluster: LabCluster, web: dict[str, Any]) -> None:
    """Every node answers the outside, other nodes and Pods, TCP and UDP, both families."""
    outside = cluster.outside["netns"]
    for node in cluster.nodes:
        for address in node["ips"]:
            seen = {a["pod"] for a in gets(outside, address, 20, web["port"])}
            assert seen == {"web-1", "web-2"}, (node["name"], address)
            assert ask(outside, address, web["dns"])["pod"].startswith("web-")
            for other in cluster.nodes:
                if other != node:
                    assert get(other["netns"], address, web["port"])["pod"].startswith("web-")
            for pod in web["pods"].values():
                assert get(pod["netns"], address, web["port"])["pod"].startswith("web-")


@pytest.mark.timeout(240)
def test_client_address_is_kept_where_the_endpoint_is(
    cluster: LabCluster, web: dict[str, Any]
) -> None:
    """Through its own node the Pod sees the client, through others that node's gateway."""
    outside = cluster.outside
    first, second = cluster.nodes[0], cluster.nodes[1]
    for client, address in zip(outside["ips"], second["ips"], strict=True):
        answers = gets(outside["netns"], address, 20, web["port"])
        clients = {a["pod"]: a["client"] for a in answers}
        assert clients["web-1"] == client
        assert clients["web-2"] != client
    for client, address in zip(outside["ips"], first["ips"], strict=True):
        assert client not in {a["client"] for a in gets(outside["netns"], address, 10, web["port"])}


@pytest.mark.timeout(240)
def test_external_traffic_policy_local(cluster: LabCluster, web: dict[str, Any]) -> None:
    """Only nodes with endpoints answer the outside, with their own, and keep its address."""
    patch(cluster, web["namespace"], "web", {"externalTrafficPolicy": "Local"})
    outside = cluster.outside
    for client, address in zip(outside["ips"], cluster.nodes[1]["ips"], strict=True):
        answers = gets(outside["netns"], address, 10, web["port"])
        assert {(a["pod"], a["client"]) for a in answers} == {("web-1", client)}
    for address in cluster.nodes[0]["ips"]:
        assert refuses(outside["netns"], address, web["port"])
        # A Pod of that node is not from outside.
        pod = web["pods"]["client"]["netns"]
        assert {a["pod"] for a in gets(pod, address, 20, web["port"])} == {"web-1", "web-2"}


@pytest.mark.timeout(240)
def test_internal_traffic_policy_local(cluster: LabCluster, web: dict[str, Any]) -> None:
    """A cluster IP leads to the node's own endpoint, and to nobody where there is none."""
    patch(cluster, web["namespace"], "web", {"internalTrafficPolicy": "Local"})
    path = f"/api/v1/namespaces/{web['namespace']}/services/web"
    for address in cluster.api.get(path).json()["spec"]["clusterIPs"]:
        for number in (1, 2):
            place = cluster.nodes[number]["netns"]
            assert {a["pod"] for a in gets(place, address, 10)} == {f"web-{number}"}
            own = web["pods"][f"web-{number}"]["netns"]
            assert {a["pod"] for a in gets(own, address, 5)} == {f"web-{number}"}
        assert refuses(web["pods"]["client"]["netns"], address, 80)


@pytest.mark.timeout(240)
def test_load_balancer_and_external_ips(cluster: LabCluster, web: dict[str, Any]) -> None:
    """
    Any node serves them, to the outside and to Pods.

    Source ranges guard the load balancer's IP only.
    """
    namespace, outside = web["namespace"], cluster.outside
    vip, external = "198.51.100.10", "198.51.100.11"
    spec = {"type": "LoadBalancer", "externalIPs": [external]}
    patch(cluster, namespace, "web", spec)
    set_vips(cluster, namespace, "web", [{"ip": vip}])
    pod = web["pods"]["client"]["netns"]
    for address in (vip, external):
        assert get(pod, address)["pod"].startswith("web-")
        for node in cluster.nodes:
            with routed(outside["netns"], address, same_family(address, node["ips"])):
                seen = {a["pod"] for a in gets(outside["netns"], address, 20)}
                assert seen == {"web-1", "web-2"}
    via = same_family(vip, cluster.nodes[1]["ips"])
    patch(cluster, namespace, "web", {"loadBalancerSourceRanges": ["192.0.2.0/24"]})
    with routed(outside["netns"], vip, via), routed(outside["netns"], external, via):
        assert refuses(outside["netns"], vip, 80)
        assert get(outside["netns"], external)["pod"].startswith("web-")
        own = same_family(vip, outside["ips"])
        patch(cluster, namespace, "web", {"loadBalancerSourceRanges": [f"{own}/32"]})
        assert get(outside["netns"], vip)["pod"].startswith("web-")
        set_vips(cluster, namespace, "web", [{"ip": vip, "ipMode": "Proxy"}])
        assert refuses(outside["netns"], vip, 80)


@pytest.mark.timeout(240)
def test_affinity(cluster: LabCluster, web: dict[str, Any]) -> None:
    """A client keeps its endpoint, whatever is restarted, until that endpoint goes."""
    namespace, outside = web["namespace"], cluster.outside["netns"]
    others = learned_flows(cluster, cluster.nodes[0])
    patch(cluster, namespace, "web", {"sessionAffinity": "ClientIP"})
    address = cluster.nodes[0]["ips"][0]
    (kept,) = {a["pod"] for a in gets(outside, address, 20, web["port"])}
    for number, name in enumerate(("web-8", "web-9")):
        cluster.pod(namespace, name, cluster.nodes[number]["name"], labels={"app": "web"})
    cluster.endpoints_ready(namespace, "web", 4)
    for service in ("flowctl", "planner"):
        cluster.kill(service)
        cluster.start(service)
    cluster.ready()
    cluster.wait()
    assert {a["pod"] for a in gets(outside, address, 20, web["port"])} == {kept}
    learned = learned_flows(cluster, cluster.nodes[0]) - others
    assert learned, "the switch remembers"
    cluster.kubectl("-n", namespace, "delete", "pod", kept, "--wait=false")
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    (moved,) = {a["pod"] for a in gets(outside, address, 20, web["port"])}
    assert moved != kept
    cluster.kubectl("-n", namespace, "delete", "service", "web")
    cluster.wait()
    eventually(
        "what was learned is forgotten with its Service",
        lambda: not learned_flows(cluster, cluster.nodes[0]) - others,
    )


@pytest.mark.timeout(240)
def test_connections_from_outside_survive_new_endpoints(
    cluster: LabCluster, web: dict[str, Any]
) -> None:
    """Kept connections through a node without endpoints live on while endpoints come."""
    namespace = web["namespace"]
    outside, address = cluster.outside["netns"], cluster.nodes[0]["ips"][0]
    kept = [
        HttpProbe(outside, address, port=web["port"], keep=True, pause_s=0.02) for _ in range(4)
    ]
    eventually("kept connections run", lambda: all(probe.counts.answered for probe in kept))
    cluster.pod(namespace, "web-7", cluster.nodes[0]["name"], labels={"app": "web"})
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    assert "web-7" in {a["pod"] for a in gets(outside, address, 40, web["port"])}
    results = [probe.stop() for probe in kept]
    assert all(not counts.errors and counts.lost == 0 for counts in results), results
