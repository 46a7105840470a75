"""What each Service endpoint sends and receives, against the counters of its client's port."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import HttpProbe, gets

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

NOT_COUNTED = 0.02
"""Of the bytes: a connection's first packet, and what is no Service's (neighbour discovery)."""


def read(cluster: LabCluster, path: str) -> list[dict[str, Any]]:
    """A list of the metrics service."""
    answer = httpx.get(cluster.url("metrics") + path, timeout=10.0, trust_env=False)
    items: list[dict[str, Any]] = answer.raise_for_status().json()["items"]
    return items


def counted(cluster: LabCluster, namespace: str) -> dict[str, int]:
    """Pod -> bytes between it and the clients of the Service's HTTP port."""
    (web,) = (s for s in read(cluster, f"/v1/services?namespace={namespace}") if s["port"] == 80)
    found: dict[str, int] = {}
    for endpoint in web["endpoints"]:
        found[endpoint["pod"]] = found.get(endpoint["pod"], 0) + endpoint["bytes"]
    return found


def at_port(cluster: LabCluster, namespace: str, pod: str) -> int:
    """Bytes that a Pod has sent and received."""
    rows = read(cluster, f"/v1/traffic/pods?namespace={namespace}")
    row = next((row for row in rows if row["name"] == pod), None)
    return int(row["receive_bytes"] + row["transmit_bytes"]) if row else 0


@pytest.mark.timeout(180)
def test_bytes_of_each_endpoint(cluster: LabCluster) -> None:
    """Long connections are counted for the endpoint that they have, here and on another node."""
    namespace = cluster.namespace("bytes")
    for index in range(2):
        name, node = f"web-{index}", cluster.nodes[index]["name"]
        cluster.pod(namespace, name, node, labels={"app": "web"})
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    pods = cluster.pods_ready(namespace, 3)
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    client = next(pod for pod in pods if pod["name"] == "client")
    probe = HttpProbe(client["netns"], address, keep=True, pause_s=0.0)
    eventually("2,000 requests", lambda: probe.counts.answered >= 2000)
    counts = probe.stop()
    assert counts.lost == 0
    assert not counts.errors
    (busy,) = probe.pods
    sent = at_port(cluster, namespace, "client")

    def agrees() -> bool:
        nonlocal sent
        sent = at_port(cluster, namespace, "client")
        service = sum(counted(cluster, namespace).values())
        return sent > 2000 * 100 and sent * (1 - NOT_COUNTED) <= service <= sent

    eventually("the counters of the Service are those of the port", agrees, 30.0)
    found = counted(cluster, namespace)
    idle = next(pod for pod in found if pod != f"{namespace}/{busy}")
    assert found[f"{namespace}/{busy}"] >= sent * (1 - NOT_COUNTED)
    assert found[idle] == 0
    # Short connections reach the other one too.
    answers = gets(client["netns"], address, 40)
    assert {answer["pod"] for answer in answers} == {"web-0", "web-1"}
    eventually("both are counted", lambda: counted(cluster, namespace)[idle] > 0, 30.0)
