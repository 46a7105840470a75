"""The intents of typical objects, as they go over the wire."""

import json
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from dunlin import wire
from dunlin.events.facts import (
    EndpointPort,
    EndpointSliceFact,
    NetworkPolicyFact,
    Protocol,
    ServicePort,
    ServiceType,
)
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import findings, intents, step
from dunlin_planner.state import State
from tests.unit.planner.build import CLUSTER, block, endpoint, node, service, slice_of, switch

DNS = (
    service(
        "dns",
        "10.96.0.10",
        "fd00:10:96::a",
        ports=(
            ServicePort(name="dns", protocol=Protocol.UDP, port=53),
            ServicePort(name="dns-tcp", protocol=Protocol.TCP, port=53),
        ),
    ),
    *(
        EndpointSliceFact(
            namespace="default",
            name=f"dns-{version}",
            service="dns",
            ports=(
                EndpointPort(name="dns", protocol=Protocol.UDP, port=5353),
                EndpointPort(name="dns-tcp", protocol=Protocol.TCP, port=5353),
            ),
            endpoints=tuple(
                endpoint(ip, target=f"kube-system/dns-{n}") for n, ip in enumerate(addresses)
            ),
        )
        for version, addresses in (
            (4, ("10.244.2.3", "10.244.1.9")),
            (6, ("fd00:10:244:2::3", "fd00:10:244:1::9")),
        )
    ),
)
SHOP = (
    service(
        "shop.v1",
        type=ServiceType.LOAD_BALANCER,
        ports=(ServicePort(name="", port=80, node_port=30080),),
        external_ips=(ip_address("198.51.100.1"),),
        affinity_timeout_s=10800,
    ),
    slice_of(
        "shop.v1",
        endpoint("10.244.1.7", "serving"),
        endpoint("10.244.1.8", "unready"),
        port_name="",
        name="shop",
    ),
    service("headless", cluster_ips=()),
    NetworkPolicyFact(namespace="default", name="deny-all"),
)
NODES = (
    node("node-a.example", 1),
    switch("node-a.example", 1),
    node("node-b", 2, pod_cidrs=()),
    switch("node-b", 2, gateway_ips=(ip_address("10.244.9.1"),)),
    block("10.244.9.0/24", "node-b"),
    node("node-c", 3),
)


@pytest.mark.parametrize(
    ("name", "facts"), [("dns.json", DNS), ("shop.json", SHOP), ("nodes.json", NODES)]
)
def test_intents(name: str, facts: tuple[Any, ...], golden: Callable[[str, str], None]) -> None:
    """Subjects, intents and findings of a small cluster."""
    state = State(CLUSTER)
    step(state, [Upserted(fact) for fact in facts])
    found = {
        "intents": {s: wire.to_builtins(i) for s, i in sorted(intents(state).items())},
        "findings": [wire.to_builtins(finding) for finding in findings(state)],
    }
    golden(name, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
