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

    `binding`: only where the Pod that is connected to has this named port.
    """

    key: ConjunctionKey
    rule: Rule
    priority: int
    ports: tuple[PortKey, ...] | None
    binding: Binding | None = None

    @property
    def clauses(self) -> int:
        """How many clauses must hold."""
        return 2 if self.ports is None else 3

    @property
    def peers(self) -> tuple[Element, ...] | None:
        """What fulfils clause 2; None: every packet does."""
        if self.rule.peers is not None:
            return self.rule.peers
        if self.binding is not None and self.rule.direction == "egress":
            return (self.binding,)
        return None

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

    def variant(ports: tuple[PortKey, ...] | None, binding: Binding | None, text: str) -> Variant:
        key = ConjunctionKey(*policy.name, rule.direction, rule.index, content, text)
        return Variant(key, rule, priority, ports, binding)

    if rule.peers == () or rule.ports == ():
        return
    if rule.ports is None:
        yield variant(None, None, "")
        return
    ranges = [port for port in rule.ports if isinstance(port, PortRange)]
    if ranges:
        keys = {key for port in ranges for key in masked(port)}
        yield variant(tuple(sorted(keys)), None, "numbers")
    bindings = {b for port in rule.ports if isinstance(port, NamedPort) for b in numbers(port)}
    for binding in sorted(bindings):
        key = PortKey(binding.protocol.value, binding.number, 0xFFFF)
        yield variant((key,), binding, f"{binding.protocol}/{binding.name}/{binding.number}")


def masked(port: PortRange) -> Iterator[PortKey]:
    """The fewest masked values that are exactly this range: at most 30."""
    first, last = port.first, port.last
    while first <= last:
        size = first & -first or 1 << 16
        while first + size - 1 > last:
            size >>= 1
        yield PortKey(port.protocol.value, first, 0xFFFF & ~(size - 1))
        first += size
