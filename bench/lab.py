"""A lab of the bench's own, by the command line that everybody uses."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.measure import Unavailable
from dunlin_lab.api import client

TIMEOUT_S = 180.0
NAMESPACE = "bench"
GIVEN = "DUNLIN_BENCH_LAB"
"""Environment: the name of a lab that runs already, and stays."""
Object = dict[str, Any]


class Lab:
    """A running lab. `nodes`: as `lab status --json` has them."""

    def __init__(self, name: str) -> None:
        self.name = name
        found = self.status()
        self.nodes: list[Object] = found["nodes"]
        self.datapath: str = found["datapath"]
        self.api: httpx.Client = client(Path(found["kubeconfig"]))

    def dunlin(self, *arguments: str) -> str:
        """`dunlin … --name NAME`."""
        return _dunlin(*arguments, "--name", self.name)

    def status(self) -> Object:
        """`dunlin lab status --json`."""
        found: Object = json.loads(self.dunlin("lab", "status", "--json"))
        return found

    def wait(self) -> None:
        """`dunlin wait`."""
        self.dunlin("wait", "--timeout", "120")

    def create(self, path: str, manifest: Object) -> Object:
        """POST; the object as stored, or as it was."""
        answer = self.api.post(path, json=manifest)
        if answer.status_code == 409:
            answer = self.api.get(f"{path}/{manifest['metadata']['name']}")
        answer.raise_for_status()
        created: Object = answer.json()
        return created

    def pods(self, **nodes: str) -> dict[str, Object]:
        """Pods by name, on the given nodes, as `lab status` has them once they are ready."""
        self.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        for name, node in nodes.items():
            containers = [{"name": "main", "image": "lab/none"}]
            spec = {"nodeName": node, "containers": containers}
            metadata = {"name": name, "labels": {"app": name}}
            self.create(
                f"/api/v1/namespaces/{NAMESPACE}/pods", {"metadata": metadata, "spec": spec}
            )

        def ready() -> dict[str, Object]:
            found = {p["name"]: p for p in self.status()["pods"] if p["namespace"] == NAMESPACE}
            return found if all(found.get(n, {}).get("ready") for n in nodes) else {}

        return _eventually("Pods of the bench are ready", ready)

    def service(self, name: str, pod: str, ports: list[Object]) -> str:
        """A ClusterIP Service of one Pod; its IPv4 address."""
        spec = {"selector": {"app": pod}, "ports": ports, "ipFamilies": ["IPv4"]}
        made = self.create(
            f"/api/v1/namespaces/{NAMESPACE}/services", {"metadata": {"name": name}, "spec": spec}
        )
        return str(made["spec"]["clusterIP"])

    def crowd(self, services: int, endpoints: list[str]) -> None:
        """So many Services more, each with all of these endpoints, without selector."""
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: self._extra(f"extra-{i}", endpoints), range(services)))

    def _extra(self, name: str, endpoints: list[str]) -> None:
        port = {"name": "http", "port": 80, "protocol": "TCP"}
        self.create(
            f"/api/v1/namespaces/{NAMESPACE}/services",
            {"metadata": {"name": name}, "spec": {"ports": [port], "ipFamilies": ["IPv4"]}},
        )
        self.create(
            f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices",
            {
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [ip], "conditions": {"ready": True}} for ip in endpoints
                ],
            },
        )


def _dunlin(*arguments: str) -> str:
    command = [str(Path(sys.executable).with_name("dunlin")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}\n{done.stderr}")
    return done.stdout


def _eventually(what: str, reached: Callable[[], Object]) -> Object:
    deadline = time.monotonic() + TIMEOUT_S
    while not (value := reached()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {TIMEOUT_S} s: {what}")
        time.sleep(0.05)
    return value


@contextmanager
def running(nodes: int) -> Iterator[Lab]:
    """
    A lab without the shop, gone afterwards.

    Raises:
        Unavailable: we are not root.
    """
    if os.geteuid() != 0:
        raise Unavailable("needs root: a lab is made of network namespaces")
    given = os.environ.get(GIVEN)
    if given:
        yield Lab(given)
        return
    name = f"bench{os.getpid()}"
    try:
        _dunlin("lab", "up", "--no-sample", "--nodes", str(nodes), "--name", name)
        yield Lab(name)
    finally:
        _dunlin("lab", "down", "--name", name)
