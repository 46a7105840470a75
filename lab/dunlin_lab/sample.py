"""The sample of `make up`: applies a small shop, calls through its Service, shows who answered."""

from __future__ import annotations

import http.client
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import yaml

from dunlin_lab import netns
from dunlin_lab.api import client
from dunlin_lab.kubelet_nodes import LAB_LABEL
from dunlin_lab.paths import LabPaths
from dunlin_lab.starting import UpError, deadline
from dunlin_lab.state import LabState
from dunlin_lab.status import pods

PODS = 6
CALLS = 90
_COLLECTIONS = {
    "Namespace": "/api/v1/namespaces",
    "Pod": "/api/v1/namespaces/{namespace}/pods",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
}


def apply(state: LabState) -> None:
    """
    Create the sample's objects; those that exist are left alone.

    Raises:
        UpError: the Kubernetes API refused one; with its answer.
    """
    text = files("dunlin_lab").joinpath("sample.yaml").read_text()
    with client(Path(state.kubeconfig)) as api:
        for manifest in yaml.safe_load_all(text):
            namespace = manifest["metadata"].get("namespace", "")
            if manifest["kind"] == "Namespace":
                manifest["metadata"]["labels"] = {LAB_LABEL: state.name}
            path = _COLLECTIONS[manifest["kind"]].format(namespace=namespace)
            answer = api.post(path, json=manifest)
            if answer.status_code not in (201, 409):
                name = manifest["metadata"]["name"]
                raise UpError(f"{manifest['kind']} {name}: {answer.status_code} {answer.text}")


def wait_pods(paths: LabPaths, state: LabState, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """
    The sample's Pods once all are ready and the backend has its endpoints.

    Raises:
        UpError: they are not in time; naming those that are.
    """
    found: list[dict[str, Any]] = []
    with deadline(timeout_s) as more:
        while more():
            found = [pod for pod in pods(paths, state) if pod["namespace"] == "shop"]
            ready = [pod for pod in found if pod["ready"]]
            if len(ready) >= PODS and _endpoints(state, "backend") >= 3:
                return found
    names = ", ".join(f"{pod['name']} ready={pod['ready']}" for pod in found) or "none"
    raise UpError(f"{PODS} Pods of the sample should be ready; there are: {names}")


def _endpoints(state: LabState, service: str) -> int:
    """Ready IPv4 endpoints of a Service of the shop."""
    path = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices"
    selector = {"labelSelector": f"kubernetes.io/service-name={service}"}
    with client(Path(state.kubeconfig)) as api:
        slices = api.get(path, params=selector).raise_for_status().json()["items"]
    return sum(
        bool(endpoint["conditions"].get("ready"))
        for item in slices
        if item["addressType"] == "IPv4"
        for endpoint in item.get("endpoints") or ()
    )


def service_ip(state: LabState, name: str) -> str:
    """The (first) cluster IP of a Service of the shop."""
    with client(Path(state.kubeconfig)) as api:
        answer = api.get(f"/api/v1/namespaces/shop/services/{name}").raise_for_status()
    return str(answer.json()["spec"]["clusterIP"])


def call(pod_netns: str, address: str, count: int = CALLS) -> list[dict[str, str]]:
    """
    What answers `count` new connections from inside a Pod to port 80 of `address`.

    Raises:
        UpError: a call failed.
    """

    def calls() -> list[dict[str, str]]:
        return [_get(address) for _ in range(count)]

    return netns.run_in(pod_netns, calls)


def _get(address: str) -> dict[str, str]:
    link = http.client.HTTPConnection(address, 80, timeout=5)
    try:
        link.request("GET", "/")
        answer: dict[str, str] = json.loads(link.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UpError(f"a call to {address}:80 failed: {error}") from error
    finally:
        link.close()
    return answer


def spread(answers: list[dict[str, str]]) -> Counter[str]:
    """How often each Pod answered."""
    return Counter(answer["pod"] for answer in answers)


def metric_lines(url: str, prefix: str, limit: int = 4) -> list[str]:
    """Some samples of a Prometheus endpoint, for the curious."""
    try:
        text = httpx.get(f"{url}/metrics", timeout=5.0, trust_env=False).text
    except httpx.HTTPError as error:
        return [f"# {error}"]
    return [line for line in text.splitlines() if line.startswith(prefix)][:limit]
