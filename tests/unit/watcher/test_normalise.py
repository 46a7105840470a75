"""What Kubernetes objects become, and what is said of bad ones."""

import json
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest

from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    EndpointSliceFact,
    NamespaceFact,
    NetworkPolicyFact,
    NodeFact,
    PodFact,
    Protocol,
    ServiceCIDRFact,
    ServiceFact,
    ServiceType,
)
from dunlin_watcher.normalise import Normalised, UnreadableError, explain, normalise
from tests.scenario.watcher.objects import endpoint_slice, node, pod, service


def read(kind: str, obj: dict[str, Any]) -> Normalised:
    """Normalise an object given as a dictionary."""
    return normalise(kind, json.dumps(obj).encode())


def said(kind: str, obj: dict[str, Any]) -> list[str]:
    """What is said of an object."""
    found = read(kind, obj)
    return [explain(kind, found.identity.key, problem) for problem in found.problems]


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one value replaced; `path` like `spec.ports.0.port`."""
    made: dict[str, Any] = json.loads(json.dumps(obj))
    at: Any = made
    *way, last = path.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    if isinstance(at, list):
        at[int(last)] = value
    else:
        at[last] = value
    return made


def test_node() -> None:
    """InternalIPs, podCIDRs, zone, readiness."""
    obj = node("n1", **{"topology.kubernetes.io/zone": "z1"})
    assert read("node", obj).fact == NodeFact(
        name="n1",
        ips=(ip_address("192.0.2.1"),),
        pod_cidrs=(ip_network("10.244.1.0/24"), ip_network("fd00:1::/64")),
        zone="z1",
        labels={"topology.kubernetes.io/zone": "z1"},
        ready=True,
    )


def test_node_with_one_pod_cidr() -> None:
    """spec.podCIDR counts where podCIDRs are missing."""
    obj = changed(changed(node("n1"), "spec.podCIDRs", None), "spec.podCIDR", "10.0.0.0/24")
    fact = read("node", obj).fact
    assert isinstance(fact, NodeFact)
    assert fact.pod_cidrs == (ip_network("10.0.0.0/24"),)


def test_pod() -> None:
    """Node, addresses of both families, labels, Dunlin's annotations only, ports, readiness."""
    obj = pod("p", "10.244.1.5", app="web")
    obj["metadata"]["annotations"] = {"dunlin.dev/vhost": "true", "other": "x"}
    obj["status"]["podIPs"].append({"ip": "fd00:1::5"})
    fact = read("pod", obj).fact
    assert isinstance(fact, PodFact)
    assert fact.ips == (ip_address("10.244.1.5"), ip_address("fd00:1::5"))
    assert (fact.node, fact.labels, fact.ready) == ("n1", {"app": "web"}, True)
    assert fact.annotations == {"dunlin.dev/vhost": "true"}
    assert [(p.name, p.protocol, p.port) for p in fact.ports] == [("http", Protocol.TCP, 80)]
    assert [fact.host_network, fact.terminating, fact.finished] == [False] * 3


@pytest.mark.parametrize(
    ("path", "value", "attribute"),
    [
        ("spec.hostNetwork", True, "host_network"),
        ("metadata.deletionTimestamp", "2026-01-01T00:00:00Z", "terminating"),
        ("status.phase", "Succeeded", "finished"),
        ("status.phase", "Failed", "finished"),
    ],
)
def test_pod_flags(path: str, value: Any, attribute: str) -> None:
    """Host network, termination and end of a Pod."""
    assert getattr(read("pod", changed(pod("p"), path, value)).fact, attribute) is True


def test_pod_sidecar_ports() -> None:
    """Ports of a restartable init container count, those of an ordinary one do not."""
    obj = pod("p")
    obj["spec"]["initContainers"] = [
        {"restartPolicy": "Always", "ports": [{"containerPort": 81}]},
        {"ports": [{"containerPort": 82}]},
    ]
    fact = read("pod", obj).fact
    assert isinstance(fact, PodFact)
    assert [port.port for port in fact.ports] == [80, 81]


def test_service() -> None:
    """Addresses, ports and every policy of a Service."""
    obj = service(
        "s",
        {"name": "a", "port": 80, "nodePort": 30080},
        {"name": "b", "port": 53, "protocol": "UDP"},
        type="LoadBalancer",
        clusterIPs=["10.96.0.10", "fd00::10"],
        sessionAffinity="ClientIP",
        externalTrafficPolicy="Local",
        internalTrafficPolicy="Local",
        externalIPs=["192.0.2.9"],
        loadBalancerSourceRanges=["192.0.2.0/24 "],
        healthCheckNodePort=30000,
        publishNotReadyAddresses=True,
        trafficDistribution="PreferClose",
    )
    obj["status"] = {
        "loadBalancer": {"ingress": [{"ip": "192.0.2.8", "ipMode": "Proxy"}, {"hostname": "x"}]}
    }
    obj["metadata"]["labels"] = {
        "service.kubernetes.io/service-proxy-name": "other",
        "service.kubernetes.io/headless": "",
    }
    fact = read("service", obj).fact
    assert isinstance(fact, ServiceFact)
    assert fact.type is ServiceType.LOAD_BALANCER
    assert [str(ip) for ip in fact.cluster_ips] == ["10.96.0.10", "fd00::10"]
    assert [(p.name, p.protocol, p.port, p.node_port) for p in fact.ports] == [
        ("a", "TCP", 80, 30080),
        ("b", "UDP", 53, 0),
    ]
    assert fact.affinity_timeout_s == 10_800
    assert fact.external_policy_local
    assert fact.internal_policy_local
    assert [str(ip) for ip in fact.external_ips] == ["192.0.2.9"]
    assert [(str(i.ip), i.ip_mode) for i in fact.load_balancer_ingress] == [("192.0.2.8", "Proxy")]
    assert fact.load_balancer_source_ranges == (ip_network("192.0.2.0/24"),)
    assert (fact.health_check_node_port, fact.publish_not_ready_addresses) == (30000, True)
    assert (fact.traffic_distribution, fact.proxy_name) == ("PreferClose", "other")
    assert fact.headless_label
    assert read("service", obj).problems == ()


@pytest.mark.parametrize(
    "spec",
    [{"clusterIP": "None", "clusterIPs": ["None"]}, {"type": "ExternalName"}, {"clusterIPs": None}],
)
def test_services_without_cluster_ips(spec: dict[str, Any]) -> None:
    """Headless and ExternalName Services have none; clusterIP alone is enough."""
    fact = read("service", service("s", **spec)).fact
    assert isinstance(fact, ServiceFact)
    expected = (
        (ip_address("10.96.0.10"),) if "clusterIPs" in spec and not spec["clusterIPs"] else ()
    )
    assert fact.cluster_ips == expected


def test_endpoint_slice() -> None:
    """Conditions with defaults, target, zone, hints, trigger time; first address counts."""
    obj = endpoint_slice("s-1", "s", "10.244.1.5")
    obj["metadata"]["annotations"] = {
        "endpoints.kubernetes.io/last-change-trigger-time": "2026-11-23T00:33:51.5Z"
    }
    obj["endpoints"] += [
        {
            "addresses": ["10.244.1.6", "10.244.1.7"],
            "conditions": {"ready": False, "serving": True, "terminating": True},
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "p"},
            "zone": "z",
            "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]},
        },
        {"addresses": ["10.244.1.8"], "conditions": {"ready": False}},
        {"addresses": ["10.244.1.9"]},
    ]
    found = read("endpointslice", obj)
    fact = found.fact
    assert isinstance(fact, EndpointSliceFact)
    assert fact.service == "s"
    assert found.trigger_ms == 1795394031500
    first, second, third, fourth = fact.endpoints
    assert (first.ready, first.serving, first.terminating, first.node) == (True, True, False, "n1")
    assert (second.ready, second.serving, second.terminating) == (False, True, True)
    assert (second.target, second.zone) == ("default/p", "z")
    assert (second.hint_zones, second.hint_nodes) == (("z",), ("n",))
    assert (third.ready, third.serving) == (False, False)
    assert (fourth.ready, fourth.serving, fourth.terminating) == (True, True, False)
    assert "endpoints[].addresses" in found.unsupported


def test_empty_endpoint_slice() -> None:
    """Null endpoints and ports, as the controller writes them first."""
    obj = endpoint_slice("s-1", "s") | {"endpoints": None, "ports": None}
    assert read("endpointslice", obj).fact == EndpointSliceFact(
        namespace="default", name="s-1", service="s"
    )


def test_network_policy() -> None:
    """The spec is passed on untouched: the planner judges it."""
    spec = {"podSelector": {}, "policyTypes": ["Ingress"]}
    obj = {"metadata": {"name": "np", "namespace": "default"}, "spec": spec}
    found = read("networkpolicy", obj)
    assert isinstance(found.fact, NetworkPolicyFact)
    assert msgspec.json.decode(found.fact.spec) == spec
    assert found.unsupported == ()


def test_namespace_and_service_cidr() -> None:
    """Labels and Dunlin's annotations; CIDRs."""
    metadata = {"name": "x", "labels": {"a": "b"}, "annotations": {"dunlin.dev/y": "1", "z": "2"}}
    assert read("namespace", {"metadata": metadata}).fact == NamespaceFact(
        name="x", labels={"a": "b"}, annotations={"dunlin.dev/y": "1"}
    )
    obj = {"metadata": {"name": "c"}, "spec": {"cidrs": ["10.96.0.0/16", "fd00::/112"]}}
    assert read("servicecidr", obj).fact == ServiceCIDRFact(
        name="c", cidrs=(ip_network("10.96.0.0/16"), ip_network("fd00::/112"))
    )


SERVICE = service("x")
SLICE = endpoint_slice("x-1", "x", "10.244.1.5", "10.244.1.6")
BAD_PARTS = [
    (
        "service",
        changed(SERVICE, "spec.ports.0.protocol", "FOO"),
        'service default/x: spec.ports[0].protocol: unknown protocol "FOO"',
    ),
    (
        "service",
        changed(SERVICE, "spec.ports.0.port", 0),
        "service default/x: spec.ports[0].port: expected a port number 1-65535, got 0",
    ),
    (
        "service",
        changed(SERVICE, "spec.ports.0.port", True),
        "service default/x: spec.ports[0].port: expected a port number 1-65535, got true",
    ),
    (
        "service",
        changed(SERVICE, "spec.clusterIPs.0", "10.96.0.300"),
        'service default/x: spec.clusterIPs[0]: not an IP address: "10.96.0.300"',
    ),
    (
        "service",
        changed(SERVICE, "spec.sessionAffinity", "Cookie"),
        'service default/x: spec.sessionAffinity: unknown "Cookie"',
    ),
    (
        "service",
        changed(SERVICE, "metadata.labels", {"service.kubernetes.io/service-proxy-name": 5}),
        (
            'service default/x: metadata.labels["service.kubernetes.io/service-proxy-name"]: '
            "expected text, got 5"
        ),
    ),
    (
        "pod",
        changed(pod("x"), "status.podIPs.0.ip", "fe80::1%eth0"),
        'pod default/x: status.podIPs[0].ip: not an IP address: "fe80::1%eth0"',
    ),
    (
        "pod",
        changed(pod("x"), "spec.hostNetwork", "yes"),
        'pod default/x: spec.hostNetwork: expected true or false, got "yes"',
    ),
    (
        "pod",
        changed(pod("x"), "metadata.labels", ["a"]),
        'pod default/x: metadata.labels: expected an object, got ["a"]',
    ),
    (
        "node",
        changed(node("x"), "spec.podCIDRs.0", "10.0.0.1"),
        'node x: spec.podCIDRs[0]: not a CIDR: "10.0.0.1"',
    ),
    (
        "node",
        changed(node("x"), "status.addresses.1.address", None),
        "node x: status.addresses[1].address: not an IP address: null",
    ),
    (
        "endpointslice",
        changed(SLICE, "endpoints.0.addresses.0", "fd00::1"),
        'endpointslice default/x-1: endpoints[0].addresses[0]: not an IPv4 address: "fd00::1"',
    ),
    (
        "endpointslice",
        changed(SLICE, "endpoints.0.addresses", []),
        "endpointslice default/x-1: endpoints[0].addresses: an endpoint without an address",
    ),
    (
        "endpointslice",
        changed(
            SLICE,
            "metadata.annotations",
            {"endpoints.kubernetes.io/last-change-trigger-time": "now"},
        ),
        (
            "endpointslice default/x-1: "
            "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]: "
            'not an RFC 3339 time: "now"'
        ),
    ),
]


@pytest.mark.parametrize(("kind", "obj", "text"), BAD_PARTS, ids=[text for *_, text in BAD_PARTS])
def test_bad_parts_are_left_out_and_named(kind: str, obj: dict[str, Any], text: str) -> None:
    """One bad value costs no more than itself."""
    assert said(kind, obj) == [text]
    assert read(kind, obj).fact is not None


BAD_OBJECTS = [
    (
        "service",
        changed(SERVICE, "spec.type", "Magic"),
        'service default/x: spec.type: unknown type "Magic"',
    ),
    (
        "service",
        changed(SERVICE, "spec", 5),
        "service default/x: spec: Expected object | null, got int",
    ),
    (
        "service",
        changed(SERVICE, "spec.ports.0", "80"),
        "service default/x: spec.ports[0]: Expected object, got str",
    ),
    (
        "endpointslice",
        changed(SLICE, "addressType", "IPX"),
        'endpointslice default/x-1: addressType: unknown address type "IPX"',
    ),
    (
        "networkpolicy",
        {"metadata": {"name": "x", "namespace": "default"}, "spec": [1]},
        "networkpolicy default/x: spec: expected an object",
    ),
]


@pytest.mark.parametrize(("kind", "obj", "text"), BAD_OBJECTS, ids=[t for *_, t in BAD_OBJECTS])
def test_bad_objects_give_no_fact(kind: str, obj: dict[str, Any], text: str) -> None:
    """An object whose meaning is lost is named, and gives nothing."""
    assert said(kind, obj) == [text]
    assert read(kind, obj).fact is None


@pytest.mark.parametrize(
    ("obj", "text"),
    [
        ({"metadata": {"namespace": "default"}}, "pod: metadata.name: missing"),
        ({"metadata": {"name": "x"}}, "pod x: metadata.namespace: missing"),
        ({"metadata": 5}, "pod: metadata: Expected object, got int"),
        (5, "pod: object: Expected object, got int"),
    ],
)
def test_unreadable(obj: Any, text: str) -> None:
    """An object that does not say who it is."""
    with pytest.raises(UnreadableError) as caught:
        normalise("pod", json.dumps(obj).encode())
    assert str(caught.value) == text


UNSUPPORTED = [
    (
        "pod",
        "spec.containers.0.ports.0.protocol",
        "SCTP",
        "spec.containers[].ports[].protocol=SCTP",
    ),
    ("endpointslice", "addressType", "FQDN", "addressType=FQDN"),
    ("endpointslice", "ports.0.port", None, "ports[].port"),
]


@pytest.mark.parametrize(("kind", "path", "value", "field"), UNSUPPORTED)
def test_unsupported(kind: str, path: str, value: Any, field: str) -> None:
    """What Dunlin does not do is reported by field, and is no error."""
    plain = {"pod": pod("x"), "endpointslice": SLICE}[kind]
    assert read(kind, plain).unsupported == ()
    found = read(kind, changed(plain, path, value))
    assert found.unsupported == (field,)
    assert found.problems == ()
    assert found.fact is not None


def test_long_input_is_cut() -> None:
    """A value of any length gives an error of bounded length."""
    (text,) = said("service", changed(SERVICE, "spec.ports.0.protocol", "X" * 10_000))
    assert len(text) < 200


@pytest.mark.parametrize("kind", ["namespace", "networkpolicy", "clusternetworkpolicy"])
def test_log_denied(kind: str) -> None:
    """The annotation is "true" or "false"; anything else is reported by name, and means false."""
    names = {"name": "x"} | ({"namespace": "default"} if kind == "networkpolicy" else {})
    for value, expected in (("true", True), ("false", False), (None, False), ("yes", False)):
        annotations = {} if value is None else {"dunlin.dev/log-denied": value}
        found = read(kind, {"metadata": {**names, "annotations": annotations}, "spec": {}})
        fact = found.fact
        assert isinstance(fact, (NamespaceFact, NetworkPolicyFact, ClusterNetworkPolicyFact))
        assert fact.log_denied is expected
        problems = [problem.field for problem in found.problems]
        wrong = ['metadata.annotations["dunlin.dev/log-denied"]'] if value == "yes" else []
        assert problems == wrong
