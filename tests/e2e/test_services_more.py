"""Services at their edges: readiness, endings of connections, long affinity."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.test_faults import SERVICES
from tests.e2e.test_services_external import learned_flows, patch, same_family, web
from tests.e2e.traffic import HttpProbe, ask, get, gets

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

__all__ = ["web"]  # A fixture.


def annotate(cluster: LabCluster, namespace: str, pod: str, *, ready: bool) -> None:
    """What the lab's kubelet takes for the outcome of a readiness probe."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}"
    body = {"metadata": {"annotations": {"dunlin.dev/lab-ready": str(ready).lower()}}}
    cluster.patch(path, body)


def answering(place: str, address: str, count: int = 20) -> set[str]:
    """Who answers at a cluster IP."""
    return {answer["pod"] for answer in gets(place, address, count)}


@pytest.mark.timeout(200)
def test_readiness_changes(cluster: LabCluster) -> None:
    """Not ready: no new connection, running ones live on; ready again: back."""
    namespace = cluster.namespace("readiness")
    for number in (1, 2):
        node = cluster.nodes[number]["name"]
        cluster.pod(namespace, f"web-{number}", node, labels={"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    client = pods["client"]["netns"]
    kept = [HttpProbe(client, address, keep=True, pause_s=0.02) for _ in range(6)]
    eventually("kept connections run", lambda: all(probe.counts.answered for probe in kept))
    annotate(cluster, namespace, "web-1", ready=False)
    cluster.endpoints_ready(namespace, "web", 1)
    cluster.wait()
    assert answering(client, address) == {"web-2"}
    annotate(cluster, namespace, "web-1", ready=True)
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    assert answering(client, address) == {"web-1", "web-2"}
    results = [probe.stop() for probe in kept]
    assert all(not counts.errors and counts.lost == 0 for counts in results), results


@pytest.mark.timeout(200)
def test_publish_not_ready_addresses(cluster: LabCluster) -> None:
    """A Pod that is not ready answers for a Service that publishes it, and for no other."""
    namespace = cluster.namespace("notready")
    cluster.pod(namespace, "web", cluster.nodes[1]["name"])
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    always = cluster.service(namespace, "always", {"app": "web"}, publishNotReadyAddresses=True)
    plain = cluster.service(namespace, "plain", {"app": "web"})
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 2)}
    annotate(cluster, namespace, "web", ready=False)
    cluster.endpoints_ready(namespace, "plain", 0)
    cluster.wait()
    client = pods["client"]["netns"]
    for address in always:
        assert get(client, address)["pod"] == "web"
        assert ask(client, address, 53)["pod"] == "web"
    for address in plain:
        with pytest.raises(ConnectionRefusedError):
            get(client, address)


@pytest.mark.timeout(240)
def test_a_removed_endpoint_touches_no_other_connection(cluster: LabCluster) -> None:
    """
    A Pod is deleted: TCP connections to other endpoints lose nothing, its own end.

    As with kube-proxy: nobody cuts a TCP connection; it lasts as long as its Pod answers.
    """
    namespace = cluster.namespace("removed")
    for number in range(3):
        node = cluster.nodes[number % len(cluster.nodes)]["name"]
        cluster.pod(namespace, f"web-{number}", node, labels={"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 4)}
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    client = pods["client"]["netns"]
    kept = [HttpProbe(client, address, keep=True, pause_s=0.02) for _ in range(12)]
    eventually("kept connections run", lambda: all(probe.counts.answered for probe in kept))
    gone = next(iter(kept[0].pods))
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{gone}").raise_for_status()
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    before = {id(probe): probe.counts.answered for probe in kept}
    others = [probe for probe in kept if gone not in probe.pods]
    assert others, "twelve connections, three endpoints"
    eventually(
        "the others go on",
        lambda: all(probe.counts.answered > before[id(probe)] + 20 for probe in others),
    )
    assert gone not in answering(client, address, 60)
    for probe in kept:
        counts = probe.stop()
        if probe in others:
            assert not counts.errors, counts
            assert counts.lost == 0, counts
        else:
            assert set(probe.pods) == {gone}, "a TCP connection never changes its endpoint"


@pytest.mark.timeout(280)
def test_affinity_survives_all_our_services(cluster: LabCluster, web: dict[str, Any]) -> None:
    """
    A client keeps its endpoint while every service is killed and started, and endpoints come.

    With 86,400 s, which no timer of OpenFlow counts: the switch has been told in the flow itself.
    """
    namespace, outside = web["namespace"], cluster.outside["netns"]
    others = learned_flows(cluster, cluster.nodes[0])
    config = {"clientIP": {"timeoutSeconds": 86400}}
    patch(
        cluster, namespace, "web",
        {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config},
    )  # fmt: skip
    address = same_family("0.0.0.0", cluster.nodes[0]["ips"])
    (kept,) = {a["pod"] for a in gets(outside, address, 10, web["port"])}
    (mine,) = answering(web["pods"]["client"]["netns"], cluster_ip(cluster, namespace), 10)
    learned = learned_flows(cluster, cluster.nodes[0]) - others
    assert len(learned) == 2, learned
    assert all("0x15180->" in flow and "idle_timeout" not in flow for flow in learned), learned
    for service in SERVICES:
        cluster.kill(service)
    for service in ("nats", *(s for s in SERVICES if s != "nats")):
        cluster.start(service)
    cluster.ready()
    for number, name in enumerate(("web-8", "web-9")):
        cluster.pod(namespace, name, cluster.nodes[number]["name"], labels={"app": "web"})
    cluster.endpoints_ready(namespace, "web", 4)
    cluster.wait(60.0)
    assert {a["pod"] for a in gets(outside, address, 20, web["port"])} == {kept}
    assert answering(web["pods"]["client"]["netns"], cluster_ip(cluster, namespace)) == {mine}


def cluster_ip(cluster: LabCluster, namespace: str) -> str:
    """The first cluster IP of `web`."""
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/services/web").json()
    return str(found["spec"]["clusterIP"])
