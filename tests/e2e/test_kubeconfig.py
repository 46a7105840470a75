"""`lab up --kubeconfig`: a cluster that somebody else runs, by token file and by certificate."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.lab_cluster import LabCluster, why_not
from tests.e2e.traffic import get
from tests.fixtures.kube_api import Server, real

pytestmark = [
    pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow, pytest.mark.timeout(300)
]  # fmt: skip
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"


@dataclass
class Foreign:
    """A control plane, kubeconfigs of it by how they authenticate, and its administrator."""

    server: Server
    kubeconfigs: dict[str, Path]
    admin: httpx.Client


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Foreign]:
    """Started by hand, with a node of its own that no lab may touch."""
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
            "-subj", "/O=system:masters/CN=admin", "-addext", "extendedKeyUsage=clientAuth",
            "-keyout", str(folder / "client.key"), "-out", str(folder / "client.crt"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    with (
        real(folder, f"--client-ca-file={folder / 'client.crt'}") as server,
        server.client() as admin,
    ):
        admin.post("/api/v1/nodes", json={"metadata": {"name": "theirs"}}).raise_for_status()
        (folder / "token").write_text(server.token)
        kubeconfigs = {
            # Paths are relative to the kubeconfig, which `up` copies elsewhere.
            "token file": written(folder, "by-token", {"tokenFile": "token"}),
            "certificate": written(
                folder, "by-certificate",
                {"client-certificate": "client.crt", "client-key": "client.key"},
            ),
        }  # fmt: skip
        yield Foreign(server, kubeconfigs, admin)


def written(folder: Path, name: str, user: dict[str, str]) -> Path:
    """The administrator's kubeconfig with another user."""
    config = json.loads((folder / "admin.kubeconfig").read_text())
    config["users"][0]["user"] = user
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def names(client: httpx.Client, path: str) -> set[str]:
    """What a collection holds."""
    items: list[dict[str, Any]] = client.get(path).raise_for_status().json()["items"]
    return {item["metadata"]["name"] for item in items}


@pytest.mark.parametrize("how", ["token file", "certificate"])
def test_pods_and_services_and_nothing_left(foreign: Foreign, how: str) -> None:
    """Nodes join, Pods are bound and talk through a Service; `down` takes all of it back."""
    lab = LabCluster(f"kc-{os.getpid()}")
    try:
        lab.up("--nodes", "2", "--kubeconfig", str(foreign.kubeconfigs[how]))
        assert names(foreign.admin, "/api/v1/nodes") == {"theirs", "n1", "n2"}
        namespace = lab.namespace(f"kc-{how.replace(' ', '-')}")
        lab.pod(namespace, "client", "n1")
        lab.deployment(namespace, "web", 2)
        (address, *_) = lab.service(namespace, "web", {"app": "web"}, ipFamilyPolicy="SingleStack")
        pods = lab.pods_ready(namespace, 3)
        lab.endpoints_ready(namespace, "web", 2)
        lab.wait()
        client = next(pod for pod in pods if pod["name"] == "client")
        assert get(client["netns"], address)["pod"].startswith("web-")
    finally:
        lab.down()
    assert names(foreign.admin, "/api/v1/nodes") == {"theirs"}
    assert names(foreign.admin, LEASES) == set()
    left = foreign.admin.get(f"/api/v1/namespaces/{namespace}/pods").json()["items"]
    assert all("nodeName" not in pod["spec"] for pod in left), "the Deployment's, waiting"


def test_a_node_of_the_clusters_own_is_not_taken(foreign: Foreign) -> None:
    """Its `n1` is theirs: `up` says so and fails, and `down` leaves it."""
    foreign.admin.post("/api/v1/nodes", json={"metadata": {"name": "n1"}}).raise_for_status()
    lab = LabCluster(f"kn-{os.getpid()}")
    kubeconfig = str(foreign.kubeconfigs["token file"])
    try:
        failed = lab.dunlin(
            "lab", "up", "--no-sample", "--nodes", "1", "--kubeconfig", kubeconfig, check=False
        )
        assert failed.returncode == 1
        assert "node n1 that is not of this lab" in failed.stderr
    finally:
        lab.down()
    assert "n1" in names(foreign.admin, "/api/v1/nodes")
    foreign.admin.delete("/api/v1/nodes/n1").raise_for_status()


def test_a_cluster_that_is_away(foreign: Foreign, tmp_path: Path) -> None:
    """`up` fails naming the kubeconfig, and `down` removes what had been built."""
    config = json.loads(foreign.kubeconfigs["token file"].read_text())
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    lab = LabCluster(f"ka-{os.getpid()}")
    failed = lab.dunlin("lab", "up", "--nodes", "1", "--kubeconfig", str(path), check=False)
    assert failed.returncode == 1
    assert f"--kubeconfig {path}" in failed.stderr.replace("\n", "")
    lab.down()
