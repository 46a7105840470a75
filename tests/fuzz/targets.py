"""
Parsers that face another party, as functions of octets: each may raise the one error of its own.

`make fuzz` runs them guided by coverage; tests/unit/test_fuzz_targets.py runs them on their seeds
and on what once broke them (tests/fuzz/found).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import product
from typing import Any

import msgspec

from dunlin import wire
from dunlin.events.facts import AnyFact
from dunlin.events.intents import AnyIntent
from dunlin.events.state import Applied, Progress
from dunlin.openflow import codec
from dunlin.openflow.messages import OpenFlowError
from dunlin.openflow.reject import answer
from dunlin.openflow.wire_flow import decode_flow_mod
from dunlin.openflow.wire_group import decode_bundle_add, decode_group_mod
from dunlin.service.login import is_good
from dunlin_agent.cni import CniError
from dunlin_agent.cni import wire as cni
from dunlin_planner.core.policy.parse import parse_policy
from dunlin_planner.core.policy.parse_cluster import parse_cluster_policy
from dunlin_watcher.kinds import KINDS
from dunlin_watcher.normalise import UnreadableError, normalise
from tests.fixtures.cluster import intents
from tests.fixtures.openflow_samples import GROUPS, sample_flows

Target = Callable[[bytes], None]
OPENFLOW_HEAD = 8
OPENFLOW_VERSION = 6


def openflow(data: bytes) -> None:
    """What a switch sends: any message; what reads is framed as its header says."""
    framed = data
    if len(data) >= OPENFLOW_HEAD:
        # A wrong length would hide everything behind it from the fuzzer.
        framed = bytes([OPENFLOW_VERSION, data[1]]) + struct.pack("!H", len(data)) + data[4:]
    for octets in (data, framed):
        for decode in (codec.decode, decode_flow_mod, decode_group_mod, decode_bundle_add):
            with suppress(OpenFlowError):
                decode(octets)


def packet(data: bytes) -> None:
    """What a switch sends up of a Pod's packets."""
    answer(data)


def bus(data: bytes) -> None:
    """Facts, intents, acknowledgements; what is taken reads back the same."""
    kinds: tuple[Any, ...] = (AnyFact, AnyIntent, Applied, Progress)
    for kind in kinds:
        with suppress(msgspec.DecodeError, msgspec.ValidationError):
            found = wire.decode(data, kind)
            # Not a number is not equal to itself.
            assert b"nan" in data.lower() or wire.decode(wire.encode(found), kind) == found


def cni_request(data: bytes) -> None:
    """What comes over the agent's socket."""
    with suppress(CniError):
        cni.decode_request(data)
    with suppress(CniError):
        cni.decode_args(data.decode("utf-8", "replace"))


def kubernetes(data: bytes) -> None:
    """Objects of the Kubernetes API, of every kind."""
    for kind in KINDS:
        with suppress(UnreadableError):
            normalise(kind, data)


def policy(data: bytes) -> None:
    """The spec of a policy, as facts carry it."""
    parse_policy("namespace", "name", data)
    parse_cluster_policy("name", data)


def cookie(data: bytes) -> None:
    """A browser's cookie: none that was not made by us is a session."""
    assert not is_good("correct-horse-battery-staple", data.decode("latin-1"), 1_800_000_000)


TARGETS: dict[str, Target] = {
    "openflow": openflow,
    "packet": packet,
    "bus": bus,
    "cni_request": cni_request,
    "kubernetes": kubernetes,
    "policy": policy,
    "cookie": cookie,
}


def seeds(name: str) -> Iterator[bytes]:
    """Well-formed input to begin from: a fuzzer does not find JSON's or OpenFlow's forms alone."""
    yield from _SEEDS.get(name, lambda: iter([b""]))()


def _openflow_seeds() -> Iterator[bytes]:
    for flow in sample_flows():
        yield codec.encode_flow(flow, "add")
    for group in GROUPS.values():
        yield codec.encode_group(group, "add")


def _bus_seeds() -> Iterator[bytes]:
    for intent in intents(tunnel=True):
        yield wire.encode(intent)
    for kind, seed in product(KINDS, _kubernetes_seeds()):
        if (fact := normalise(kind, seed).fact) is not None:
            yield wire.encode(fact)
    for other in (Applied, Progress):
        names = {field.encode_name: None for field in msgspec.structs.fields(other)}
        yield msgspec.json.encode({"kind": other.__struct_config__.tag, **names})


def _cni_seeds() -> Iterator[bytes]:
    config = {"cniVersion": "1.1.0", "name": "dunlin", "type": "dunlin-cni"}
    for command in ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"):
        request = {
            "command": command,
            "containerID": "c",
            "netns": "/run/netns/x",
            "ifname": "eth0",
        }
        rest = {"args": "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", "path": "/opt/cni/bin"}
        yield msgspec.json.encode({**request, **rest, "config": config})


def _kubernetes_seeds() -> Iterator[bytes]:
    head = {"metadata": {"name": "a", "namespace": "b", "uid": "u", "resourceVersion": "1"}}
    for spec in (
        {"podCIDRs": ["10.244.0.0/24"]},
        {
            "clusterIPs": ["10.96.0.1"],
            "ports": [{"port": 80, "targetPort": "http"}],
            "selector": {},
        },
        {"podSelector": {"matchLabels": {"a": "b"}}, "ingress": [{"from": [{"ipBlock": {}}]}]},
        {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 1}]}]},
    ):
        yield msgspec.json.encode({**head, "spec": spec})


def _policy_seeds() -> Iterator[bytes]:
    peer = {"podSelector": {"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}}
    block = {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}
    ports = [{"protocol": "TCP", "port": 80, "endPort": 90}, {"port": "http"}]
    yield msgspec.json.encode(
        {"podSelector": {}, "ingress": [{"from": [peer, block], "ports": ports}]}
    )
    rule = {"action": "Deny", "name": "r", "from": [{"namespaces": {}}], "protocols": []}
    subject: dict[str, Any] = {"pods": {"namespaceSelector": {}, "podSelector": {}}}
    spec = {"tier": "Admin", "priority": 5, "subject": subject, "ingress": [rule]}
    yield msgspec.json.encode(spec)


_SEEDS: dict[str, Callable[[], Iterator[bytes]]] = {
    "openflow": _openflow_seeds,
    "packet": lambda: iter([bytes(14), bytes.fromhex("ffffffffffff0000000000010800450000280001")]),
    "bus": _bus_seeds,
    "cni_request": _cni_seeds,
    "kubernetes": _kubernetes_seeds,
    "policy": _policy_seeds,
    "cookie": lambda: iter([b"1800000000." + b"0" * 64]),
}
