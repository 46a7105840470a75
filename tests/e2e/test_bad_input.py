"""Bad input of every kind: an error that names the object, a metric, and everything else works."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.lab_cluster import REPOSITORY, LabCluster, eventually
from tests.e2e.traffic import get
from tests.e2e.unchecked import spoil

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> tuple[str, dict[str, Any], str]:
    """(namespace, a Pod, the cluster IP of its Service): what must keep working."""
    namespace = cluster.namespace("bad-input")
    cluster.pod(namespace, "good", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "good", {"app": "good"})
    (pod,) = cluster.pods_ready(namespace, 1)
    cluster.endpoints_ready(namespace, "good", 1)
    cluster.wait()
    return namespace, pod, address


def works(cluster: LabCluster, shop: tuple[str, dict[str, Any], str], name: str) -> None:
    """A new Service comes into force, and old ones answer."""
    namespace, pod, address = shop
    assert get(pod["netns"], address)["pod"] == "good"
    (new, *_) = cluster.service(namespace, name, {"app": "good"})
    cluster.endpoints_ready(namespace, name, 1)
    cluster.wait()
    assert get(pod["netns"], new)["pod"] == "good"


def metric(cluster: LabCluster, service: str, prefix: str) -> float:
    """Sum of the samples of a metric of one service."""
    text = httpx.get(f"{cluster.url(service)}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(prefix)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def log(cluster: LabCluster, process: str) -> str:
    """What a process of the lab has logged."""
    root = Path(os.environ.get("DUNLIN_LAB_ROOT", "/run/dunlin-lab"))
    return (root / cluster.name / "log" / f"{process}.log").read_text("utf-8")


def test_bad_service(cluster: LabCluster, shop: tuple[str, dict[str, Any], str]) -> None:
    """A Service with an unknown protocol is named, counted, and harms nobody."""
    namespace = shop[0]
    before = metric(cluster, "watcher", "dunlin_bad_input_total{")
    ports = [{"port": 80, "protocol": "FOO"}]
    manifest = {
        "metadata": {"name": "strange"},
        "spec": {"selector": {"app": "good"}, "ports": ports},
    }
    path = f"/api/v1/namespaces/{namespace}/services"
    assert cluster.api.post(path, json=manifest).status_code == 422
    cluster.service(namespace, "strange", {"app": "good"})
    spoil(cluster, f"{path}/strange", {"spec": {"ports": ports}})
    eventually(
        "the bad Service is counted",
        lambda: metric(cluster, "watcher", "dunlin_bad_input_total{") > before,
    )
    assert "strange" in log(cluster, "watcher@0")
    assert "FOO" in log(cluster, "watcher@0")
    works(cluster, shop, "after-service")


def test_bad_pod(cluster: LabCluster, shop: tuple[str, dict[str, Any], str]) -> None:
    """A Pod with an invalid address is named, counted, and harms nobody."""
    namespace = shop[0]
    before = metric(cluster, "watcher", "dunlin_bad_input_total{")
    manifest = {
        "metadata": {"name": "odd-pod", "annotations": {"dunlin.dev/lab-ignore": "true"}},
        "spec": {"nodeName": "no-such-node", "containers": [{"name": "x", "image": "x"}]},
    }
    pods = f"/api/v1/namespaces/{namespace}/pods"
    assert cluster.api.post(pods, json=manifest).status_code == 201
    status = {"podIP": "10.244.999.1", "podIPs": [{"ip": "10.244.999.1"}]}
    spoil(cluster, f"{pods}/odd-pod", {"status": status})
    eventually(
        "the bad Pod is counted",
        lambda: metric(cluster, "watcher", "dunlin_bad_input_total{") > before,
    )
    assert "odd-pod" in log(cluster, "watcher@0")
    works(cluster, shop, "after-pod")


def test_garbage_on_the_openflow_port(
    cluster: LabCluster, shop: tuple[str, dict[str, Any], str]
) -> None:
    """Garbage closes that session and nothing else."""
    before = metric(cluster, "flowctl", "dunlin_openflow_errors_total{")
    host, port = openflow_address(cluster)
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x06\x00\x00\x04\0\0\0\0", os.urandom(4096)):
        with socket.create_connection((host, port), 5.0) as link:
            link.settimeout(15.0)
            link.sendall(data)
            # Our hello may come first; then the session ends.
            try:
                while link.recv(65536):
                    pass
            except ConnectionResetError:
                continue
    eventually(
        "garbage is counted",
        lambda: metric(cluster, "flowctl", "dunlin_openflow_errors_total{") > before,
    )
    works(cluster, shop, "after-openflow")


def openflow_address(cluster: LabCluster) -> tuple[str, int]:
    """Where flowctl listens: what the bridges connect to."""
    node = cluster.nodes[0]
    command = ["ovs-vsctl", f"--db=unix:{node['ovs_rundir']}/db.sock", "get-controller", "br-int"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, host, port = done.stdout.split()[0].split(":")
    return host, int(port)


def test_garbage_to_the_cni(cluster: LabCluster, shop: tuple[str, dict[str, Any], str]) -> None:
    """Garbage on the CNI executable's standard input is error 6 of the specification."""
    env = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "0123456789",
        "CNI_NETNS": "/run/netns/none",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/",
    }
    done = subprocess.run(
        [str(REPOSITORY / "build" / "bin" / "dunlin-cni")],
        input=b"\xff{not json", env=env, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    error = json.loads(done.stdout)
    assert error["code"] == 6, error
    works(cluster, shop, "after-cni")


def test_garbage_to_rest(cluster: LabCluster, shop: tuple[str, dict[str, Any], str]) -> None:
    """Unknown paths, ids and bodies are 404, 405 or 422 with an error, never 500."""
    for service in ("watcher", "ipam", "planner", "flowctl", "metrics"):
        url = cluster.url(service)
        for path in ("/nothing", "/v1/intents/%00%ff", "/v1/switches/../../x/flows?intent=%ff"):
            answer = httpx.get(url + path, trust_env=False)
            assert answer.status_code in (200, 404, 422), (service, path, answer.status_code)
        answer = httpx.post(f"{url}/v1/wait?timeout_s=never", content=b"\xff", trust_env=False)
        assert answer.status_code in (404, 405, 422), (service, answer.status_code)
        assert answer.json()
    works(cluster, shop, "after-rest")


async def test_garbage_on_nats(cluster: LabCluster, shop: tuple[str, dict[str, Any], str]) -> None:
    """Messages that do not parse are named by their subject, counted, and harm nobody."""
    import nats

    before = metric(cluster, "planner", "dunlin_bad_input_total{")
    link = await nats.connect(cluster.status()["nats"])
    try:
        stream = link.jetstream()
        await stream.publish("dunlin.v1.fact.service.bad-input.garbled", b"\xff not json")
        await stream.publish("dunlin.v1.fact.unknownkind.x.y", b"{}")
        await stream.publish("dunlin.v1.intent.all.service.garbled", b"{}")
        await link.publish("dunlin.v1.rpc.ipam.allocate", b"\x00")
    finally:
        await link.close()
    eventually(
        "garbage is counted",
        lambda: metric(cluster, "planner", "dunlin_bad_input_total{") > before,
    )
    assert "garbled" in log(cluster, "planner@0")
    works(cluster, shop, "after-nats")
