"""Bandwidth annotations with real packets: what passes in two seconds, and what is left alone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import family

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

EGRESS, INGRESS = "kubernetes.io/egress-bandwidth", "kubernetes.io/ingress-bandwidth"
LIMIT_BPS = 20_000_000
MEASURED_S = 2.0
PORT = 5201
CHUNK = bytes(1 << 16)


class Stream:
    """
    TCP from one Pod to another, as fast as it goes, for as long as it is needed.

    What has arrived is what counts: a sender's buffer takes what no network has carried.
    """

    def __init__(self, source: dict[str, Any], target: dict[str, Any], port: int) -> None:
        address = target["ips"][0]
        self._stop = threading.Event()
        self.received = 0
        server = netns.run_in(
            target["netns"],
            lambda: socket.create_server((address, port), family=family(address)),
        )
        self._reader = netns.start_in(target["netns"], lambda: self._read(server))
        self._writer = netns.start_in(source["netns"], lambda: self._write(address, port))

    def _read(self, server: socket.socket) -> None:
        with server:
            server.settimeout(10.0)
            link, _ = server.accept()
            with link:
                link.settimeout(30.0)
                while data := link.recv(1 << 18):
                    self.received += len(data)

    def _write(self, address: str, port: int) -> None:
        with socket.create_connection((address, port), timeout=10.0) as link:
            link.settimeout(30.0)
            while not self._stop.is_set():
                link.sendall(CHUNK)

    def rate_bps(self) -> float:
        """Over some seconds from now."""
        began, before = time.monotonic(), self.received
        time.sleep(MEASURED_S)
        return (self.received - before) * 8 / (time.monotonic() - began)

    def stop(self) -> None:
        """Raises what went wrong: the connection must live to its end."""
        self._stop.set()
        self._writer.result(timeout=60.0)
        self._reader.result(timeout=60.0)


@contextmanager
def stream(source: dict[str, Any], target: dict[str, Any], port: int = PORT) -> Iterator[Stream]:
    """One, ended."""
    one = Stream(source, target, port)
    try:
        eventually("the first octets arrive", lambda: one.received, 15.0)
        yield one
    finally:
        one.stop()


def annotate(cluster: LabCluster, namespace: str, name: str, **annotations: str | None) -> None:
    """`egress`, `ingress`: set, or (None) removed; until all switches have it."""
    keys = {"egress": EGRESS, "ingress": INGRESS}
    body = {"metadata": {"annotations": {keys[way]: text for way, text in annotations.items()}}}
    cluster.api.patch(
        f"/api/v1/namespaces/{namespace}/pods/{name}",
        json=body,
        headers={"Content-Type": "application/merge-patch+json"},
    ).raise_for_status()
    cluster.wait()


def is_limited(rate_bps: float) -> bool:
    """Near the limit: TCP does not use all of what a bucket gives, and headers count."""
    return 0.5 * LIMIT_BPS <= rate_bps <= 1.3 * LIMIT_BPS


@pytest.mark.timeout(400)
def test_a_pods_limits(cluster: LabCluster) -> None:
    """Both directions, to a Pod here and one elsewhere; changed under a connection; others free."""
    namespace = cluster.namespace("bandwidth")
    here, there = cluster.nodes[0]["name"], cluster.nodes[1]["name"]
    for name, node in (("limited", here), ("near", here), ("remote", there)):
        cluster.pod(namespace, name, node)
    limited, near, remote = cluster.pods_ready(namespace, 3)
    cluster.wait()
    with stream(limited, remote) as one:
        free = eventually("without a limit", lambda: unlimited(one), 60.0)
        annotate(cluster, namespace, "limited", egress="20M")
        rate = eventually("the connection is slowed", lambda: slowed(one), 60.0)
        print(f"free {free / 1e6:.0f} Mbit/s, egress limit {rate / 1e6:.1f} Mbit/s")
        with stream(near, remote, PORT + 1) as other:
            eventually("another Pod of the node is free", lambda: unlimited(other), 60.0)
        annotate(cluster, namespace, "limited", egress=None)
        eventually("the same connection is free again", lambda: unlimited(one), 60.0)
    annotate(cluster, namespace, "limited", ingress="20M")
    with stream(near, limited) as one:
        rate = eventually("what it receives is limited", lambda: slowed(one), 60.0)
        print(f"ingress limit {rate / 1e6:.1f} Mbit/s")
    name = "dunlin_pod_bandwidth_dropped_packets_total"
    dropped = f'{name}{{direction="ingress",namespace="{namespace}"'
    eventually("the dropped packets are counted", lambda: dropped in metrics(cluster), 30.0)


def unlimited(one: Stream) -> float:
    """The rate, once it is far beyond the limit; else 0."""
    rate = one.rate_bps()
    return rate if rate > 2 * LIMIT_BPS else 0.0


def slowed(one: Stream) -> float:
    """The rate, once it is that of the limit; else 0."""
    rate = one.rate_bps()
    return rate if is_limited(rate) else 0.0


def metrics(cluster: LabCluster) -> str:
    """What Prometheus reads."""
    return httpx.get(f"{cluster.url('metrics')}/metrics", trust_env=False, timeout=10.0).text


def test_an_annotation_that_is_no_quantity(cluster: LabCluster) -> None:
    """It is named in the watcher's metrics, and the Pod works without a limit."""
    namespace = cluster.namespace("bandwidth-bad")
    cluster.pod(namespace, "bad", cluster.nodes[0]["name"])
    cluster.pods_ready(namespace, 1)
    annotate(cluster, namespace, "bad", egress="fast")
    bad = httpx.get(f"{cluster.url('watcher')}/v1/status", trust_env=False).text
    assert f"{namespace}/bad" in bad
    assert EGRESS in bad
