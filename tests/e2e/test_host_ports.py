"""hostPorts of Pods, with real packets: who reaches them, from where, and when they go."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.host_process import listening
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.test_services_external import refuses, same_family
from tests.e2e.traffic import ask, family, get

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

# Each test has ports of its own, outside of the NodePort range.
EVERYWHERE, ONE_FAMILY, TAKEN_OVER, JUDGED, TWICE = 18080, 18081, 18082, 18083, 18084
AT_ONCE_S = 15.0


def host_port(
    cluster: LabCluster,
    namespace: str,
    name: str,
    node: str,
    port: int,
    host_ip: str = "",
) -> None:
    """A Pod whose TCP and UDP port 8080 are that port of its node."""
    ports = [
        {
            "name": f"p-{protocol.lower()}",
            "containerPort": 8080,
            "hostPort": port,
            "protocol": protocol,
            **({"hostIP": host_ip} if host_ip else {}),
        }
        for protocol in ("TCP", "UDP")
    ]
    containers = [{"name": "main", "image": "lab/responder", "ports": ports}]
    cluster.pod(namespace, name, node, spec={"containers": containers})


def delete(cluster: LabCluster, namespace: str, name: str) -> None:
    """At once."""
    path = f"/api/v1/namespaces/{namespace}/pods/{name}"
    cluster.api.delete(path, params={"gracePeriodSeconds": 0}).raise_for_status()


def until_reached(place: str, address: str, port: int, who: str) -> dict[str, Any]:
    """The agent tells br-ext and the kernel a moment after the switch knows a hostPort."""

    def reached() -> dict[str, Any] | None:
        try:
            answer = get(place, address, port, 1.0)
        except OSError:
            return None
        return answer if answer["pod"] == who else None

    found: dict[str, Any] = eventually(f"{who} answers at {address}:{port}", reached, AT_ONCE_S)
    return found


def test_from_everywhere(cluster: LabCluster) -> None:
    """Outside, Pods here and elsewhere, nodes, the Pod itself: both families, TCP and UDP."""
    namespace = cluster.namespace("hostport-everywhere")
    here, there = cluster.nodes[0], cluster.nodes[1]
    host_port(cluster, namespace, "server", here["name"], EVERYWHERE)
    cluster.pod(namespace, "near", here["name"])
    cluster.pod(namespace, "remote", there["name"])
    near, remote, server = cluster.pods_ready(namespace, 3)
    cluster.wait()
    for address in here["ips"]:
        for client in (cluster.outside, near, remote, here, there):
            answer = until_reached(client["netns"], address, EVERYWHERE, "server")
            assert answer["client"] == same_family(address, client["ips"]), client
            answer = ask(client["netns"], address, EVERYWHERE)
            assert (answer["pod"], answer["client"]) == (
                "server",
                same_family(address, client["ips"]),
            )
        assert get(server["netns"], address, EVERYWHERE)["pod"] == "server"
        assert ask(server["netns"], address, EVERYWHERE)["pod"] == "server"
    for address in there["ips"]:
        assert refuses(cluster.outside["netns"], address, EVERYWHERE), "another node's port"
    # As for NodePorts: not on loopback.
    assert refuses(here["netns"], "127.0.0.1", EVERYWHERE)


def test_one_address_alone(cluster: LabCluster) -> None:
    """A hostIP: the node's other address is its own."""
    namespace = cluster.namespace("hostport-one")
    node = cluster.nodes[1]
    served, other = node["ips"]
    host_port(cluster, namespace, "server", node["name"], ONE_FAMILY, served)
    cluster.pods_ready(namespace, 1)
    cluster.wait()
    for place in (cluster.outside["netns"], node["netns"], cluster.nodes[0]["netns"]):
        until_reached(place, served, ONE_FAMILY, "server")
        assert refuses(place, other, ONE_FAMILY)


def test_it_comes_and_goes(cluster: LabCluster) -> None:
    """What listens on the node is reached before and after; a UDP client's flow is moved along."""
    namespace = cluster.namespace("hostport-goes")
    node, place = cluster.nodes[2], cluster.outside["netns"]
    address = node["ips"][0]
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (client,) = cluster.pods_ready(namespace, 1)
    cluster.wait()
    with (
        listening(node["netns"], TAKEN_OVER, "process"),
        datagrams(client["netns"], address, TAKEN_OVER) as from_pod,
        datagrams(place, address, TAKEN_OVER) as from_outside,
    ):
        assert answers(from_outside) == "process"
        # Its connection stands then, whether or not a process that has bound no address is heard.
        assert answers(from_pod) in ("process", "")
        assert get(place, address, TAKEN_OVER)["pod"] == "process"
        host_port(cluster, namespace, "server", node["name"], TAKEN_OVER)
        cluster.pods_ready(namespace, 2)
        until_reached(place, address, TAKEN_OVER, "server")
        until_reached(node["netns"], address, TAKEN_OVER, "server")
        for flow in (from_outside, from_pod):
            what = "the UDP flow goes to the Pod"
            eventually(what, partial(hears, flow, "server"), AT_ONCE_S)
        delete(cluster, namespace, "server")
        until_reached(place, address, TAKEN_OVER, "process")
        until_reached(node["netns"], address, TAKEN_OVER, "process")
        what = "the UDP flow goes back"
        eventually(what, partial(hears, from_outside, "process"), AT_ONCE_S)


@contextmanager
def datagrams(place: str, address: str, port: int) -> Iterator[socket.socket]:
    """One UDP flow."""
    flow = netns.run_in(place, lambda: socket.socket(family(address), socket.SOCK_DGRAM))
    with flow:
        flow.settimeout(1.0)
        flow.connect((address, port))
        yield flow


def hears(flow: socket.socket, who: str) -> bool:
    """That one answers."""
    return answers(flow) == who


def answers(flow: socket.socket) -> str:
    """Who answers a datagram of this flow; "" for nobody."""
    try:
        flow.send(b"?")
        return str(json.loads(flow.recv(2000))["pod"])
    except OSError:
        return ""


def test_policies_judge_the_real_client_and_the_pod(cluster: LabCluster) -> None:
    """After translation: by the Pod's port and labels, and by the client's own address."""
    namespace = cluster.namespace("hostport-policy")
    node, place = cluster.nodes[0], cluster.outside["netns"]
    host_port(cluster, namespace, "server", node["name"], JUDGED)
    cluster.pod(namespace, "denied", cluster.nodes[1]["name"])
    cluster.pod(namespace, "allowed", cluster.nodes[1]["name"])
    allowed, denied, _server = cluster.pods_ready(namespace, 3)
    cluster.wait()
    address = node["ips"][0]
    outside = same_family(address, cluster.outside["ips"])
    for client in (place, allowed["netns"], denied["netns"]):
        until_reached(client, address, JUDGED, "server")
    peers = [
        {"podSelector": {"matchLabels": {"app": "allowed"}}},
        {"ipBlock": {"cidr": f"{outside}/32"}},
    ]
    spec = {
        "podSelector": {"matchLabels": {"app": "server"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": peers, "ports": [{"protocol": "TCP", "port": 8080}]}],
    }
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    cluster.create(path, {"metadata": {"name": "p"}, "spec": spec})
    cluster.wait()
    eventually("denied", lambda: refuses(denied["netns"], address, JUDGED), AT_ONCE_S)
    for client in (place, allowed["netns"]):
        assert get(client, address, JUDGED)["pod"] == "server"


def test_two_that_ask_for_one(cluster: LabCluster) -> None:
    """The older Pod has it, the other is named; when the older goes, the other has it."""
    namespace = cluster.namespace("hostport-twice")
    node, place = cluster.nodes[1], cluster.outside["netns"]
    address = node["ips"][0]
    for name in ("one", "two"):
        host_port(cluster, namespace, name, node["name"], TWICE)
    cluster.pods_ready(namespace, 2)
    cluster.wait()
    path = f"/api/v1/namespaces/{namespace}/pods"
    metadata = [p["metadata"] for p in cluster.api.get(path).raise_for_status().json()["items"]]
    # Of one second: by UID.
    ages = sorted((m["creationTimestamp"], m["uid"], m["name"]) for m in metadata)
    (*_, older), (*_, newer) = ages
    until_reached(place, address, TWICE, older)
    report = httpx.get(f"{cluster.url('planner')}/v1/report", trust_env=False).json()
    said = {
        (item["name"], item["severity"], item["field"])
        for item in report["items"]
        if item.get("namespace") == namespace
    }
    assert said == {(newer, "conflict", "spec.containers[].ports[].hostPort")}
    delete(cluster, namespace, older)
    until_reached(place, address, TWICE, newer)
