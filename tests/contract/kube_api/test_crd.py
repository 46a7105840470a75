"""k8s/crds on a real control plane: what the specification allows is taken, nonsense is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fixtures.kube_api import embedded, real, wait_until

CRD = Path(__file__).resolve().parents[3] / "k8s" / "crds" / "clusternetworkpolicies.yaml"
PATH = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
EVERYONE: dict[str, Any] = {"namespaces": {}}
TCP = {"tcp": {"destinationPort": {"range": {"start": 8000, "end": 8080}}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a cluster that has the definition."""
    with real(tmp_path_factory.mktemp("crd")) as server, server.client() as client:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        made = client.post(path, json=yaml.safe_load(CRD.read_text()))
        assert made.status_code == 201, made.text
        wait_until("the CRD is served", lambda: client.get(PATH).is_success)
        name = made.json()["metadata"]["name"]
        conditions = client.get(f"{path}/{name}").json()["status"]["conditions"]
        # NonStructuralSchema would leave fields unchecked and unpruned.
        assert {c["type"]: c["status"] for c in conditions}.get("NonStructuralSchema") is None
        yield client


def policy(name: str = "p", **spec: Any) -> dict[str, Any]:
    """A policy in the Admin tier for everybody."""
    return {
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": 10, "subject": EVERYONE, **spec},
    }


def rule(side: str, *peers: dict[str, Any], action: str = "Deny", **more: Any) -> dict[str, Any]:
    """One rule."""
    return {"action": action, side: list(peers), **more}


PODS = {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "a"}}}}
GOOD: dict[str, dict[str, Any]] = {
    "subject alone": {},
    "pods": {"subject": PODS, "ingress": [rule("from", EVERYONE, PODS)]},
    "ports": {"ingress": [rule("from", PODS, protocols=[TCP, {"destinationNamedPort": "http"}])]},
    "egress": {
        "tier": "Baseline",
        "egress": [
            rule("to", {"networks": ["10.0.0.0/8", "fd00::/8"]}, {"nodes": {}}, action="Pass"),
            rule("to", {"domainNames": ["*.kubernetes.io"]}, action="Accept", name="names"),
        ],
    },
}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "tier": ({"tier": "Gold"}, "spec.tier"),
    "priority": ({"priority": 1001}, "spec.priority"),
    "no subject": ({"subject": {}}, "spec.subject"),
    "two subjects": ({"subject": {**EVERYONE, **PODS}}, "spec.subject"),
    "action": ({"ingress": [rule("from", EVERYONE, action="Allow")]}, "spec.ingress[0].action"),
    "no peer": ({"ingress": [rule("from")]}, "spec.ingress[0].from"),
    "no such peer": ({"ingress": [rule("from", {"nodes": {}})]}, "spec.ingress[0].from[0]"),
    "CIDR": ({"egress": [rule("to", {"networks": ["10.0.0.0/99"]})]}, "networks[0]"),
    "port": (
        {"ingress": [rule("from", PODS, protocols=[
            {"udp": {"destinationPort": {"number": 0}}}])]},
        "destinationPort.number",
    ),
    "range": (
        {"ingress": [rule("from", PODS, protocols=[
            {"tcp": {"destinationPort": {"range": {"start": 9, "end": 8}}}}])]},
        "start must be below end",
    ),
    "names in a denial": (
        {"egress": [rule("to", {"domainNames": ["a.example"]})]}, "domainNames are for rules",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_taken(served: httpx.Client, name: str) -> None:
    """What the specification allows comes back as it was sent: nothing is pruned."""
    sent = policy(**GOOD[name])
    answer = served.post(f"{PATH}?dryRun=All", json=sent)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"] == sent["spec"]


@pytest.mark.parametrize("name", BAD)
def test_refused(served: httpx.Client, name: str) -> None:
    """422, naming the field."""
    spec, field = BAD[name]
    answer = served.post(f"{PATH}?dryRun=All&fieldValidation=Strict", json=policy(**spec))
    assert answer.status_code in (400, 422), answer.text
    assert field in answer.json()["message"]


def test_without_its_kind(served: httpx.Client, tmp_path: Path) -> None:
    """A custom resource must say its kind, unlike the API server's own; the embedded API agrees."""
    nameless = {key: value for key, value in policy().items() if key != "kind"}
    with embedded(tmp_path) as server, server.client() as other:
        for client in (served, other):
            answer = client.post(f"{PATH}?dryRun=All", json=nameless)
            assert answer.status_code == 400
            assert "Object 'Kind' is missing" in answer.json()["message"]
            assert client.post(f"{PATH}?dryRun=All", json=policy()).status_code == 201
