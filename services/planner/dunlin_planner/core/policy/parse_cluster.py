"""
The spec of a policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy -> Policy and faults.

Closed where it cannot read: a rule that accepts or passes matches nobody, one that denies (or whose
action is unknown) matches everybody. Whom an unreadable subject means nobody can tell: such a
policy is refused as a whole.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from dunlin import wire
from dunlin.events.facts import Protocol
from dunlin.events.intents import PolicyAction, PolicyDirection, PolicyTier
from dunlin_planner.core.policy.model import (
    Block,
    Fault,
    Group,
    NamedPort,
    Peer,
    Policy,
    PolicyName,
    Port,
    PortRange,
    Rule,
    the_block,
)
from dunlin_planner.core.policy.parse import (
    JSON,
    BadField,
    as_object,
    parse_network,
    parse_number,
    parse_selector,
)
from dunlin_planner.core.policy.variants import RULES_MAX

_TIERS: dict[str, PolicyTier] = {"Admin": "admin", "Baseline": "baseline"}
_ACTIONS: dict[str, PolicyAction] = {"Accept": "Accept", "Deny": "Deny", "Pass": "Pass"}
_SIDES: tuple[tuple[PolicyDirection, str], ...] = (("ingress", "from"), ("egress", "to"))
PRIORITY_MAX = 1000


def parse_cluster_policy(name: str, spec: bytes) -> tuple[Policy | None, tuple[Fault, ...]]:
    """A policy, and what of it is closed instead of honoured; None: refused as a whole."""
    faults: list[Fault] = []
    try:
        known = {"tier", "priority", "subject", "ingress", "egress"}
        values = as_object("spec", wire.read(JSON, spec), known)
        tier, priority = values.get("tier"), values.get("priority")
        if not isinstance(tier, str) or tier not in _TIERS:
            raise BadField("spec.tier", f"unknown tier {tier!r}")  # noqa: TRY301 - one place turns all bad fields into faults
        if not isinstance(priority, int) or isinstance(priority, bool):
            raise BadField("spec.priority", f"not a number: {priority!r}")  # noqa: TRY301 - one place turns all bad fields into faults
        if not 0 <= priority <= PRIORITY_MAX:
            raise BadField("spec.priority", f"{priority} is not in 0 … {PRIORITY_MAX}")  # noqa: TRY301 - one place turns all bad fields into faults
        subject = _group("spec.subject", values.get("subject"))
        rules = tuple(_rules(values, faults))
    except msgspec.DecodeError as error:
        return None, (Fault("spec", f"{error}: the policy is refused"),)
    except BadField as error:
        return None, (Fault(error.field, f"{error.reason}: the policy is refused"),)
    directions = tuple(side for side, _ in _SIDES if any(r.direction == side for r in rules))
    policy = Policy(PolicyName("", name), _TIERS[tier], subject, directions, rules, priority)
    return policy, tuple(faults)


def _group(at: str, value: Any) -> Group:
    subject = as_object(at, value, {"namespaces", "pods"})
    given = [key for key, item in subject.items() if item is not None]
    if len(given) != 1:
        raise BadField(at, "expected exactly one of namespaces and pods")
    if given == ["namespaces"]:
        return Group("", parse_selector(f"{at}.namespaces", subject["namespaces"]))
    pods = as_object(f"{at}.pods", subject["pods"], {"namespaceSelector", "podSelector"})
    return Group(
        "",
        parse_selector(f"{at}.pods.namespaceSelector", pods.get("namespaceSelector")),
        parse_selector(f"{at}.pods.podSelector", pods.get("podSelector")),
    )


def _rules(values: dict[str, Any], faults: list[Fault]) -> Iterator[Rule]:
    for direction, side in _SIDES:
        found = values.get(direction) or []
        if not isinstance(found, list) or len(found) > RULES_MAX:
            raise BadField(f"spec.{direction}", f"expected a list of at most {RULES_MAX} rules")
        for index, value in enumerate(found):
            yield _rule(direction, side, index, value, faults)


def _rule(
    direction: PolicyDirection, side: str, index: int, value: Any, faults: list[Fault]
) -> Rule:
    at = f"spec.{direction}[{index}]"
    action: PolicyAction = "Deny"
    try:
        rule = as_object(at, value, {"name", "action", side, "protocols"})
        if not isinstance(rule.get("action"), str) or rule["action"] not in _ACTIONS:
            raise BadField(f"{at}.action", f"unknown action {rule.get('action')!r}")  # noqa: TRY301 - one place turns all bad fields into faults
        action = _ACTIONS[rule["action"]]
        peers = tuple(_peers(f"{at}.{side}", direction, rule.get(side)))
        ports = _protocols(f"{at}.protocols", rule.get("protocols"))
        return Rule(direction, index, action, str(rule.get("name") or ""), peers, ports)
    except BadField as error:
        closed = "denies everybody" if action == "Deny" else "matches nobody"
        faults.append(Fault(error.field, f"{error.reason}: this rule {closed}"))
        return Rule(direction, index, action, peers=None if action == "Deny" else ())


def _peers(at: str, direction: PolicyDirection, value: Any) -> Iterator[Peer]:
    if not isinstance(value, list) or not value:
        raise BadField(at, "expected at least one peer")
    for i, item in enumerate(value):
        here = f"{at}[{i}]"
        if not isinstance(item, dict):
            raise BadField(here, "expected an object")
        for field in ("nodes", "domainNames"):
            if item.get(field) is not None:
                raise BadField(f"{here}.{field}", "not supported")
        if item.get("networks") is None:
            yield _group(here, item)
            continue
        networks = as_object(here, item, {"networks"})["networks"]
        if direction != "egress" or not isinstance(networks, list) or not networks:
            raise BadField(f"{here}.networks", "expected a list of CIDRs in an egress rule")
        for j, network in enumerate(networks):
            yield the_block(Block(parse_network(f"{here}.networks[{j}]", network)))


def _protocols(at: str, value: Any) -> tuple[Port, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise BadField(at, "expected at least one protocol")
    return tuple(_protocol(f"{at}[{i}]", item) for i, item in enumerate(value))


def _protocol(at: str, value: Any) -> Port:
    item = as_object(at, value, {"tcp", "udp", "sctp", "destinationNamedPort"})
    given = [key for key, one in item.items() if one is not None]
    if len(given) != 1:
        raise BadField(at, "expected exactly one protocol")
    field = given[0]
    if field == "destinationNamedPort":
        if not isinstance(item[field], str) or not item[field]:
            raise BadField(f"{at}.{field}", f"not a port name: {item[field]!r}")
        return NamedPort(None, item[field])
    protocol = Protocol(field.upper())
    port = as_object(f"{at}.{field}", item[field], {"destinationPort"}).get("destinationPort")
    if port is None:
        return PortRange(protocol)
    there = f"{at}.{field}.destinationPort"
    chosen = as_object(there, port, {"number", "range"})
    if chosen.get("range") is None:
        number = parse_number(f"{there}.number", chosen.get("number"))
        return PortRange(protocol, number, number)
    if chosen.get("number"):
        raise BadField(there, "number beside range")
    ends = as_object(f"{there}.range", chosen["range"], {"start", "end"})
    first = parse_number(f"{there}.range.start", ends.get("start"))
    last = parse_number(f"{there}.range.end", ends.get("end"))
    if last < first:
        raise BadField(f"{there}.range.end", f"{last} is below {first}")
    return PortRange(protocol, first, last)
