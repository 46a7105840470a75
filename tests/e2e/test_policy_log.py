"""`dunlin.dev/log-denied`: real denied packets become entries that name policy and Pods."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import CLUSTER_POLICIES, LabCluster, eventually, ofctl
from tests.e2e.test_policy import POLICIES, Shop, answers
from tests.e2e.test_policy_attribution import datagrams
from tests.e2e.traffic import HttpProbe, family

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SERVER = {"matchLabels": {"app": "server"}}
LOG = {"dunlin.dev/log-denied": "true"}
SAMPLE = 20
"""DUNLIN_DENY_LOG_SAMPLE, as it is by default."""


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods and no policy."""
    return Shop(cluster, "denylog")


@pytest.fixture(autouse=True)
def no_policies(shop: Shop) -> Iterator[None]:
    """Each test begins and ends without policies and annotations, and reads its own entries."""
    shop.since_ms = time.time() * 1000
    yield
    annotate(shop, f"/api/v1/namespaces/{shop.namespace}", None)
    shop.without_all()


def annotate(shop: Shop, path: str, value: str | None) -> None:
    """Set or remove the annotation of an object, and wait until that is in force."""
    shop.cluster.patch(path, {"metadata": {"annotations": {"dunlin.dev/log-denied": value}}})
    shop.cluster.wait()


def logged(shop: Shop, **wanted: Any) -> list[dict[str, Any]]:
    """Entries of the namespace that have these values, of every replica of flowctl."""
    found = []
    for item in shop.cluster.status()["services"]:
        if item["service"] == "flowctl":
            url = f"{item['url']}/v1/policy/denials"
            params = {"namespace": shop.namespace, "limit": "1000"}
            found += httpx.get(url, params=params, trust_env=False).raise_for_status().json()
    return [one for one in found if one["at_ms"] >= shop.since_ms and wanted.items() <= one.items()]


def policy_path(shop: Shop, name: str) -> str:
    """Of one NetworkPolicy."""
    return f"{POLICIES.format(shop.namespace)}/{name}"


@pytest.mark.timeout(120)
def test_by_policy(shop: Shop) -> None:
    """Source, destination, ports, direction, and everybody who isolates; both families."""
    shop.policy("one", podSelector=SERVER)
    shop.policy("two", policyTypes=["Ingress"])
    for ip in shop.pods["server"]["ips"]:
        datagrams(shop.pods["client"]["netns"], ip, 3)
    assert logged(shop) == [], "nobody has asked for it"
    annotate(shop, policy_path(shop, "two"), "true")
    for ip in shop.pods["server"]["ips"]:
        datagrams(shop.pods["client"]["netns"], ip, 3)
        names = [f"{shop.namespace}/{name}" for name in ("one", "two")]
        (entry,) = eventually(
            f"the packet to {ip} is logged",
            partial(logged, shop, destination_ip=ip, protocol="UDP"),
            10.0,
        )
        assert (entry["policies"], entry["direction"], entry["rule"]) == (names, "ingress", -1)
        assert entry["source"] == f"{shop.namespace}/client"
        assert entry["destination"] == f"{shop.namespace}/server"
        assert entry["source_ip"] in shop.pods["client"]["ips"]
        assert entry["destination_port"] == 8080
        assert entry["source_port"] > 0


@pytest.mark.timeout(120)
def test_by_namespace_and_through_a_service(shop: Shop) -> None:
    """The Service that was asked for is named beside the Pod; what is allowed is not logged."""
    (address, *_) = shop.cluster.service(shop.namespace, "server", {"app": "server"})
    shop.cluster.endpoints_ready(shop.namespace, "server", 1)
    shop.cluster.wait()
    shop.policy("in", podSelector=SERVER, ingress=[{"from": [{"podSelector": SERVER}]}])
    annotate(shop, f"/api/v1/namespaces/{shop.namespace}", "true")
    assert not answers(shop.pods["other"]["netns"], address, 80)
    # By what it asked for: connections of earlier tests may still be ending.
    wanted = {"source": f"{shop.namespace}/other", "protocol": "TCP", "asked": f"{address}:80"}
    (entry,) = eventually("it is logged", lambda: logged(shop, **wanted), 10.0)
    assert (entry["destination"], entry["destination_port"]) == (f"{shop.namespace}/server", 8080)
    assert entry["policies"] == [f"{shop.namespace}/in"]
    assert answers(shop.pods["server"]["netns"], shop.pods["client"]["ips"][0])
    assert logged(shop, destination=f"{shop.namespace}/client") == []


@pytest.mark.timeout(120)
def test_by_cluster_network_policy(shop: Shop) -> None:
    """A rule that denies, by its index."""
    names = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}}
    rule = {"action": "Deny", "to": [names], "protocols": [{"tcp": {}}]}
    accept = {"action": "Accept", "to": [names], "protocols": [{"udp": {}}]}
    spec = {"tier": "Admin", "priority": 8, "subject": names, "egress": [accept, rule]}
    shop.cluster.cluster_policy("denylog", spec, annotations=LOG)
    try:
        shop.cluster.wait()
        assert not answers(shop.pods["other"]["netns"], shop.pods["client"]["ips"][0])
        (entry,) = eventually("it is logged", lambda: logged(shop, policies=["denylog"]), 10.0)
        assert (entry["direction"], entry["rule"]) == ("egress", 1)
    finally:
        shop.cluster.api.delete(f"{CLUSTER_POLICIES}/denylog").raise_for_status()
        shop.cluster.wait()


@pytest.mark.timeout(120)
def test_a_flood_is_sampled_by_the_switch(shop: Shop) -> None:
    """Thousands of denied packets reach flowctl as few; allowed connections do not feel it."""
    other = {"podSelector": {"matchLabels": {"app": "other"}}}
    shop.policy("in", podSelector=SERVER, ingress=[{"from": [other]}])
    annotate(shop, policy_path(shop, "in"), "true")
    ip = shop.pods["server"]["ips"][0]
    probe = HttpProbe(shop.pods["other"]["netns"], ip, port=8080)
    before, began = taken(shop), time.monotonic()
    sent = flood(shop.pods["client"]["netns"], ip, 2.0)
    eventually("it is logged", lambda: logged(shop, destination_ip=ip, direction="ingress"), 10.0)
    seconds = time.monotonic() - began
    held = probe.stop()
    found = taken(shop) - before
    assert sent > 2000
    assert 0 < found <= SAMPLE * (seconds + 2), f"{found} of {sent} in {seconds:.1f} s"
    assert held.sent > 5
    assert held.lost == 0, held.errors
    meters = [ofctl(node, "dump-meters", "br-int") for node in shop.cluster.nodes]
    assert all("meter=1" in text for text in meters), meters


def flood(place: str, address: str, seconds: float) -> int:
    """Datagrams as fast as one thread sends them, to many ports; how many."""

    def send() -> int:
        count, end = 0, time.monotonic() + seconds
        with socket.socket(family(address), socket.SOCK_DGRAM) as link:
            while time.monotonic() < end:
                link.sendto(b"?", (address, 1024 + count % 50000))
                count += 1
        return count

    return netns.run_in(place, send)


def taken(shop: Shop) -> float:
    """Packets to be logged that all replicas of flowctl have been sent."""
    total = 0.0
    for item in shop.cluster.status()["services"]:
        if item["service"] == "flowctl":
            text = httpx.get(f"{item['url']}/metrics", trust_env=False).text
            lines = [x for x in text.splitlines() if x.startswith("dunlin_flowctl_denials_total")]
            total += sum(float(line.rsplit(" ", 1)[1]) for line in lines)
    return total
