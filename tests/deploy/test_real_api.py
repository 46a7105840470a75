"""Manifests and chart in a real API server: dry runs; install, upgrade, uninstall."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from dunlin.bus.permissions import permissions
from tests.deploy.test_chart import BASE, CHART
from tests.deploy.test_manifests import kustomize
from tests.fixtures.kube_api import Server, real

pytestmark = [pytest.mark.slow]
VALUES: dict[str, Any] = {**BASE, "secrets": {"generate": True}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A real API server, where its executables are at hand."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl")
    with real(tmp_path) as found:
        yield found


def kubectl(server: Server, *arguments: str) -> list[dict[str, Any]]:
    """`kubectl get … -o yaml` in the chart's namespace."""
    where = ["--server", server.url, "--token", server.token, "--insecure-skip-tls-verify"]
    command = ["kubectl", "--kubeconfig", "/dev/null", *where, "-n", "dunlin-system"]
    done = subprocess.run(
        [*command, *arguments, "-o", "yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = yaml.safe_load(done.stdout)["items"]
    return found


def secrets(server: Server) -> dict[str, dict[str, str]]:
    """Data of Dunlin's Secrets, by name."""
    found = kubectl(server, "get", "secrets", "--field-selector", "type!=helm.sh/release.v1")
    return {item["metadata"]["name"]: item["data"] for item in found}


@pytest.mark.parametrize("overlay", ["crds", "overlays/dev", "overlays/dpdk", "."])
def test_the_server_takes_every_object(server: Server, overlay: str) -> None:
    """`kubectl apply -k … --dry-run=server` with the strictest validation, without a warning."""
    where = ["--server", server.url, "--token", server.token, "--insecure-skip-tls-verify"]
    command = ["kubectl", "--kubeconfig", "/dev/null", *where]
    namespace = [*command, "create", "namespace", "dunlin-system"]
    subprocess.run(namespace, check=True, capture_output=True)
    apply = ["apply", "--dry-run=server", "--validate=strict", "--server-side", "-f", "-"]
    done = subprocess.run(
        [*command, *apply], input=kustomize(overlay), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("(server dry run)") == kustomize(overlay).count("\nkind: ")
    assert not [line for line in done.stderr.splitlines() if "unknown field" in line.lower()]


def config_of(server: Server) -> helm.Config:
    """Helm at this server."""
    return helm.Config(
        kubeconfig_content="{apiVersion: v1, kind: Config}",
        kube_apiserver=server.url,
        kube_token=server.token,
        kube_insecure_skip_tls_verify=True,
        namespace="dunlin-system",
    )


def users(server: Server) -> str:
    """The public keys that the NATS servers read."""
    maps = {i["metadata"]["name"]: i for i in kubectl(server, "get", "configmaps")}
    text: str = maps["dunlin-nats-users"]["data"]["users.conf"]
    return text


def test_passwords_stay_valid_until_people_take_them_out(server: Server) -> None:
    """Where a release before nkeys left its Secret, Helm adds keys beside the passwords, once."""
    where = ["--server", server.url, "--token", server.token, "--insecure-skip-tls-verify"]
    command = ["kubectl", "--kubeconfig", "/dev/null", *where]
    for words in (
        ("create", "namespace", "dunlin-system"),
        (
            *["-n", "dunlin-system", "create", "secret", "generic", "dunlin-nats"],
            "--from-literal=ipam=p1",
        ),
    ):
        subprocess.run([*command, *words], check=True, capture_output=True)
    with config_of(server) as config, helm.Chart.load(CHART) as chart:
        config.install(chart, "dunlin", VALUES)
        both, made = users(server), secrets(server)
        assert both.count("nkey: ") == both.count("password: ") == both.count(" # old\n") == 6
        assert both.count("password: $DUNLIN_NATS_PASSWORD_") == 6
        config.upgrade(chart, "dunlin", VALUES)
        assert (users(server), secrets(server)) == (both, made)
        # As docs/operate.md says it.
        told = subprocess.run(
            [
                *command,
                "-n",
                "dunlin-system",
                "get",
                "configmap",
                "dunlin-nats-users",
                "-o",
                "yaml",
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        text = "\n".join(line for line in told.stdout.split("\n") if not line.endswith("# old"))
        apply = [*command, "apply", "-f", "-"]
        subprocess.run(apply, input=text, check=True, capture_output=True, text=True)
        left = users(server)
        assert (left.count("nkey: "), left.count("password: ")) == (6, 0)
        config.upgrade(chart, "dunlin", VALUES)
        assert users(server) == left


def test_install_upgrade_uninstall(server: Server) -> None:
    """The API server takes every object; an upgrade changes what was asked for and no Secret."""
    with config_of(server) as config, helm.Chart.load(CHART) as chart:
        first = config.install(chart, "dunlin", VALUES, create_namespace=True)
        assert first["status"] == "deployed"
        made = secrets(server)
        assert len(made) == 4 + len(permissions())
        keys = users(server)
        names = {item["metadata"]["name"] for item in kubectl(server, "get", "deployments")}
        assert names == {"watcher", "ipam", "planner", "flowctl", "metrics"}

        second = config.upgrade(chart, "dunlin", {**VALUES, "planner": {"replicas": 5}})
        assert second["revision"] == 2
        sizes = {
            item["metadata"]["name"]: item["spec"]["replicas"]
            for item in kubectl(server, "get", "deployments")
        }
        assert (sizes["planner"], sizes["flowctl"]) == (5, 3)
        assert (secrets(server), users(server)) == (made, keys)

        config.uninstall("dunlin")
        assert not kubectl(server, "get", "deployments")
        assert (secrets(server), users(server)) == (made, keys)
