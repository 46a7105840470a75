"""What needs a running control plane beside flows: refusals, UDP that moves, health checks."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from typing import Any, Self

import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import family

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

AT_ONCE_S = 0.5
MOVED_WITHIN_S = 1.0
FOUND_WITHIN_S = 10.0


def refused(place: str, address: str, port: int, kind: socket.SocketKind) -> float:
    """Seconds until a connection (or a connected UDP socket) is refused; fails when it is not."""

    def attempt() -> float:
        with socket.socket(family(address), kind) as link:
            link.settimeout(3.0)
            started = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                _exchange(link, address, port)
            return time.monotonic() - started

    return netns.run_in(place, attempt)


def _exchange(link: socket.socket, address: str, port: int) -> None:
    link.connect((address, port))
    link.send(b"?")
    link.recv(100)


@pytest.mark.timeout(120)
def test_no_endpoints_refuse(cluster: LabCluster) -> None:
    """TCP and UDP, IPv4 and IPv6, from a Pod and from a node: ECONNREFUSED at once."""
    namespace = cluster.namespace("refuse")
    addresses = cluster.service(namespace, "none", {"app": "nobody"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (client,) = cluster.pods_ready(namespace, 1)
    cluster.wait()
    assert len(addresses) == 2
    took = [
        refused(place, address, port, kind)
        for address in addresses
        for place in (client["netns"], cluster.nodes[1]["netns"])
        for port, kind in ((80, socket.SOCK_STREAM), (53, socket.SOCK_DGRAM))
        for _ in range(10)
    ]
    assert max(took) < AT_ONCE_S, sorted(took)[-5:]


@pytest.mark.timeout(120)
def test_no_endpoints_refuse_the_world_outside(cluster: LabCluster) -> None:
    """A NodePort without endpoints refuses a client beyond the nodes."""
    namespace = cluster.namespace("refuseout")
    cluster.service(namespace, "none", {"app": "nobody"}, type="NodePort")
    found = cluster.api.get(f"/api/v1/namespaces/{namespace}/services/none").json()
    ports = {item["name"]: item["nodePort"] for item in found["spec"]["ports"]}
    cluster.wait()
    took = [
        refused(cluster.outside["netns"], address, ports[name], kind)
        for address in cluster.nodes[0]["ips"]
        for name, kind in (("http", socket.SOCK_STREAM), ("dns", socket.SOCK_DGRAM))
    ]
    assert max(took) < AT_ONCE_S, took


class Sender:
    """A UDP client in a namespace that never stops sending from one socket: who answers, when."""

    def __init__(self, place: str, address: str, port: int) -> None:
        self._place = place
        self._target = (address, port)
        self._stop = threading.Event()
        self.answers: list[tuple[float, str]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        netns.run_in(self._place, self._send)

    def _send(self) -> None:
        with socket.socket(family(self._target[0]), socket.SOCK_DGRAM) as link:
            link.bind(("", 0))
            link.settimeout(0.01)
            while not self._stop.is_set():
                try:
                    link.sendto(b"?", self._target)
                    data = link.recv(65535)
                except OSError:
                    time.sleep(0.01)  # the pace of a client that gets no answer
                    continue
                self.answers.append((time.monotonic(), str(json.loads(data)["pod"])))

    def first(self, since: float, other_than: str = "") -> float | None:
        """Seconds from `since` to the first answer (of a Pod that is not `other_than`)."""
        found = (at for at, pod in list(self.answers) if at >= since and pod != other_than)
        return next((at - since for at in found), None)


def in_force(cluster: LabCluster) -> float:
    """The moment at which `dunlin wait` says that all is in force."""
    cluster.wait()
    return time.monotonic()


def answers_within(sender: Sender, since: float, other_than: str = "") -> float:
    """Seconds after `since` until it is answered; fails above MOVED_WITHIN_S."""
    eventually("an answer", lambda: sender.first(since, other_than) is not None, 15.0)
    took = sender.first(since, other_than)
    assert took is not None
    assert took < MOVED_WITHIN_S, took
    return took


@pytest.mark.timeout(200)
@pytest.mark.parametrize("version", [4, 6])
def test_udp_moves(cluster: LabCluster, version: int) -> None:
    """
    A UDP client that never stops sending: first endpoint, endpoint gone, port changed, deleted.

    Each time it is answered within a second of the change being in force.
    """
    namespace = cluster.namespace(f"udp{version}")
    addresses = cluster.service(namespace, "dns", {"app": "dns"})
    address = next(a for a in addresses if (":" in a) == (version == 6))
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (client,) = cluster.pods_ready(namespace, 1)
    cluster.wait()
    labels = {"labels": {"app": "dns"}}
    with (
        Sender(client["netns"], address, 53) as sender,
        Sender(client["netns"], address, 54) as early,
    ):
        cluster.pod(namespace, "one", cluster.nodes[0]["name"], **labels)
        cluster.endpoints_ready(namespace, "dns", 1)
        answers_within(sender, in_force(cluster))
        cluster.pod(namespace, "two", cluster.nodes[1]["name"], **labels)
        cluster.endpoints_ready(namespace, "dns", 2)
        cluster.wait()
        had = sender.answers[-1][1]
        other = "two" if had == "one" else "one"
        cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{had}").raise_for_status()
        cluster.endpoints_ready(namespace, "dns", 1)
        answers_within(sender, in_force(cluster), had)
        assert sender.answers[-1][1] == other
        assert not early.answers
        patch: dict[str, Any] = {
            "spec": {"ports": [{"name": "dns", "port": 54, "targetPort": "dns", "protocol": "UDP"}]}
        }
        cluster.patch(f"/api/v1/namespaces/{namespace}/services/dns", patch)
        answers_within(early, in_force(cluster))
        settled = time.monotonic()
        eventually("more answers", lambda: early.first(settled) is not None)
        assert sender.first(settled) is None, "the old port still answers"
        path = f"/api/v1/namespaces/{namespace}/services/dns"
        cluster.api.delete(path).raise_for_status()
        deleted = in_force(cluster) + MOVED_WITHIN_S
        eventually("a moment later", lambda: time.monotonic() > deleted + 0.5)
        assert early.first(deleted) is None, "a deleted Service still answers"


@pytest.mark.timeout(200)
@pytest.mark.parametrize("version", [4, 6])
def test_udp_moves_when_its_endpoint_went_while_flowctl_was_dead(
    cluster: LabCluster, version: int
) -> None:
    """Nobody told the next flowctl what was there before: the agent finds it, within seconds."""
    namespace = cluster.namespace(f"udpdead{version}")
    addresses = cluster.service(namespace, "dns", {"app": "dns"})
    address = next(a for a in addresses if (":" in a) == (version == 6))
    for number in range(2):
        node = cluster.nodes[number]["name"]
        cluster.pod(namespace, f"dns-{number}", node, labels={"app": "dns"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    cluster.endpoints_ready(namespace, "dns", 2)
    cluster.wait()
    with Sender(pods["client"]["netns"], address, 53) as sender:
        eventually("an answer", lambda: sender.answers, 15.0)
        had = sender.answers[-1][1]
        cluster.kill("flowctl")
        cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/{had}").raise_for_status()
        cluster.endpoints_ready(namespace, "dns", 1)
        eventually("silence", lambda: time.monotonic() - sender.answers[-1][0] > 1.0, 30.0)
        cluster.start("flowctl")
        cluster.ready()
        since = in_force(cluster)
        eventually("it moves", lambda: sender.first(since, had) is not None, 30.0)
        took = sender.first(since, had)
        assert took is not None
        assert took < FOUND_WITHIN_S, took


def check(place: str, address: str, port: int, path: str = "/") -> tuple[int, dict[str, Any], str]:
    """One health check from a namespace: status, body, weight; 0 when nobody listens."""

    def attempt() -> tuple[int, dict[str, Any], str]:
        link = http.client.HTTPConnection(address, port, timeout=3)
        try:
            link.request("GET", path)
            answer = link.getresponse()
            weight = answer.headers.get("X-Load-Balancing-Endpoint-Weight", "")
            return answer.status, json.loads(answer.read()), weight
        except (ConnectionRefusedError, ConnectionResetError):
            # Reset: it closed while this one waited to be accepted.
            return 0, {}, ""
        finally:
            link.close()

    return netns.run_in(place, attempt)


def eventually_answers(place: str, address: str, port: int, status: int, path: str = "/") -> None:
    """Until a health check has this status; 0: nobody listens."""
    what = f"{status} from {address} port {port}"
    eventually(what, lambda: check(place, address, port, path)[0] == status)


@pytest.mark.timeout(150)
def test_health_check_node_port(cluster: LabCluster) -> None:
    """Nodes with an endpoint answer 200, others 503; the port closes with its Service."""
    namespace = cluster.namespace("health")
    cluster.pod(namespace, "web", cluster.nodes[0]["name"])
    cluster.service(
        namespace, "web", {"app": "web"}, type="LoadBalancer", externalTrafficPolicy="Local"
    )
    cluster.endpoints_ready(namespace, "web", 1)
    path = f"/api/v1/namespaces/{namespace}/services/web"
    port = cluster.api.get(path).json()["spec"]["healthCheckNodePort"]
    assert port
    outside, here, there = cluster.outside["netns"], cluster.nodes[0], cluster.nodes[1]
    body = {
        "service": {"namespace": namespace, "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    for address in here["ips"]:
        eventually_answers(outside, address, port, 200)
        assert check(outside, address, port) == (200, body, "1")
    for address in there["ips"]:
        eventually_answers(outside, address, port, 503)
    cluster.api.delete(f"/api/v1/namespaces/{namespace}/pods/web").raise_for_status()
    eventually_answers(outside, here["ips"][0], port, 503)
    cluster.api.delete(path).raise_for_status()
    eventually_answers(outside, here["ips"][0], port, 0)


@pytest.mark.timeout(60)
def test_healthz(cluster: LabCluster) -> None:
    """As of kube-proxy on port 10256: 200 where the flows are up to date."""
    for node in cluster.nodes:
        for path in ("/healthz", "/livez"):
            eventually_answers(node["netns"], "127.0.0.1", 10256, 200, path)
