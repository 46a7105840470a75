"""A rule as conjunctions: one for its numbers, one for each number that a named port stands for."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dunlin.events.facts import Protocol
from dunlin.pipeline.layout import Priority
from dunlin_planner.core.policy.model import (
    Block,
    Group,
    NamedPort,
    Policy,
    PortRange,
    Rule,
)

CLUSTER_PRIORITY = 60_000
"""OpenFlow priority of the first rule of a ClusterNetworkPolicy of priority 0."""
RULES_MAX = 32
"""OpenFlow priorities that each priority of a ClusterNetworkPolicy has; the API allows 25 rules."""


class Binding(NamedTuple):
    """A named port in some Pod: its name there stands for this number."""

    protocol: Protocol
    name: str
    number: int


Element = Group | Block | Binding
"""What an address belongs to: policies do not tell addresses with equal elements apart."""


class ConjunctionKey(NamedTuple):
    """
    What a conjunction id stands for. `rule`: its index; `content`: a digest of all that it says.

    A rule that changes is another one: its clauses are complete before the old ones go.
    """

    namespace: str
    policy: str
    direction: str
    rule: int
    content: str
    port: str


class PortKey(NamedTuple):
    """One masked range of ports; mask 0: all of the protocol; `ANY`: every packet."""

    protocol: str
    value: int
    mask: int

    def __str__(self) -> str:
        return f"{self.protocol}/{self.value}/{self.mask:x}" if self.protocol else "any"


ANY = PortKey("", 0, 0)


@dataclass(frozen=True, slots=True)
class Variant:
    """
    One conjunction of a rule: `ports` of clause 3 (None: two clauses will do).

    `peers`: what fulfils clause 2; None: every packet does. `binding`: only where the Pod that is
    connected to has this named port. `in_network`: peers are ipBlocks, and the binding is clause 4.
    """

    key: ConjunctionKey
    rule: Rule
    priority: int
    peers: tuple[Element, ...] | None
    ports: tuple[PortKey, ...] | None
    binding: Binding | None = None
    in_network: bool = False

    @property
    def clauses(self) -> int:
        """How many clauses must hold."""
        return 2 + (self.ports is not None) + self.in_network

    @property
    def elements(self) -> tuple[Element, ...]:
        """What the other side may belong to, and fulfils a clause by that."""
        asked = (self.binding,) if self.in_network and self.binding is not None else ()
        return (*(self.peers or ()), *asked)

    @property
    def port_keys(self) -> tuple[PortKey, ...]:
        """The ports whose flows have a clause of this conjunction."""
        anybody = (ANY,) if self.peers is None else ()
        return (*anybody, *(self.ports or ()))


def priority_of(policy: Policy) -> int:
    """OpenFlow priority of the first rule of a policy; see `pipeline.policy.rule_rank`."""
    if policy.tier == "default":
        return int(Priority.EXACT)
    return CLUSTER_PRIORITY - policy.priority * RULES_MAX


def variants_of(
    policy: Policy, numbers: Callable[[NamedPort], Iterable[Binding]]
) -> tuple[Variant, ...]:
    """Every conjunction of a policy; `numbers`: what a named port stands for anywhere."""
    return tuple(variant for rule in policy.rules for variant in _of_rule(policy, rule, numbers))


def _of_rule(
    policy: Policy, rule: Rule, numbers: Callable[[NamedPort], Iterable[Binding]]
) -> Iterator[Variant]:
    said = repr((policy.tier, policy.priority, policy.subject, rule))
    content = hashlib.sha256(said.encode()).hexdigest()[:16]
    priority = priority_of(policy) - (0 if policy.tier == "default" else rule.index)

    def key(text: str) -> ConjunctionKey:
        return ConjunctionKey(*policy.name, rule.direction, rule.index, content, text)

    if rule.peers == () or rule.ports == ():
        return
    if rule.ports is None:
        yield Variant(key(""), rule, priority, rule.peers, None)
        return
    ranges = [port for port in rule.ports if isinstance(port, PortRange)]
    if ranges:
        keys = {one for port in ranges for one in masked(port)}
        yield Variant(key("numbers"), rule, priority, rule.peers, tuple(sorted(keys)))
    bindings = {b for port in rule.ports if isinstance(port, NamedPort) for b in numbers(port)}
    for binding in sorted(bindings):
        text = f"{binding.protocol}/{binding.name}/{binding.number}"
        ports = (PortKey(binding.protocol.value, binding.number, 0xFFFF),)
        for peers, in_network in _named_peers(rule, binding):
            name = key(f"{text}/network" if in_network else text)
            yield Variant(name, rule, priority, peers, ports, binding, in_network)


def _named_peers(rule: Rule, binding: Binding) -> Iterator[tuple[tuple[Element, ...] | None, bool]]:
    """
    The peers that a named port is asked of together, and whether they are ipBlocks.

    In egress the peer must have the port. One lookup says which Pod it is, another in which
    ipBlocks it lies: both have to hold, so ipBlocks are conjunctions of their own (ADR 0047).
    """
    if rule.direction == "ingress":
        yield rule.peers, False
        return
    if rule.peers is None:
        yield (binding,), False
        return
    if groups := tuple(peer for peer in rule.peers if isinstance(peer, Group)):
        yield groups, False
    if blocks := tuple(peer for peer in rule.peers if isinstance(peer, Block)):
        yield blocks, True


def masked(port: PortRange) -> Iterator[PortKey]:
    """The fewest masked values that are exactly this range: at most 30."""
    first, last = port.first, port.last
    while first <= last:
        size = first & -first or 1 << 16
        while first + size - 1 > last:
            size >>= 1
        yield PortKey(port.protocol.value, first, 0xFFFF & ~(size - 1))
        first += size
