"""What clients rely on beyond the recorded exchanges; run on every server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.fixtures.kube_api import MERGE_PATCH, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMESPACE = "behaviour"
CONFIGMAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"
DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
STRATEGIC = {"Content-Type": "application/strategic-merge-patch+json"}
APPLY = {"Content-Type": "application/apply-patch+yaml"}
CONTAINER = {"name": "c", "image": "x"}


@pytest.fixture(autouse=True)
def _namespace(client: httpx.Client) -> None:
    client.post("/api/v1/namespaces", json={"metadata": {"name": NAMESPACE}})
    account = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/default"
    wait_until(account, lambda: client.get(account).is_success)


def configmap(name: str, **data: str) -> dict[str, Any]:
    """Return a ConfigMap."""
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data,
    }  # fmt: skip


def create(client: httpx.Client, path: str, body: Any) -> dict[str, Any]:
    """Create an object anew."""
    client.delete(f"{path}/{body['metadata']['name']}?gracePeriodSeconds=0")
    answer = client.post(path, json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


def events(
    client: httpx.Client, path: str, count: int, **query: str
) -> list[tuple[str, dict[str, Any]]]:
    """Return the first events of a watch."""
    query = {"watch": "1", "timeoutSeconds": "10", **query}
    found: list[tuple[str, dict[str, Any]]] = []
    with client.stream("GET", path, params=query) as answer:
        lines: Iterator[str] = answer.iter_lines()
        while len(found) < count:
            line = next(lines, None)
            if line is None:
                break
            event = json.loads(line)
            found.append((event["type"], event["object"]))
    return found


def test_without_token_is_401(server: Any) -> None:
    """A request without the token gets a Status of 401, and nothing else."""
    with server.client() as client:
        answer = client.get("/api/v1/pods", headers={"Authorization": "Bearer wrong"})
    assert answer.status_code == 401
    assert answer.json()["reason"] == "Unauthorized"


def test_watch_resumes_where_a_list_ended(client: httpx.Client) -> None:
    """Every change after a list's version is seen once, in order, and nothing before it."""
    create(client, CONFIGMAPS, configmap("resume", a="0"))
    version = client.get(CONFIGMAPS).json()["metadata"]["resourceVersion"]
    for value in ("1", "2"):
        patch = {"data": {"a": value}}
        client.patch(f"{CONFIGMAPS}/resume", json=patch, headers=MERGE_PATCH).raise_for_status()
    client.delete(f"{CONFIGMAPS}/resume").raise_for_status()
    seen = events(client, CONFIGMAPS, 3, resourceVersion=version)
    assert [kind for kind, _ in seen] == ["MODIFIED", "MODIFIED", "DELETED"]
    assert [obj["data"]["a"] for _, obj in seen] == ["1", "2", "2"]
    versions = [int(obj["metadata"]["resourceVersion"]) for _, obj in seen]
    assert versions == sorted(set(versions))
    assert versions[0] > int(version)


def test_change_that_changes_nothing_makes_no_version(client: httpx.Client) -> None:
    """A patch without effect keeps the resourceVersion."""
    made = create(client, CONFIGMAPS, configmap("same", a="1"))
    answer = client.patch(f"{CONFIGMAPS}/same", json={"data": {"a": "1"}}, headers=MERGE_PATCH)
    assert answer.json()["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]


def test_pages_show_one_version(client: httpx.Client) -> None:
    """Pages go on at the version of the first, whatever is written in between."""
    for name in ("page-a", "page-b", "page-c"):
        body = configmap(name)
        body["metadata"]["labels"] = {"page": "yes"}
        create(client, CONFIGMAPS, body)
    # A real cluster writes ConfigMaps of its own into each namespace.
    query = {"limit": "1", "labelSelector": "page=yes"}
    page = client.get(CONFIGMAPS, params=query).json()
    client.delete(f"{CONFIGMAPS}/page-b").raise_for_status()
    late = configmap("page-bb")
    late["metadata"]["labels"] = {"page": "yes"}
    client.post(CONFIGMAPS, json=late).raise_for_status()
    names = [page["items"][0]["metadata"]["name"]]
    while page["metadata"].get("continue"):
        token = page["metadata"]["continue"]
        page = client.get(CONFIGMAPS, params={**query, "continue": token}).json()
        names += [item["metadata"]["name"] for item in page["items"]]
    assert names == ["page-a", "page-b", "page-c"]


def test_dry_run_stores_nothing(client: httpx.Client) -> None:
    """dryRun=All answers as a create would, and there is no object after it."""
    answer = client.post(f"{CONFIGMAPS}?dryRun=All", json=configmap("dry"))
    assert answer.status_code == 201
    assert client.get(f"{CONFIGMAPS}/dry").status_code == 404


def test_preconditions_of_a_delete(client: httpx.Client) -> None:
    """A delete with another uid is a conflict and deletes nothing."""
    create(client, CONFIGMAPS, configmap("kept"))
    body = {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}}
    answer = client.request("DELETE", f"{CONFIGMAPS}/kept", json=body)
    assert answer.status_code == 409
    assert client.get(f"{CONFIGMAPS}/kept").is_success


def test_finalizer_holds_an_object(client: httpx.Client) -> None:
    """With a finalizer a delete only marks; taking the finalizer off ends it."""
    body = configmap("held")
    body["metadata"]["finalizers"] = ["example.com/hold"]
    create(client, CONFIGMAPS, body)
    marked = client.delete(f"{CONFIGMAPS}/held").json()
    assert marked["metadata"]["deletionTimestamp"]
    patch = {"metadata": {"finalizers": None}}
    client.patch(f"{CONFIGMAPS}/held", json=patch, headers=MERGE_PATCH).raise_for_status()
    assert client.get(f"{CONFIGMAPS}/held").status_code == 404


def test_unbound_pod_goes_at_once(client: httpx.Client) -> None:
    """A Pod no kubelet knows of is gone when its deletion is answered."""
    spec = {"containers": [CONTAINER], "schedulerName": "nobody",
            "automountServiceAccountToken": False}  # fmt: skip
    pod = {"metadata": {"name": "unbound"}, "spec": spec}
    answer = client.post(PODS, json=pod)
    assert answer.status_code == 201, answer.text
    client.delete(f"{PODS}/unbound").raise_for_status()
    assert client.get(f"{PODS}/unbound").status_code == 404


def test_strategic_merge_keeps_other_elements(client: httpx.Client) -> None:
    """A port is added by its key, changed by its key, and deleted by $patch."""
    ports = [{"name": "a", "port": 1, "protocol": "TCP"}]
    create(client, SERVICES, {"metadata": {"name": "sm"}, "spec": {"ports": ports}})
    path = f"{SERVICES}/sm"
    added = {"spec": {"ports": [{"name": "b", "port": 2}]}}
    answer = client.patch(path, json=added, headers=STRATEGIC)
    assert {p["port"] for p in answer.json()["spec"]["ports"]} == {1, 2}
    gone = {"spec": {"ports": [{"port": 1, "$patch": "delete"}]}}
    answer = client.patch(path, json=gone, headers=STRATEGIC)
    assert [p["port"] for p in answer.json()["spec"]["ports"]] == [2]


def test_apply_removes_what_is_left_out(client: httpx.Client) -> None:
    """A field a manager applied before and leaves out now is removed; others' fields stay."""
    path = f"{CONFIGMAPS}/applied"
    client.delete(path)
    for manager, data in (("one", {"a": "1", "b": "1"}), ("two", {"c": "1"}), ("one", {"a": "1"})):
        answer = client.patch(
            f"{path}?fieldManager={manager}", json=configmap("applied", **data), headers=APPLY
        )
        assert answer.is_success, answer.text
    assert answer.json()["data"] == {"a": "1", "c": "1"}


def test_apply_conflicts_unless_forced(client: httpx.Client) -> None:
    """Another value for a field of another manager is a conflict naming it; force takes it."""
    path = f"{CONFIGMAPS}/fought"
    client.delete(path)
    body = configmap("fought", a="1")
    client.patch(f"{path}?fieldManager=one", json=body, headers=APPLY).raise_for_status()
    other = configmap("fought", a="2")
    answer = client.patch(f"{path}?fieldManager=two", json=other, headers=APPLY)
    assert answer.status_code == 409
    assert answer.json()["details"]["causes"][0]["field"] == ".data.a"
    answer = client.patch(f"{path}?fieldManager=two&force=true", json=other, headers=APPLY)
    assert answer.json()["data"] == {"a": "2"}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (SERVICES, {"spec": {"ports": [{"port": 80, "protocol": "XTP"}]}},
         "spec.ports[0].protocol"),
        (SERVICES, {"spec": {"ports": []}}, "spec.ports"),
        (PODS, {"spec": {"containers": []}}, "spec.containers"),
        (DEPLOYMENTS, {"spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "c"}}, "spec": {"containers": [CONTAINER]}},
        }}, "spec.template.metadata.labels"),
    ],
)  # fmt: skip
def test_invalid_objects_are_refused(
    client: httpx.Client, path: str, body: dict[str, Any], field: str
) -> None:
    """A bad object gets a 422 whose causes name the field."""
    answer = client.post(path, json={"metadata": {"name": "invalid"}, **body})
    assert answer.status_code == 422
    assert field in [cause["field"] for cause in answer.json()["details"]["causes"]]


def test_wrong_type_is_400(client: httpx.Client) -> None:
    """A field of a wrong type is a bad request, not a validation error."""
    body = {"metadata": {"name": "typed"}, "spec": {"ports": [{"port": "eighty"}]}}
    answer = client.post(SERVICES, json=body)
    assert (answer.status_code, answer.json()["reason"]) == (400, "BadRequest")


def test_allocated_values_survive_an_update(client: httpx.Client) -> None:
    """A PUT without clusterIP and nodePort keeps both; another clusterIP is refused."""
    spec = {"type": "NodePort", "ports": [{"port": 80}]}
    made = create(client, SERVICES, {"metadata": {"name": "alloc"}, "spec": spec})
    body = {"metadata": {"name": "alloc"}, "spec": spec}
    answer = client.put(f"{SERVICES}/alloc", json=body)
    assert answer.is_success, answer.text
    for name in ("clusterIP", "clusterIPs", "ports"):
        assert answer.json()["spec"][name] == made["spec"][name]
    patch = {"spec": {"clusterIP": "10.96.250.250", "clusterIPs": ["10.96.250.250"]}}
    assert client.patch(f"{SERVICES}/alloc", json=patch, headers=MERGE_PATCH).status_code == 422


def test_cluster_ip_is_given_once(client: httpx.Client) -> None:
    """An address in use is refused to a second Service."""
    made = create(client, SERVICES, {"metadata": {"name": "ip1"}, "spec": {"ports": [{"port": 1}]}})
    spec = {"ports": [{"port": 1}], "clusterIP": made["spec"]["clusterIP"]}
    answer = client.post(SERVICES, json={"metadata": {"name": "ip2"}, "spec": spec})
    assert answer.status_code == 422
    assert "already allocated" in answer.json()["message"]


def test_create_in_missing_namespace(client: httpx.Client) -> None:
    """The namespace has to be there."""
    answer = client.post("/api/v1/namespaces/nowhere/configmaps", json=configmap("x"))
    assert answer.status_code == 404
    assert answer.json()["details"] == {"name": "nowhere", "kind": "namespaces"}


def test_unknown_field_selector_is_400(client: httpx.Client) -> None:
    """A field a kind cannot be selected by is an error, not an empty list."""
    answer = client.get(PODS, params={"fieldSelector": "spec.nope=1"})
    assert answer.status_code == 400
    assert "field label not supported" in answer.json()["message"]
