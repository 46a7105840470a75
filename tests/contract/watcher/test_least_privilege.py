"""
The watcher as it runs in a cluster: its ServiceAccount's token and the roles of k8s/base/rbac.yaml.

On a real control plane with RBAC ($KUBEBUILDER_ASSETS): the embedded API has none.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dunlin import subjects, wire
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.rpc import Synced
from dunlin_watcher import reflector
from dunlin_watcher.adapters.errors import RefusedError
from dunlin_watcher.adapters.kubernetes import KubernetesApi
from dunlin_watcher.kinds import KINDS, Kind
from tests.fixtures.kube_api import MERGE_PATCH, Server, real, wait_until
from tests.scenario.watcher.cluster import World

K8S = Path(__file__).resolve().parents[3] / "k8s"
PATHS = {
    "ServiceAccount": "/api/v1/namespaces/dunlin-system/serviceaccounts",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
}
POLICIES = KINDS["clusternetworkpolicy"]
CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
EVERYBODY = {"selfsubjectaccessreviews", "selfsubjectreviews", "selfsubjectrulesreviews"}
"""What system:basic-user lets every authenticated user create: questions about himself."""


@dataclass
class Given:
    """A control plane, and a kubeconfig with the watcher's own token in a file."""

    server: Server
    kubeconfig: str
    token: str


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    """The roles applied, a token asked for, as a kubelet would."""
    folder = tmp_path_factory.mktemp("rbac")
    with real(folder) as server, server.client() as admin:
        namespace = {"metadata": {"name": "dunlin-system"}}
        admin.post("/api/v1/namespaces", json=namespace).raise_for_status()
        for item in yaml.safe_load_all((K8S / "base" / "rbac.yaml").read_text()):
            admin.post(PATHS[item["kind"]], json=item).raise_for_status()
        answer = admin.post(f"{PATHS['ServiceAccount']}/watcher/token", json={"spec": {}})
        token = answer.raise_for_status().json()["status"]["token"]
        (folder / "token").write_text(token)
        config = json.loads((folder / "admin.kubeconfig").read_text())
        config["users"][0]["user"] = {"tokenFile": str(folder / "token")}
        (folder / "watcher.kubeconfig").write_text(json.dumps(config))
        yield Given(server, str(folder / "watcher.kubeconfig"), token)


@pytest.fixture
def admin(given: Given) -> Iterator[httpx.Client]:
    """The cluster's administrator."""
    with given.server.client() as client:
        yield client


@pytest.fixture
def watcher(given: Given) -> Iterator[httpx.Client]:
    """Whoever has the watcher's token."""
    headers = {"Authorization": f"Bearer {given.token}"}
    with httpx.Client(
        base_url=given.server.url, verify=given.server.context, headers=headers
    ) as client:
        yield client


def install_crd(client: httpx.Client) -> None:
    """ClusterNetworkPolicies of k8s/crds, served."""
    manifest = yaml.safe_load((K8S / "crds" / "clusternetworkpolicies.yaml").read_text())
    client.post(CRDS, json=manifest).raise_for_status()
    wait_until("the CRD is served", lambda: client.get(POLICIES.path).is_success)


def remove_crd(client: httpx.Client) -> None:
    """And with the definition all policies."""
    name = "clusternetworkpolicies.policy.networking.k8s.io"
    client.delete(f"{CRDS}/{name}").raise_for_status()


def create_policy(client: httpx.Client) -> None:
    """The ClusterNetworkPolicy `deny`."""
    rule = {"action": "Deny", "from": [{"namespaces": {}}]}
    spec = {"tier": "Admin", "priority": 1, "subject": {"namespaces": {}}, "ingress": [rule]}
    policy: dict[str, Any] = {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": "deny"},
        "spec": spec,
    }
    client.post(POLICIES.path, json=policy).raise_for_status()


def test_the_roles_allow_nothing_else(watcher: httpx.Client) -> None:
    """The server's own answer to "what may I do?", rule by rule."""
    path = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
    answer = watcher.post(path, json={"spec": {"namespace": "default"}})
    status = answer.raise_for_status().json()["status"]
    assert not status["incomplete"]
    allowed = {
        (resource, verb)
        for rule in status["resourceRules"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    mine = {(kind.path.rsplit("/", 1)[1], verb) for kind in KINDS.values()
            for verb in ("list", "watch")}  # fmt: skip
    assert allowed == mine | {(resource, "create") for resource in EVERYBODY}
    assert all(rule["verbs"] == ["get"] for rule in status["nonResourceRules"])


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/default/configmaps"),
        ("GET", "/api/v1/namespaces/default/pods/x"),
        ("POST", "/api/v1/namespaces/default/pods"),
        ("PATCH", "/api/v1/nodes/n1"),
        ("DELETE", "/api/v1/namespaces/default/services/kubernetes"),
        ("GET", CRDS),
    ],
)
def test_what_it_does_not_need_is_forbidden(watcher: httpx.Client, method: str, path: str) -> None:
    """Secrets, single objects and every write are 403."""
    headers = MERGE_PATCH if method == "PATCH" else {}
    answer = watcher.request(method, path, json=None if method == "GET" else {}, headers=headers)
    assert answer.status_code == 403, answer.text


async def test_an_unlisted_kind_is_an_error_that_says_so(given: Given) -> None:
    """A missing permission names the collection and the user, and is not an empty list."""
    api = KubernetesApi(given.kubeconfig)
    secrets = Kind("secret", "/api/v1/secrets", KINDS["pod"].fact)
    with pytest.raises(RefusedError, match=r"403.*system:serviceaccount:dunlin-system:watcher"):
        async for _page in api.pages(secrets):
            pass
    await api.close()


async def test_the_whole_watcher(
    given: Given, admin: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In sync without ClusterNetworkPolicies; they appear, are seen, go, and are forgotten."""
    monkeypatch.setattr(reflector, "ABSENT_RETRY_S", 3600.0)
    world, bus = World(given.kubeconfig), MemoryBus(MemoryServer())
    await bus.ensure_streams()
    replica = world.start("w1", bus)
    sync = subjects.rpc("watcher", "sync")
    fact = subjects.fact("clusternetworkpolicy", "", "deny")
    status = replica.watcher.statuses["clusternetworkpolicy"]
    try:
        await replica.until(
            lambda: replica.watcher.leads() and replica.watcher.not_ready() is None, "in sync"
        )
        assert status.absent
        install_crd(admin)
        create_policy(admin)
        wire.decode(await bus.request(sync, b"", timeout_s=15), Synced)
        assert not status.absent
        record = await bus.get_last(fact)
        assert record is not None
        assert not record.is_tombstone
        remove_crd(admin)
        await replica.until(lambda: status.absent, "absent again")
        wire.decode(await bus.request(sync, b"", timeout_s=15), Synced)
        record = await bus.get_last(fact)
        assert record is not None
        assert record.is_tombstone
    finally:
        await world.close()
        await bus.close()
