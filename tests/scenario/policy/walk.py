"""A cluster through the planner and the compiler, and packets through the flows of both nodes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from typing import Any

import msgspec

from dunlin.events.facts import (
    AttachmentFact,
    ClusterNetworkPolicyFact,
    ContainerPort,
    Fact,
    Meta,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
    Protocol,
)
from dunlin.events.intents import AnyIntent, EndpointIntent, PolicyGenerationIntent
from dunlin.model.addresses import MacAddress
from dunlin.openflow.conntrack import Conntrack
from dunlin.openflow.flow import Flow, Program
from dunlin.openflow.packet import packet
from dunlin.openflow.trace import Trace, Tracer
from dunlin.pipeline import compile_intent, switch_context
from dunlin_planner.core.events import Deleted, Event, Upserted
from dunlin_planner.core.step import intents, step
from dunlin_planner.state import State
from tests.fixtures import cluster as nodes
from tests.scenario.policy.oracle import Cluster, Packet, Pod, pod_with

NODES = (1, 2)
OUTSIDE = {4: "198.51.100.7", 6: "2001:db8::7"}
ETH = {4: 0x0800, 6: 0x86DD}
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}


def facts(cluster: Cluster) -> list[Fact]:
    """Everything that the planner is told of a cluster."""
    found: list[Fact] = [
        NamespaceFact(name=name, labels=labels) for name, labels in cluster.namespaces.items()
    ]
    for pod in cluster.pods:
        found += [pod_fact(pod), attachment(pod)]
    for policy in cluster.policies:
        meta = policy["metadata"]
        spec = msgspec.Raw(json.dumps(policy["spec"]).encode())
        found.append(NetworkPolicyFact(namespace=meta["namespace"], name=meta["name"], spec=spec))
    for policy in cluster.cluster_policies:
        spec = msgspec.Raw(json.dumps(policy["spec"]).encode())
        found.append(ClusterNetworkPolicyFact(name=policy["metadata"]["name"], spec=spec))
    return found


def pod_fact(pod: Pod) -> PodFact:
    """As the watcher publishes it."""
    return PodFact(
        namespace=pod.namespace,
        name=pod.name,
        node=pod.node,
        labels=pod.labels,
        meta=Meta(uid=f"{pod.namespace}-{pod.name}"),
        ports=tuple(
            ContainerPort(name=name, protocol=Protocol(protocol), port=number)
            for name, protocol, number in pod.ports
        ),
    )


def attachment(pod: Pod) -> AttachmentFact:
    """As its node's agent publishes it."""
    return AttachmentFact(
        namespace=pod.node,
        name=f"{pod.namespace}-{pod.name}/eth0",
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        pod_uid=f"{pod.namespace}-{pod.name}",
        container_id=pod.name,
        ips=tuple(map(ip_address, pod.ips)),
        mac=mac(pod),
        ofport=pod.number,
        port_name=pod.name,
    )


def mac(pod: Pod) -> MacAddress:
    """The MAC address of a Pod's interface."""
    return MacAddress(f"0a:00:00:00:{int(pod.node[1:]):02x}:{pod.number:02x}")


def change(old: Cluster, new: Cluster) -> list[Event]:
    """What the planner is told when one cluster becomes another."""

    def named(cluster: Cluster) -> dict[tuple[str, str, str], Fact]:
        return {(kind(f), f.namespace, f.name): f for f in facts(cluster)}

    before, after = named(old), named(new)
    events: list[Event] = [Deleted(*key) for key in before if key not in after]
    changed = [f for key, f in after.items() if before.get(key) != f]
    return events + [Upserted(f) for f in changed]  # type: ignore[arg-type]


def kind(fact: Fact) -> str:
    """The kind of a fact."""
    return str(fact.__struct_config__.tag)


def planned(*clusters: Cluster) -> State:
    """The planner's state after one cluster has become the next, and so on."""
    state = State()
    before = Cluster()
    for cluster in clusters:
        step(state, change(before, cluster))
        before = cluster
    return state


class Walker:
    """The switches of both nodes; `generation` 0: as without any policy ever."""

    def __init__(self, cluster: Cluster, policy: Iterable[AnyIntent], generation: int = 1) -> None:
        self.cluster = cluster
        wanted = list(policy)
        if generation:
            wanted.append(PolicyGenerationIntent(scope="all", key="all", generation=generation))
        self.tracers = {f"n{number}": self._tracer(number, wanted) for number in NODES}
        self.conntracks: dict[str, Conntrack] = {}

    @classmethod
    def of_flows(cls, cluster: Cluster, flows: Mapping[int, Iterable[Flow]]) -> Walker:
        """Switches that hold just this, by the number of their node."""
        walker = cls(cluster, (), generation=0)
        walker.tracers = {
            f"n{number}": Tracer.of(Program(tuple(some))) for number, some in flows.items()
        }
        return walker

    def _tracer(self, number: int, wanted: list[AnyIntent]) -> Tracer:
        switch = nodes.switch(number)
        context = switch_context(switch)
        node = f"n{number}"
        mine = [i for i in wanted if i.scope in ("all", node)]
        ends = [endpoint(pod) for pod in self.cluster.pods if pod.node == node]
        routes = [nodes.route(other) for other in NODES]
        program = Program()
        for intent in (switch, *ends, *routes, *mine):
            program += compile_intent(intent, context)
        return Tracer.of(program)

    def reaches(self, sent: Packet) -> bool:
        """The first packet of a new connection arrives; from Pods, or from outside to Pods."""
        self.conntracks.clear()
        return self.continues(sent)

    def continues(self, sent: Packet, port: int = 40000) -> bool:
        """One more packet, from `port`, arrives; connections are as earlier ones left them."""
        src, dst = pod_with(self.cluster, sent.src), pod_with(self.cluster, sent.dst)
        if src is None:
            assert dst is not None
            return self._arrives(dst, self._incoming(dst, sent, port))
        trace = self._walk(src.node, {**self._fields(sent, port), "in_port": src.number,
            "eth_src": mac_number(src)})  # fmt: skip
        if dst is not None and dst.node == src.node:
            return self._arrives(dst, trace)
        if trace.dropped:
            return False
        return dst is None or self._arrives(dst, self._incoming(dst, sent, port))

    def establish(self, client: Pod, server: Pod) -> bool:
        """A new TCP connection to port 8080, and its answer."""
        return self.exchange(client, server) == (True, True)

    def exchange(self, client: Pod, server: Pod) -> tuple[bool, bool]:
        """One more packet in each direction arrives; both on IPv4."""
        there = self.continues(Packet(client.ips[0], server.ips[0], "TCP", 8080))
        back = self.continues(Packet(server.ips[0], client.ips[0], "TCP", 40000), 8080)
        return there, back

    def _incoming(self, dst: Pod, sent: Packet, port: int) -> Trace:
        number = int(dst.node[1:])
        router = int(nodes.switch(number).router_mac.replace(":", ""), 16)
        fields = {**self._fields(sent, port), "in_port": nodes.UPLINK_PORT, "eth_dst": router}
        return self._walk(dst.node, fields)

    def _walk(self, node: str, fields: dict[str, int]) -> Trace:
        trace = self.tracers[node].trace(fields, self.conntracks.get(node))
        self.conntracks[node] = trace.conntrack
        return trace

    @staticmethod
    def _arrives(dst: Pod, trace: Trace) -> bool:
        return trace.ports == (dst.number,)

    @staticmethod
    def _fields(sent: Packet, port: int) -> dict[str, int]:
        version = ip_address(sent.src).version
        names = ("nw_src", "nw_dst") if version == 4 else ("ipv6_src", "ipv6_dst")
        values: dict[str, Any] = {
            "eth_type": ETH[version],
            names[0]: ip_address(sent.src),
            names[1]: ip_address(sent.dst),
            "nw_ttl": 64,
        }
        if sent.protocol == "ICMP":
            echo = {"icmp_type": 8} if version == 4 else {"icmpv6_type": 128}
            values |= {"nw_proto": 1 if version == 4 else 58, **echo}
        else:
            name = sent.protocol.lower()
            values |= {
                "nw_proto": PROTOCOLS[sent.protocol],
                f"{name}_src": port,
                f"{name}_dst": sent.port,
            }
        return packet(**values)


def endpoint(pod: Pod) -> EndpointIntent:
    """As ipam publishes it."""
    return EndpointIntent(
        scope=pod.node,
        key=f"{pod.namespace}/{pod.name}/eth0",
        pod_namespace=pod.namespace,
        pod_name=pod.name,
        ofport=pod.number,
        mac=mac(pod),
        ips=tuple(map(ip_address, pod.ips)),
    )


def mac_number(pod: Pod) -> int:
    """Its MAC address as a number."""
    return int(mac(pod).replace(":", ""), 16)


def walker(*clusters: Cluster) -> Walker:
    """The switches after the planner has seen the clusters one after the other."""
    state = planned(*clusters)
    return Walker(clusters[-1], intents(state).values())
