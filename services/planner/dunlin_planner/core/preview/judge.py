"""
What one side may send to another: policies as values, no classes, no flows.

The third evaluator, beside the naive one of the tests and the flows: tests hold all three together.
"""

from collections.abc import Iterable
from typing import NamedTuple

from dunlin.events.intents import PolicyDirection
from dunlin_planner.core.policy.model import NamedPort, Policy, PortRange, Rule
from dunlin_planner.core.policy.variants import Binding, Element
from dunlin_planner.core.preview.ports import EVERYTHING, NOTHING, Ports, span
from dunlin_planner.core.preview.sides import Elements, Moment, Names, Side


class _Answers(NamedTuple):
    """`matters`: what the rules of some policies refer to; nothing else can change an answer."""

    matters: frozenset[Element]
    known: dict[tuple[Elements, frozenset[Binding]], Ports]


class Judge:
    """
    Verdicts at one moment; equal questions are answered once.

    `known`: one object for each set of ports: a set has 24 kB, and there are few different ones.
    """

    def __init__(self, moment: Moment, known: dict[Ports, Ports]) -> None:
        self._moment = moment
        self._known = known
        self._asked: dict[tuple[PolicyDirection, Names], _Answers] = {}
        self._both: dict[tuple[int, int], Ports] = {}
        self._everything = known.setdefault(EVERYTHING, EVERYTHING)

    def reach(self, source: Side, destination: Side, family: int) -> Ports:
        """What `source` may begin with `destination`; family 0: IPv4, 1: IPv6; both have it."""
        theirs, ours = destination.elements[family], source.elements[family]
        assert theirs is not None
        assert ours is not None
        names = destination.names
        egress = self._one("egress", source.egress, theirs, names)
        ingress = self._one("ingress", destination.ingress, ours, names)
        # By identity: to compare or to hash 24 kB costs more than to look up two numbers.
        pair = (id(egress), id(ingress))
        both = self._both.get(pair)
        if both is None:
            ports = egress & ingress
            both = self._both[pair] = self._known.setdefault(ports, ports)
        return both

    def _one(
        self, direction: PolicyDirection, names: Names, other: Elements, bound: frozenset[Binding]
    ) -> Ports:
        if not names:
            return self._everything
        answers = self._asked.get((direction, names))
        if answers is None:
            matters = frozenset(self._referred(direction, names))
            answers = self._asked[direction, names] = _Answers(matters, {})
        question = (other & answers.matters, bound)
        found = answers.known.get(question)
        if found is None:
            policies = [self._moment.policies[name] for name in names]
            ports = _decide(direction, policies, *question)
            found = answers.known[question] = self._known.setdefault(ports, ports)
        return found

    def _referred(self, direction: PolicyDirection, names: Names) -> Iterable[Element]:
        for name in names:
            for rule in self._moment.policies[name].rules:
                if rule.direction == direction:
                    yield from rule.peers or ()


def _decide(
    direction: PolicyDirection,
    policies: list[Policy],
    other: Elements,
    bound: frozenset[Binding],
) -> Ports:
    """Admin tier; then NetworkPolicies, or where none selects, Baseline; then: allowed."""

    def tier(name: str) -> list[Policy]:
        chosen = [p for p in policies if p.tier == name and direction in p.directions]
        return sorted(chosen, key=lambda policy: (policy.priority, policy.name))

    allowed, rest = _ordered(direction, tier("admin"), other, bound)
    default = tier("default")
    if default:
        rules = (rule for policy in default for rule in policy.rules)
        for rule in rules:
            if rule.direction == direction:
                allowed |= rest & _matched(rule, other, bound)
        return allowed
    accepted, left = _ordered(direction, tier("baseline"), other, bound)
    return allowed | rest & (accepted | left)


def _ordered(
    direction: PolicyDirection, policies: list[Policy], other: Elements, bound: frozenset[Binding]
) -> tuple[Ports, Ports]:
    """The first rule that matches decides: what it accepts; and what it passes, or none matches."""
    accepted = passed = NOTHING
    open_ = EVERYTHING
    for policy in policies:
        for rule in policy.rules:
            if rule.direction != direction:
                continue
            matched = open_ & _matched(rule, other, bound)
            open_ &= ~matched
            if rule.action == "Accept":
                accepted |= matched
            elif rule.action == "Pass":
                passed |= matched
    return accepted, passed | open_


def _matched(rule: Rule, other: Elements, bound: frozenset[Binding]) -> Ports:
    """The ports for which a rule speaks, towards this other side."""
    if rule.peers is not None and not any(peer in other for peer in rule.peers):
        return NOTHING
    if rule.ports is None:
        return EVERYTHING
    found = NOTHING
    for port in rule.ports:
        match port:
            case PortRange(protocol, first, last):
                found |= span(protocol, first, last)
            case NamedPort(protocol, name):
                for binding in bound:
                    if binding.name == name and protocol in (None, binding.protocol):
                        found |= span(binding.protocol, binding.number, binding.number)
    return found
