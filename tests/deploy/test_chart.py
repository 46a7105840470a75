"""k8s/chart: Helm renders what kustomize makes, refuses what it does not know, keeps secrets."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from dunlin.bus import nkeys
from dunlin.bus.permissions import permissions
from tests.deploy.test_manifests import kustomize
from tools import chart as generator

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "k8s/chart"
THREE = ["192.0.2.10", "192.0.2.11", "192.0.2.12"]
BASE: dict[str, Any] = {
    "controlPlane": {"addresses": THREE},
    "secrets": {"generate": False},
    "image": {"tag": "dev"},
}
PRODUCTION = {**BASE, "metrics": {"replicas": 2}}
ONE = {service: {"replicas": 1} for service in ("ipam", "planner", "flowctl", "metrics")}
OVERLAYS: dict[str, dict[str, Any]] = {
    "base": BASE,
    "overlays/production": PRODUCTION,
    "overlays/observed": {**PRODUCTION, "observe": {"enabled": True}},
    "overlays/dpdk": {**PRODUCTION, "ovs": {"datapath": "dpdk"}},
    "overlays/dev": {
        **BASE,
        **ONE,
        "controlPlane": {"addresses": THREE[:1]},
        "watcher": {
            "replicas": 1,
            "extraEnv": [{"name": "DUNLIN_LOG_LEVEL", "value": "debug"}],
        },
    },
}


def render(values: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """Objects of the chart, in the namespace of the release."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name="dunlin", namespace="dunlin-system", **options)
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [item for text in texts for item in yaml.safe_load_all(text) if item]


def comparable(items: list[dict[str, Any]]) -> dict[str, Any]:
    """By kind and name, without what the two tools name differently on purpose."""
    (conf,) = {
        item["metadata"]["name"]
        for item in items
        if item["kind"] == "ConfigMap" and "nats.conf" in item["data"]
    }
    text = json.dumps(items).replace(conf, "dunlin-nats")
    found = {}
    for item in json.loads(text):
        item["metadata"].pop("namespace", None)
        template = item.get("spec", {}).get("template", {}).get("metadata", {})
        template.pop("annotations", None)
        if item["kind"] == "ConfigMap":
            item["data"] = {name: value.rstrip() for name, value in item["data"].items()}
        if item["kind"] != "Namespace":
            found[f"{item['kind']}/{item['metadata']['name']}"] = item
    return found


def by_name(thing: Any) -> Any:
    """Lists of named things in the order of their names: a kustomize patch puts its own first."""
    if isinstance(thing, dict):
        return {key: by_name(value) for key, value in thing.items()}
    if isinstance(thing, list):
        items = [by_name(item) for item in thing]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: str(item["name"])) if named else items
    return thing


@pytest.mark.parametrize("overlay", sorted(OVERLAYS))
def test_helm_renders_what_kustomize_makes(overlay: str) -> None:
    """Object by object the same, for each overlay and the values that ask for it."""
    wanted = comparable([i for i in yaml.safe_load_all(kustomize(overlay)) if i])
    found = comparable(render(OVERLAYS[overlay]))
    assert found.keys() == wanted.keys()
    for name, item in wanted.items():
        if overlay == "overlays/dpdk" and name == "DaemonSet/ovs":
            assert by_name(found[name]) == by_name(item), name
        else:
            assert found[name] == item, name


def test_the_comparison_can_fail() -> None:
    """Other values are other objects: the oracle above is no formality."""
    changed = {**BASE, "flowctl": {"replicas": 5}}
    assert comparable(render(changed)) != comparable(render(BASE))


def test_helm_finds_nothing_to_say() -> None:
    """`helm lint --strict`, with the values that are needed."""
    report = helm.lint(CHART, PRODUCTION, strict=True)
    assert not report["errors"]
    assert not [m for m in report["messages"] if m["severity"] > 1]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"network": {"encapsulation": "gre"}}, "encapsulation"),
        ({"network": {"podCIDRs": ["all"]}}, "podCIDRs"),
        ({"flowctl": {"replica": 3}}, "replica"),
        ({"ovs": {"datapath": "kernel"}}, "datapath"),
        ({"image": {"digests": {"flowctl": "latest"}}}, "digests"),
    ],
)
def test_values_that_it_does_not_know_are_refused(values: dict[str, Any], named: str) -> None:
    """The schema names the value, before anything is rendered."""
    with helm.Chart.load(CHART) as chart, pytest.raises(helm.HelmError, match=named):
        chart.validate_schema({**BASE, **values})


def test_an_address_is_needed() -> None:
    """Without it the error says what to give."""
    with pytest.raises(helm.HelmError, match=r"controlPlane\.addresses: give"):
        render({})


def test_values_reach_where_they_belong() -> None:
    """Digests, pull secrets, IPv6 addresses, environment."""
    values = {
        **BASE,
        "controlPlane": {"addresses": ["2001:db8::10"]},
        "image": {
            "prefix": "registry.example/dunlin/",
            "tag": "v2",
            "digests": {"flowctl": "sha256:" + "a" * 64},
            "pullSecrets": [{"name": "pull"}],
        },
        "agent": {"extraEnv": [{"name": "DUNLIN_LOG_LEVEL", "value": "debug"}]},
    }
    found = comparable(render(values))
    cluster = found["ConfigMap/dunlin-cluster"]["data"]
    assert cluster["DUNLIN_OPENFLOW_CONTROLLERS"] == "ssl:[2001:db8::10]:6653"
    assert (cluster["DUNLIN_NATS_ROUTES"], cluster["DUNLIN_NATS_REPLICAS"]) == ("[]", "1")
    pod = found["Deployment/flowctl"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/dunlin/flowctl@sha256:" + "a" * 64
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    agent = found["DaemonSet/agent"]["spec"]["template"]["spec"]["containers"][0]
    assert agent["image"] == "registry.example/dunlin/agent:v2"
    assert {"name": "DUNLIN_LOG_LEVEL", "value": "debug"} in agent["env"]


def verified(tmp_path: Path, secret: dict[str, str], *options: str) -> None:
    """Openssl takes the certificate for what it is to be used for, as strictly as Python 3.13."""
    for name in ("ca.crt", "tls.crt"):
        (tmp_path / name).write_bytes(base64.b64decode(secret[name]))
    command = ["openssl", "verify", "-x509_strict", "-CAfile", "ca.crt", *options, "tls.crt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_secrets_are_made_where_asked(tmp_path: Path) -> None:
    """The same Secrets and keys as tools/cluster-secrets, with certificates that can be used."""
    made = subprocess.run(
        [ROOT / "tools/cluster-secrets", *THREE], capture_output=True, text=True, check=True
    )
    objects = [i for i in yaml.safe_load_all(made.stdout) if i]
    wanted = {i["metadata"]["name"]: i for i in objects if i["kind"] == "Secret"}
    items = render({**BASE, "secrets": {"generate": True}})
    found = {i["metadata"]["name"]: i for i in items if i["kind"] == "Secret"}
    assert found.keys() == wanted.keys()
    for name, item in found.items():
        assert item["data"].keys() == wanted[name]["data"].keys(), name
        assert item["type"] == wanted[name]["type"], name
        assert item["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
        kubernetes_validate.utils.validate(item, "1.32", strict=True)
    for made_by in (found, wanted):
        nats = made_by["dunlin-nats-tls"]["data"]
        for address in THREE:
            verified(tmp_path, nats, "-purpose", "sslserver", "-verify_ip", address)
        verified(tmp_path, made_by["dunlin-openflow-switch"]["data"], "-purpose", "sslclient")
        verified(tmp_path, made_by["dunlin-openflow-flowctl"]["data"], "-purpose", "sslserver")


SERVICES = sorted(permissions())


def seeds_and_users(items: list[dict[str, Any]]) -> tuple[dict[str, str], str]:
    """Seed of each service by its Secret, and users.conf."""
    found = {i["metadata"]["name"]: i["data"] for i in items if i["kind"] == "Secret"}
    seeds = {s: base64.b64decode(found[f"dunlin-nats-{s}"]["seed"]).decode() for s in SERVICES}
    (users,) = [i for i in items if i["metadata"]["name"] == "dunlin-nats-users"]
    return seeds, users["data"]["users.conf"]


def made_by_tool(*words: str) -> list[dict[str, Any]]:
    """Objects of tools/cluster-secrets."""
    command = [str(ROOT / "tools/cluster-secrets"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [item for item in yaml.safe_load_all(done.stdout) if item]


@pytest.mark.parametrize("maker", ["chart", "tool"])
def test_seeds_and_public_keys_belong_together(maker: str) -> None:
    """Chart and tool make seeds that read well, all different; users.conf has their public keys."""
    for _ in range(3):
        if maker == "tool":
            items = made_by_tool("--nkeys-passwords")
        else:
            items = render({**BASE, "secrets": {"generate": True}})
        seeds, users = seeds_and_users(items)
        assert len(set(seeds.values())) == len(SERVICES)
        for service, seed in seeds.items():
            public = nkeys.key_pair(seed).public
            assert f"{{nkey: {public}, permissions: $permissions_{service}}}\n" in users
            assert seed.strip() not in users
        assert users.count("nkey: ") == len(SERVICES)
        assert users.count("password: ") == (len(SERVICES) if maker == "tool" else 0)


def test_old_keys_stay_valid_until_they_are_taken_out(tmp_path: Path) -> None:
    """`--nkeys OLD` keeps the lines of OLD, marked; without marked lines the new ones are left."""
    users = made_by_tool("--nkeys-passwords")
    for _ in range(2):
        old = seeds_and_users(users)[1]
        (tmp_path / "old").write_text(old, encoding="ascii")
        users = made_by_tool("--nkeys", str(tmp_path / "old"))
        seeds, text = seeds_and_users(users)
        for line in old.splitlines()[2:-1]:
            assert f"{line.removesuffix(' # old')} # old\n" in text
        left = [line for line in text.splitlines() if not line.endswith("# old")]
        assert [line.partition(",")[0] for line in left[2:-1]] == [
            f"  {{nkey: {nkeys.key_pair(seeds[service]).public}"
            for service in ("watcher", "agent", "ipam", "planner", "flowctl", "metrics")
        ]


def test_a_base_that_moved_on_stops_the_generator() -> None:
    """A replacement that matches nothing, or too often, is an error and no silent loss."""
    with pytest.raises(generator.ChartError, match="stands 0 times"):
        generator.swapped("x", "a", (generator.Swap("b", "c"),))
    with pytest.raises(generator.ChartError, match="stands 2 times"):
        generator.swapped("x", "aa", (generator.Swap("a", "c"),))


def test_notes_name_the_next_step() -> None:
    """What a person reads after `helm install`."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(BASE, name="dunlin", namespace="dunlin-system")
    notes = files["dunlin/templates/NOTES.txt"]
    assert "rollout status daemonset/agent" in notes
    assert "tools/cluster-secrets 192.0.2.10 192.0.2.11 192.0.2.12" in notes
