"""
Pods that start against a rule that denies them by their labels: not one packet comes through.

Each Pod's network namespace is entered as soon as it exists, before CNI ADD: what is sent there is
what the earliest process of a Pod could send.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import CLUSTER_POLICIES, LabCluster, eventually
from tests.e2e.test_policy import Shop
from tests.e2e.traffic import family

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

STARTS = int(os.environ.get("DUNLIN_POLICY_STARTS", "1"))
"""Rounds; each starts four Pods that are denied and two that are not."""
PORT = 9901
POLICY = "starts"


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods, in a namespace of its own."""
    return Shop(cluster, "policy-starts")


@pytest.fixture
def deny(shop: Shop) -> Iterator[None]:
    """Pods of role `evil` are denied to the server; what is left of it goes."""
    own = {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}}

    def pods(**labels: str) -> dict[str, Any]:
        return {"pods": {"namespaceSelector": own, "podSelector": {"matchLabels": labels}}}

    rule = {"action": "Deny", "from": [pods(role="evil")]}
    spec = {"tier": "Admin", "priority": 3, "subject": pods(app="server"), "ingress": [rule]}
    shop.cluster.cluster_policy(POLICY, spec)
    shop.cluster.wait()
    yield
    shop.cluster.api.delete(f"{CLUSTER_POLICIES}/{POLICY}")
    shop.cluster.wait()


class Receiver:
    """In the server's namespace; counts datagrams by what they say and their IP version."""

    def __init__(self, place: str) -> None:
        self.came: Counter[tuple[str, int]] = Counter()
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._future = netns.start_in(place, self._run)
        while not self._ready.wait(0.05):
            if self._future.done():
                self._future.result()

    def _run(self) -> None:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            link.bind(("::", PORT))
            link.settimeout(0.05)
            self._ready.set()
            while not self._stop.is_set():
                try:
                    data, peer = link.recvfrom(200)
                except TimeoutError:
                    continue
                version = 4 if peer[0].startswith("::ffff:") else 6
                self.came[data.decode(), version] += 1

    def stop(self) -> None:
        """Nobody listens any more; raises what went wrong."""
        self._stop.set()
        self._future.result(timeout=10)


class Senders:
    """In each namespace of a Pod that comes to be: a datagram to each address every millisecond."""

    def __init__(self, prefix: str, targets: list[str]) -> None:
        self.sent: Counter[str] = Counter()
        """What left, by the namespace's name; a datagram without a way does not count."""
        self._targets = targets
        self._stop = threading.Event()
        self._known = {p.name for p in netns.NETNS_DIR.iterdir()}
        self._prefix = prefix
        self._links: list[Future[None]] = []
        self._looking = threading.Thread(target=self._look)
        self._looking.start()

    def _look(self) -> None:
        while not self._stop.wait(0.001):
            for name in {p.name for p in netns.NETNS_DIR.iterdir()} - self._known:
                if name.startswith(self._prefix) and self._enter(name):
                    self._known.add(name)

    def _enter(self, name: str) -> bool:
        """False: it is a name only, so far."""
        begun = threading.Event()

        def body() -> None:
            begun.set()
            self._send(name)

        future = netns.start_in(netns.path_of(name), body)
        while not begun.wait(0.001):
            if future.done():
                return False
        self._links.append(future)
        return True

    def _send(self, name: str) -> None:
        links = {ip: socket.socket(family(ip), socket.SOCK_DGRAM) for ip in self._targets}
        try:
            while not self._stop.is_set():
                for ip, link in links.items():
                    try:
                        link.sendto(name.encode(), socket.MSG_DONTWAIT, (ip, PORT))
                    except OSError:
                        continue
                    self.sent[name] += 1
                time.sleep(0.001)
        finally:
            for link in links.values():
                link.close()

    def stop(self) -> None:
        """Nothing is sent any more; raises what went wrong."""
        self._stop.set()
        self._looking.join()
        for future in self._links:
            future.result(timeout=10)


@contextmanager
def probed(shop: Shop) -> Iterator[tuple[Senders, Receiver]]:
    """Every Pod that starts meanwhile sends to the server."""
    server = shop.pods["server"]
    prefix = Path(server["netns"]).name.rpartition("p-")[0] + "p-"
    receiver = Receiver(server["netns"])
    senders = Senders(prefix, list(server["ips"]))
    try:
        yield senders, receiver
    finally:
        senders.stop()
        receiver.stop()


@pytest.mark.usefixtures("deny")
def test_pods_that_start_against_a_deny(shop: Shop) -> None:
    """Of those that are denied nothing arrives, from the first packet on; of the others it does."""
    cluster, node = shop.cluster, shop.cluster.nodes[0]["name"]
    with probed(shop) as (senders, receiver):
        for number in range(STARTS):
            roles = {f"evil-{number}-{i}": "evil" for i in range(4)}
            roles |= {f"good-{number}-{i}": "good" for i in range(2)}
            for name, role in roles.items():
                cluster.pod(shop.namespace, name, node, labels={"role": role})
            total = 3 + (number + 1) * len(roles)
            places = {
                name: Path(pod["netns"]).name
                for pod in cluster.pods_ready(shop.namespace, total)
                if (name := pod["name"]) in roles
            }
            _all_send(senders, places)
            _arrive(receiver, [place for name, place in places.items() if roles[name] == "good"])
        ready = cluster.pods_ready(shop.namespace, total)
        denied = {Path(p["netns"]).name for p in ready if p["name"].startswith("evil-")}
        assert len(denied) == 4 * STARTS
        came = {key: count for key, count in receiver.came.items() if key[0] in denied}
        assert not came, "what is denied has come through"
        cluster.api.delete(f"{CLUSTER_POLICIES}/{POLICY}").raise_for_status()
        _arrive(receiver, sorted(denied))


def _all_send(senders: Senders, places: dict[str, str]) -> None:
    """Fifty datagrams more of each, since CNI ADD has returned for all of them."""
    before = Counter(senders.sent)

    def reached() -> bool:
        return all(senders.sent[place] >= before[place] + 50 for place in places.values())

    eventually("every Pod sends", reached)


def _arrive(receiver: Receiver, places: list[str]) -> None:
    """Something of each, in both families: this is what a leak looks like."""
    wanted = {(place, version) for place in places for version in (4, 6)}
    eventually(f"{wanted} arrive", lambda: wanted <= set(receiver.came))
