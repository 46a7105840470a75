"""`lab up --kube-assets`: what is missing or dies is told, what is killed comes back."""

from __future__ import annotations

import os
from pathlib import Path

import httpx
import pytest

from tests.e2e.lab_cluster import LabCluster, eventually, why_not
from tests.e2e.test_lab_leaves_nothing import remains
from tests.e2e.traffic import get

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]
EXECUTABLES = ("etcd", "kube-apiserver", "kube-controller-manager")


def assets(folder: Path, *broken: str) -> Path:
    """The real executables, but `broken` ones, which say so and end."""
    real = Path(os.environ.get("KUBEBUILDER_ASSETS", "/nowhere"))
    for name in EXECUTABLES:
        if name in broken:
            (folder / name).write_text(f"#!/bin/sh\necho {name} is broken on purpose >&2\nexit 3\n")
            (folder / name).chmod(0o755)
        elif not (real / name).is_file():
            pytest.skip(f"no {name} in KUBEBUILDER_ASSETS")
        else:
            (folder / name).symlink_to(real / name)
    return folder


def refused(lab: LabCluster, folder: Path) -> str:
    """What `up` says when it fails."""
    command = ("lab", "up", "--no-sample", "--nodes", "1", "--kube-assets", str(folder))
    failed = lab.dunlin(*command, check=False)
    assert failed.returncode == 1, failed.stdout
    # A terminal's line is short: words are broken over lines.
    return "".join(failed.stderr.split("\n"))


@pytest.mark.parametrize("how", ["absent", "not executable"])
def test_missing(tmp_path: Path, how: str) -> None:
    """The folder and the executable are named before anything is built."""
    assets(tmp_path, *EXECUTABLES)
    if how == "absent":
        (tmp_path / "kube-apiserver").unlink()
    else:
        (tmp_path / "kube-apiserver").chmod(0o644)
    lab = LabCluster(f"am-{os.getpid()}")
    said = refused(lab, tmp_path)
    assert "kube-apiserver" in said
    assert "--kube-assets" in said
    assert not any(remains(lab.name).values())


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("broken", "process"),
    [
        (EXECUTABLES, "etcd@0"),
        (("kube-apiserver",), "apiserver@0"),
        (("kube-controller-manager",), "kube-controller-manager@0"),
    ],
)
def test_one_that_dies(tmp_path: Path, broken: tuple[str, ...], process: str) -> None:
    """`up` says which ended and shows the end of its log; `down` leaves nothing."""
    if reason := why_not():
        pytest.skip(reason)
    lab = LabCluster(f"ad-{os.getpid()}")
    try:
        said = refused(lab, assets(tmp_path, *broken))
    finally:
        lab.dunlin("lab", "down")
    assert f"{process} ended" in said
    assert "is broken on purpose" in said
    assert not any(remains(lab.name).values())


@pytest.mark.timeout(240)
@pytest.mark.parametrize("service", ["etcd", "apiserver", "kube-controller-manager"])
def test_killed_and_started(cluster: LabCluster, service: str) -> None:
    """Traffic does not care while it is away; after `start` a change comes into force."""
    if service not in {item["service"] for item in cluster.status()["services"]}:
        pytest.skip("this lab has the embedded API")
    namespace = cluster.namespace(f"killed-{service}")
    cluster.pod(namespace, "client", cluster.nodes[0]["name"])
    (address, *_) = cluster.service(namespace, "web", {"app": "web"})
    cluster.deployment(namespace, "web", 2)
    pods = cluster.pods_ready(namespace, 3)
    cluster.endpoints_ready(namespace, "web", 2)
    cluster.wait()
    client = next(pod["netns"] for pod in pods if pod["name"] == "client")
    cluster.kill(service)
    try:
        assert all(get(client, address)["pod"].startswith("web-") for _ in range(10))
    finally:
        cluster.start(service)
    eventually("the API is ready", lambda: _ready(cluster))
    scale = f"/apis/apps/v1/namespaces/{namespace}/deployments/web/scale"
    cluster.patch(scale, {"spec": {"replicas": 3}})
    cluster.pods_ready(namespace, 4)
    cluster.endpoints_ready(namespace, "web", 3)
    cluster.wait()
    eventually(
        "all three answer", lambda: len({get(client, address)["pod"] for _ in range(30)}) == 3
    )


def _ready(cluster: LabCluster) -> bool:
    try:
        return cluster.api.get("/readyz").is_success
    except httpx.HTTPError:
        return False
