"""
A real kubelet and containerd on a node of a lab: they call our CNI executable, Pods really run.

On a real control plane with a kubelet beside it ($KUBEBUILDER_ASSETS) and Debian's containerd.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dunlin_lab import netns
from tests.e2e.lab_cluster import LabCluster, a_lab, eventually
from tests.e2e.real_kubelet import IMAGE, Runtime, why_no_kubelet
from tests.e2e.traffic import get

pytestmark = [
    pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow, pytest.mark.timeout(300)
]  # fmt: skip
NODE = "n2"


@pytest.fixture(scope="module")
def runtime() -> Iterator[Runtime]:
    """A lab of two nodes: n1 as always, n2 by the real kubelet."""
    if reason := why_no_kubelet():
        pytest.skip(reason)
    with (
        a_lab("kl", "--nodes", "2", "--without-kubelet", NODE) as lab,
        # Sockets' paths must be short.
        tempfile.TemporaryDirectory(prefix="kl", ignore_cleanup_errors=True) as folder,
    ):
        (node,) = [node for node in lab.nodes if node["name"] == NODE]
        made = Runtime(Path(folder), lab, node)
        with made.running():
            yield made
            lab.api.delete("/api/v1/namespaces/real")
            path = "/api/v1/namespaces/real/pods"
            eventually("the Pods are gone", lambda: not lab.api.get(path).json()["items"])


def node_of(lab: LabCluster) -> dict[str, Any]:
    """Reason and message of the Node's Ready condition."""
    answer = lab.api.get(f"/api/v1/nodes/{NODE}")
    if not answer.is_success:
        return {}
    conditions = answer.json()["status"].get("conditions") or []
    return {c["type"]: c for c in conditions}.get("Ready") or {}


def serving_pod(name: str) -> dict[str, Any]:
    """A Pod that answers HTTP, with a probe that kubelet makes from the node."""
    container = {
        "name": "c",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "args": ["serve"],
        "ports": [{"name": "http", "containerPort": 8080}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
    }
    spec = {"nodeName": NODE, "containers": [container], "terminationGracePeriodSeconds": 1}
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def addresses(lab: LabCluster, name: str) -> list[str]:
    """PodIPs of a Pod that is ready, else nothing."""
    status = lab.api.get(f"/api/v1/namespaces/real/pods/{name}").raise_for_status().json()["status"]
    ready = {c["type"]: c["status"] for c in status.get("conditions") or []}.get("Ready")
    return [entry["ip"] for entry in status.get("podIPs") or []] if ready == "True" else []


def test_node_and_pod(runtime: Runtime) -> None:
    """
    NotReady without a CNI configuration, Ready with it; a Pod then runs and is reached.

    kubelet's probe goes from the node to the Pod, a Service on both sides of the Pod.
    """
    lab = runtime.lab
    eventually("the node waits for us", lambda: "cni" in str(node_of(lab).get("message")).lower())
    assert node_of(lab)["status"] == "False"
    runtime.install_cni()
    eventually("the node is ready", lambda: node_of(lab).get("status") == "True")

    namespace = lab.namespace("real")
    lab.create(f"/api/v1/namespaces/{namespace}/pods", serving_pod("web"))
    lab.pod(namespace, "client", "n1")
    (real_service, *_) = lab.service(namespace, "web", {"app": "web"})
    (lab_service, *_) = lab.service(namespace, "client", {"app": "client"})
    ips = eventually("the Pod is ready", lambda: addresses(lab, "web"))
    assert len(ips) == 2, "dual stack, from the CNI result"
    (client,) = lab.pods_ready(namespace, 1)
    lab.endpoints_ready(namespace, "web", 1)
    lab.endpoints_ready(namespace, "client", 1)
    lab.wait()

    def answer() -> str:
        return httpx.get(f"http://{real_service}/", timeout=5, trust_env=False).text

    assert netns.run_in(client["netns"], answer) == "served"
    inside = f"/proc/{runtime.pid_of('web')}/ns/net"
    assert get(inside, lab_service)["pod"] == "client"
    assert get(inside, client["ips"][0], 8080)["client"] == ips[0], "no source NAT between Pods"


def test_deletion_gives_everything_back(runtime: Runtime) -> None:
    """Kubelet's DEL: address and port are free again."""
    lab = runtime.lab
    lab.create("/api/v1/namespaces/real/pods", serving_pod("short"))
    (first, *_) = eventually("the Pod is ready", lambda: addresses(lab, "short"))
    path = "/api/v1/namespaces/real/pods/short"
    lab.api.delete(path).raise_for_status()
    eventually("the Pod is gone", lambda: lab.api.get(path).status_code == 404)

    def held() -> list[str]:
        found = httpx.get(f"{lab.url('ipam')}/v1/ipam/addresses", trust_env=False).json()
        return [str(item) for item in found if first in str(item)]

    eventually("no address is held", lambda: not any("short" in item for item in held()))
