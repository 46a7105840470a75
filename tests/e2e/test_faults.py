"""Any service may die at any moment: nothing is lost, nothing moves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dunlin.pipeline.layout import Table
from tests.dataplane.agent.ovs_node import run
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.traffic import HttpProbe, UdpProbe, get

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SERVICES = ["watcher", "ipam", "planner", "flowctl", "metrics", "agent", "nats"]


class Traffic:
    """Running connections of every kind: between Pods, through a Service, across nodes."""

    def __init__(self, pods: list[dict[str, Any]], address: str) -> None:
        client, local, remote = pods
        self.client, self.address = client, address
        self.probes: list[UdpProbe | HttpProbe] = [
            UdpProbe(client["netns"], local["ips"][0], 8080),
            UdpProbe(client["netns"], remote["ips"][0], 8080),
            UdpProbe(client["netns"], address, 53),
            HttpProbe(client["netns"], address, keep=True, pause_s=0.01),
        ]
        eventually("traffic runs", lambda: all(p.counts.answered > 10 for p in self.probes))

    def stop(self) -> None:
        """Nothing was lost."""
        results = [probe.stop() for probe in self.probes]
        assert all(counts.lost == 0 and not counts.errors for counts in results), results


@pytest.fixture(scope="module")
def pods(cluster: LabCluster) -> tuple[str, list[dict[str, Any]], str]:
    """(namespace, [client, local, remote], cluster IP) with a Service over the latter two."""
    namespace = cluster.namespace("faults")
    first, second = cluster.nodes[0]["name"], cluster.nodes[1]["name"]
    cluster.pod(namespace, "a-client", first)
    cluster.pod(namespace, "b-local", first, labels={"app": "web"})
    cluster.pod(namespace, "c-remote", second, labels={"app": "web"})
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    found = cluster.pods_ready(namespace, 3)
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    return namespace, found, address


DIGEST = f", table={int(Table.DIGEST)}, "
GENERATION = re.compile(r"(ct_mark=|set_field:)0x[0-9a-f]+/0xffffff(?=[0-9a-f]{2})")


def installed(cluster: LabCluster) -> list[list[str]]:
    """
    Flows and groups of each node, without the generation of policy, and digests, which have it too.

    That is a number that a planner without a memory chooses anew (ADR 0011).
    """
    return [
        [GENERATION.sub(r"\1", flow) for flow in cluster.flows(node) if DIGEST not in flow]
        for node in cluster.nodes
    ]


def different(cluster: LabCluster, before: list[list[str]]) -> list[str]:
    """What a node has not as before: `- was`, `+ is`, with the node's name."""
    lines = []
    for node, was, now in zip(cluster.nodes, before, installed(cluster), strict=True):
        lines += [f"{node['name']} - {line}" for line in was if line not in set(now)]
        lines += [f"{node['name']} + {line}" for line in now if line not in set(was)]
    return lines


@pytest.fixture
def traffic(pods: tuple[str, list[dict[str, Any]], str]) -> Iterator[Traffic]:
    """Runs during the test; the test stops it."""
    running = Traffic(pods[1], pods[2])
    yield running
    for probe in running.probes:
        probe.stop()


def addresses(cluster: LabCluster) -> dict[str, Any]:
    """The ledger: address -> who has it."""
    items = httpx.get(f"{cluster.url('ipam')}/v1/ipam/addresses", trust_env=False).json()["items"]
    found = {item["ip"]: item for item in items if item["state"] == "allocated"}
    assert len(found) == sum(item["state"] == "allocated" for item in items), "doubled"
    return found


def check_ledger(cluster: LabCluster) -> None:
    """No address leaked or doubled: the ledger is exactly what the Pods have."""

    def reached() -> bool:
        held = {ip for pod in cluster.status()["pods"] for ip in pod["ips"]}
        return set(addresses(cluster)) == held

    eventually("the ledger is what the Pods have", reached)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("service", SERVICES)
def test_kill_and_restart(
    cluster: LabCluster,
    pods: tuple[str, list[dict[str, Any]], str],
    traffic: Traffic,
    service: str,
) -> None:
    """After kill -9 no packet is lost, flows are identical, changes made meanwhile are applied."""
    namespace, (client, *_), _ = pods
    before = installed(cluster)
    cluster.kill(service)
    meanwhile = cluster.service(namespace, f"new-{service}", {"app": "web"})
    assert installed(cluster)[1:] == before[1:] or service in (
        "metrics",
        "agent",
        "ipam",
    )
    cluster.start(service)
    cluster.ready()
    cluster.endpoints_ready(namespace, f"new-{service}", 2)
    cluster.wait(60)
    for address in meanwhile:
        assert get(client["netns"], address)["pod"] in ("b-local", "c-remote")
    path = f"/api/v1/namespaces/{namespace}/services/new-{service}"
    cluster.api.delete(path).raise_for_status()
    cluster.wait()
    traffic.stop()
    found = different(cluster, before)
    assert not found, "\n".join(found)
    check_ledger(cluster)


@pytest.mark.timeout(180)
def test_delete_jetstream(
    cluster: LabCluster, pods: tuple[str, list[dict[str, Any]], str], traffic: Traffic
) -> None:
    """All JetStream data gone and every service restarted: same flows, no packet lost."""
    names = [name for name in SERVICES if name != "nats"]
    cluster.wait()
    before = installed(cluster)
    for service in ("nats", *names):
        cluster.kill(service)
    cluster.wipe_jetstream()
    for service in ("nats", *names):
        cluster.start(service)
    cluster.ready()
    cluster.wait(60)
    traffic.stop()
    found = different(cluster, before)
    assert not found, "\n".join(found)
    check_ledger(cluster)


def closed(cluster: LabCluster, node: str) -> str:
    """For which life of ovs-vswitchd the agent's conntrack timeouts are in force; "": for none."""
    database = Path(cluster.status()["kubeconfig"]).parent / "ovs" / node / "db.sock"
    rows = run(
        "ovs-vsctl", f"--db=unix:{database}", "--bare", "--columns=external_ids", "list",
        "CT_Timeout_Policy",
    ).strip()  # fmt: skip
    return "" if "announced" in rows else rows


@pytest.mark.timeout(180)
def test_vswitchd_restart(cluster: LabCluster, pods: tuple[str, list[dict[str, Any]], str]) -> None:
    """After ovs-vswitchd is killed and started again every Pod is attached, without recreation."""
    _, found, address = pods
    node = cluster.nodes[0]["name"]
    before = {pod["name"]: pod["ips"] for pod in found}
    timeouts = eventually("closed connections are remembered", lambda: closed(cluster, node))
    cluster.kill(f"ovs-vswitchd/{node}")
    cluster.start(f"ovs-vswitchd/{node}")

    def works() -> bool:
        try:
            answers = [get(found[0]["netns"], pod["ips"][0], 8080, 1.0) for pod in found[1:]]
            return len(answers) == 2 and bool(get(found[0]["netns"], address, 80, 1.0))
        except OSError:
            return False

    eventually("Pods of the node talk again", works)
    cluster.wait()
    now = {p["name"]: p["ips"] for p in cluster.status()["pods"] if p["name"] in before}
    assert now == before
    again = "closed connections are remembered by the new ovs-vswitchd"
    eventually(again, lambda: closed(cluster, node) not in ("", timeouts))
