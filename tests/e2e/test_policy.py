"""NetworkPolicies on real packets: who reaches whom, what is cut, and no moment unprotected."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import CLUSTER_POLICIES, LabCluster, eventually
from tests.e2e.traffic import HttpProbe, UdpProbe, family, get_here, ping, stop_all

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

POLICIES = "/apis/networking.k8s.io/v1/namespaces/{}/networkpolicies"
QUICK_S = 1.5


class Shop:
    """
    A namespace with Pods `client` on the first node, `other` and `server` on the second.

    `since_ms`: when the running test began, where a fixture says it.
    """

    since_ms = 0.0

    def __init__(self, cluster: LabCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = cluster.namespace(namespace)
        first, second = (node["name"] for node in cluster.nodes[:2])
        for name, node in (("client", first), ("other", second), ("server", second)):
            cluster.pod(self.namespace, name, node)
        found = cluster.pods_ready(self.namespace, 3)
        cluster.wait()
        self.pods: dict[str, dict[str, Any]] = {pod["name"]: pod for pod in found}

    def policy(self, name: str, **spec: Any) -> None:
        """Create a policy, and wait until it is in force everywhere."""
        manifest = {"metadata": {"name": name}, "spec": {"podSelector": {}, **spec}}
        self.cluster.create(POLICIES.format(self.namespace), manifest)
        self.cluster.wait()

    def replace(self, name: str, **spec: Any) -> None:
        """Replace a policy, and wait until it is in force everywhere."""
        path = f"{POLICIES.format(self.namespace)}/{name}"
        manifest = self.cluster.api.get(path).raise_for_status().json()
        manifest["spec"] = {"podSelector": {}, **spec}
        self.cluster.api.put(path, json=manifest).raise_for_status()
        self.cluster.wait()

    def without(self, name: str) -> None:
        """Delete a policy, and wait until it is gone everywhere."""
        path = f"{POLICIES.format(self.namespace)}/{name}"
        self.cluster.api.delete(path).raise_for_status()
        self.cluster.wait()

    def without_all(self) -> None:
        """Delete every policy of the namespace."""
        items = self.cluster.api.get(POLICIES.format(self.namespace)).json()["items"]
        for item in items:
            self.without(item["metadata"]["name"])

    def label(self, pod: str, **labels: str | None) -> None:
        """Change labels of a Pod, and wait until that is in force everywhere."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}"
        self.cluster.patch(path, {"metadata": {"labels": labels}})
        self.cluster.wait()

    def reach(self, source: str, target: str, port: int = 8080) -> set[str]:
        """The families (4, 6) in which `source` gets an answer from `target` over TCP."""
        return who_answers(self.pods[source]["netns"], self.pods[target]["ips"], port)

    def everywhere(self, source: str, target: str) -> bool:
        """In both families; none at all is False, one alone is an error."""
        return self.everywhere_from(self.pods[source]["netns"], target)

    def everywhere_from(self, place: str, target: str) -> bool:
        """The same, from any network namespace."""
        reached = who_answers(place, self.pods[target]["ips"])
        assert len(reached) in (0, 2), reached
        return bool(reached)


def answers(place: str, address: str, port: int = 8080) -> bool:
    """One new TCP connection gets its answer within QUICK_S."""
    return netns.run_in(place, partial(answers_here, address, port))


def answers_here(address: str, port: int) -> bool:
    """As `answers`, in the namespace of this thread."""
    try:
        get_here(address, port, QUICK_S)
    except OSError:
        return False
    return True


def who_answers(place: str, addresses: Iterable[str], port: int = 8080) -> set[str]:
    """All asked at once: silence takes its time only once."""
    asked = {ip: netns.start_in(place, partial(answers_here, ip, port)) for ip in addresses}
    return {ip for ip, answered in asked.items() if answered.result()}


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods and no policy."""
    return Shop(cluster, "policy")


@pytest.fixture(autouse=True)
def no_policies(shop: Shop) -> Iterator[None]:
    """Each test begins and ends without policies and with the labels of the beginning."""
    yield
    shop.without_all()
    shop.label("client", app="client")


@pytest.mark.timeout(120)
def test_isolation_and_union(shop: Shop) -> None:
    """Deny all, then allow one peer, then one more by a second policy; both families."""
    assert shop.everywhere("client", "server")
    shop.policy("deny", podSelector={"matchLabels": {"app": "server"}})
    assert not shop.everywhere("client", "server")
    assert not shop.everywhere("other", "server")
    assert shop.everywhere("server", "client"), "egress of the server is not isolated"
    assert shop.everywhere("client", "other")
    allow = {"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}
    shop.policy("client", podSelector={"matchLabels": {"app": "server"}}, ingress=[allow])
    assert shop.everywhere("client", "server")
    assert not shop.everywhere("other", "server")
    shop.policy("any", podSelector={"matchLabels": {"app": "server"}}, ingress=[{}])
    assert shop.everywhere("other", "server")
    for name in ("deny", "client", "any"):
        shop.without(name)
    assert shop.everywhere("other", "server")


@pytest.mark.timeout(120)
def test_ports_names_blocks(shop: Shop) -> None:
    """Named ports, ranges, ipBlock with except (matching Pods too), egress."""
    server = {"matchLabels": {"app": "server"}}
    shop.policy("p", podSelector=server, ingress=[{"ports": [{"port": "http"}]}])
    assert shop.everywhere("client", "server")
    shop.replace("p", podSelector=server, ingress=[{"ports": [{"port": "nothing"}]}])
    assert not shop.everywhere("client", "server")
    shop.replace("p", podSelector=server, ingress=[{"ports": [{"port": 8000, "endPort": 8100}]}])
    assert shop.everywhere("client", "server")
    mine = [ip for ip in shop.pods["client"]["ips"] if "." in ip]
    block = {"ipBlock": {"cidr": "0.0.0.0/0", "except": [f"{mine[0]}/32"]}}
    shop.replace("p", podSelector=server, ingress=[{"from": [block]}])
    assert not shop.reach("client", "server")
    assert {"." in ip for ip in shop.reach("other", "server")} == {True}
    shop.without("p")
    client = {"matchLabels": {"app": "client"}}
    shop.policy("e", podSelector=client, policyTypes=["Egress"],
        egress=[{"to": [{"podSelector": server}]}])  # fmt: skip
    assert shop.everywhere("client", "server")
    assert not shop.everywhere("client", "other")
    assert shop.everywhere("other", "client"), "replies are always allowed"


@pytest.mark.timeout(120)
def test_through_a_service(shop: Shop) -> None:
    """A Service's traffic is judged on its real source and its endpoint, not on the cluster IP."""
    addresses = shop.cluster.service(shop.namespace, "server", {"app": "server"})
    shop.cluster.endpoints_ready(shop.namespace, "server", 1)
    client = {"matchLabels": {"app": "client"}}
    server = {"matchLabels": {"app": "server"}}
    shop.policy("e", podSelector=client, policyTypes=["Egress"],
        egress=[{"to": [{"podSelector": server}], "ports": [{"port": 8080}]}])  # fmt: skip
    shop.policy("i", podSelector=server, ingress=[{"from": [{"podSelector": client}]}])
    for address in addresses:
        assert answers(shop.pods["client"]["netns"], address, 80)
        assert not answers(shop.pods["other"]["netns"], address, 80)
        assert answers(shop.pods["server"]["netns"], address, 80), "a Pod reaches itself"


@pytest.mark.timeout(120)
def test_node_and_ping(shop: Shop) -> None:
    """The node of an isolated Pod reaches it (probes); other nodes and pings do not."""
    shop.policy("deny", podSelector={"matchLabels": {"app": "server"}})
    own, other = shop.cluster.nodes[1], shop.cluster.nodes[0]
    for ip in shop.pods["server"]["ips"]:
        assert answers(own["netns"], ip)
        assert not answers(other["netns"], ip)
        assert ping(shop.pods["client"]["netns"], ip, count=1) == 1


class Held:
    """One TCP connection, kept open."""

    def __init__(self, place: str, address: str, port: int = 8080) -> None:
        def connect() -> socket.socket:
            link = socket.socket(family(address), socket.SOCK_STREAM)
            link.settimeout(QUICK_S)
            link.connect((address, port))
            return link

        self.link = netns.run_in(place, connect)

    def works(self) -> bool:
        """A request gets its answer."""
        try:
            self.link.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            return bool(self.link.recv(65535))
        except OSError:
            return False


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", ["policy", "label"])
def test_running_connections(shop: Shop, way: str) -> None:
    """What becomes forbidden stops at once; what stays allowed is untouched."""
    server = {"matchLabels": {"app": "server"}}
    peers = [{"podSelector": {"matchLabels": {"app": name}}} for name in ("client", "other")]
    shop.policy("p", podSelector=server, ingress=[{"from": peers}])
    for ip in shop.pods["server"]["ips"]:
        cut, kept = (Held(shop.pods[name]["netns"], ip) for name in ("client", "other"))
        assert cut.works() and kept.works()  # noqa: PT018 - one state
        if way == "policy":
            shop.replace("p", podSelector=server, ingress=[{"from": peers[1:]}])
        else:
            shop.label("client", app="stranger")
        assert not cut.works()
        assert kept.works()
        shop.replace("p", podSelector=server, ingress=[{"from": peers}])
        shop.label("client", app="client")
        assert kept.works()
        assert eventually("a connection that is allowed again goes on", cut.works, 20.0)


@pytest.fixture
def cluster_policy(shop: Shop) -> Iterator[Any]:
    """Creates ClusterNetworkPolicies about the shop's namespace, and removes them at the end."""
    names: list[str] = []
    subject = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}}

    def create(name: str, **spec: Any) -> None:
        shop.cluster.cluster_policy(name, {"subject": subject, **spec})
        names.append(name)
        shop.cluster.wait()

    yield create
    for name in names:
        shop.cluster.api.delete(f"{CLUSTER_POLICIES}/{name}").raise_for_status()
    shop.cluster.wait()


@pytest.mark.timeout(120)
def test_cluster_network_policy(shop: Shop, cluster_policy: Any) -> None:
    """Baseline denies until a NetworkPolicy allows; Admin denies over it."""
    pods = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "client"}}}
    rule = {"action": "Deny", "from": [{"pods": pods}]}
    cluster_policy("baseline", tier="Baseline", priority=10, ingress=[rule])
    assert not shop.everywhere("client", "server")
    assert shop.everywhere("other", "server")
    shop.policy("allow", podSelector={"matchLabels": {"app": "server"}}, ingress=[{}])
    assert shop.everywhere("client", "server"), "what NetworkPolicy selects, Baseline leaves alone"
    cluster_policy("deny", tier="Admin", priority=20, ingress=[rule])
    assert not shop.everywhere("client", "server")
    assert shop.everywhere("other", "server")
    cluster_policy("pass", tier="Admin", priority=10, ingress=[{**rule, "action": "Pass"}])
    assert shop.everywhere("client", "server")


@pytest.mark.timeout(120)
def test_a_named_port_in_a_network(shop: Shop, cluster_policy: Any) -> None:
    """Egress to ipBlocks by name: the port of the Pods that lie there; Admin denies it likewise."""
    server, other = (
        [f"{ip}/{32 if '.' in ip else 128}" for ip in shop.pods[name]["ips"]]
        for name in ("server", "other")
    )
    of_server = [{"ipBlock": {"cidr": cidr}} for cidr in server]
    around = [
        {"ipBlock": {"cidr": "0.0.0.0/0" if "." in cidr else "::/0", "except": [cidr]}}
        for cidr in server
    ]
    http = {"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"]}
    shop.policy("p", **http, egress=[{"to": of_server, "ports": [{"port": "http"}]}])
    assert shop.everywhere("client", "server")
    assert not shop.everywhere("client", "other"), "it has the port, and lies elsewhere"
    shop.replace("p", **http, egress=[{"to": around, "ports": [{"port": "http"}]}])
    assert not shop.everywhere("client", "server")
    assert shop.everywhere("client", "other")
    rule = {
        "action": "Deny",
        "to": [{"networks": [*server, *other]}],
        "protocols": [{"destinationNamedPort": "http"}],
    }
    cluster_policy("names", tier="Admin", priority=30, egress=[rule])
    assert not shop.everywhere("client", "other")
    ends = f"{shop.namespace}/client", f"{shop.namespace}/other", "8080"
    said = shop.cluster.dunlin("policy", "explain", *ends, check=False)
    assert said.returncode == 3
    assert "ClusterNetworkPolicy names" in said.stdout, said.stdout


@pytest.mark.timeout(180)
def test_no_moment_unprotected(shop: Shop) -> None:
    """While policies change: what all of them forbid never passes."""
    server = {"matchLabels": {"app": "server"}}
    one = [{"podSelector": {"matchLabels": {"app": "other"}}}]
    two = [*one, {"podSelector": {"matchLabels": {"app": "nobody"}}}]
    shop.policy("p", podSelector=server, ingress=[{"from": one}])
    address = shop.pods["server"]["ips"][0]
    allowed = HttpProbe(shop.pods["other"]["netns"], address, port=8080)
    forbidden = UdpProbe(shop.pods["client"]["netns"], address, 8080, 0.005)
    for turn in range(4):
        shop.replace("p", podSelector=server, ingress=[{"from": (two, one)[turn % 2]}])
        shop.policy("q", podSelector=server, ingress=[{"from": one, "ports": [{"port": 8080}]}])
        shop.label("other", turn=str(turn))
        shop.without("q")
    held, refused = allowed.stop(), forbidden.stop()
    assert refused.sent > 100
    assert refused.answered == 0, f"{refused.answered} of {refused.sent} came through"
    assert held.sent > 20
    assert held.lost == 0, f"{held.lost} of {held.sent} did not: {held.errors}"


CHURN = int(os.environ.get("DUNLIN_POLICY_CHURN", "12"))
"""Changes in both directions while packets are sent; many more by hand (docs/policy.md)."""
SENT_EVERY_S = 0.001


def to(*names: str) -> list[dict[str, Any]]:
    """Peers by their label."""
    return [{"podSelector": {"matchLabels": {"app": name}}} for name in names]


BOTH = ["Ingress", "Egress"]
EGRESS_CLOSED = {"ingress": [{}], "egress": [{"to": to("server", "client", "swapped")}]}
INGRESS_CLOSED = {"ingress": [{"from": to("server")}], "egress": [{}]}


@pytest.fixture
def beside(shop: Shop) -> Iterator[dict[str, Any]]:
    """One more Pod `other`-like, on the client's node."""
    shop.cluster.pod(shop.namespace, "beside", shop.pods["client"]["node"])
    pods = shop.cluster.pods_ready(shop.namespace, 4)
    shop.cluster.wait()
    yield next(pod for pod in pods if pod["name"] == "beside")
    shop.cluster.api.delete(f"/api/v1/namespaces/{shop.namespace}/pods/beside").raise_for_status()
    shop.cluster.pods_ready(shop.namespace, 3)


@pytest.mark.timeout(240 + 5 * CHURN)
def test_both_directions_at_once(shop: Shop, beside: dict[str, Any]) -> None:
    """
    One update opens egress where it closes ingress, over and over, and labels swap roles.

    Old and new forbid client -> beside (one node) and client -> other (two switches, ADR 0030), and
    allow server -> client (two switches).
    """
    shop.policy("p", policyTypes=BOTH, **EGRESS_CLOSED)
    client, server = shop.pods["client"], shop.pods["server"]
    allowed = [HttpProbe(server["netns"], ip, port=8080) for ip in client["ips"]]
    targets = [*beside["ips"], *shop.pods["other"]["ips"]]
    forbidden = [UdpProbe(client["netns"], ip, 8080, SENT_EVERY_S) for ip in targets]
    for turn in range(1, CHURN + 1):
        shop.replace("p", policyTypes=BOTH, **(INGRESS_CLOSED if turn % 2 else EGRESS_CLOSED))
        if turn % 3 == 0:
            shop.label("client", app="swapped" if turn % 2 else "client")
    held, refused = stop_all(allowed), stop_all(forbidden)
    for target, one in zip(targets, refused, strict=True):
        assert one.sent > 1000
        assert one.answered == 0, f"{one.answered} of {one.sent} came through to {target}"
    for one in held:
        assert one.sent > 20
        assert one.lost == 0, f"{one.lost} of {one.sent} did not: {one.errors}"


@pytest.mark.timeout(120)
def test_the_prober_sees_a_moment(shop: Shop) -> None:
    """The test above can fail: the same two policies with a moment of neither between them."""
    shop.policy("p", policyTypes=BOTH, **EGRESS_CLOSED)
    client = shop.pods["client"]
    probes = [UdpProbe(client["netns"], ip, 8080, SENT_EVERY_S) for ip in shop.pods["other"]["ips"]]
    shop.without("p")
    shop.policy("p", policyTypes=BOTH, **INGRESS_CLOSED)
    for counts in stop_all(probes):
        assert counts.answered > 0, f"none of {counts.sent} came through"


@pytest.mark.timeout(180)
def test_a_new_pod_is_never_without_its_policy(shop: Shop) -> None:
    """From its first packet on a new Pod obeys the policy that selects it."""
    labels = {"app": "late"}
    shop.policy("late", podSelector={"matchLabels": labels}, policyTypes=["Ingress", "Egress"])
    before = len(shop.pods)
    shop.cluster.pod(shop.namespace, "late", shop.cluster.nodes[1]["name"], labels=labels)
    found = shop.cluster.pods_ready(shop.namespace, before + 1)
    late = next(pod for pod in found if pod["name"] == "late")
    for ip in late["ips"]:
        assert not answers(shop.pods["client"]["netns"], ip)
    shop.cluster.wait()
    for ip in shop.pods["server"]["ips"]:
        assert not answers(late["netns"], ip)
    shop.without("late")
    for ip in late["ips"]:
        assert answers(shop.pods["client"]["netns"], ip)
    shop.cluster.api.delete(f"/api/v1/namespaces/{shop.namespace}/pods/late").raise_for_status()
