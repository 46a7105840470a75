"""The intents that one question is about, out of all; compiled for a node as its switch is."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import NamedTuple, TypeVar

from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    HostPortIntent,
    LocalServiceIntent,
    PolicyClassIntent,
    PolicyGenerationIntent,
    PolicyIntent,
    PolicyNetworkIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicySubjectIntent,
    RouteIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import IPAddress
from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Program
from dunlin.pipeline import compile_intent, switch_context
from dunlin.subjects import ALL_SCOPE

I = TypeVar("I", bound=AnyIntent)  # noqa: E741 - an intent


class Version(NamedTuple):
    """An intent and its revision."""

    intent: AnyIntent
    revision: int


class World:
    """
    All intents by kind.

    `held`: the revision up to which each node's switch holds them.
    """

    def __init__(self, versions: Iterable[Version], held: Mapping[str, int] | None = None) -> None:
        self._kinds: dict[type, list[AnyIntent]] = defaultdict(list)
        self.revisions: dict[IntentId, int] = {}
        for intent, revision in versions:
            self._kinds[type(intent)].append(intent)
            self.revisions[intent.id] = revision
        self.held = held or {}

    def of(self, kind: type[I]) -> list[I]:
        """All of a kind."""
        return self._kinds.get(kind, [])  # type: ignore[return-value]

    @cached_property
    def switches(self) -> dict[str, SwitchIntent]:
        """By node."""
        return {intent.scope: intent for intent in self.of(SwitchIntent)}

    def pod(self, namespace: str, name: str) -> list[EndpointIntent]:
        """The interfaces of a Pod."""
        return [
            e
            for e in self.of(EndpointIntent)
            if e.pod_name == name and e.pod_namespace == namespace
        ]

    def pods_at(self, ips: set[IPAddress]) -> list[EndpointIntent]:
        """The interfaces that have one of these addresses."""
        return [e for e in self.of(EndpointIntent) if not ips.isdisjoint(e.ips)]

    def node_at(self, ip: IPAddress) -> str:
        """The node whose own address this is; "": none's."""
        for node, switch in self.switches.items():
            if ip in switch.gateway_ips or any(ip == a.ip for a in switch.addresses):
                return node
        return ""

    def service_ports(self, namespace: str, name: str) -> list[ServicePortIntent]:
        """The ServicePorts of a Service."""
        return [
            s
            for s in self.of(ServicePortIntent)
            if s.service_name == name and s.service_namespace == namespace
        ]

    def services_at(self, ip: IPAddress, port: int) -> list[ServicePortIntent]:
        """The ServicePorts that this address and port may mean; NodePorts on any address."""
        return [
            s
            for s in self.of(ServicePortIntent)
            if s.node_port == port
            or any(ip == a.ip for a in s.addresses)
            or any(ip == a.ip for a in s.external)
        ]

    def host_ports_at(self, ip: IPAddress, port: int) -> list[HostPortIntent]:
        """The hostPorts that this address and port may mean."""
        node = self.node_at(ip)
        found = (h for h in self.of(HostPortIntent) if h.scope == node and h.port == port)
        return [h for h in found if h.host_ip in (None, ip)]

    # --- what counts for some addresses and ports -------------------------------------------------

    def policy_intents(self, ips: set[IPAddress], ports: set[int]) -> list[AnyIntent]:
        """
        The policy intents that packets between these addresses, to these ports, can meet.

        Clauses match classes and ports exactly, so whatever else there is cannot.
        """
        peers = [p for p in self.of(PolicyPeerIntent) if not ips.isdisjoint(p.ips)]
        subjects = [s for s in self.of(PolicySubjectIntent) if not ips.isdisjoint(s.ips)]
        networks = [
            n
            for n in self.of(PolicyNetworkIntent)
            if any(ip.version == n.cidr.version and ip in n.cidr for ip in ips)
        ]
        wanted = {peer.class_id for peer in peers} | {network.class_id for network in networks}
        wanted |= {subject.ingress_class for subject in subjects}
        wanted |= {subject.egress_class for subject in subjects}
        classes = [c for c in self.of(PolicyClassIntent) if c.class_id in wanted]
        numbers = {clause.conj_id for c in classes for clause in (*c.clauses, *c.names)}
        policies = [
            p for p in self.of(PolicyIntent) if any(rule.conj_id in numbers for rule in p.rules)
        ]
        through = [
            p
            for p in self.of(PolicyPortIntent)
            if not p.mask or any(port & p.mask == p.value for port in ports)
        ]
        generation = self.of(PolicyGenerationIntent)
        return [*peers, *subjects, *networks, *classes, *policies, *through, *generation]

    def routes(self, ips: set[IPAddress]) -> list[RouteIntent]:
        """The ways to these addresses."""
        return [
            r
            for r in self.of(RouteIntent)
            if any(ip == a.ip for a in r.addresses for ip in ips)
            or any(ip.version == cidr.version and ip in cidr for cidr in r.cidrs for ip in ips)
        ]

    def program(self, node: str, intents: Iterable[AnyIntent]) -> Program:
        """These intents as the switch of `node` has them, with its pipeline."""
        switch = self.switches[node]
        context = switch_context(switch)
        parts = [compile_intent(switch, context)]
        once = {intent.id: intent for intent in intents if intent.scope in (ALL_SCOPE, node)}
        parts += [compile_intent(intent, context) for intent in once.values()]
        return Program(
            tuple(flow for part in parts for flow in part.flows),
            tuple(group for part in parts for group in part.groups),
        )

    def local_services(self, services: list[ServicePortIntent]) -> list[LocalServiceIntent]:
        """What nodes have of their own of these."""
        keys = {service.key for service in services}
        return [s for s in self.of(LocalServiceIntent) if s.key in keys]

    def newest(self, intents: Iterable[AnyIntent]) -> int:
        """The newest revision among these."""
        return max((self.revisions.get(intent.id, 0) for intent in intents), default=0)
