"""k8s/ against an API server: the lab's, for the kinds that it serves."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.test_manifests import kustomize
from tests.fixtures.kube_api import embedded

# ADR 0002: the embedded server has neither roles nor disruption budgets, and no CRDs.
NOT_SERVED = {"ClusterRole", "ClusterRoleBinding", "PodDisruptionBudget"}


def test_the_api_takes_all_of_base(tmp_path: Path) -> None:
    """A dry run on the server creates every object of a kind it serves."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    items = [item for item in yaml.safe_load_all(kustomize("base")) if item]
    served = [item for item in items if item["kind"] not in NOT_SERVED]
    assert len(items) - len(served) == 8
    with embedded(tmp_path):
        kubectl = ["kubectl", "--kubeconfig", str(tmp_path / "kubeconfig")]
        namespace = [*kubectl, "create", "namespace", "dunlin-system"]
        subprocess.run(namespace, check=True, capture_output=True)
        done = subprocess.run(
            [*kubectl, "apply", "--dry-run=server", "--validate=false", "-f", "-"],
            input=yaml.safe_dump_all(served),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == len(served)
