"""The controllers' pure cores."""

from __future__ import annotations

import copy
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_lab.apiserver.controllers.endpoints import subsets_of
from dunlin_lab.apiserver.controllers.endpointslice import (
    ENDPOINTS_MAX,
    Triggers,
    desired_of,
    next_triggers,
    plan_slices,
)
from dunlin_lab.apiserver.controllers.node import free_cidr, tainted
from dunlin_lab.apiserver.controllers.replicaset import plan_replicas
from dunlin_lab.apiserver.controllers.rollout import (
    current_of,
    new_replicaset,
    plan_rollout,
    template_hash,
)
from dunlin_lab.binding import choose

READY = [{"type": "Ready", "status": "True"}]
CREATED = "2026-01-01T00:00:00Z"


def service(**spec: Any) -> dict[str, Any]:
    """Return a dual-stack Service with a named target port."""
    found = {
        "type": "ClusterIP",
        "ipFamilies": ["IPv4", "IPv6"],
        "selector": {"app": "a"},
        "ports": [{"name": "p", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        **spec,
    }
    return {"metadata": {"name": "s", "namespace": "n", "creationTimestamp": CREATED},
            "spec": found}  # fmt: skip


def pod(number: int, *, ready: bool = True, port: int = 8080, **metadata: Any) -> dict[str, Any]:
    """Return a Pod with an address of each family."""
    addresses = [f"10.0.{number // 200}.{number % 200 + 1}", f"fd00::{number + 1:x}"]
    return {
        "metadata": {"name": f"p{number}", "namespace": "n", "uid": f"u{number}",
                     "creationTimestamp": CREATED, **metadata},
        "spec": {"nodeName": "n1", "containers": [
            {"name": "c", "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}
        ]},
        "status": {"phase": "Running", "podIPs": [{"ip": item} for item in addresses],
                   "conditions": READY if ready else []},
    }  # fmt: skip


class Slices:
    """A cluster's slices, to which plans are applied."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.writes = 0
        self._count = 0

    def step(self, owner: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        """Plan and apply."""
        plan = plan_slices(owner, desired_of(owner, pods, {"n1": "z"}), self.items.values())
        self.writes = len(plan.create) + len(plan.update) + len(plan.delete)
        for name in plan.delete:
            del self.items[name]
        for item in [*plan.create, *plan.update]:
            self._count += 1
            item["metadata"].setdefault("name", f"s-{self._count:05}")
            self.items[item["metadata"]["name"]] = copy.deepcopy(item)

    def addresses(self) -> list[tuple[str, int]]:
        """Return every (address, port) there is."""
        return sorted(
            (end["addresses"][0], item["ports"][0]["port"])
            for item in self.items.values()
            for end in item["endpoints"] or ()
        )


def test_endpoint_states() -> None:
    """Ready, not ready, leaving and finished Pods, and one without an address."""
    pods = [pod(0), pod(1, ready=False), pod(2, deletionTimestamp=CREATED), pod(3), pod(4)]
    pods[3]["status"]["phase"] = "Succeeded"
    pods[4]["status"]["podIPs"] = [{"ip": "10.0.0.999"}]
    found = desired_of(service(ipFamilies=["IPv4"]), pods, {"n1": "z"})
    (group,) = found.values()
    states = {uid: tuple(end["conditions"].values()) for uid, end in group.endpoints.items()}
    assert states == {
        "u0": (True, True, False), "u1": (False, False, False), "u2": (False, True, True),
    }  # fmt: skip
    assert group.endpoints["u0"]["zone"] == "z"
    always = desired_of(service(publishNotReadyAddresses=True), [pod(1, ready=False)], {})
    assert all(
        end["conditions"]["ready"] for one in always.values() for end in one.endpoints.values()
    )


def test_named_port_of_two_numbers_makes_two_slices() -> None:
    """Pods whose port of that name has another number are in a slice of their own."""
    slices = Slices()
    slices.step(service(ipFamilies=["IPv4"]), [pod(0), pod(1, port=9090)])
    assert slices.addresses() == [("10.0.0.1", 8080), ("10.0.0.2", 9090)]
    assert len(slices.items) == 2


@given(st.lists(st.sets(st.integers(0, 260), max_size=230), min_size=1, max_size=4))
def test_slices_hold_what_is_desired(steps: list[set[int]]) -> None:
    """After any changes: every endpoint once, at most 100 a slice, and nothing left to write."""
    slices, owner = Slices(), service()
    for numbers in steps:
        pods = [pod(number) for number in numbers]
        slices.step(owner, pods)
        wanted = [(end["ip"], 8080) for one in pods for end in one["status"]["podIPs"]]
        assert slices.addresses() == sorted(wanted)
        sizes = [len(item["endpoints"] or ()) for item in slices.items.values()]
        assert max(sizes) <= ENDPOINTS_MAX
        assert {item["addressType"] for item in slices.items.values()} == {"IPv4", "IPv6"}
        slices.step(owner, pods)
        assert slices.writes == 0


def test_endpoints_stay_in_their_slice() -> None:
    """One more Pod changes one slice of each family."""
    slices, owner = Slices(), service()
    slices.step(owner, [pod(number) for number in range(150)])
    slices.step(owner, [pod(number) for number in range(151)])
    assert slices.writes == 2


def test_trigger_times() -> None:
    """A new Service announces its creation, a Pod its change of readiness, each once."""
    one = pod(0)
    one["status"]["conditions"] = [{**READY[0], "lastTransitionTime": "2026-01-02T00:00:00Z"}]
    triggers, stamp = next_triggers(Triggers(), service(), [])
    assert stamp == CREATED
    triggers, stamp = next_triggers(triggers, service(), [one])
    assert stamp == "2026-01-02T00:00:00Z"
    assert next_triggers(triggers, service(), [one])[1] == ""


def test_endpoints_of_one_family() -> None:
    """Endpoints show the first family, in address order, the unready apart."""
    found = subsets_of(service(), [pod(9), pod(1), pod(2, ready=False)])
    assert [[a["ip"] for a in s["addresses"]] for s in found] == [["10.0.0.2", "10.0.0.10"]]
    assert [a["ip"] for a in found[0]["notReadyAddresses"]] == ["10.0.0.3"]
    assert found[0]["ports"] == [{"name": "p", "protocol": "TCP", "port": 8080}]


def test_replicas_deleted_first_are_those_that_serve_least() -> None:
    """Scaling down takes the unready before the ready."""
    replicaset = {
        "metadata": {"name": "r", "generation": 3},
        "spec": {"replicas": 1, "template": {}, "selector": {}},
    }
    plan = plan_replicas(replicaset, [pod(0), pod(1, ready=False), pod(2)], now=0.0)
    assert len(plan.delete) == 2
    assert "p1" in plan.delete
    assert plan.status["readyReplicas"] == 2
    assert plan_replicas(replicaset, [], now=0.0).create == 1


def deployment(replicas: int, image: str, **strategy: Any) -> dict[str, Any]:
    """Return a Deployment."""
    template = {"metadata": {"labels": {"app": "d"}},
                "spec": {"containers": [{"name": "c", "image": image}]}}  # fmt: skip
    rolling = {"type": "RollingUpdate", "rollingUpdate": strategy}
    return {
        "metadata": {"name": "d", "namespace": "n", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "template": template, "strategy": rolling,
                 "selector": {"matchLabels": {"app": "d"}}, "revisionHistoryLimit": 1},
    }  # fmt: skip


def replicaset(owner: dict[str, Any], revision: int, size: int, available: int) -> dict[str, Any]:
    """Return a ReplicaSet of a Deployment."""
    found = copy.deepcopy(new_replicaset(owner, revision))
    found["metadata"]["creationTimestamp"] = f"2026-01-01T00:00:{revision:02}Z"
    found["spec"]["replicas"] = size
    found["status"] = {"replicas": size, "availableReplicas": available}
    return found


@given(st.integers(1, 12), st.integers(0, 3), st.integers(0, 3), st.randoms(use_true_random=False))
def test_rollout_keeps_its_limits(replicas: int, surge: int, unavailable: int, rng: Any) -> None:
    """Whatever order Pods become available in, the limits hold and the rollout ends."""
    if not surge and not unavailable:
        unavailable = 1
    owner = deployment(replicas, "2", maxSurge=surge, maxUnavailable=unavailable)
    old = replicaset(deployment(replicas, "1"), 1, replicas, replicas)
    new = replicaset(owner, 2, 0, 0)
    for _ in range(20 * replicas + 20):
        rollout = plan_rollout(owner, new, [old])
        for item in (old, new):
            size = rollout.sizes.get(item["metadata"]["name"], item["spec"]["replicas"])
            item["spec"]["replicas"] = item["status"]["replicas"] = size
            item["status"]["availableReplicas"] = min(item["status"]["availableReplicas"], size)
        total = old["spec"]["replicas"] + new["spec"]["replicas"]
        serving = old["status"]["availableReplicas"] + new["status"]["availableReplicas"]
        assert total <= replicas + surge
        assert serving >= replicas - unavailable
        if new["status"]["availableReplicas"] < new["spec"]["replicas"] and rng.random() < 0.7:
            new["status"]["availableReplicas"] += 1
        if new["status"]["availableReplicas"] == replicas and not old["spec"]["replicas"]:
            return
    pytest.fail("the rollout did not end")


def test_current_replicaset_is_found_by_its_template() -> None:
    """The template decides, whatever the order of its members; another image is another one."""
    one, two = deployment(1, "1"), deployment(1, "2")
    known = [replicaset(one, 1, 0, 0), replicaset(two, 2, 1, 1)]
    assert current_of(one, known) is known[0]
    assert current_of(deployment(1, "3"), known) is None
    template = one["spec"]["template"]
    assert template_hash(template) == template_hash(dict(reversed(template.items())))


def node(name: str, **spec: Any) -> dict[str, Any]:
    """Return a ready node."""
    return {"metadata": {"name": name, "labels": {"zone": name}}, "spec": spec,
            "status": {"conditions": READY}}  # fmt: skip


def test_binding_prefers_the_emptiest_node_that_fits() -> None:
    """Least Pods first; cordoned, tainted, unready, unselected and full nodes are left out."""
    plain: dict[str, Any] = {"spec": {}}
    nodes = [node("a"), node("b"), node("c", unschedulable=True)]
    assert choose(plain, nodes, {"a": 2, "b": 1}, 110)[0] == "b"
    assert choose({"spec": {"nodeSelector": {"zone": "a"}}}, nodes, {"a": 9}, 110)[0] == "a"
    tainted_node = node("t", taints=[{"key": "k", "effect": "NoSchedule"}])
    assert choose(plain, [tainted_node], {}, 110)[0] is None
    tolerant = {"spec": {"tolerations": [{"key": "k", "operator": "Exists"}]}}
    assert choose(tolerant, [tainted_node], {}, 110)[0] == "t"
    name, why = choose(plain, [node("a"), node("c", unschedulable=True)], {"a": 1}, 1)
    assert name is None
    assert why == "0/2 nodes are available: 1 Too many pods, 1 node(s) were unschedulable."


def test_node_blocks_do_not_overlap() -> None:
    """The first block that overlaps none in use, of the right family; none when it is full."""
    pool = ip_network("10.0.0.0/23")
    used = [ip_network("10.0.0.128/25"), ip_network("fd00::/64")]
    assert free_cidr(pool, 24, used) == ip_network("10.0.1.0/24")
    assert free_cidr(pool, 24, [*used, ip_network("10.0.1.0/24")]) is None


def test_not_ready_taint_follows_readiness() -> None:
    """The taint goes when a node is ready and comes back when it is not; others stay."""
    other = {"key": "mine", "effect": "NoSchedule"}
    found = node("a", taints=[other, {"key": "node.kubernetes.io/not-ready", "effect": "x"}])
    assert tainted(found) == [other]
    found["status"]["conditions"] = []
    found["spec"]["taints"] = [other]
    assert [item["key"] for item in tainted(found)] == ["mine", "node.kubernetes.io/not-ready"]
