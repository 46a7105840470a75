"""Datagrams larger than the MTU through Services, both ways, on real packets."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import LabCluster
from tests.e2e.test_services_external import node_port_of
from tests.e2e.traffic import family

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

ECHO_PORT = 9000
SIZES = (1400, 1473, 3000, 9000, 45000)
"""Octets of data: one packet at an MTU of 1,500; one octet too many; 3, 7 and 31 fragments."""
PATIENCE_S = 1.0
TRIES = 3
"""A fragment may be lost where a queue overflows; what cannot pass loses every try."""
UDP_SEGMENT = 103
"""linux/udp.h: the kernel cuts what is sent into datagrams of this size."""


class Way(NamedTuple):
    """How a client reaches the Service."""

    name: str
    place: str
    address: str
    port: int


class Echo:
    """Sends every datagram back to its sender, from the address that it was sent to."""

    def __init__(self, pod: dict[str, Any]) -> None:
        self._stop = threading.Event()
        self._runs = [netns.start_in(pod["netns"], partial(self._run, ip)) for ip in pod["ips"]]

    def _run(self, address: str) -> None:
        with socket.socket(family(address), socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
            link.bind((address, ECHO_PORT))
            while not self._stop.is_set():
                if select.select([link], [], [], 0.1)[0]:
                    data, peer = link.recvfrom(65535)
                    link.sendto(data, peer)

    def stop(self) -> None:
        """End it; what went wrong in it is raised here."""
        self._stop.set()
        for run in self._runs:
            run.result(timeout=5.0)


def echoed(way: Way, size: int, *, warm: bool) -> bool:
    """
    Exactly what was sent comes back, from where it was sent, over a flow of its own.

    `warm`: after a small datagram and its answer, so that conntrack knows the flow.
    """
    return netns.run_in(way.place, lambda: any(_echoed(way, size, warm=warm) for _ in range(TRIES)))


def _echoed(way: Way, size: int, *, warm: bool) -> bool:
    with socket.socket(family(way.address), socket.SOCK_DGRAM) as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        link.settimeout(PATIENCE_S)
        link.connect((way.address, way.port))
        with contextlib.suppress(TimeoutError, ConnectionRefusedError):
            return all(_there_and_back(link, n) for n in ([16] if warm else []) + [size])
    return False


def _there_and_back(link: socket.socket, size: int) -> bool:
    data = os.urandom(size)
    link.send(data)
    return link.recv(65535) == data


@pytest.fixture(scope="module")
def ways(cluster: LabCluster) -> Iterator[list[Way]]:
    """A Service of one echoing Pod on the second node, and everybody who may call it."""
    namespace = cluster.namespace("datagrams")
    cluster.pod(namespace, "echo", cluster.nodes[1]["name"], labels={"app": "echo"})
    for number in range(2):
        cluster.pod(namespace, f"client-{number}", cluster.nodes[number]["name"])
    ports = [{"name": "echo", "port": 7, "targetPort": ECHO_PORT, "protocol": "UDP"}]
    ips = cluster.service(namespace, "echo", {"app": "echo"}, ports=ports, type="NodePort")
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    cluster.endpoints_ready(namespace, "echo", 1)
    cluster.wait()
    node_port = node_port_of(cluster, namespace, "echo", "echo")
    found = [
        *(Way("Pod of another node", pods["client-0"]["netns"], ip, 7) for ip in ips),
        *(Way("Pod of the same node", pods["client-1"]["netns"], ip, 7) for ip in ips),
        *(Way("the endpoint itself", pods["echo"]["netns"], ip, 7) for ip in ips),
        *(Way("a node's process", cluster.nodes[0]["netns"], ip, 7) for ip in ips),
    ]
    for name, node in (("here", cluster.nodes[1]), ("elsewhere", cluster.nodes[0])):
        found += [
            Way(f"outside, endpoint {name}", cluster.outside["netns"], ip, node_port)
            for ip in node["ips"]
        ]
    with ExitStack() as stack:
        echo = Echo(pods["echo"])
        stack.callback(echo.stop)
        yield found


def lost(ways: list[Way], version: int, *, warm: bool) -> list[tuple[str, str, int]]:
    """Who got no answer: (name, address, size)."""
    return [
        (way.name, way.address, size)
        for way in ways
        for size in SIZES
        if family(way.address) == (socket.AF_INET6 if version == 6 else socket.AF_INET)
        and not echoed(way, size, warm=warm)
    ]


def loses_first_fragments(cluster: LabCluster) -> str:
    """Why this Open vSwitch cannot: what the planner reports of the nodes; "" where it can."""
    items = httpx.get(f"{cluster.url('planner')}/v1/report", trust_env=False).json()["items"]
    reasons = [item["reason"] for item in items if item["field"] == "switch.ovs_version"]
    return reasons[0] if reasons else ""


@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", [4, 6])
def test_fragments_of_a_known_flow(ways: list[Way], version: int) -> None:
    """What follows a flow's first answer may be fragments, and so may its answer."""
    assert not lost(ways, version, warm=True)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("version", [4, 6])
def test_fragments_come_first(cluster: LabCluster, ways: list[Way], version: int) -> None:
    """The first packet of a flow may be fragments; an Open vSwitch that loses them is reported."""
    reason = loses_first_fragments(cluster)
    if reason:
        small = [way for way in ways if not echoed(way, 16, warm=False)]
        assert not small, small
        pytest.skip(reason)
    assert not lost(ways, version, warm=False)


@pytest.mark.timeout(240)
def test_the_nodes_own_fragments(cluster: LabCluster) -> None:
    """A node's own process, which is no Service, gets datagrams in fragments as before."""
    node = cluster.nodes[0]
    with ExitStack() as stack:
        echo = Echo(node)
        stack.callback(echo.stop)
        places = {"outside": cluster.outside["netns"], "another node": cluster.nodes[1]["netns"]}
        ways = [
            Way(name, place, ip, ECHO_PORT) for name, place in places.items() for ip in node["ips"]
        ]
        for version in (4, 6):
            assert not lost(ways, version, warm=False)


def once(way: Way, size: int, *, warm: bool) -> bool:
    """As `echoed`, one try: for what must not come."""
    return netns.run_in(way.place, lambda: _echoed(way, size, warm=warm))


@pytest.mark.timeout(240)
def test_fragments_and_a_policy_with_ports(cluster: LabCluster) -> None:
    """
    A known flow's fragments pass, both ways; a client that is not allowed reaches nothing.

    The limit, held here so that it is noticed once it is none: of a flow's first datagram only the
    first fragment has a port that a policy could allow, so a first datagram in fragments is lost.
    """
    namespace = cluster.namespace("datagrams-policy")
    cluster.pod(namespace, "echo", cluster.nodes[1]["name"])
    for name in ("friend", "stranger"):
        cluster.pod(namespace, name, cluster.nodes[0]["name"])
    ports = [{"name": "echo", "port": 7, "targetPort": ECHO_PORT, "protocol": "UDP"}]
    ips = cluster.service(namespace, "echo", {"app": "echo"}, ports=ports)
    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    rule = {"from": [friends], "ports": [{"protocol": "UDP", "port": ECHO_PORT}]}
    selector = {"matchLabels": {"app": "echo"}}
    spec = {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": [rule]}
    path = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    cluster.create(path, {"metadata": {"name": "echo"}, "spec": spec})
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    cluster.endpoints_ready(namespace, "echo", 1)
    cluster.wait()
    ways = {
        name: [Way(name, pods[name]["netns"], ip, 7) for ip in ips]
        for name in ("friend", "stranger")
    }
    with ExitStack() as stack:
        stack.callback(cluster.wait)
        stack.callback(cluster.api.delete, f"{path}/echo")
        echo = Echo(pods["echo"])
        stack.callback(echo.stop)
        for version in (4, 6):
            assert not lost(ways["friend"], version, warm=True)
        assert not any(
            once(way, size, warm=False) for way in ways["stranger"] for size in (16, 3000)
        )
        assert not any(once(way, 3000, warm=False) for way in ways["friend"]), "no limit any more?"


def test_the_echo_can_fail(cluster: LabCluster) -> None:
    """Nobody answers at a port where nobody listens."""
    way = Way("nobody", cluster.nodes[1]["netns"], cluster.nodes[1]["ips"][0], ECHO_PORT)
    assert not echoed(way, 16, warm=False)
