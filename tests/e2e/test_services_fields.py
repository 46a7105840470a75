"""
Fields of Services and conditions of endpoints that no other module looks at, on real packets.

EndpointSlices are written here by hand, as their controllers would, for Pods that answer.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dunlin_lab import links, netns
from tests.e2e.host_process import listening
from tests.e2e.lab_cluster import LabCluster, eventually
from tests.e2e.test_services_external import (
    learned_flows,
    node_port_of,
    patch,
    refuses,
    routed,
    same_family,
    set_vips,
)
from tests.e2e.test_services_node import from_itself, until_reached
from tests.e2e.traffic import asks, get, gets
from tests.fixtures.kube_api import MERGE_PATCH

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]

SLICES = "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"
ENOUGH = 48
"""Connections after which one of three endpoints has had none once in 10^8 times."""
HTTP = {"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}
Object = dict[str, Any]


class Place:
    """A namespace with a Pod `web-<n>` on each node and a client on the first one."""

    def __init__(self, cluster: LabCluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, cluster.namespace(namespace)
        for number, node in enumerate(cluster.nodes):
            cluster.pod(namespace, f"web-{number}", node["name"])
        cluster.pod(namespace, "client", cluster.nodes[0]["name"])
        ready = cluster.pods_ready(namespace, len(cluster.nodes) + 1)
        self.pods: dict[str, Object] = {pod["name"]: pod for pod in ready}
        self.client = self.pods["client"]["netns"]

    def service(self, name: str, **spec: Any) -> Object:
        """Dual-stack, without selector, one TCP port."""
        metadata = {"name": name, "labels": spec.pop("labels", {})}
        body = {"ports": [HTTP], "ipFamilyPolicy": "PreferDualStack", **spec}
        path = f"/api/v1/namespaces/{self.namespace}/services"
        return self.cluster.create(path, {"metadata": metadata, "spec": body})

    def endpoints(self, service: str, *found: Object, port: int = 8080) -> None:
        """Exactly these, and in force; each `{"addresses": …}` has both families."""
        path = SLICES.format(self.namespace)
        for kind in ("IPv4", "IPv6"):
            name, mine = f"{service}-{kind.lower()}", []
            for one in found:
                address = next(ip for ip in one["addresses"] if (":" in ip) == (kind == "IPv6"))
                mine.append({**one, "addresses": [address]})
            body = {"endpoints": mine, "ports": [{"name": "http", "port": port, "protocol": "TCP"}]}
            answer = self.cluster.api.patch(f"{path}/{name}", json=body, headers=MERGE_PATCH)
            if answer.status_code == 404:
                labels = {"kubernetes.io/service-name": service}
                metadata = {"name": name, "labels": labels}
                self.cluster.create(path, {"metadata": metadata, "addressType": kind, **body})
            else:
                answer.raise_for_status()
        self.cluster.wait()

    def web(self, number: int, state: str = "ready", **more: Any) -> Object:
        """Pod web-<number> as an endpoint: ready, serving (and terminating), or terminating."""
        conditions = {
            "ready": state == "ready",
            "serving": state != "terminating",
            "terminating": state != "ready",
        }
        node = self.cluster.nodes[number]["name"]
        addresses = self.pods[f"web-{number}"]["ips"]
        return {"addresses": addresses, "conditions": conditions, "nodeName": node, **more}

    def answering(self, place: str, addresses: list[str], port: int = 80) -> set[str]:
        """Who answers there; the same at each address."""
        found = [{a["pod"] for a in gets(place, address, ENOUGH, port)} for address in addresses]
        assert all(one == found[0] for one in found), dict(zip(addresses, found, strict=True))
        return found[0]


@pytest.fixture(scope="module")
def place(cluster: LabCluster) -> Place:
    """One for all tests of this module; each has Services of its own."""
    return Place(cluster, "fields")


@pytest.mark.timeout(200)
def test_terminating_endpoints(place: Place) -> None:
    """They serve where none is ready: separately for Cluster and, on each node, for Local."""
    made = place.service("ending", type="NodePort", externalTrafficPolicy="Local")
    ips, port = made["spec"]["clusterIPs"], made["spec"]["ports"][0]["nodePort"]
    outside, nodes = place.cluster.outside["netns"], place.cluster.nodes
    place.endpoints("ending", place.web(1, "serving"), place.web(2), place.web(0, "terminating"))
    assert place.answering(place.client, ips) == {"web-2"}
    assert place.answering(outside, nodes[1]["ips"], port) == {"web-1"}
    assert place.answering(outside, nodes[2]["ips"], port) == {"web-2"}
    assert all(refuses(outside, ip, port) for ip in nodes[0]["ips"])
    place.endpoints("ending", place.web(1, "serving"), place.web(2, "terminating"))
    assert place.answering(place.client, ips) == {"web-1"}


@pytest.mark.timeout(200)
def test_topology_hints(place: Place) -> None:
    """As every trafficDistribution ends: hints for nodes, else for zones, else all endpoints."""
    ips = place.service("near")["spec"]["clusterIPs"]
    nodes = place.cluster.nodes
    zones = [zone_of(place.cluster, node["name"]) for node in nodes]
    everybody = {f"web-{number}" for number in range(len(nodes))}

    def hinted(number: int, **hints: list[str]) -> Object:
        found = {name: [{"name": one} for one in ones] for name, ones in hints.items()}
        return place.web(number, hints=found)

    # PreferSameZone and PreferClose: every node has what is in its zone.
    place.endpoints("near", *(hinted(n, forZones=[zone]) for n, zone in enumerate(zones)))
    for number, node in enumerate(nodes):
        same = {f"web-{n}" for n, zone in enumerate(zones) if zone == zones[number]}
        assert place.answering(node["netns"], ips) == same
    # PreferSameNode: hints for nodes come first; the second node has none, and takes its zone.
    here, third = nodes[0]["name"], nodes[2]["name"]
    place.endpoints(
        "near",
        hinted(0, forZones=zones, forNodes=[here]),
        hinted(2, forZones=zones, forNodes=[third]),
    )
    assert place.answering(place.client, ips) == {"web-0"}
    assert place.answering(nodes[2]["netns"], ips) == {"web-2"}
    assert place.answering(nodes[1]["netns"], ips) == {"web-0", "web-2"}
    # One ready endpoint without hints: none counts.
    place.endpoints("near", hinted(0, forZones=[zones[0]]), place.web(1), place.web(2))
    assert place.answering(place.client, ips) == everybody
    # Nobody is hinted for this zone.
    place.endpoints("near", *(hinted(n, forZones=["nowhere"]) for n in range(len(nodes))))
    assert place.answering(place.client, ips) == everybody


@pytest.mark.timeout(200)
@pytest.mark.parametrize("wanted", ["PreferClose", "PreferSameZone", "PreferSameNode"])
def test_traffic_distribution(cluster: LabCluster, wanted: str) -> None:
    """Hints by Kubernetes' own controller: each zone (or node) has one Pod, and is served by it."""
    if not any(s["service"] == "kube-controller-manager" for s in cluster.status()["services"]):
        pytest.skip("the lab's own API writes no hints; DUNLIN_E2E_LAB: a lab with --kube-assets")
    namespace = cluster.namespace(f"near-{wanted.lower()}")
    for number, node in enumerate(cluster.nodes):
        cluster.pod(namespace, f"web-{number}", node["name"], labels={"app": "web"})
    ips = cluster.service(namespace, "web", {"app": "web"}, trafficDistribution=wanted)
    cluster.pods_ready(namespace, len(cluster.nodes))

    def hinted() -> bool:
        slices = cluster.api.get(SLICES.format(namespace)).raise_for_status().json()["items"]
        found = [e for item in slices for e in item.get("endpoints") or () if e.get("hints")]
        return len(found) == 2 * len(cluster.nodes)

    eventually("every endpoint has hints", hinted)
    cluster.wait()
    for number, node in enumerate(cluster.nodes):
        for address in ips:
            assert {a["pod"] for a in gets(node["netns"], address, ENOUGH)} == {f"web-{number}"}


def zone_of(cluster: LabCluster, node: str) -> str:
    """Of a node, by its label."""
    found = cluster.api.get(f"/api/v1/nodes/{node}").raise_for_status().json()
    return str(found["metadata"]["labels"]["topology.kubernetes.io/zone"])


@pytest.mark.timeout(200)
def test_ports(cluster: LabCluster) -> None:
    """One number for TCP and UDP, also as node port; a name that is another number in each Pod."""
    namespace = cluster.namespace("ports")
    for number, port in enumerate((8081, 8082)):
        ports = [
            {"name": "http", "containerPort": port, "protocol": "TCP"},
            {"name": "dns", "containerPort": 8080, "protocol": "UDP"},
        ]
        spec = {"containers": [{"name": "main", "image": "lab/responder", "ports": ports}]}
        node = cluster.nodes[number]["name"]
        cluster.pod(namespace, f"web-{number}", node, labels={"app": "web"}, spec=spec)
    cluster.pod(namespace, "client", cluster.nodes[2]["name"])
    service_ports = [
        {"name": "tcp", "port": 80, "targetPort": "http", "protocol": "TCP"},
        {"name": "udp", "port": 80, "targetPort": "dns", "protocol": "UDP"},
    ]
    ips = cluster.service(namespace, "web", {"app": "web"}, ports=service_ports, type="NodePort")
    pods = {pod["name"]: pod for pod in cluster.pods_ready(namespace, 3)}
    tcp = node_port_of(cluster, namespace, "web", "tcp")
    udp = node_port_of(cluster, namespace, "web", "udp")
    eventually("two Pods are endpoints of both ports", lambda: _of_port(cluster, namespace) == 4)
    cluster.wait()
    both = {"web-0", "web-1"}
    client = pods["client"]["netns"]
    for address in ips:
        assert {a["pod"] for a in gets(client, address, ENOUGH)} == both
        assert {a["pod"] for a in asks(client, address, ENOUGH, 80)} == both
    outside = cluster.outside["netns"]
    for address in cluster.nodes[2]["ips"]:
        assert {a["pod"] for a in gets(outside, address, ENOUGH, tcp)} == both
        assert {a["pod"] for a in asks(outside, address, ENOUGH, udp)} == both


def _of_port(cluster: LabCluster, namespace: str) -> int:
    """Ready IPv4 endpoints, each counted for every port that its EndpointSlice has."""
    slices = cluster.api.get(SLICES.format(namespace)).raise_for_status().json()["items"]
    return sum(
        len(item["ports"])
        for item in slices
        for endpoint in item.get("endpoints") or ()
        if item["addressType"] == "IPv4" and endpoint["conditions"].get("ready")
    )


@pytest.mark.timeout(200)
def test_host_network_endpoints(place: Place) -> None:
    """A process of a node as the endpoint, as an API server: from everywhere, also by node port."""
    made = place.service("api", type="NodePort")
    ips, port = made["spec"]["clusterIPs"], made["spec"]["ports"][0]["nodePort"]
    nodes, outside = place.cluster.nodes, place.cluster.outside
    host = {"addresses": nodes[0]["ips"], "conditions": {"ready": True}}
    place.endpoints("api", {**host, "nodeName": nodes[0]["name"]}, port=6444)
    with listening(nodes[0]["netns"], 6444, "api"):
        for who, where in {
            "a Pod of that node": place.client,
            "a Pod of another node": place.pods["web-1"]["netns"],
            "the node itself": nodes[0]["netns"],
            "another node": nodes[1]["netns"],
        }.items():
            for address in ips:
                assert get(where, address)["pod"] == "api", who
        for node in nodes[:2]:
            for address in node["ips"]:
                assert get(outside["netns"], address, port)["pod"] == "api", node["name"]
        seen = {get(place.pods["web-1"]["netns"], address)["client"] for address in ips}
        assert seen == set(place.pods["web-1"]["ips"]), "its Pods are known by their addresses"


@pytest.mark.timeout(200)
def test_what_is_not_ours(place: Place) -> None:
    """Headless and ExternalName Services, and those labelled for others, give nothing."""
    before = service_flows(place.cluster)
    place.service("external", type="ExternalName", externalName="example.com", ports=[])
    place.service("headless", clusterIP="None")
    place.endpoints("headless", place.web(0))
    labels = {
        "other": {"service.kubernetes.io/service-proxy-name": "other"},
        "plain": {"service.kubernetes.io/headless": ""},
    }
    made = [
        place.service(name, labels=label, type="NodePort")["spec"] for name, label in labels.items()
    ]
    for name in labels:
        place.endpoints(name, place.web(0))
    assert service_flows(place.cluster) == before
    for spec in made:
        for address in spec["clusterIPs"]:
            with pytest.raises(ConnectionRefusedError):
                get(place.client, address)
        port = spec["ports"][0]["nodePort"]
        assert refuses(place.cluster.outside["netns"], place.cluster.nodes[0]["ips"][0], port)


def service_flows(cluster: LabCluster) -> list[str]:
    """Frontends on the first node's switch: flows of ServiceLB."""
    return [flow for flow in cluster.flows(cluster.nodes[0]) if ", table=22, " in flow]


@pytest.mark.timeout(200)
def test_load_balancer_without_node_ports(place: Place) -> None:
    """Nothing but the node port is missing; source ranges of one family leave the other open."""
    vips = ["198.51.100.40", "2001:db8:f::40"]
    made = place.service("balanced", type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    assert not made["spec"]["ports"][0].get("nodePort")
    place.endpoints("balanced", place.web(1), place.web(2))
    set_vips(place.cluster, place.namespace, "balanced", [{"ip": vip} for vip in vips])
    outside, node = place.cluster.outside, place.cluster.nodes[0]
    both = {"web-1", "web-2"}
    assert place.answering(place.client, [*made["spec"]["clusterIPs"], *vips]) == both
    with ExitStack() as stack:
        for vip in vips:
            stack.enter_context(routed(outside["netns"], vip, same_family(vip, node["ips"])))
        assert place.answering(outside["netns"], vips) == both
        own = same_family(vips[1], outside["ips"])
        for allowed, served in (("2001:db8:e::/64", vips[:1]), (f"{own}/128", vips)):
            spec = {"loadBalancerSourceRanges": [allowed]}
            patch(place.cluster, place.namespace, "balanced", spec)
            assert [v for v in vips if not refuses(outside["netns"], v, 80)] == served


@pytest.mark.timeout(200)
def test_affinity_has_its_timeout(place: Place) -> None:
    """A client that comes again within the time keeps its endpoint; after it, it is forgotten."""
    before = learned_flows(place.cluster, place.cluster.nodes[0])
    timeout = {"clientIP": {"timeoutSeconds": 3}}
    made = place.service("sticky", sessionAffinity="ClientIP", sessionAffinityConfig=timeout)
    place.endpoints("sticky", *(place.web(number) for number in range(3)))

    def learned() -> set[str]:
        return learned_flows(place.cluster, place.cluster.nodes[0]) - before

    kept = {ip: {a["pod"] for a in gets(place.client, ip, 5)} for ip in made["spec"]["clusterIPs"]}
    assert all(len(pods) == 1 for pods in kept.values()), kept
    assert len(learned()) == len(kept)
    # Sliding: each new connection begins the time anew.
    for _ in patiently(5.0, 0.3):
        for address, pods in kept.items():
            assert {get(place.client, address)["pod"]} == pods
    eventually("the switch has forgotten the client", lambda: not learned(), 30.0)


def patiently(seconds: float, pause_s: float) -> Iterator[None]:
    """Yields every `pause_s` until that time is over: a client that comes again and again."""
    wait = subprocess.Popen(["sleep", str(seconds)])
    try:
        while wait.poll() is None:
            yield
            try:
                wait.wait(pause_s)
            except subprocess.TimeoutExpired:
                continue
    finally:
        wait.kill()
        wait.wait()


@contextmanager
def container_behind(node: Object) -> Iterator[tuple[str, dict[int, str]]]:
    """A namespace on a link of the node that no Pod and no other node knows: as of docker0."""
    name = f"dunlin-e2e-box-{Path(node['netns']).name[-12:]}"
    path = netns.create(name)
    ours, theirs = ["172.29.77.1", "fd00:29:77::1"], ["172.29.77.2", "fd00:29:77::2"]
    try:

        def join() -> None:
            with links.route() as ipr:
                links.veth(ipr, "box0", "eth0", path, 1500)
            for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                links.sysctl(setting, "1")

        netns.run_in(node["netns"], join)
        for where, link, addresses in ((node["netns"], "box0", ours), (path, "eth0", theirs)):
            _configure(str(where), link, addresses)
        for gateway in ours:
            family = "-6" if ":" in gateway else "-4"
            command = ["ip", "-n", name, family, "route", "add", "default", "via", gateway]
            subprocess.run(command, check=True, timeout=10)
        yield str(path), {4: theirs[0], 6: theirs[1]}
    finally:
        netns.run_in(node["netns"], lambda: links.delete("box0"))
        netns.delete(name)


def _configure(where: str, link: str, addresses: list[str]) -> None:
    command = ["ip", "-n", Path(where).name]
    subprocess.run([*command, "link", "set", link, "up"], check=True, timeout=10)
    for address in addresses:
        more = ["/64", "nodad"] if ":" in address else ["/24"]
        words = [*command, "addr", "add", f"{address}{more[0]}", "dev", link, *more[1:]]
        subprocess.run(words, check=True, timeout=10)


@pytest.mark.timeout(200)
def test_a_container_on_another_bridge_of_the_node(place: Place) -> None:
    """
    A client whose packets the node's kernel forwards: Pods here, elsewhere, the node itself.

    By cluster IP; its own node's node port is a limit (docs/services.md).
    """
    made = place.service("forwarded", type="NodePort")
    here, port = made["spec"]["clusterIPs"], made["spec"]["ports"][0]["nodePort"]
    place.endpoints("forwarded", place.web(0), place.web(1))
    api = place.service("forwarded-api")["spec"]["clusterIPs"]
    node = place.cluster.nodes[0]
    host = {"addresses": node["ips"], "conditions": {"ready": True}, "nodeName": node["name"]}
    place.endpoints("forwarded-api", host, port=6445)
    with container_behind(node) as (box, own), listening(node["netns"], 6445, "api"):
        for address in here:
            until_served(box, address, 80)
            seen = {a["pod"]: a["client"] for a in gets(box, address, ENOUGH)}
            assert set(seen) == {"web-0", "web-1"}
            # Kept where the reply comes back by itself.
            assert seen["web-0"] == own[6 if ":" in address else 4]
        for address in api:
            assert get(box, address)["pod"] == "api"
        assert refuses(box, node["ips"][0], port), "no limit any more?"


@pytest.mark.timeout(240)
def test_another_node_port_range(place: Place) -> None:
    """DUNLIN_NODE_PORT_MIN and _MAX of the agent: that range is steered, and nothing else."""
    ports = {}
    for name in ("inside", "beyond"):
        made = place.service(name, type="NodePort")
        ports[name] = made["spec"]["ports"][0]["nodePort"]
        place.endpoints(name, place.web(1))
    cluster, node = place.cluster, place.cluster.nodes[0]
    outside = cluster.outside["netns"]
    first, last = "DUNLIN_NODE_PORT_MIN", "DUNLIN_NODE_PORT_MAX"
    only = dict.fromkeys((first, last), str(ports["inside"]))
    with settings(cluster, f"agent/{node['name']}", **only):
        for address in node["ips"]:
            until_reached(node, address, ports["inside"])
            assert from_itself(node, address, ports["inside"], 3) == {"web-1"}
            assert get(outside, address, ports["inside"])["pod"] == "web-1"
        until_served(node["netns"], node["ips"][0], ports["beyond"], served=False)
        until_served(outside, node["ips"][0], ports["beyond"], served=False)
    for address in node["ips"]:
        until_reached(node, address, ports["beyond"])
        until_served(outside, address, ports["beyond"])


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_node_port_cidrs(place: Place) -> None:
    """DUNLIN_NODE_PORT_CIDRS of the planner: other addresses of the nodes have no node ports."""
    made = place.service("some", type="NodePort")
    port, cluster = made["spec"]["ports"][0]["nodePort"], place.cluster
    place.endpoints("some", place.web(1))
    outside, node = cluster.outside["netns"], cluster.nodes[0]
    assert place.answering(outside, node["ips"], port) == {"web-1"}
    (v4,) = (ip for ip in node["ips"] if ":" not in ip)
    (v6,) = (ip for ip in node["ips"] if ":" in ip)
    with settings(cluster, "planner", DUNLIN_NODE_PORT_CIDRS=f"{v4}/32"):
        cluster.wait()
        assert get(outside, v4, port)["pod"] == "web-1"
        assert refuses(outside, v6, port)
        assert refuses(outside, cluster.nodes[1]["ips"][0], port)
    cluster.wait()
    assert place.answering(outside, node["ips"], port) == {"web-1"}


def until_served(place: str, address: str, port: int, *, served: bool = True) -> None:
    """The agent sets the node's kernel and br-ext a moment after it has read what is wanted."""
    what = f"{address} port {port} is {'' if served else 'not '}served"
    eventually(what, lambda: refuses(place, address, port) is not served, 15.0)


@contextmanager
def settings(cluster: LabCluster, target: str, **env: str) -> Iterator[None]:
    """A service runs with these settings for that time."""
    _again(cluster, target, env)
    try:
        yield
    finally:
        _again(cluster, target, {})


def _again(cluster: LabCluster, target: str, env: dict[str, str]) -> None:
    before, cluster.env = cluster.env, {**cluster.env, **env}
    try:
        cluster.kill(target)
        cluster.start(target)
        cluster.ready()
    finally:
        cluster.env = before
