"""k8s/ against API servers: the lab's, for the kinds that it serves, and a real control plane."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.test_manifests import OPERATOR, OVERLAYS, kustomize, objects
from tests.fixtures.kube_api import embedded, real, wait_until

# ADR 0002: the embedded server has neither roles nor disruption budgets, and no CRDs.
NOT_SERVED = {"ClusterRole", "ClusterRoleBinding", "PodDisruptionBudget"}
NAMESPACE = "dunlin-system"


class Kubectl:
    """kubectl on one cluster."""

    def __init__(self, kubeconfig: Path) -> None:
        if shutil.which("kubectl") is None:
            pytest.skip("needs kubectl")
        self._command = ["kubectl", "--kubeconfig", str(kubeconfig)]

    def __call__(self, *arguments: str, given: list[dict[str, Any]] | None = None) -> str:
        """Run it, with manifests on its standard input; what it prints."""
        done = subprocess.run(
            [*self._command, *arguments],
            input=None if given is None else yaml.safe_dump_all(given),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def test_the_embedded_api_takes_all_of_base(tmp_path: Path) -> None:
    """A dry run on the server creates every object of a kind it serves."""
    items = [item for item in yaml.safe_load_all(kustomize("base")) if item]
    served = [item for item in items if item["kind"] not in NOT_SERVED]
    assert len(items) - len(served) == 8
    with embedded(tmp_path):
        kubectl = Kubectl(tmp_path / "kubeconfig")
        kubectl("create", "namespace", NAMESPACE)
        arguments = ("apply", "--dry-run=server", "--validate=false", "-f", "-")
        printed = kubectl(*arguments, given=served)
    assert printed.count("(server dry run)") == len(served)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    """A real control plane with the namespace and a node, and all admission plugins."""
    folder = tmp_path_factory.mktemp("dry-run")
    with real(folder):
        kubectl = Kubectl(folder / "admin.kubeconfig")
        # In a dry run the namespace would not be there for what is in it.
        (namespace,) = [item for item in objects("base") if item["kind"] == "Namespace"]
        labels = {"kubernetes.io/os": "linux"}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": labels}}
        kubectl("apply", "-f", "-", given=[namespace, node])
        yield kubectl


def without_operator(overlay: str) -> list[dict[str, Any]]:
    """An overlay's objects but those of the Prometheus operator, whose kinds it brings itself."""
    return [item for item in objects(overlay) if item["apiVersion"] != OPERATOR]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_real_api_takes_every_overlay(cluster: Kubectl, overlay: str) -> None:
    """Defaulting, validation, admission and unknown fields (strict), for each object."""
    items = without_operator(overlay)
    arguments = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    printed = cluster(*arguments, given=items)
    assert printed.count("(server dry run)") == len(items)
    assert "Warning" not in printed


def test_a_mistake_would_be_seen(cluster: Kubectl) -> None:
    """The oracle can fail: a field that no Deployment has is refused."""
    items = [item for item in objects("base") if item["kind"] == "Deployment"]
    changed = json.loads(json.dumps(items[0]))
    changed["spec"]["template"]["spec"]["dnsPolizy"] = "Default"
    arguments = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
    with pytest.raises(AssertionError, match="dnsPolizy"):
        cluster(*arguments, given=[changed])


def test_controllers_make_pods(cluster: Kubectl) -> None:
    """Applied in earnest, each workload gets its first Pod: PodSecurity and priorities admit it."""
    items = without_operator("overlays/dev")
    cluster("apply", "-f", "-", given=items)
    kinds = {"Deployment", "DaemonSet", "StatefulSet"}
    wanted = {item["metadata"]["name"] for item in items if item["kind"] in kinds}
    assert len(wanted) >= 7

    def made() -> set[str]:
        pods = json.loads(cluster("-n", NAMESPACE, "get", "pods", "-o", "json"))["items"]
        return {pod["spec"]["serviceAccountName"] for pod in pods}

    wait_until("a Pod of each workload", lambda: made() == wanted)
