"""A lab as the end-to-end tests use it: by command line, Kubernetes API and packets alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from dunlin_lab.api import client
from dunlin_lab.paths import LabPaths
from dunlin_lab.status import status
from tests.fixtures import ovs_build
from tests.fixtures.kube_api import MERGE_PATCH
from tests.fixtures.ovs_dummy import missing_ovs

REPOSITORY = Path(__file__).resolve().parents[2]
DUNLIN = [str(REPOSITORY / ".venv" / "bin" / "dunlin")]
CLUSTER_POLICIES = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
COMMAND_TIMEOUT_S = 180.0
LEVEL_TIMEOUT_S = 60.0


class NotInTime(AssertionError):
    """A level was not reached before its deadline."""


def eventually(what: str, reached: Callable[[], Any], timeout_s: float = LEVEL_TIMEOUT_S) -> Any:
    """The first truthy value of `reached`; the deadline only bounds a failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = reached()
        if value:
            return value
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {timeout_s} s: {what} (last: {value!r})")
        time.sleep(0.05)


def why_not() -> str:
    """Why there can be no lab here; "" if there can."""
    if os.geteuid() != 0:
        return "a lab needs root"
    return missing_ovs() or ("" if shutil.which("ip") else "no ip command")


class LabCluster:
    """One lab, by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[dict[str, Any]] = []
        self.outside: dict[str, Any] = {}
        self.env: dict[str, str] = {}
        """Added to the environment of the command line, and so of what it starts."""
        self._api: httpx.Client | None = None

    # --- the command line ---

    def dunlin(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`dunlin … --name NAME`."""
        words = list(arguments)
        at = words.index("--") if "--" in words else len(words)
        command = [*DUNLIN, *words[:at], "--name", self.name, *words[at:]]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
            env={**os.environ, **self.env},
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stdout}\n{done.stderr}")
        return done

    def up(self, *options: str) -> None:
        """`dunlin lab up --no-sample …`."""
        other_build = ("--datapath", "netdev") if os.environ.get(ovs_build.VARIABLE) else ()
        self.dunlin("lab", "up", "--no-sample", *other_build, *options)
        self.attach()

    def attach(self) -> LabCluster:
        """Use the lab of this name, which stands."""
        found = self.status()
        self.nodes, self.outside = found["nodes"], found["outside"]
        self._api = client(Path(found["kubeconfig"]))
        return self

    def down(self) -> None:
        """`dunlin lab down`."""
        if self._api is not None:
            self._api.close()
        self.dunlin("lab", "down")

    def status(self) -> dict[str, Any]:
        """What `dunlin lab status --json` prints, without a process that takes most of a second."""
        return status(LabPaths.named(self.name))

    def wait(self, timeout_s: float = 30.0) -> None:
        """`dunlin wait`."""
        self.dunlin("wait", "--timeout", str(timeout_s))

    def kill(self, target: str) -> None:
        """`dunlin lab kill`."""
        self.dunlin("lab", "kill", target)

    def start(self, target: str) -> None:
        """`dunlin lab start`."""
        self.dunlin("lab", "start", target)

    def log_tail(self, target: str, lines: int = 40) -> str:
        """The end of the log of SERVICE/REPLICA."""
        path = Path(self.status()["kubeconfig"]).parent / "log" / f"{target.replace('/', '@')}.log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])

    def url(self, service: str, replica: str = "0") -> str:
        """REST API of one replica."""
        for item in self.status()["services"]:
            if (item["service"], item["replica"]) == (service, replica):
                return str(item["url"])
        raise AssertionError(f"no {service}/{replica}")

    def ready(self) -> None:
        """Until every service of Dunlin answers that it is ready."""
        for item in self.status()["services"]:
            if item["url"] and item["service"] != "apiserver":
                url = str(item["url"])
                what = f"{item['service']}/{item['replica']} is ready"
                eventually(what, partial(_is_ready, url))

    def kubectl(self, *arguments: str) -> str:
        """Run kubectl on this cluster, with a home of its own."""
        config = str(self.status()["kubeconfig"])
        command = ["kubectl", "--kubeconfig", config, *arguments]
        env = {**os.environ, "HOME": str(Path(config).parent)}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, env=env
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def wipe_jetstream(self) -> None:
        """Delete all that nats-server has stored; it must be down."""
        directory = Path(self.status()["kubeconfig"]).parent / "nats"
        assert directory.is_dir(), directory
        shutil.rmtree(directory)

    # --- the Kubernetes API ---

    @property
    def api(self) -> httpx.Client:
        """Plain HTTP on the Kubernetes API."""
        assert self._api is not None
        return self._api

    def create(self, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """POST; the object as stored."""
        answer = self.api.post(path, json=manifest)
        assert answer.status_code == 201, answer.text
        created: dict[str, Any] = answer.json()
        return created

    def patch(self, path: str, change: dict[str, Any], **params: str) -> None:
        """PATCH: merge `change` into the object (RFC 7386)."""
        answer = self.api.patch(path, json=change, params=params, headers=MERGE_PATCH)
        assert answer.is_success, f"{answer.status_code} {answer.text}"

    def namespace(self, name: str) -> str:
        """A new namespace."""
        self.create("/api/v1/namespaces", {"metadata": {"name": name}})
        return name

    def pod(self, namespace: str, name: str, node: str = "", **options: Any) -> None:
        """A Pod with TCP and UDP port 8080, named `http` and `dns`."""
        ports = [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "dns", "containerPort": 8080, "protocol": "UDP"},
        ]
        containers = [{"name": "main", "image": "lab/responder", "ports": ports}]
        spec: dict[str, Any] = {"containers": containers, **options.get("spec", {})}
        if node:
            spec["nodeName"] = node
        metadata = {"name": name, "labels": options.get("labels", {"app": name})}
        manifest = {"metadata": metadata, "spec": spec}
        self.create(f"/api/v1/namespaces/{namespace}/pods", manifest)

    def service(
        self, namespace: str, name: str, selector: dict[str, str], **spec: Any
    ) -> list[str]:
        """A dual-stack Service: port 80 to TCP `http`, port 53 to UDP `dns`; its cluster IPs."""
        ports = [
            {"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"},
            {"name": "dns", "port": 53, "targetPort": "dns", "protocol": "UDP"},
        ]
        body = {"selector": selector, "ports": ports, "ipFamilyPolicy": "PreferDualStack", **spec}
        manifest = {"metadata": {"name": name}, "spec": body}
        created = self.create(f"/api/v1/namespaces/{namespace}/services", manifest)
        return list(created["spec"]["clusterIPs"])

    def cluster_policy(self, name: str, spec: dict[str, Any], **metadata: Any) -> None:
        """A ClusterNetworkPolicy; its group, version and kind, as a real API wants them."""
        manifest = {
            "apiVersion": "policy.networking.k8s.io/v1alpha2",
            "kind": "ClusterNetworkPolicy",
            "metadata": {"name": name, **metadata},
            "spec": spec,
        }
        self.create(CLUSTER_POLICIES, manifest)

    def deployment(self, namespace: str, name: str, replicas: int) -> None:
        """A Deployment of such Pods, labelled app=<name>."""
        ports = [
            {"name": "http", "containerPort": 8080, "protocol": "TCP"},
            {"name": "dns", "containerPort": 8080, "protocol": "UDP"},
        ]
        containers = [{"name": "main", "image": "lab/responder", "ports": ports}]
        manifest = {
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": containers},
                },
            },
        }
        self.create(f"/apis/apps/v1/namespaces/{namespace}/deployments", manifest)

    def pods_ready(self, namespace: str, count: int) -> list[dict[str, Any]]:
        """The Pods of a namespace, once exactly `count` are there and ready."""

        def reached() -> list[dict[str, Any]]:
            found = [p for p in self.status()["pods"] if p["namespace"] == namespace]
            everyone = len(found) == count and all(p["ready"] for p in found)
            return sorted(found, key=lambda p: p["name"]) if everyone else []

        ready: list[dict[str, Any]] = eventually(f"{count} Pods of {namespace} are ready", reached)
        return ready

    def endpoints_ready(self, namespace: str, service: str, count: int) -> None:
        """Until the EndpointSlices of a Service hold that many ready IPv4 endpoints."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        selector = {"labelSelector": f"kubernetes.io/service-name={service}"}

        def reached() -> bool:
            slices = self.api.get(path, params=selector).raise_for_status().json()["items"]
            found = sum(
                bool(endpoint["conditions"].get("ready"))
                for item in slices
                if item["addressType"] == "IPv4"
                for endpoint in item.get("endpoints") or ()
            )
            return found == count

        eventually(f"{namespace}/{service} has {count} ready endpoints", reached)

    # --- the switches, as a test may look at them ---

    def flows(self, node: dict[str, Any]) -> list[str]:
        """Flows and groups of br-int as ovs-ofctl writes them, without counters, sorted."""
        lines = []
        for command in ("dump-flows", "dump-groups"):
            lines += ofctl(node, "--no-stats", command, "br-int").splitlines()
        return sorted(line.strip() for line in lines if "actions=" in line or "group_id=" in line)


class WebCluster(LabCluster):
    """A lab with a client, two servers on two nodes, and a Service over them."""

    client: dict[str, Any]
    servers: list[dict[str, Any]]
    address: str

    def populate(self, namespace: str) -> None:
        """Pods on two nodes and the Service, in a namespace of its own; until all of it works."""
        self.namespace(namespace)
        first, second = self.nodes[0]["name"], self.nodes[1]["name"]
        self.pod(namespace, "a-client", first)
        self.pod(namespace, "b-local", first, labels={"app": "web"})
        self.pod(namespace, "c-remote", second, labels={"app": "web"})
        (self.address, *_) = self.service(namespace, "web", {"app": "web"})
        self.client, *self.servers = self.pods_ready(namespace, 3)
        self.endpoints_ready(namespace, "web", 2)
        self.wait()


def ofctl(node: dict[str, Any], *arguments: str) -> str:
    """ovs-ofctl in a node's run directory."""
    env = {**os.environ, "OVS_RUNDIR": node["ovs_rundir"]}
    done = subprocess.run(
        ["ovs-ofctl", "-O", "OpenFlow15", *arguments],
        env=env, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def a_lab(prefix: str, *options: str) -> Iterator[LabCluster]:
    """The lab `<prefix>-<pid>` with these options of `up`; taken down at the end."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    lab = LabCluster(f"{prefix}-{os.getpid()}")
    try:
        lab.up(*options)
        yield lab
    finally:
        lab.down()
