"""
`kubectl apply -k k8s/` on an empty cluster: real control plane, kubelets, containerd, our images.

Needs Kubernetes' executables in $KUBEBUILDER_ASSETS and the images of tools/images.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_chart import OVERLAYS
from tests.e2e.lab_cluster import REPOSITORY, eventually
from tests.e2e.real_cluster import HUGE_PAGES, RealCluster, hugepages, why_no_cluster

pytestmark = [
    pytest.mark.docker, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)
]  # fmt: skip
PARTS = ("watcher", "ipam", "planner", "flowctl", "metrics", "agent", "ovs", "nats")
ROLLOUT_TIMEOUT_S = 240.0
ROLE = "node-role.kubernetes.io/control-plane"
SHOP, DNS = (
    (Path(__file__).parent / "cluster" / f"{name}.yaml").read_text(encoding="utf-8")
    for name in ("shop", "dns")
)
# Asks sixty times, and on until the file is there that a second word names; then says who answered
# how often, and what failed.
ASK = """
import collections, json, pathlib, sys, urllib.request
found, failed = collections.Counter(), []
def more():
    return sum(found.values()) < 60 or not all(pathlib.Path(end).exists() for end in sys.argv[2:])
while more():
    try:
        answer = urllib.request.urlopen(sys.argv[1], timeout=20).read().decode().strip()
        found[answer] += 1
    except OSError as error:
        failed.append(repr(error))
        if len(failed) > 9:
            break
print(json.dumps([found, failed]))
"""


CHART = "k8s/chart"
VALUES: dict[str, Any] = {
    **OVERLAYS["overlays/dev"],
    "secrets": {"generate": True},
    # As the overlay dpdk, but for a machine whose devices are nobody's to take.
    "ovs": {
        "datapath": "dpdk",
        "dpdk": {
            "memoryMiB": 256,
            "extra": "--file-prefix=dunlin --no-pci",
            "hugepages": f"{2 * HUGE_PAGES}Mi",
            "resources": {
                "requests": {"cpu": "100m", "memory": "256Mi"},
                "limits": {"cpu": "2", "memory": "1Gi"},
            },
        },
    },
}


def by_kustomize(cluster: RealCluster, overlay: str) -> None:
    """`kubectl apply -k`, Secrets last: Dunlin's parts wait for them."""
    cluster.kubectl("apply", "-k", overlay)
    cluster.kubectl("apply", "-k", "k8s/crds")
    addresses = [str(machine.address.ip) for machine in cluster.machines]
    secrets = subprocess.run(
        [REPOSITORY / "tools/cluster-secrets", *addresses],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    cluster.kubectl("apply", "-f", "-", stdin=secrets.stdout)


def by_helm(cluster: RealCluster) -> None:
    """`helm install` of a node with DPDK; the chart makes CRDs and Secrets itself."""
    (machine,) = cluster.machines
    cluster.kubectl("label", "node", machine.name, "dunlin.dev/dpdk=true")
    program = str(Path(__file__).parent / "cluster" / "helm_install.py")
    command = [sys.executable, program, str(cluster.admin), CHART]
    done = cluster.run(machine, command, stdin=json.dumps(VALUES))
    assert done.stdout.strip() == "deployed", f"{done.stdout}\n{done.stderr}"


@pytest.fixture(
    scope="module",
    params=[("k8s", 3), ("k8s/overlays/dev", 1), (CHART, 1)],
    ids=["k8s", "dev", "helm-dpdk"],
)
def cluster(request: pytest.FixtureRequest) -> Iterator[RealCluster]:
    """An empty cluster after docs/install.md."""
    if reason := why_no_cluster():
        pytest.skip(reason)
    what, size = request.param
    with tempfile.TemporaryDirectory(
        prefix="dl-rc",
        dir="/var/tmp",
        ignore_cleanup_errors=True,
    ) as folder:
        made = RealCluster(Path(folder), size)
        huge = hugepages(made.prefix) if what == CHART else nullcontext()
        with huge, made.running():
            assert not any(made.node_ready(machine) for machine in made.machines), "no network yet"
            for machine in made.machines:
                made.kubectl("label", "node", machine.name, f"{ROLE}=")
                made.kubectl("taint", "node", machine.name, f"{ROLE}:NoSchedule")
            if what == CHART:
                by_helm(made)
            else:
                by_kustomize(made, what)
            try:
                eventually("all is rolled out", partial(rolled_out, made), ROLLOUT_TIMEOUT_S)
                yield made
            finally:
                print(made.kubectl("get", "pods,nodes", "-A", "-o", "wide", check=False))
                print(*(line for m in made.machines for line in tails(made, m.name)), sep="\n")


def tails(cluster: RealCluster, node: str) -> list[str]:
    """The last words of every container of Dunlin on a node; shown where a test fails."""
    (machine,) = [machine for machine in cluster.machines if machine.name == node]
    told = []
    for path in sorted(cluster.inside(machine, "/var/log/pods").glob("dunlin-system_*/*/*.log")):
        told += [f"--- {node} {path.parts[-3]}"]
        told += path.read_text(errors="replace").splitlines()[-4:]
    return told


def rolled_out(cluster: RealCluster) -> bool:
    """Every part of Dunlin has all its replicas: the newest, and ready."""
    items = cluster.get("-n", "dunlin-system", "deployments,daemonsets,statefulsets")["items"]
    assert {item["metadata"]["name"] for item in items} == set(PARTS)
    return all(_complete(item) for item in items)


def _complete(item: dict[str, Any]) -> bool:
    status = item["status"]
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        return False
    if item["kind"] == "DaemonSet":
        wanted = status["desiredNumberScheduled"]
        found = [status.get("updatedNumberScheduled"), status.get("numberReady")]
    else:
        wanted = item["spec"]["replicas"]
        found = [status.get("updatedReplicas"), status.get("readyReplicas"), status.get("replicas")]
    return wanted > 0 and all(number == wanted for number in found)


def shop(cluster: RealCluster) -> str:
    """Two Pods that answer on each node, a Service, a client; the Service's address."""
    replicas = 2 * len(cluster.machines)
    cluster.kubectl("apply", "-f", "-", stdin=SHOP.replace("REPLICAS", str(replicas)))
    wait = ("-n", "shop", "wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s")
    cluster.kubectl("-n", "shop", "rollout", "status", "deployment/web", "--timeout=90s")
    cluster.kubectl(*wait)
    return str(cluster.get("-n", "shop", "service", "web")["spec"]["clusterIP"])


def on_switch(cluster: RealCluster, node: str, *words: str) -> str:
    """What ovs-vsctl says on a node."""
    pods = cluster.get("-n", "dunlin-system", "pods", "-l", "app.kubernetes.io/name=ovs")
    (pod,) = [item for item in pods["items"] if item["spec"]["nodeName"] == node]
    command = ("exec", pod["metadata"]["name"], "--", "ovs-vsctl", "--no-headings", *words)
    return cluster.kubectl("-n", "dunlin-system", *command)


def ask(cluster: RealCluster, pod: str, url: str) -> tuple[dict[str, int], list[str]]:
    """Sixty requests from inside a Pod: who answered, what failed."""
    words = ("-n", "shop", "exec", pod, "--", "python", "-c", ASK, url)
    found, failed = json.loads(cluster.kubectl(*words))
    return found, failed


def test_apply_makes_a_network(cluster: RealCluster) -> None:
    """Every part comes up, whatever was there first, and the nodes become ready."""
    for machine in cluster.machines:
        eventually(f"{machine.name} is ready", partial(cluster.node_ready, machine))
    links = cluster.run(cluster.machines[0], ["ip", "-br", "link"]).stdout
    assert "br-int" in links
    assert "kube-ipvs0" not in links
    rules = cluster.run(cluster.machines[0], ["iptables", "-t", "nat", "-S"]).stdout
    assert "KUBE-SERVICES" not in rules, "a kube-proxy would hide what we do not do"


def test_pods_and_services(cluster: RealCluster) -> None:
    """A Service spreads over Pods of all nodes; the API's own Service and a policy work too."""
    address = shop(cluster)
    pods = cluster.get("-n", "shop", "pods", "-l", "app=web")["items"]
    names = {pod["metadata"]["name"] for pod in pods}
    assert {pod["spec"]["nodeName"] for pod in pods} == {m.name for m in cluster.machines}
    found, failed = ask(cluster, "client", f"http://{address}/")
    assert (set(found), failed) == (names, [])
    for machine in cluster.machines:
        done = cluster.run(machine, ["curl", "-fsm", "10", f"http://{address}/"])
        assert done.stdout.strip() in names, f"from {machine.name}: {done}"
    # The Service of the API server, whose endpoint is a node.
    script = (
        "import ssl, urllib.request as u;"
        "c = ssl.create_default_context("
        "cafile='/var/run/secrets/kubernetes.io/serviceaccount/ca.crt');"
        "print(u.urlopen('https://10.96.0.1/version', context=c, timeout=10).status)"
    )
    told = cluster.kubectl("-n", "shop", "exec", "client", "--", "python", "-c", script)
    assert told.strip() == "200"


def test_names_of_services(cluster: RealCluster) -> None:
    """
    Pods resolve names by the cluster's own name server, which they reach as they do any Service.

    It reads Services through the API server's Service, and came long after Dunlin: no part of
    Dunlin needs it.
    """
    shop(cluster)
    where = ("-n", "kube-system")
    cluster.kubectl("apply", "-f", "-", stdin=DNS)
    cluster.kubectl(*where, "rollout", "status", "deployment/dns", "--timeout=90s")
    pods = cluster.get("-n", "shop", "pods", "-l", "app=web")["items"]
    names = {pod["metadata"]["name"] for pod in pods}
    for name in ("web", "web.shop.svc.cluster.local"):
        found, failed = ask(cluster, "client", f"http://{name}/")
        assert (set(found), failed) == (names, [])
    script = "import socket; socket.getaddrinfo('nobody.shop.svc.cluster.local', 80)"
    words = ("-n", "shop", "exec", "client", "--", "python", "-c", script)
    done = cluster.kubectl_done(*words)
    assert done.returncode != 0
    assert "Name or service not known" in done.stderr, "the name server says no, it is not silent"


def test_dpdk(cluster: RealCluster, request: pytest.FixtureRequest) -> None:
    """Where it was asked for, Open vSwitch has DPDK and hugepages; elsewhere it has none."""
    asked = "helm-dpdk" in request.node.name
    for machine in cluster.machines:
        words = ("get", "Open_vSwitch", ".", "dpdk_initialized")
        told = on_switch(cluster, machine.name, *words).strip()
        assert told == str(asked).lower()


def test_a_policy_holds(cluster: RealCluster) -> None:
    """What a NetworkPolicy does not allow gets no answer; what it allows does."""
    address = shop(cluster)
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "web"}},
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}],
        },
    }
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(policy))
    script = f"import urllib.request as u; u.urlopen('http://{address}/', timeout=3)"
    stranger = ("-n", "shop", "exec", "stranger", "--", "python", "-c", script)

    def denied() -> bool:
        done = cluster.kubectl_done(*stranger)
        return done.returncode != 0 and "timed out" in done.stderr

    try:
        eventually("the stranger is kept out", denied)
        found, failed = ask(cluster, "client", f"http://{address}/")
        assert found
        assert not failed
    finally:
        cluster.kubectl("-n", "shop", "delete", "networkpolicy", "web")
    # The oracle can fail: without the policy the stranger is answered.
    eventually("the stranger is let in", lambda: cluster.kubectl_done(*stranger).returncode == 0)


def test_everything_restarts_under_load(cluster: RealCluster) -> None:
    """`rollout restart` of all that makes the network, and not one request fails meanwhile."""
    address = shop(cluster)
    where, end = ("-n", "dunlin-system"), f"/tmp/{os.urandom(4).hex()}"
    words = ("-n", "shop", "exec", "client", "--", "python", "-c", ASK, f"http://{address}/", end)
    with cluster.kubectl_running(*words) as asking:
        # All but Open vSwitch and NATS, whose restarts people choose.
        cluster.kubectl(*where, "rollout", "restart", "daemonset/agent")
        cluster.kubectl(*where, "rollout", "restart", "deployment")
        eventually("all is rolled out", partial(rolled_out, cluster), ROLLOUT_TIMEOUT_S)
        cluster.kubectl("-n", "shop", "exec", "client", "--", "touch", end)
        told, problems = asking.communicate(timeout=120)
    found, failed = json.loads(told or "[{}, []]")
    assert found, problems
    assert not failed, f"{found} {failed}"


def made_nkeys(cluster: RealCluster, folder: Path) -> str:
    """New seeds and keys beside those in force, as docs/operate.md makes them."""
    where = ("-n", "dunlin-system", "get", "configmap", "dunlin-nats-users")
    old = folder / "old.conf"
    old.write_text(cluster.kubectl(*where, "-o", r"jsonpath={.data.users\.conf}"), encoding="ascii")
    command = [str(REPOSITORY / "tools/cluster-secrets"), "--nkeys", str(old)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


def reload_nats(cluster: RealCluster, until: str) -> None:
    """SIGHUP to every server, once kubelet has brought the file that it shall read."""
    size = cluster.get("-n", "dunlin-system", "statefulset", "nats")["spec"]["replicas"]
    script = f'{until} grep -q "# old" /etc/nats/users.conf; do sleep 1; done; kill -HUP 1'
    for server in range(size):
        words = ("-n", "dunlin-system", "exec", f"nats-{server}", "--", "sh", "-c", script)
        cluster.kubectl(*words, timeout_s=240)


@pytest.mark.soak
def test_new_nats_seeds(cluster: RealCluster, tmp_path: Path) -> None:
    """Minutes, as kubelet brings files when it likes: rotation as docs/operate.md says it."""
    address = shop(cluster)
    where = ("-n", "dunlin-system")
    made = made_nkeys(cluster, tmp_path)
    cluster.kubectl("apply", "-l", "app.kubernetes.io/name=nats", "-f", "-", stdin=made)
    reload_nats(cluster, "until")
    started = starts(cluster)
    cluster.kubectl("apply", "-f", "-", stdin=made)
    for pod, service in started:
        if service in ("nats", "ovs"):
            continue
        data = cluster.get(*where, "secret", f"dunlin-nats-{service}")["data"]["seed"]
        script = f'until [ "$(base64 -w0 /etc/dunlin/nats/seed)" = {data} ]; do sleep 1; done'
        cluster.kubectl(*where, "exec", pod, "--", "sh", "-c", script, timeout_s=240)
    text = cluster.kubectl(*where, "get", "configmap", "dunlin-nats-users", "-o", "yaml")
    lines = text.split("\n")
    new = "\n".join(line for line in lines if not line.endswith("# old"))
    # An annotation of kubectl's repeats the text, in one line.
    assert len(lines) - len(new.split("\n")) == 6
    cluster.kubectl("apply", "-f", "-", stdin=new)
    reload_nats(cluster, "while")
    # Whoever came by an old key is back by the new one: a change goes all the way.
    cluster.kubectl("-n", "shop", "scale", "deployment/web", "--replicas=1")
    cluster.kubectl("-n", "shop", "rollout", "status", "deployment/web", "--timeout=120s")
    found, failed = ask(cluster, "client", f"http://{address}/")
    assert (len(found), failed) == (1, [])
    assert starts(cluster) == started, "nobody has restarted"


def starts(cluster: RealCluster) -> dict[tuple[str, str], tuple[str, int]]:
    """When each Pod of Dunlin started, and how often its container did; by name and service."""
    pods = cluster.get("-n", "dunlin-system", "pods")["items"]
    return {
        (pod["metadata"]["name"], pod["metadata"]["labels"]["app.kubernetes.io/name"]): (
            pod["status"]["startTime"],
            pod["status"]["containerStatuses"][0]["restartCount"],
        )
        for pod in pods
    }


def test_pods_go_and_leave_nothing(cluster: RealCluster) -> None:
    """With the namespace go all Pods, and their ports leave the switches."""
    shop(cluster)
    cluster.kubectl("delete", "namespace", "shop", "--timeout=90s", timeout_s=100)

    def no_port(node: str) -> bool:
        told = on_switch(cluster, node, "--columns=external_ids", "list", "Interface")
        return "shop" not in told

    for machine in cluster.machines:
        eventually(f"{machine.name} has no port of the shop", partial(no_port, machine.name))
