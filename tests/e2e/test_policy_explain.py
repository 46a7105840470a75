"""`dunlin policy explain` says what real packets then do, for a matrix of cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from itertools import permutations
from typing import Any

import httpx
import pytest

from tests.e2e.lab_cluster import CLUSTER_POLICIES, LabCluster
from tests.e2e.test_policy import Shop, answers
from tests.e2e.traffic import ask, ping

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SERVER = {"matchLabels": {"app": "server"}}
CLIENT = {"podSelector": {"matchLabels": {"app": "client"}}}
PODS = ("client", "other", "server")


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Iterator[Shop]:
    """Three Pods, a Service, and policies of several kinds, in force."""
    shop = Shop(cluster, "explain")
    cluster.service(shop.namespace, "server", {"app": "server"})
    cluster.endpoints_ready(shop.namespace, "server", 1)
    shop.policy(
        "web", podSelector=SERVER, ingress=[{"from": [CLIENT], "ports": [{"port": "http"}]}]
    )
    shop.policy("all", podSelector=SERVER, ingress=[])
    shop.policy(
        "out",
        podSelector=CLIENT["podSelector"],
        policyTypes=["Egress"],
        egress=[
            {"to": [{"podSelector": SERVER}]},
            {"to": [{"ipBlock": {"cidr": "::/0"}}], "ports": [{"port": 1, "endPort": 9000}]},
        ],
    )
    names = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}}
    deny = {"name": "no-dns", "action": "Deny", "from": [names]}
    deny["protocols"] = [{"udp": {"destinationPort": {"number": 8080}}}]
    spec = {"tier": "Admin", "priority": 7, "subject": names, "ingress": [deny]}
    cluster.cluster_policy("explain", spec)
    cluster.wait()
    yield shop
    cluster.api.delete(f"{CLUSTER_POLICIES}/explain").raise_for_status()
    shop.without_all()


def explained(shop: Shop, source: str, destination: str, port: str) -> dict[str, Any]:
    """As REST says it."""
    answer = httpx.get(
        f"{shop.cluster.url('flowctl')}/v1/policy/explain",
        params={"source": source, "destination": destination, "port": port},
        trust_env=False,
        timeout=20,
    )
    found: dict[str, Any] = answer.raise_for_status().json()
    return found


def arrives(shop: Shop, source: str, address: str, protocol: str, port: int = 8080) -> bool:
    """A real packet, and its answer."""
    place = shop.pods[source]["netns"]
    if protocol == "TCP":
        return answers(place, address, port)
    if protocol == "ICMP":
        return ping(place, address, count=1) == 0
    try:
        return bool(ask(place, address, port))
    except OSError:
        return False


@pytest.mark.timeout(300)
@pytest.mark.parametrize("protocol", ["TCP", "UDP", "ICMP"])
def test_agrees_with_real_packets(shop: Shop, protocol: str) -> None:
    """Every Pod to every other, in both families."""
    port = "icmp" if protocol == "ICMP" else f"8080/{protocol}"
    paths: list[tuple[str, dict[str, Any]]] = []
    for source, target in permutations(PODS, 2):
        ends = [f"{shop.namespace}/{name}" for name in (source, target)]
        answer = explained(shop, ends[0], ends[1], port)
        assert len(answer["paths"]) == 2, answer
        paths += ((source, path) for path in answer["paths"])

    def arrived(one: tuple[str, dict[str, Any]]) -> bool:
        return arrives(shop, one[0], one[1]["destination"]["ip"], protocol)

    # Silence takes seconds: all of it at once.
    with ThreadPoolExecutor(len(paths)) as pool:
        real = list(pool.map(arrived, paths))
    said = [path["verdict"] == "ALLOWED" for _, path in paths]
    assert real == said, paths
    assert {"ALLOWED", "DENIED"} >= {path["verdict"] for _, path in paths} >= {"DENIED"}


@pytest.mark.timeout(120)
def test_a_service(shop: Shop) -> None:
    """Each endpoint of a Service, judged after load balancing; each says who decided."""
    for source, verdict in (("client", "ALLOWED"), ("other", "DENIED"), ("server", "ALLOWED")):
        answer = explained(
            shop, f"{shop.namespace}/{source}", f"svc/{shop.namespace}/server", "http"
        )
        assert answer["verdict"] == verdict, answer
        ips = {path["destination"]["ip"] for path in answer["paths"]}
        assert ips == set(shop.pods["server"]["ips"])
        assert {path["port"] for path in answer["paths"]} == {8080}
        for path in answer["paths"]:
            asked = path["asked"].split(" ")[0]
            assert arrives(shop, source, asked, "TCP", 80) == (verdict == "ALLOWED")


@pytest.mark.timeout(120)
def test_who_decided(shop: Shop) -> None:
    """Names, rules and revisions; all who isolate; that it is in force."""
    client, server, other = (f"{shop.namespace}/{name}" for name in ("client", "server", "other"))
    path = explained(shop, client, server, "8080")["paths"][0]
    egress, ingress = path["judgements"]
    assert [rule["policy"]["name"] for rule in ingress["rules"]] == ["web"]
    assert {(r["policy"]["name"], r["rule"]) for r in egress["rules"]} >= {("out", 0)}
    assert ingress["rules"][0]["policy"]["revision"] > 0
    assert ingress["in_force"], "the lab has said that everything is"
    denied = explained(shop, other, server, "8080")["paths"][0]
    (_, ingress) = denied["judgements"]
    assert [policy["name"] for policy in ingress["isolated_by"]] == ["all", "web"]
    (path, *_) = explained(shop, client, server, "8080/UDP")["paths"]
    rule = path["judgements"][1]["rules"][0]
    assert (rule["policy"]["kind"], rule["name"]) == ("ClusterNetworkPolicy", "no-dns")


@pytest.mark.timeout(120)
def test_nodes_and_the_world_outside(shop: Shop) -> None:
    """A Pod's own node passes, another node does not; outside is judged by networks."""
    server = f"{shop.namespace}/server"
    own, other = shop.cluster.nodes[1], shop.cluster.nodes[0]
    for ip in shop.pods["server"]["ips"]:
        for node, wanted in ((own, "ALLOWED"), (other, "DENIED")):
            # The address that the node's kernel takes as source: its gateway's.
            (source,) = {
                str(a) for a in gateways(shop, node["name"]) if a.version == ip_address(ip).version
            }
            answer = explained(shop, source, ip, "8080")
            assert answer["verdict"] == wanted, answer
            assert answers(node["netns"], ip) == (wanted == "ALLOWED")
    assert explained(shop, "198.51.100.9", server, "8080")["verdict"] == "DENIED"
    outside = explained(shop, f"{shop.namespace}/client", "2001:db8:99::9", "443")
    assert outside["verdict"] == "ALLOWED"
    outside = explained(shop, f"{shop.namespace}/client", "198.51.100.9", "443")
    assert outside["verdict"] == "DENIED"


def gateways(shop: Shop, node: str) -> list[Any]:
    """The gateway addresses of a node."""
    url = shop.cluster.url("flowctl")
    path = f"{url}/v1/intents/{node}/switch/pipeline"
    found = httpx.get(path, trust_env=False).raise_for_status().json()
    return [ip_address(ip) for ip in found["intent"]["gateway_ips"]]


@pytest.mark.timeout(120)
def test_command_line(shop: Shop) -> None:
    """Exit status, words for people, JSON, and errors that name the wrong word."""
    client, server, other = (f"{shop.namespace}/{name}" for name in ("client", "server", "other"))
    dunlin = shop.cluster.dunlin
    good = dunlin("policy", "explain", client, server, "8080", check=False)
    assert (good.returncode, good.stdout.split()[0]) == (0, "ALLOWED")
    assert f"NetworkPolicy {shop.namespace}/web, ingress rule 0" in good.stdout
    bad = dunlin("policy", "explain", other, server, "8080", check=False)
    assert (bad.returncode, bad.stdout.split()[0]) == (3, "DENIED")
    assert "and no rule allows it" in bad.stdout
    found = json.loads(
        dunlin("policy", "explain", other, server, "8080", "-o", "json", check=False).stdout
    )
    assert found["verdict"] == "DENIED"
    for words, said in (
        ((client, "nobody/nowhere", "80"), "no Pod nobody/nowhere"),
        ((client, f"svc/{shop.namespace}/server", "81"), "has no port 81/TCP; it has"),
        ((client, server, "80/XYZ"), "none of TCP, UDP, SCTP"),
        (("svc/a/b", server, "80"), "a Service sends nothing"),
    ):
        wrong = dunlin("policy", "explain", *words, check=False)
        assert wrong.returncode == 1
        assert said in wrong.stderr, wrong.stderr
