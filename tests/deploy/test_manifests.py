"""k8s/: what kustomize makes is valid, needs no more than it must, and says what the code reads."""

import importlib
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from dunlin.bus.nats_server import find_binary
from dunlin.service.settings import describe
from dunlin_watcher.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("overlays/dev", "overlays/production", "overlays/dpdk", ".")
SERVICES = ("watcher", "ipam", "planner", "flowctl", "metrics", "agent")
OPERATOR = "monitoring.coreos.com/v1"
# Read by the shell of images/ovs-start, or parts of other variables.
NOT_SETTINGS = {
    "HOST_IP",
    "DUNLIN_NATS_HOSTS",
    "DUNLIN_NATS_ROUTES",
    "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_SERVICE_PORT",
}


@cache
def kustomize(overlay: str) -> str:
    """The manifests of an overlay."""
    program = shutil.which("kubectl")
    if program is None:
        pytest.skip("needs kubectl, which has kustomize in it")
    done = subprocess.run(
        [program, "kustomize", str(ROOT / "k8s" / overlay)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(overlay: str) -> list[dict[str, Any]]:
    """Its objects."""
    return [item for item in yaml.safe_load_all(kustomize(overlay)) if item]


def workloads(overlay: str) -> dict[str, dict[str, Any]]:
    """Pod specs by the name of what makes the Pods."""
    kinds = {"Deployment", "DaemonSet", "StatefulSet"}
    return {
        item["metadata"]["name"]: item["spec"]["template"]["spec"]
        for item in objects(overlay)
        if item["kind"] in kinds
    }


def settings_of(service: str) -> set[str]:
    """Variables that a service reads."""
    config = importlib.import_module(f"dunlin_{service}.config")
    (found,) = {
        value
        for name, value in vars(config).items()
        if name.endswith("Settings") and value.__module__ == config.__name__
    }
    return {item.env for item in describe(found)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_fit_their_schemas(overlay: str) -> None:
    """Every object fits the schema of its kind, without unknown fields."""
    for item in objects(overlay):
        if item["apiVersion"] == OPERATOR:
            assert item["kind"] in {"ServiceMonitor", "PrometheusRule"}
            continue
        kubernetes_validate.utils.validate(item, "1.32", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_what_a_node_needs_to_know(overlay: str) -> None:
    """Probes, requests, a memory limit, a priority, and no token but the watcher's."""
    for name, spec in workloads(overlay).items():
        assert spec["priorityClassName"].startswith("system-"), name
        assert spec["hostNetwork"], name
        assert spec["automountServiceAccountToken"] == (name == "watcher"), name
        assert spec["serviceAccountName"] == name
        for container in spec["containers"]:
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"]["cpu"], name


def test_only_the_node_is_privileged() -> None:
    """The agent alone is privileged; OVS has named capabilities; the others none, and no root."""
    for name, spec in workloads("overlays/production").items():
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context.get("privileged", False) == (name == "agent"), name
            if name in {"agent", "ovs"}:
                continue
            assert spec["securityContext"]["runAsNonRoot"], name
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"], name
            assert context["capabilities"] == {"drop": ["ALL"]}, name


def test_the_watcher_may_read_what_it_follows_and_nothing_else() -> None:
    """One role, of list and watch, on exactly the collections that the watcher's kinds name."""
    roles = [item for item in objects("overlays/production") if item["kind"].endswith("Role")]
    (role,) = roles
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    needed = set()
    for kind in KINDS.values():
        parts = kind.path.strip("/").split("/")
        group = "" if parts[0] == "api" else parts[1]
        needed |= {(group, parts[-1], verb) for verb in ("list", "watch")}
    assert allowed == needed
    bindings = [i for i in objects("overlays/production") if i["kind"].endswith("RoleBinding")]
    assert [binding["subjects"][0]["name"] for binding in bindings] == ["watcher"]


@pytest.mark.parametrize("service", SERVICES)
def test_every_variable_is_a_setting(service: str) -> None:
    """No manifest sets a variable that the service does not read: a renamed setting is noticed."""
    (container,) = workloads("overlays/production")[service]["containers"]
    names = {item["name"] for item in container["env"]} - NOT_SETTINGS
    assert names <= settings_of(service)
    compose = yaml.safe_load((ROOT / "compose/compose.yaml").read_text(encoding="utf-8"))
    environment = compose["services"]["agent-1" if service == "agent" else service]["environment"]
    assert environment.keys() <= settings_of(service) | {
        "DUNLIN_POD_CIDRS",
        "DUNLIN_SERVICE_CIDRS",
    }


def test_ports_of_a_node_are_used_once() -> None:
    """On host network a port belongs to one of all that may run on a node."""
    taken: dict[int, str] = {}
    for name, spec in workloads("overlays/production").items():
        for container in spec["containers"]:
            for port in container.get("ports", []):
                number = port["containerPort"]
                assert number not in taken, f"{number}: {name} and {taken[number]}"
                taken[number] = name


def test_budgets_cover_what_has_replicas() -> None:
    """Everything with replicas has a disruption budget that selects it."""
    items = objects("overlays/production")
    selected = {
        item["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"]
        for item in items
        if item["kind"] == "PodDisruptionBudget"
    }
    wanted = {i["metadata"]["name"] for i in items if i["kind"] in {"Deployment", "StatefulSet"}}
    assert selected == wanted


def test_the_alerts_are_the_same_for_prometheus_and_for_the_operator() -> None:
    """The PrometheusRule holds the groups of rules.yaml."""
    observe = ROOT / "k8s/base/observe"
    rules = yaml.safe_load((observe / "rules.yaml").read_text(encoding="utf-8"))
    operator = yaml.safe_load((observe / "prometheusrule.yaml").read_text(encoding="utf-8"))
    assert operator["spec"] == rules


def metric_names() -> set[str]:
    """Names of metrics as the code spells them, without the suffixes that Prometheus adds."""
    found = set()
    for path in [*ROOT.glob("services/*/dunlin_*/**/*.py"), *ROOT.glob("dunlin/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r'f?"(dunlin_[a-z_]+)', text))
    return found


def queries() -> list[str]:
    """Every expression of alerts and dashboards."""
    rules = yaml.safe_load((ROOT / "k8s/base/observe/rules.yaml").read_text(encoding="utf-8"))
    found = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for path in sorted((ROOT / "k8s/base/observe/dashboards").glob("*.json")):
        board = yaml.safe_load(path.read_text(encoding="utf-8"))
        found += [t["expr"] for panel in board["panels"] for t in panel.get("targets", [])]
    return found


def test_queries_name_metrics_that_exist() -> None:
    """No alert or panel asks for a series that no service has: it would be silent for ever."""
    known = metric_names()
    for query in queries():
        names = set(re.findall(r"dunlin_[a-z_]+", query))
        assert names, query
        for name in names:
            plain = re.sub(r"_(total|bucket|count|sum)$", "", name)
            prefixes = {name, plain, f"{plain}_total"}
            families = [k for k in known if k.endswith("_") and name.startswith(k)]
            assert prefixes & known or families, f"{name} in {query}"


def promtool_in(directory: Path) -> list[str]:
    """What reads files of a folder: this machine's promtool, or that of compose/'s image."""
    if found := shutil.which("promtool"):
        return [found]
    name = re.search(r"prom/prometheus:[^}]+", (ROOT / "compose/compose.yaml").read_text())
    assert name is not None
    image = ["docker", "image", "inspect", name[0]]
    if (
        not shutil.which("docker")
        or subprocess.run(image, check=False, capture_output=True).returncode
    ):
        return []
    directory.chmod(0o755)
    where = ["--volume", f"{directory}:{directory}:ro", "--entrypoint", "promtool"]
    return ["docker", "run", "--rm", "--network", "none", *where, name[0]]


def test_prometheus_takes_every_query(tmp_path: Path) -> None:
    """A real Prometheus parses each expression."""
    promtool = promtool_in(tmp_path)
    if not promtool:
        pytest.skip("needs promtool (Debian: prometheus), or the image of tools/base-images")
    groups = [
        {
            "name": "queries",
            "rules": [
                {"record": f"query:{number}", "expr": query.replace("$__rate_interval", "1m")}
                for number, query in enumerate(queries())
            ],
        }
    ]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": groups}), encoding="utf-8")
    for rules in (file, ROOT / "k8s/base/observe/rules.yaml"):
        copy = tmp_path / "checked.yaml"
        copy.write_bytes(rules.read_bytes())
        done = subprocess.run(
            [*promtool, "check", "rules", str(copy)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["compose/compose.yaml", "k8s/base/nats.yaml"])
def test_the_tested_nats_server_is_the_deployed_one(file: str) -> None:
    """Its image is of the version that all tests here run against, no newer and no older one."""
    done = subprocess.run([find_binary(), "-v"], capture_output=True, text=True, check=True)
    version = re.search(r"v(\d\S+)", done.stdout)
    assert version is not None
    text = (ROOT / file).read_text(encoding="utf-8")
    assert set(re.findall(r"image: nats:(\S+)", text)) == {f"{version[1]}-alpine"}
