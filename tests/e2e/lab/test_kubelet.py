"""The node runner plays kubelet: real API server, real namespaces, a CNI plugin of our own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dunlin_lab import netns, procs
from dunlin_lab.down import down
from dunlin_lab.kubelet import sandboxes
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import LabState, save_state
from dunlin_lab.underlay import AddressPlan, Underlay, host_networks
from tests.fixtures.kube_api import MERGE_PATCH

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PODS = "/api/v1/namespaces/default/pods"
RUNNER = "runner@0"


class Cluster:
    """Two nodes without OVS, the embedded API server, the runner."""

    def __init__(self, paths: LabPaths) -> None:
        self.paths = paths
        self.registry = procs.Processes(paths)
        self.cni = paths.run_dir / "fakecni"
        self.cni.mkdir(parents=True)
        plan = AddressPlan.of(paths.name, host_networks())
        outside, nodes = Underlay(paths, plan, userspace_tso=False).build(2)
        self.nodes = {node.name: node for node in nodes}
        self.outside = outside
        save_state(
            paths,
            LabState(
                name=paths.name,
                mgmt_ip=str(plan.host.ip),
                outside=outside,
                nodes=nodes,
                kubeconfig=str(paths.kubeconfig),
            ),
        )
        self._start_api()
        self.start_runner()

    def _start_api(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        argv = [sys.executable, "-m", "dunlin_lab.apiserver", "--port", str(port)]
        argv += ["--data-dir", str(self.paths.run_dir / "apiserver")]
        argv += ["--kubeconfig-out", str(self.paths.kubeconfig)]
        argv += ["--service-cidr", "10.96.0.0/16", "--cluster-cidr", "10.99.0.0/16"]
        self.registry.start("apiserver@0", argv)
        until(self.paths.kubeconfig.exists, "kubeconfig")
        config = yaml.safe_load(self.paths.kubeconfig.read_text())
        token = config["users"][0]["user"].get("token", "")
        self.api = httpx.Client(
            base_url=config["clusters"][0]["cluster"]["server"],
            headers={"Authorization": f"Bearer {token}"} if token else {},
            verify=False,  # noqa: S501 - on loopback, of this test's own server
            trust_env=False,
        )
        until(lambda: answers(self.api, "/readyz"), "API server")

    def start_runner(self) -> None:
        """Start the runner, new or again."""
        argv = [sys.executable, "-m", "dunlin_lab.runner", self.paths.name]
        env = {
            "DUNLIN_LAB_ROOT": str(self.paths.root),
            "DUNLIN_CNI": str(Path(__file__).with_name("fake_cni.sh")),
            "FAKE_CNI_DIR": str(self.cni),
        }
        self.registry.start(RUNNER, argv, env=env)

    def create(self, name: str, node: str = "n1", **more: Any) -> None:
        """A Pod with TCP 80 and UDP 53."""
        ports = [{"containerPort": 80}, {"containerPort": 53, "protocol": "UDP"}]
        spec = {"nodeName": node, "containers": [{"name": "c", "image": "i", "ports": ports}]}
        metadata = {"name": name, "annotations": more.pop("annotations", {})}
        body = {"metadata": metadata, "spec": {**spec, **more}}
        self.api.post(PODS, json={"apiVersion": "v1", "kind": "Pod", **body}).raise_for_status()

    def pod(self, name: str) -> dict[str, Any]:
        """The Pod now; {} when there is none."""
        answer = self.api.get(f"{PODS}/{name}")
        if answer.status_code == 404:
            return {}
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def ready(self, name: str) -> bool:
        """The Pod's Ready condition."""
        conditions = self.pod(name).get("status", {}).get("conditions") or []
        return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    def is_ready(self, name: str, *, expected: bool) -> bool:
        """Whether the Ready condition is as expected."""
        return self.ready(name) is expected

    def calls(self, command: str) -> list[str]:
        """The plugin's calls."""
        try:
            lines = (self.cni / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [line for line in lines if line.startswith(f"{command} ")]

    def log(self) -> str:
        """The runner's."""
        return (self.paths.logs / f"{RUNNER}.log").read_text()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster of this test only, taken down after."""
    with tempfile.TemporaryDirectory(prefix="dl") as root:
        paths = LabPaths.named(f"kl{os.getpid()}", Path(root) / "r")
        try:
            yield Cluster(paths)
        finally:
            if (paths.logs / f"{RUNNER}.log").exists():
                print((paths.logs / f"{RUNNER}.log").read_text()[-3000:])
            down(paths)


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> None:
    """Wait for a level."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.02)


def answers(api: httpx.Client, path: str) -> bool:
    """The server is there."""
    try:
        return api.get(path).status_code in (200, 401, 404)
    except httpx.HTTPError:
        return False


def get(path: str, address: str, port: int = 80) -> dict[str, Any]:
    """One GET from a namespace."""

    def call() -> dict[str, Any]:
        connection = http.client.HTTPConnection(address, port, timeout=5)
        connection.request("GET", "/")
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        connection.close()
        return answer

    return netns.run_in(path, call)


def test_pods_live_and_die_as_kubernetes_asks(cluster: Cluster) -> None:
    """Twelve Pods on two nodes: addresses, status, answers; deletion leaves nothing."""
    names = [f"web-{i}" for i in range(12)]
    for index, name in enumerate(names):
        cluster.create(name, node=f"n{1 + index % 2}")
    for name in names:
        until(partial(cluster.ready, name), f"readiness of {name}")
    pod = cluster.pod("web-0")
    node = cluster.nodes["n1"]
    status = pod["status"]
    assert status["phase"] == "Running"
    assert status["hostIP"] == node.ips[0]
    assert status["podIP"].startswith("10.99.0.")
    assert [entry["ip"] for entry in status["podIPs"]][1].startswith("fd99::")
    assert status["containerStatuses"][0]["ready"] is True
    for entry in status["podIPs"]:
        answer = get(node.netns, entry["ip"])
        assert (answer["pod"], answer["node"]) == ("web-0", "n1")
    (call,) = [line for line in cluster.calls("ADD") if "K8S_POD_NAME=web-0;" in line]
    assert "K8S_POD_NAMESPACE=default;" in call
    assert f"K8S_POD_UID={pod['metadata']['uid']}" in call
    assert f"net:[{netns.inode(node.netns)[1]}]" in call
    begin = time.monotonic()
    for name in names:
        cluster.api.delete(f"{PODS}/{name}").raise_for_status()
    until(lambda: not any(map(cluster.pod, names)), "end of the Pods")
    assert time.monotonic() - begin > 1.9
    assert sandboxes(cluster.paths) == ()
    assert not [name for name in netns.names() if f"dl-{cluster.paths.name}-p-" in name]
    assert len(cluster.calls("DEL")) == len(names)


def test_a_deleted_pod_answers_while_it_drains(cluster: Cluster) -> None:
    """Not one request fails between the deletion and the end of the drain time."""
    cluster.create("web", annotations={"dunlin.dev/lab-drain-seconds": "1"})
    until(lambda: cluster.ready("web"), "readiness")
    address = cluster.pod("web")["status"]["podIP"]
    node = cluster.nodes["n1"].netns
    cluster.api.delete(f"{PODS}/web").raise_for_status()
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < 0.8:
        assert get(node, address)["pod"] == "web"
        count += 1
    assert count > 10
    until(lambda: not cluster.pod("web"), "end of the Pod")


def test_nodes_are_registered_with_zone_and_lease(cluster: Cluster) -> None:
    """Ready, with both addresses and the labels the scheduler and topology need."""
    until(lambda: answers_ok(cluster.api, "/api/v1/nodes/n2"), "node n2")
    lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2"
    until(lambda: answers_ok(cluster.api, lease), "lease of n2")
    node = cluster.api.get("/api/v1/nodes/n2").json()
    assert node["metadata"]["labels"]["kubernetes.io/hostname"] == "n2"
    assert node["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-2"
    addresses = [a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP"]
    assert tuple(addresses) == cluster.nodes["n2"].ips
    assert {c["type"]: c["status"] for c in node["status"]["conditions"]}["Ready"] == "True"


def answers_ok(api: httpx.Client, path: str) -> bool:
    """The object is there."""
    return api.get(path).status_code == 200


def test_a_host_network_pod_has_the_nodes_addresses(cluster: Cluster) -> None:
    """No CNI call, no namespace of its own."""
    cluster.create("host", hostNetwork=True)
    until(lambda: cluster.ready("host"), "readiness")
    ips = [entry["ip"] for entry in cluster.pod("host")["status"]["podIPs"]]
    assert tuple(ips) == cluster.nodes["n1"].ips
    assert get(cluster.nodes["n2"].netns, ips[0])["pod"] == "host"
    assert cluster.calls("ADD") == []
    cluster.api.delete(f"{PODS}/host").raise_for_status()
    until(lambda: not cluster.pod("host"), "end of the Pod")
    assert netns.exists(cluster.paths.node_netns("n1"))


def test_the_annotation_turns_readiness_off_and_on(cluster: Cluster) -> None:
    """Without touching the sandbox."""
    cluster.create("web")
    until(lambda: cluster.ready("web"), "readiness")
    for value, expected in (("false", False), ("true", True)):
        body = {"metadata": {"annotations": {"dunlin.dev/lab-ready": value}}}
        answer = cluster.api.patch(f"{PODS}/web", json=body, headers=MERGE_PATCH)
        answer.raise_for_status()
        until(partial(cluster.is_ready, "web", expected=expected), f"Ready={expected}")
    assert len(cluster.calls("ADD")) == 1


def test_a_failing_plugin_is_retried_and_told_on_the_pod(cluster: Cluster) -> None:
    """The message is in a condition and an event; once it works the Pod runs; DEL is repeated."""
    fail = cluster.cni / "fail"
    fail.touch()
    cluster.create("web")
    until(lambda: "told to fail" in json.dumps(cluster.pod("web")["status"]), "condition")
    events = cluster.api.get("/api/v1/namespaces/default/events").json()["items"]
    assert any(e["reason"] == "FailedCreatePodSandBox" for e in events)
    until(lambda: len(cluster.calls("ADD")) >= 2, "second attempt")
    fail.unlink()
    until(lambda: cluster.ready("web"), "readiness")
    fail.touch()
    cluster.api.delete(f"{PODS}/web", params={"gracePeriodSeconds": "0"}).raise_for_status()
    before = len(cluster.calls("DEL"))
    until(lambda: len(cluster.calls("DEL")) >= before + 2, "second DEL")
    fail.unlink()
    until(lambda: not list(cluster.paths.sandboxes.glob("*.json")), "end of the sandbox")
    assert not [name for name in netns.names() if f"dl-{cluster.paths.name}-p-" in name]


def test_a_killed_runner_loses_nothing(cluster: Cluster) -> None:
    """Pods answer meanwhile; the next runner adopts them, and does what was missed."""
    for name in ("stay", "go"):
        cluster.create(name)
        until(partial(cluster.ready, name), f"readiness of {name}")
    address = cluster.pod("stay")["status"]["podIP"]
    node = cluster.nodes["n1"].netns
    assert cluster.registry.kill(RUNNER)
    assert get(node, address)["pod"] == "stay"
    cluster.api.delete(f"{PODS}/go").raise_for_status()
    cluster.create("new")
    cluster.start_runner()
    until(lambda: cluster.ready("new"), "readiness of new")
    until(lambda: not cluster.pod("go"), "end of go")
    assert get(node, address)["pod"] == "stay"
    assert cluster.ready("stay")
    assert len([c for c in cluster.calls("ADD") if "K8S_POD_NAME=stay;" in c]) == 1
    lists = [json.loads(line) for line in (cluster.cni / "gc").read_text().splitlines()]
    assert any(len(conf["cni.dev/valid-attachments"]) == 2 for conf in lists)


def test_a_pod_whose_namespace_is_gone_gets_another(cluster: Cluster) -> None:
    """After a reboot of the node: a new sandbox, a new address, and only that one in the status."""
    cluster.create("web")
    until(lambda: cluster.ready("web"), "readiness")
    old = cluster.pod("web")["status"]["podIPs"]
    cluster.registry.stop(RUNNER)
    (box,) = sandboxes(cluster.paths)
    netns.delete(box.netns)
    cluster.start_runner()
    until(lambda: cluster.pod("web")["status"]["podIPs"] != old, "another address")
    new = cluster.pod("web")["status"]["podIPs"]
    assert len(new) == 2
    assert not {entry["ip"] for entry in new} & {entry["ip"] for entry in old}
    until(lambda: reachable(cluster.nodes["n1"].netns, new[0]["ip"]), "answer")


def test_a_killed_responder_comes_back_with_all_it_served(cluster: Cluster) -> None:
    """Started again, it is told everything again, the outside too."""
    cluster.create("web")
    until(lambda: cluster.ready("web"), "readiness")
    address = cluster.pod("web")["status"]["podIP"]
    node, world = cluster.nodes["n1"].netns, cluster.outside.ips[0]
    until(lambda: reachable(node, world), "answer from outside")
    assert get(node, world)["pod"] == "outside"
    cluster.registry.kill("responder@0")
    assert not reachable(node, address)
    cluster.registry.restart("responder@0")
    until(lambda: reachable(node, address), "answer after the restart")
    until(lambda: reachable(node, world), "answer from outside")


def reachable(path: str, address: str) -> bool:
    """True when it answers."""
    try:
        get(path, address)
    except OSError:
        return False
    return True


def test_down_removes_a_running_cluster(cluster: Cluster) -> None:
    """Pods, runner and API server included."""
    cluster.create("web")
    until(lambda: cluster.ready("web"), "readiness")
    record = cluster.registry.find(RUNNER)
    assert record is not None
    os.kill(record.pid, signal.SIGSTOP)
    down(cluster.paths)
    assert not [n for n in netns.names() if cluster.paths.owns_netns(n)]
    assert procs.marked(cluster.paths.run_dir) == set()
    assert not cluster.paths.run_dir.exists()
