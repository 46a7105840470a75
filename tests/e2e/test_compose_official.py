"""compose/ with Kubernetes' own API server, and with the kubeconfig of a cluster that exists."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_compose import SHOP, Compose, answering, ready_pods, running, until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]
KUBERNETES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """The profile `official`, where its images are."""
    found = subprocess.run(
        ["docker", "image", "ls", "--format", "{{.Repository}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    missing = [n for n in KUBERNETES if f"registry.k8s.io/{n}" not in found.stdout.split()]
    if missing:
        pytest.skip(f"docker tier skipped: no image of {missing} (no registry is asked)")
    # The API server's image has no shell: the kubeconfig comes by a kubelet, of the same volume.
    directory = tmp_path_factory.mktemp("official")
    yield from running(directory, "official", "kubelet-1", "/kube/kubeconfig")


def shop(official: Compose) -> None:
    """A client and backends, ready."""
    official.kubectl("apply", "-f", "-", stdin=SHOP)
    until(lambda: len(ready_pods(official)) >= 3, "three Pods are ready")


def test_pods_talk_through_a_service(official: Compose) -> None:
    """With a real API server, controller manager and scheduler, every call is answered."""
    shop(official)
    until(lambda: len(answering(official)) >= 2, "both backends answer")
    assert "gitVersion" in official.kubectl("get", "--raw", "/version")


def test_a_cluster_that_exists_is_used(official: Compose, tmp_path: Path) -> None:
    """With DUNLIN_KUBECONFIG_DIR and no profile, the services read the cluster of that file."""
    kube = tmp_path / "kube"
    kube.mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    (kube / "kubeconfig").write_bytes(official.kubeconfig.read_bytes())
    (kube / "kubeconfig").chmod(0o644)
    official.environment |= {"COMPOSE_PROFILES": "", "DUNLIN_KUBECONFIG_DIR": str(kube)}
    official("up", "--detach", "--no-build", "--no-deps", "--wait", "watcher")
    shop(official)
    official.kubectl("scale", "deployment/backend", "--replicas=3")
    until(lambda: len(answering(official, 18)) == 3, "the new Pod answers too")
