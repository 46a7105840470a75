"""`dunlin plan`: what it says is what real packets and real connections do after the change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import Any

import pytest
import yaml

from tests.e2e.lab_cluster import LabCluster
from tests.e2e.test_policy import Held, Shop, no_policies

__all__ = ["no_policies"]

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

PODS = ("client", "other", "server")


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Shop:
    """Three Pods and no policy, in a namespace of its own."""
    return Shop(cluster, "plan")


def selected(*names: str) -> list[dict[str, Any]]:
    """Peers by the label of the shop's Pods."""
    return [{"podSelector": {"matchLabels": {"app": name}}} for name in names]


SERVER = {"matchLabels": {"app": "server"}}
SPECS: tuple[dict[str, Any], ...] = (
    {"podSelector": SERVER, "ingress": [{"from": selected("client")}]},
    {"podSelector": SERVER, "ingress": [{"from": selected("client", "other"),
                                         "ports": [{"port": "http"}]}]},
    {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": selected("server")}]},
    {"podSelector": SERVER, "ingress": [{"ports": [{"port": 9000, "endPort": 9999}]}]},
)  # fmt: skip


class Planner:
    """The command line on manifests of the shop's namespace."""

    def __init__(self, shop: Shop, directory: Any) -> None:
        self.shop = shop
        self.file = directory / "policy.yaml"

    def __call__(
        self, spec: dict[str, Any], *options: str, name: str = "p"
    ) -> tuple[int, dict[str, Any]]:
        """The exit code and the answer."""
        manifest = {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": self.shop.namespace},
            "spec": spec,
        }
        self.file.write_text(yaml.safe_dump(manifest))
        rows = ("--by", "workload", "--limit", "10000")
        words = ("plan", "-f", str(self.file), "-o", "json", *rows, *options)
        done = self.shop.cluster.dunlin(*words, check=False)
        assert done.returncode in (0, 3, 4), done.stderr
        return done.returncode, json.loads(done.stdout)

    def changed(self, answer: dict[str, Any]) -> dict[tuple[str, str], str]:
        """Pairs of the shop's Pods for which TCP/8080 opens or closes."""
        found = {}
        assert answer["reachability"]["more"] == 0
        for row in answer["reachability"]["items"]:
            ends = [row[end].removeprefix(f"{self.shop.namespace}/") for end in
                    ("source", "destination")]  # fmt: skip
            for what in ("opened", "closed"):
                if holds(row[what]) and set(ends) <= set(PODS):
                    found[ends[0], ends[1]] = what
        return found


def holds(ports: list[str]) -> bool:
    """TCP/8080 is among these."""
    if any(port.startswith("TCP but") for port in ports):
        return not any("8080" in port for port in ports)
    return bool({"all", "TCP", "TCP/8080"} & set(ports))


def reached(shop: Shop) -> dict[tuple[str, str], bool]:
    """Who gets an answer from whom, over real TCP."""
    pairs = list(permutations(PODS, 2))
    with ThreadPoolExecutor(len(pairs)) as pool:
        return dict(zip(pairs, pool.map(lambda pair: shop.everywhere(*pair), pairs), strict=True))


@pytest.mark.timeout(300)
def test_what_plan_says_happens(shop: Shop, tmp_path: Any) -> None:
    """Pairs that open and close, over four changes and a deletion, as packets find them."""
    planner = Planner(shop, tmp_path)
    now = reached(shop)
    for spec in (*SPECS, None):
        if spec is None:
            code, answer = planner(SPECS[-1], "--delete")
            shop.without("p")
        else:
            code, answer = planner(spec)
            (shop.policy if spec is SPECS[0] else shop.replace)("p", **spec)
        after = reached(shop)
        wanted = {
            pair: "opened" if after[pair] else "closed" for pair in now if now[pair] != after[pair]
        }
        assert planner.changed(answer) == wanted
        assert code == (0 if answer["verdict"] == "none" else code)
        assert (answer["flows"]["added"] + answer["flows"]["removed"]) > 0
        now = after
    code, answer = planner({"podSelector": {"matchLabels": {"app": "nobody"}}})
    assert (code, answer["verdict"]) == (0, "none")


@pytest.mark.timeout(300)
def test_live_connections_that_would_be_cut(shop: Shop, tmp_path: Any) -> None:
    """Counted on the node, also through a Service, before they are cut; others are not named."""
    planner = Planner(shop, tmp_path)
    addresses = shop.cluster.service(shop.namespace, "planned", {"app": "server"})
    shop.cluster.endpoints_ready(shop.namespace, "planned", 1)
    shop.cluster.wait()
    cut = [Held(shop.pods["client"]["netns"], ip) for ip in shop.pods["server"]["ips"]]
    cut.append(Held(shop.pods["client"]["netns"], addresses[0], 80))
    kept = Held(shop.pods["other"]["netns"], shop.pods["server"]["ips"][0])
    assert all(link.works() for link in (*cut, kept))
    spec = {"podSelector": SERVER, "ingress": [{"from": selected("other")}]}
    code, answer = planner(spec)
    found = answer["connections"]
    assert (code, answer["verdict"], found["silent"]) == (4, "cuts", [])
    mine = [row for row in found["items"] if row["source"] == f"{shop.namespace}/client"]
    assert [(row["destination"], row["port"], row["count"]) for row in mine] == [
        (f"{shop.namespace}/server", "TCP/8080", 3)
    ]
    assert not [row for row in found["items"] if row["source"] == f"{shop.namespace}/other"]
    shop.policy("p", **spec)
    assert not any(link.works() for link in cut)
    assert kept.works()


@pytest.mark.timeout(60)
def test_bad_objects_are_refused_by_name(shop: Shop, tmp_path: Any) -> None:
    """Exit 1, and each object with its field; nothing is planned."""
    file = tmp_path / "bad.yaml"
    file.write_text(
        f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: bad, namespace: {shop.namespace}}}
spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: 99999}}]}}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
"""
    )
    done = shop.cluster.dunlin("plan", "-f", str(file), check=False)
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"NetworkPolicy {shop.namespace}/bad: spec.ingress[0].ports[0].port" in said
    assert "apps/v1 Deployment cannot be planned" in said
