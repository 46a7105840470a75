"""Which rule allowed it, which policies denied it: counters of real packets, exactly."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.test_policy import Shop
from tests.e2e.traffic import family, gets, ping

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SERVER = {"matchLabels": {"app": "server"}}
CLIENT = {"podSelector": {"matchLabels": {"app": "client"}}}
FRAME = {4: 98, 6: 118}
"""Bytes of one `ping` frame by IP version, as OVS counts them."""


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods and no policy."""
    return Shop(cluster, "attribution")


@pytest.fixture(autouse=True)
def no_policies(shop: Shop) -> Iterator[None]:
    """Each test begins and ends without policies."""
    yield
    shop.without_all()


class Counters:
    """What all switches count, by policy and rule, or by who isolates."""

    def __init__(self, shop: Shop) -> None:
        self.cluster = shop.cluster
        self.namespace = shop.namespace

    def _of(self, kind: str) -> list[dict[str, Any]]:
        url = self.cluster.url("flowctl")
        found = []
        for node in self.cluster.nodes:
            path = f"{url}/v1/switches/{node['name']}/counters"
            found += httpx.get(path, trust_env=False).raise_for_status().json()[kind]
        return found

    def rule(self, policy: str, direction: str = "ingress", index: int = 0) -> tuple[int, ...]:
        """(connections, packets, bytes) of one rule."""
        wanted = (f"networkpolicy/{self.namespace}/{policy}", direction, index)
        rows = [
            row
            for row in self._of("rules")
            if (row["object"], row["direction"], row["rule"]) == wanted
        ]
        return tuple(sum(row[key] for row in rows) for key in ("connections", "packets", "bytes"))

    def denied(self, direction: str, *policies: str) -> int:
        """Packets that these policies isolate from."""
        names = [f"{self.namespace}/{name}" for name in policies]
        rows = [
            row
            for row in self._of("denied")
            if row["policies"] == names and row["direction"] == direction
        ]
        return sum(int(row["packets"]) for row in rows)


def is_now(what: str, read: Any, expected: Any) -> None:
    """The counter reaches this value, and no other: OVS brings them up to date each second."""
    last: list[Any] = []

    def reached() -> bool:
        last.append(read())
        return bool(last[-1] == expected)

    try:
        eventually(what, reached, 10.0)
    except AssertionError as error:
        raise AssertionError(f"{what}: {last[-1]} instead of {expected}") from error


def datagrams(place: str, address: str, count: int) -> None:
    """From one socket, without looking for answers."""

    def send() -> None:
        with socket.socket(family(address), socket.SOCK_DGRAM) as link:
            for _ in range(count):
                link.sendto(b"?", (address, 8080))

    netns.run_in(place, send)


def counted(counters: Counters, packets: int) -> bool:
    """The rule of policy `in` has at least so many."""
    return counters.rule("in")[1] >= packets


@pytest.mark.timeout(120)
def test_every_packet_of_a_rule(shop: Shop) -> None:
    """Requests and replies, first packets and established ones: all, once, for the right rule."""
    rules = [{"from": [{"podSelector": {"matchLabels": {"app": "other"}}}]}, {"from": [CLIENT]}]
    shop.policy("in", podSelector=SERVER, ingress=rules)
    shop.policy(
        "out",
        podSelector=CLIENT["podSelector"],
        policyTypes=["Egress"],
        egress=[{"to": [{"podSelector": SERVER}]}],
    )
    counters = Counters(shop)
    connections = packets = octets = 0
    for ip in shop.pods["server"]["ips"]:
        assert ping(shop.pods["client"]["netns"], ip, count=5) == 0
        connections, packets = connections + 1, packets + 10
        octets += 10 * FRAME[6 if ":" in ip else 4]
        expected = (connections, packets, octets)
        is_now("the ingress rule", partial(counters.rule, "in", "ingress", 1), expected)
        is_now("the egress rule", partial(counters.rule, "out", "egress"), expected)
    assert counters.rule("in", "ingress", 0) == (0, 0, 0), "the other rule allowed nothing"
    assert counters.denied("ingress", "in") == 0


@pytest.mark.timeout(120)
def test_connections_are_counted_once(shop: Shop) -> None:
    """Many packets of a TCP connection, or of one-way UDP, are one connection."""
    shop.policy("in", podSelector=SERVER, ingress=[{"from": [CLIENT]}])
    counters, place = Counters(shop), shop.pods["client"]["netns"]
    expected = 0
    for ip in shop.pods["server"]["ips"]:
        gets(place, ip, 4, 8080)
        expected += 4
        is_now("TCP connections", lambda: counters.rule("in")[0], expected)
        with netns.run_in(place, partial(socket.socket, family(ip), socket.SOCK_DGRAM)) as link:
            link.sendto(b"?", (ip, 8080))
            expected += 1
            # What comes in one batch with it has not been judged before, either (docs/policy.md).
            is_now("one-way UDP", lambda: counters.rule("in")[0], expected)
            wanted = counters.rule("in")[1] + 9
            for _ in range(9):
                link.sendto(b"?", (ip, 8080))
            eventually("all have been counted", partial(counted, counters, wanted))
        assert counters.rule("in")[0] == expected


@pytest.mark.timeout(120)
def test_denied_packets_name_who_isolates(shop: Shop) -> None:
    """Every packet that no rule allows, under the names of all policies that select the Pod."""
    shop.policy("one", podSelector=SERVER, ingress=[{"from": [CLIENT]}])
    shop.policy("two", ingress=[{"from": [CLIENT]}])
    counters = Counters(shop)
    total = 0
    for ip in shop.pods["server"]["ips"]:
        datagrams(shop.pods["other"]["netns"], ip, 7)
        total += 7
    is_now("both isolate", partial(counters.denied, "ingress", "one", "two"), total)
    assert counters.denied("ingress", "one") == 0
    assert counters.rule("one") == (0, 0, 0)
    shop.without("one")
    datagrams(shop.pods["other"]["netns"], shop.pods["server"]["ips"][0], 3)
    is_now("one still does", partial(counters.denied, "ingress", "two"), 3)


@pytest.mark.timeout(120)
def test_a_change_of_rules_moves_running_connections(shop: Shop) -> None:
    """A connection that goes on under another rule is counted for that rule from then on."""
    shop.policy("old", podSelector=SERVER, ingress=[{"from": [CLIENT]}])
    counters = Counters(shop)
    (ip, *_) = shop.pods["server"]["ips"]
    place = shop.pods["client"]["netns"]
    link = netns.run_in(place, lambda: socket.create_connection((ip, 8080), 3))
    link.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert link.recv(65535)
    eventually("the old rule counts", lambda: counters.rule("old")[1] > 0)
    shop.policy("new", podSelector=SERVER, ingress=[{"ports": [{"port": 8080}]}])
    shop.without("old")
    assert counters.rule("new")[1] == 0
    link.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert link.recv(65535)
    eventually("the new rule counts", lambda: counters.rule("new")[1] > 1)
    assert counters.rule("new")[0] == 0, "it is no new connection"
    link.close()


@pytest.mark.timeout(120)
def test_rest_and_prometheus(shop: Shop) -> None:
    """The metrics service shows the same, and that it is bounded is said by its settings."""
    shop.policy("shown", podSelector=SERVER, ingress=[{"from": [CLIENT]}])
    ip = shop.pods["server"]["ips"][0]
    assert ping(shop.pods["client"]["netns"], ip, count=3) == 0
    datagrams(shop.pods["other"]["netns"], ip, 4)
    url = shop.cluster.url("metrics")

    def shown() -> bool:
        answer = httpx.get(
            f"{url}/v1/policies", params={"namespace": shop.namespace}, trust_env=False
        ).json()
        rules = {item["name"]: item["rules"][0]["packets"] for item in answer["items"]}
        denied = {tuple(row["policies"]): row["packets"] for row in answer["denied"]}
        mine = (f"{shop.namespace}/shown",)
        return rules.get("shown") == 6 and denied.get(mine) == 4

    eventually("REST shows both", shown, 20.0)
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    labels = f'direction="ingress",namespace="{shop.namespace}"'
    rule = f'dunlin_networkpolicy_rule_packets_total{{action="Accept",{labels},policy="shown"'
    assert any(line.startswith(rule) and line.endswith(" 6.0") for line in text.splitlines())
    denied = f'dunlin_networkpolicy_denied_packets_total{{{labels},policies="shown",rule=""}} 4.0'
    assert denied in text
