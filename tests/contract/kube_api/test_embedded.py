"""What only the embedded server promises: its data directory, history, injection."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from dunlin_lab.apiserver.registry import VALIDATE_ANNOTATION
from tests.fixtures import kube_api
from tests.fixtures.kube_api import MERGE_PATCH

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIGMAPS = "/api/v1/namespaces/default/configmaps"
PODS = "/api/v1/namespaces/default/pods"
SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
DEADLINE_SECONDS = 20.0


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a fresh embedded server with every controller."""
    with kube_api.embedded(tmp_path_factory.mktemp("api")) as server, server.client() as found:
        yield found


def watch(client: httpx.Client, path: str, count: int, **query: str) -> list[dict[str, Any]]:
    """Return the first events of a watch."""
    query = {"watch": "1", "timeoutSeconds": "10", **query}
    found: list[dict[str, Any]] = []
    with client.stream("GET", path, params=query) as answer:
        for line in answer.iter_lines():
            found.append(json.loads(line))
            if len(found) == count:
                break
    return found


def eventually(what: str, check: Any) -> Any:
    """Wait for a level and return it."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not (found := check()):
        assert time.monotonic() < end, what
        time.sleep(0.02)
    return found


def test_state_and_versions_survive_kill(tmp_path: Path) -> None:
    """After kill -9 everything written is there, and a watch resumes where it was."""
    kubeconfig = tmp_path / "kubeconfig"
    command = kube_api.embedded_command(tmp_path)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(command, stderr=log)
        try:
            kube_api.wait_until("server", kubeconfig.exists)
            with kube_api.server_of("embedded", kubeconfig).client() as client:
                made = client.post(CONFIGMAPS, json={"metadata": {"name": "a"}}).json()
                client.post(CONFIGMAPS, json={"metadata": {"name": "b"}}).raise_for_status()
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
    version = made["metadata"]["resourceVersion"]
    with kube_api.embedded(tmp_path) as server, server.client() as client:
        assert client.get(f"{CONFIGMAPS}/a").json() == made
        (event,) = watch(client, CONFIGMAPS, 1, resourceVersion=version)
        assert (event["type"], event["object"]["metadata"]["name"]) == ("ADDED", "b")
        after = client.post(CONFIGMAPS, json={"metadata": {"name": "c"}}).json()
        assert int(after["metadata"]["resourceVersion"]) > int(
            event["object"]["metadata"]["resourceVersion"]
        )


def test_stops_cleanly_with_open_watches(tmp_path: Path) -> None:
    """SIGTERM ends the process with 0 although a watch is open, which sees its stream end."""
    kubeconfig = tmp_path / "kubeconfig"
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(kube_api.embedded_command(tmp_path), stderr=log)
        try:
            kube_api.wait_until("server", kubeconfig.exists)
            with kube_api.server_of("embedded", kubeconfig).client() as client:
                query = {"watch": "1"}
                with client.stream("GET", "/api/v1/namespaces", params=query) as answer:
                    lines = answer.iter_lines()
                    next(lines)
                    running.terminate()
                    assert all(json.loads(line) for line in lines)
            assert running.wait(DEADLINE_SECONDS) == 0
        finally:
            running.kill()
            running.wait()


def test_compacted_version_is_410(tmp_path: Path) -> None:
    """A watch from before the kept history gets one ERROR of 410, a page one of 410."""
    with kube_api.embedded(tmp_path, "--history", "5") as server, server.client() as client:
        for number in range(10):
            body = {"metadata": {"name": f"c{number}"}}
            client.post(CONFIGMAPS, json=body).raise_for_status()
        (event,) = watch(client, CONFIGMAPS, 1, resourceVersion="2")
        assert (event["type"], event["object"]["code"]) == ("ERROR", 410)
        assert event["object"]["reason"] == "Expired"
        page = client.get(CONFIGMAPS, params={"limit": "1"}).json()
        for number in range(10):
            client.delete(f"{CONFIGMAPS}/c{number}").raise_for_status()
        query = {"limit": "1", "continue": page["metadata"]["continue"]}
        answer = client.get(CONFIGMAPS, params=query)
        assert (answer.status_code, answer.json()["reason"]) == (410, "Expired")
        query["continue"] = answer.json()["metadata"]["continue"]
        assert client.get(CONFIGMAPS, params=query).is_success


@pytest.mark.parametrize("how", ["query", "annotation"])
def test_bad_service_can_be_injected(client: httpx.Client, how: str) -> None:
    """A Service with an unknown protocol is stored where a test asks for it, refused elsewhere."""
    spec = {"ports": [{"port": 80, "protocol": "XTP"}], "selector": {"app": "x"}}
    body: dict[str, Any] = {"metadata": {"name": f"bad-{how}"}, "spec": spec}
    assert client.post(SERVICES, json=body).status_code == 422
    query = {"dunlin-validate": "false"} if how == "query" else {}
    if how == "annotation":
        body["metadata"]["annotations"] = {VALIDATE_ANNOTATION: "false"}
    answer = client.post(SERVICES, json=body, params=query)
    assert answer.status_code == 201, answer.text
    assert answer.json()["spec"]["ports"][0]["protocol"] == "XTP"
    labelled = client.patch(
        f"{SERVICES}/bad-{how}", json={"metadata": {"labels": {"a": "b"}}}, headers=MERGE_PATCH
    )
    assert labelled.is_success, labelled.text
    query = {"labelSelector": f"kubernetes.io/service-name=bad-{how}"}
    eventually(
        "a slice of the bad Service",
        lambda: client.get(SLICES, params=query).json()["items"],
    )


def test_bad_pod_address_can_be_injected(client: httpx.Client) -> None:
    """A Pod with an invalid podIP is stored where a test asks, and spoils no EndpointSlice."""
    service = {"metadata": {"name": "s"}, "spec": {"selector": {"app": "a"},
                                                   "ports": [{"port": 1}]}}  # fmt: skip
    client.post(SERVICES, json=service).raise_for_status()
    for name, address in (("good", "10.1.1.1"), ("bad", "10.1.1.999")):
        spec = {"containers": [{"name": "c", "image": "x"}], "nodeName": "n"}
        pod = {"metadata": {"name": name, "labels": {"app": "a"}}, "spec": spec}
        client.post(PODS, json=pod).raise_for_status()
        status = {"status": {"podIP": address, "podIPs": [{"ip": address}]}}
        path = f"{PODS}/{name}/status"
        if name == "bad":
            assert client.patch(path, json=status, headers=MERGE_PATCH).status_code == 422
            path += "?dunlin-validate=false"
        client.patch(path, json=status, headers=MERGE_PATCH).raise_for_status()

    def addresses() -> list[str]:
        found = client.get(SLICES, params={"labelSelector": "kubernetes.io/service-name=s"}).json()
        endpoints = [end for item in found["items"] for end in item["endpoints"] or ()]
        return [address for end in endpoints for address in end["addresses"]]

    assert eventually("the good endpoint", addresses) == ["10.1.1.1"]


def test_bookmark_before_a_watch_ends(client: httpx.Client) -> None:
    """A watch that allows bookmarks gets one shortly before its time is out."""
    query = {"allowWatchBookmarks": "true", "timeoutSeconds": "3"}
    version = client.get(CONFIGMAPS).json()["metadata"]["resourceVersion"]
    (event,) = watch(client, CONFIGMAPS, 5, resourceVersion=version, **query)
    assert event["type"] == "BOOKMARK"
    assert int(event["object"]["metadata"]["resourceVersion"]) >= int(version)


def test_deployment_rolls_over(client: httpx.Client) -> None:
    """A new template replaces every Pod, never below the minimum, and the status says so."""
    path = "/apis/apps/v1/namespaces/default/deployments"
    node = {"metadata": {"name": "n"}}
    client.post("/api/v1/nodes", json=node).raise_for_status()
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    client.patch("/api/v1/nodes/n/status", json=ready, headers=MERGE_PATCH).raise_for_status()
    template = {"metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": "x:1"}]}}  # fmt: skip
    spec = {"replicas": 4, "selector": {"matchLabels": {"app": "d"}}, "template": template}
    body = {"metadata": {"name": "d"}, "spec": spec}
    client.post(path, json=body).raise_for_status()
    lowest = []

    def kubelet() -> list[dict[str, Any]]:
        found = client.get(PODS, params={"labelSelector": "app=d"}).json()
        pods: list[dict[str, Any]] = found["items"]
        up = 0
        for pod in pods:
            name = pod["metadata"]["name"]
            if "deletionTimestamp" in pod["metadata"]:
                client.delete(f"{PODS}/{name}?gracePeriodSeconds=0")
            elif pod["status"].get("conditions", [{}])[-1].get("type") != "Ready":
                client.patch(f"{PODS}/{name}/status", json=ready, headers=MERGE_PATCH)
            else:
                up += 1
        lowest.append(up)
        return pods

    def settled(image: str) -> bool:
        pods = kubelet()
        images = [pod["spec"]["containers"][0]["image"] for pod in pods]
        status = client.get(f"{path}/d").json()["status"]
        return images == [image] * 4 and status.get("availableReplicas") == 4

    eventually("four Pods of the first template", lambda: settled("x:1"))
    lowest.clear()
    change = [{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "x:2"}]
    kind = {"Content-Type": "application/json-patch+json"}
    client.patch(f"{path}/d", json=change, headers=kind).raise_for_status()
    eventually("four Pods of the second template", lambda: settled("x:2"))
    assert min(lowest) >= 3
    status = client.get(f"{path}/d").json()["status"]
    assert {c["type"]: c["reason"] for c in status["conditions"]} == {
        "Available": "MinimumReplicasAvailable", "Progressing": "NewReplicaSetAvailable",
    }  # fmt: skip


def test_pod_without_a_node_says_so_until_one_comes(tmp_path: Path) -> None:
    """A Pod that fits nowhere is Unschedulable; it is bound when a node can take it."""
    with kube_api.embedded(tmp_path) as server, server.client() as client:
        body = {"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}}
        client.post(PODS, json=body).raise_for_status()

        def reasons() -> list[str]:
            conditions = client.get(f"{PODS}/p").json()["status"].get("conditions", ())
            return [found.get("reason") for found in conditions]

        eventually("Unschedulable", lambda: reasons() == ["Unschedulable"])
        client.post("/api/v1/nodes", json={"metadata": {"name": "n"}}).raise_for_status()
        ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        client.patch("/api/v1/nodes/n/status", json=ready, headers=MERGE_PATCH).raise_for_status()
        eventually("bound", lambda: client.get(f"{PODS}/p").json()["spec"].get("nodeName") == "n")
        assert reasons() == [None]


def test_nodes_get_pod_cidrs(tmp_path: Path) -> None:
    """With a cluster CIDR every node gets a block of each family, none twice."""
    arguments = ("--cluster-cidr", "10.200.0.0/16,fd00:200::/48", "--node-cidr-mask", "24/64")
    with kube_api.embedded(tmp_path, *arguments) as server, server.client() as client:
        for name in ("a", "b", "c"):
            client.post("/api/v1/nodes", json={"metadata": {"name": name}}).raise_for_status()

        def blocks() -> list[str]:
            items = client.get("/api/v1/nodes").json()["items"]
            found = [cidr for item in items for cidr in item["spec"].get("podCIDRs", ())]
            return found if len(found) == 6 else []

        found = eventually("six blocks", blocks)
        assert len(set(found)) == 6
        assert sum(":" in cidr for cidr in found) == 3


def test_owned_objects_follow_their_owner(client: httpx.Client) -> None:
    """The garbage collector deletes what lost its only owner and keeps what has another."""
    uids = []
    for name in ("owner1", "owner2"):
        answer = client.post(CONFIGMAPS, json={"metadata": {"name": name}})
        uids.append(answer.json()["metadata"]["uid"])
    references = [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": f"owner{at + 1}", "uid": uid}
        for at, uid in enumerate(uids)
    ]
    for name, owners in (("one", references[:1]), ("both", references)):
        body = {"metadata": {"name": name, "ownerReferences": owners}}
        client.post(CONFIGMAPS, json=body).raise_for_status()
    client.delete(f"{CONFIGMAPS}/owner1").raise_for_status()
    eventually("one is gone", lambda: client.get(f"{CONFIGMAPS}/one").status_code == 404)

    def left() -> list[str]:
        found = client.get(f"{CONFIGMAPS}/both").json()
        names = [item["name"] for item in found["metadata"]["ownerReferences"]]
        return names if len(names) == 1 else []

    assert eventually("both has one owner left", left) == ["owner2"]


def test_namespace_goes_with_its_content(client: httpx.Client) -> None:
    """A deleted namespace refuses new content, waits for its Pods, and is gone with them."""
    client.post("/api/v1/namespaces", json={"metadata": {"name": "t"}}).raise_for_status()
    spec = {"containers": [{"name": "c", "image": "x"}], "nodeName": "n"}
    pods = "/api/v1/namespaces/t/pods"
    client.post(pods, json={"metadata": {"name": "p"}, "spec": spec}).raise_for_status()
    client.delete("/api/v1/namespaces/t").raise_for_status()
    answer = client.post(pods, json={"metadata": {"name": "q"}, "spec": spec})
    assert answer.status_code == 403
    eventually(
        "the Pod is being deleted",
        lambda: "deletionTimestamp" in client.get(f"{pods}/p").json()["metadata"],
    )
    client.delete(f"{pods}/p?gracePeriodSeconds=0").raise_for_status()
    eventually("gone", lambda: client.get("/api/v1/namespaces/t").status_code == 404)


def test_dual_stack_service_there_and_back(tmp_path: Path) -> None:
    """A Service gains its second address with PreferDualStack and gives it up with SingleStack."""
    arguments = ("--service-cidr", "10.96.0.0/16,fd00:96::/112")
    with kube_api.embedded(tmp_path, *arguments) as server, server.client() as client:
        body = {"metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}}
        first = client.post(SERVICES, json=body).json()["spec"]
        assert first["ipFamilies"] == ["IPv4"]
        shown = []
        for policy in ("PreferDualStack", "SingleStack"):
            patch = {"spec": {"ipFamilyPolicy": policy}}
            answer = client.patch(f"{SERVICES}/s", json=patch, headers=MERGE_PATCH)
            assert answer.is_success, answer.text
            shown.append(answer.json()["spec"])
        assert shown[0]["ipFamilies"] == ["IPv4", "IPv6"]
        assert shown[0]["clusterIPs"][0] == first["clusterIP"]
        assert shown[0]["clusterIPs"][1].startswith("fd00:96::")
        assert (shown[1]["clusterIPs"], shown[1]["ipFamilies"]) == (first["clusterIPs"], ["IPv4"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (SERVICES, {"spec": {"ports": [{"protocol": "UDP"}], "selector": {"app": "odd"}}}),
        (SERVICES, {"spec": {"clusterIP": "10.96.0.999", "ports": [{"port": 99999}]}}),
        (PODS, {"spec": {"containers": [{"ports": [{"name": "http"}]}], "nodeName": "gone"}}),
        (
            "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies",
            {"spec": {"podSelector": {"matchExpressions": [{"operator": "Odd"}]}}},
        ),
    ],
)
def test_injected_objects_break_nothing(
    client: httpx.Client, path: str, body: dict[str, Any]
) -> None:
    """Whatever is stored unchecked can be listed, shown as a Table, changed and deleted."""
    query = {"dunlin-validate": "false"}
    body = {"metadata": {"name": "odd", "labels": {"app": "odd"}}, **body}
    made = client.post(path, json=body, params=query)
    assert made.status_code == 201, made.text
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    assert client.get(path, headers=table).is_success
    assert client.get(path).is_success
    patch = {"metadata": {"labels": {"more": "1"}}}
    answer = client.patch(f"{path}/odd", json=patch, headers=MERGE_PATCH)
    assert answer.is_success, answer.text
    client.delete(f"{path}/odd?gracePeriodSeconds=0").raise_for_status()
    assert client.get(f"{path}/odd").status_code == 404
