"""
Which packets of the node's own processes are for br-int, as kernel rules and routes: pure.

A rule leads a protocol and a port (or the NodePort range) to a table, which holds the addresses
that are served at that port: what no table has goes where it went before. So there are as many
rules as there are different ports, however many addresses, and an address on another port is not
touched.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv6Address
from typing import Final, NamedTuple

from dunlin.events.facts import Protocol
from dunlin.events.intents import (
    HostPortIntent,
    LocalServiceIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import IPAddress
from dunlin.model.ids import IntentId
from dunlin.pipeline.base import SwitchContext
from dunlin.pipeline.families import PROTOCOL_NUMBERS
from dunlin.pipeline.host_port import host_port_ips

TABLE_BASE: Final = 0xD1000000
"""Our tables: this for NodePorts; with protocol << 16 and the port for what one port is."""

Ports = tuple[int, int]
"""First and last."""


class Frontend(NamedTuple):
    """An external or load balancer IP of a ServicePort, or a node's address with a hostPort."""

    ip: IPAddress
    protocol: Protocol
    port: int


class Rule(NamedTuple):
    """Of one IP version: packets to these ports are looked up in `table`."""

    version: int
    protocol: Protocol
    ports: Ports
    table: int


class SteeredRoute(NamedTuple):
    """In `table`: to `ip` by br-int; `source` is what a process sends from that has not chosen."""

    table: int
    ip: IPAddress
    source: IPAddress


@dataclass(frozen=True, slots=True)
class Steered:
    """What the kernel holds, or must hold."""

    rules: frozenset[Rule] = frozenset()
    routes: frozenset[SteeredRoute] = frozenset()

    def without(self, other: "Steered") -> "Steered":
        """What `other` has not."""
        return Steered(self.rules - other.rules, self.routes - other.routes)

    def __bool__(self) -> bool:
        """There is anything at all."""
        return bool(self.rules or self.routes)


def steered(
    switch: SwitchIntent | None,
    node_ports: Ports,
    protocols: Iterable[Protocol],
    frontends: Iterable[Frontend],
) -> Steered:
    """
    Everything from scratch.

    Args:
        node_ports: the NodePort range.
        protocols: those that have a NodePort somewhere.
        frontends: of all Services, and of the hostPorts of the node's Pods.
    """
    if switch is None:
        return Steered()
    rules: set[Rule] = set()
    routes: set[SteeredRoute] = set()
    for protocol in protocols:
        for ip in switch.node_port_ips:
            rules.add(Rule(ip.version, protocol, node_ports, TABLE_BASE))
            routes.add(SteeredRoute(TABLE_BASE, ip, ip))
    for frontend in frontends:
        source = source_of(switch, frontend.ip)
        if source is not None:
            rules.add(rule_of(frontend))
            routes.add(SteeredRoute(table_of(frontend), frontend.ip, source))
    return Steered(frozenset(rules), frozenset(routes))


def table_of(frontend: Frontend) -> int:
    """The same on every node and after every restart."""
    return TABLE_BASE | PROTOCOL_NUMBERS[frontend.protocol] << 16 | frontend.port


def rule_of(frontend: Frontend) -> Rule:
    """The rule of its port."""
    ports = (frontend.port, frontend.port)
    return Rule(frontend.ip.version, frontend.protocol, ports, table_of(frontend))


def source_of(switch: SwitchIntent, ip: IPAddress) -> IPAddress | None:
    """
    What the node sends from: to its own address itself, else its first; None: no such family.

    As without us, and loadBalancerSourceRanges count the node by its own addresses. Without an
    uplink the node has only its gateway address.
    """
    own = [address.ip for address in switch.addresses if address.ip.version == ip.version]
    own += [address for address in switch.gateway_ips if address.version == ip.version]
    return ip if ip in own else next(iter(own), None)


def can_be_steered(ip: IPAddress) -> bool:
    """Not what means something else in every host."""
    special = ip.is_loopback or ip.is_unspecified or ip.is_multicast or ip.is_link_local
    mapped = isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None
    return not (special or mapped or int(ip) == 0xFFFFFFFF)


@dataclass(slots=True)
class Steering:
    """From intents, one by one; `wanted` costs what there is, `put` what has changed."""

    node_ports: Ports
    switch: SwitchIntent | None = None
    _frontends: dict[IntentId, frozenset[Frontend]] = field(default_factory=dict)
    _host_ports: dict[IntentId, HostPortIntent] = field(default_factory=dict)
    _node_ports: dict[IntentId, Protocol] = field(default_factory=dict)
    _counts: Counter[Frontend] = field(default_factory=Counter)
    _protocols: Counter[Protocol] = field(default_factory=Counter)

    def put(
        self, intent: ServicePortIntent | LocalServiceIntent | HostPortIntent | SwitchIntent
    ) -> bool:
        """A newer version of an intent; True: `wanted` may be another."""
        if isinstance(intent, SwitchIntent):
            changed = self.switch != intent
            self.switch = intent
            return changed
        if isinstance(intent, LocalServiceIntent):
            return False
        if isinstance(intent, HostPortIntent):
            before = self._host_ports.get(intent.id)
            self._host_ports[intent.id] = intent
            return before != intent
        addresses = (a.ip for a in intent.external if can_be_steered(a.ip))
        found = frozenset(Frontend(ip, intent.protocol, intent.port) for ip in addresses)
        protocol = intent.protocol if intent.node_port else None
        return self._set(intent.id, found, protocol)

    def remove(self, intent_id: IntentId) -> bool:
        """An intent is gone; True: `wanted` may be another."""
        if self.switch is not None and intent_id == self.switch.id:
            self.switch = None
            return True
        if self._host_ports.pop(intent_id, None) is not None:
            return True
        return self._set(intent_id, frozenset(), None)

    def clear(self) -> None:
        """Nothing is known."""
        self.switch = None
        for part in (self._frontends, self._node_ports, self._counts, self._protocols):
            part.clear()
        self._host_ports.clear()

    def wanted(self) -> Steered:
        """What the kernel must hold."""
        return steered(self.switch, self.node_ports, self._protocols, self._all())

    def own_frontends(self) -> frozenset[Frontend]:
        """Those at the node's own addresses, which br-ext must pass to br-int."""
        if self.switch is None:
            return frozenset()
        own = {address.ip for address in self.switch.addresses}
        return frozenset(frontend for frontend in self._all() if frontend.ip in own)

    def _all(self) -> frozenset[Frontend]:
        """Those of Services, and of the hostPorts at all addresses of the node."""
        own = SwitchContext(self.switch).own_addresses if self.switch is not None else ()
        host_ports = (
            Frontend(ip, intent.protocol, intent.port)
            for intent in self._host_ports.values()
            for ip in host_port_ips(intent, own)
        )
        return frozenset((*self._counts, *host_ports))

    def _set(
        self, intent_id: IntentId, frontends: frozenset[Frontend], protocol: Protocol | None
    ) -> bool:
        old = self._frontends.pop(intent_id, frozenset())
        old_protocol = self._node_ports.pop(intent_id, None)
        if frontends:
            self._frontends[intent_id] = frontends
        if protocol is not None:
            self._node_ports[intent_id] = protocol
        changed = _count(self._counts, old, frontends)
        before = () if old_protocol is None else (old_protocol,)
        after = () if protocol is None else (protocol,)
        return _count(self._protocols, before, after) or changed


def _count(counts: Counter, old: Iterable, new: Iterable) -> bool:  # type: ignore[type-arg]
    """One fewer of each of `old`, one more of each of `new`; True: other keys than before."""
    gone, come = set(old) - set(new), set(new) - set(old)
    for item in gone:
        counts[item] -= 1
        if not counts[item]:
            del counts[item]
    fresh = [item for item in come if item not in counts]
    counts.update(come)
    return bool(fresh or any(item not in counts for item in gone))


def refused(intent: ServicePortIntent) -> tuple[IPAddress, ...]:
    """External IPs that the kernel is not told about."""
    return tuple(a.ip for a in intent.external if not can_be_steered(a.ip))
