"""
The spec of a networking.k8s.io/v1 NetworkPolicy -> Policy and faults.

Strict, and closed where it cannot read: a bad rule allows nothing; a bad podSelector selects the
whole namespace; bad policyTypes are both types. What was meant to be protected stays so.
"""

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import msgspec

from dunlin import wire
from dunlin.events.facts import Protocol
from dunlin.events.intents import PolicyDirection
from dunlin.model.addresses import IPNetwork
from dunlin_planner.core.policy.model import (
    EVERYTHING,
    Block,
    Fault,
    Group,
    NamedPort,
    Peer,
    Policy,
    PolicyName,
    Port,
    PortRange,
    Requirement,
    Rule,
    Selector,
    the_block,
)

JSON = msgspec.json.Decoder[Any]()
_TYPES: dict[str, PolicyDirection] = {"Ingress": "ingress", "Egress": "egress"}
_PORT_NAME = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?")


class BadField(ValueError):
    """`field` of the spec and why it cannot be read."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


def parse_policy(namespace: str, name: str, spec: bytes) -> tuple[Policy, tuple[Fault, ...]]:
    """A policy, and what of it is closed instead of honoured."""
    faults: list[Fault] = []
    try:
        values = as_object("spec", wire.read(JSON, spec), _SPEC)
    except (msgspec.DecodeError, BadField) as error:
        field = error.field if isinstance(error, BadField) else "spec"
        faults.append(Fault(field, f"{error}: everything in the namespace is isolated"))
        values = {"policyTypes": ["Ingress", "Egress"]}
    subject = EVERYTHING
    try:
        subject = parse_selector("spec.podSelector", values.get("podSelector"))
    except BadField as error:
        faults.append(Fault(error.field, f"{error.reason}: the whole namespace is isolated"))
    policy = Policy(
        PolicyName(namespace, name),
        "default",
        Group(namespace, EVERYTHING, subject),
        _directions(values, faults),
        tuple(_rules(namespace, values, faults)),
    )
    return policy, tuple(faults)


_SPEC = {"podSelector", "ingress", "egress", "policyTypes"}


def _directions(values: dict[str, Any], faults: list[Fault]) -> tuple[PolicyDirection, ...]:
    """Ingress always, and Egress if there are egress rules, unless policyTypes says otherwise."""
    types = values.get("policyTypes")
    if types is None or types == []:
        return ("ingress", "egress") if values.get("egress") else ("ingress",)
    if not isinstance(types, list) or any(t not in _TYPES for t in types if isinstance(t, str)):
        faults.append(
            Fault("spec.policyTypes", f"not readable: {types!r}: both directions are isolated")
        )
        return ("ingress", "egress")
    chosen = {_TYPES[t] for t in types if isinstance(t, str)}
    if len(chosen) != len(set(map(str, types))):
        faults.append(
            Fault("spec.policyTypes", f"not readable: {types!r}: both directions are isolated")
        )
        return ("ingress", "egress")
    return tuple(direction for direction in ("ingress", "egress") if direction in chosen)


def _rules(namespace: str, values: dict[str, Any], faults: list[Fault]) -> Iterator[Rule]:
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        found = values.get(direction)
        if found is None:
            continue
        if not isinstance(found, list):
            faults.append(Fault(f"spec.{direction}", "expected a list: no rule allows anything"))
            continue
        for index, value in enumerate(found):
            at = f"spec.{direction}[{index}]"
            try:
                rule = as_object(at, value, {peers, "ports"})
                yield Rule(
                    "ingress" if direction == "ingress" else "egress",
                    index,
                    peers=_peers(namespace, f"{at}.{peers}", rule.get(peers)),
                    ports=parse_ports(f"{at}.ports", rule.get("ports")),
                )
            except BadField as error:
                faults.append(Fault(error.field, f"{error.reason}: this rule allows nothing"))


def _peers(namespace: str, at: str, value: Any) -> tuple[Peer, ...] | None:
    """Empty and missing are the same in networking/v1: everybody."""
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadField(at, "expected a list")
    return tuple(_peer(namespace, f"{at}[{i}]", item) for i, item in enumerate(value))


def _peer(namespace: str, at: str, value: Any) -> Peer:
    peer = as_object(at, value, {"podSelector", "namespaceSelector", "ipBlock"})
    given = {key for key, item in peer.items() if item is not None}
    if "ipBlock" in given:
        if len(given) > 1:
            raise BadField(at, "ipBlock stands beside a selector")
        return parse_block(f"{at}.ipBlock", peer["ipBlock"])
    if not given:
        raise BadField(at, "a peer without selector or ipBlock")
    pods = parse_selector(f"{at}.podSelector", peer.get("podSelector"))
    if "namespaceSelector" not in given:
        return Group(namespace, EVERYTHING, pods)
    return Group("", parse_selector(f"{at}.namespaceSelector", peer["namespaceSelector"]), pods)


def parse_block(at: str, value: Any) -> Block:
    """An ipBlock. Raises BadField."""
    block = as_object(at, value, {"cidr", "except"})
    cidr = parse_network(f"{at}.cidr", block.get("cidr"))
    holes = block.get("except") or []
    if not isinstance(holes, list):
        raise BadField(f"{at}.except", "expected a list")
    found: set[IPNetwork] = set()
    for i, item in enumerate(holes):
        hole = parse_network(f"{at}.except[{i}]", item)
        if hole.version != cidr.version or not hole.subnet_of(cidr):  # type: ignore[arg-type]
            raise BadField(f"{at}.except[{i}]", f"{hole} is not inside of {cidr}")
        found.add(hole)
    return the_block(
        Block(cidr, tuple(sorted(found, key=lambda n: (int(n.network_address), n.prefixlen))))
    )


def parse_network(at: str, value: Any) -> IPNetwork:
    """
    A CIDR; bits beyond the prefix are ignored, as kube-apiserver lets them pass.

    Raises:
        BadField: not a CIDR.
    """
    if not isinstance(value, str) or "/" not in value:
        raise BadField(at, f"not a CIDR: {value!r}")
    try:
        return ip_network(value, strict=False)
    except ValueError as error:
        raise BadField(at, f"not a CIDR: {value!r}") from error


def parse_selector(at: str, value: Any) -> Selector:
    """A `meta/v1.LabelSelector`; None selects everything. Raises BadField."""
    if value is None:
        return EVERYTHING
    selector = as_object(at, value, {"matchLabels", "matchExpressions"})
    found: set[Requirement] = set()
    labels = selector.get("matchLabels") or {}
    if not isinstance(labels, dict):
        raise BadField(f"{at}.matchLabels", "expected an object")
    for key, text in labels.items():
        if not isinstance(text, str):
            raise BadField(f"{at}.matchLabels[{key!r}]", f"expected text, got {text!r}")
        found.add(Requirement(key, "In", (text,)))
    expressions = selector.get("matchExpressions") or []
    if not isinstance(expressions, list):
        raise BadField(f"{at}.matchExpressions", "expected a list")
    for i, item in enumerate(expressions):
        found.add(_requirement(f"{at}.matchExpressions[{i}]", item))
    return tuple(sorted(found))


def _requirement(at: str, value: Any) -> Requirement:
    item = as_object(at, value, {"key", "operator", "values"})
    key, operator, values = item.get("key"), item.get("operator"), item.get("values") or []
    if not isinstance(key, str) or not key:
        raise BadField(f"{at}.key", "missing")
    if not isinstance(values, list) or any(not isinstance(text, str) for text in values):
        raise BadField(f"{at}.values", "expected a list of text")
    match operator:
        case "In" | "NotIn":
            if not values:
                raise BadField(f"{at}.values", f"{operator} needs at least one")
        case "Exists" | "DoesNotExist":
            if values:
                raise BadField(f"{at}.values", f"{operator} takes none")
        case _:
            raise BadField(f"{at}.operator", f"unknown operator {operator!r}")
    return Requirement(key, operator, tuple(sorted(set(values))))


def parse_ports(at: str, value: Any) -> tuple[Port, ...] | None:
    """The `ports` of a NetworkPolicy's rule; empty and missing: all. Raises BadField."""
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise BadField(at, "expected a list")
    return tuple(_port(f"{at}[{i}]", item) for i, item in enumerate(value))


def _port(at: str, value: Any) -> Port:
    item = as_object(at, value, {"protocol", "port", "endPort"})
    try:
        protocol = Protocol(item["protocol"]) if item.get("protocol") is not None else Protocol.TCP
    except ValueError as error:
        raise BadField(f"{at}.protocol", f"unknown protocol {item['protocol']!r}") from error
    port, end = item.get("port"), item.get("endPort")
    if port is None:
        if end is not None:
            raise BadField(f"{at}.endPort", "endPort without port")
        return PortRange(protocol)
    if isinstance(port, str):
        if end is not None:
            raise BadField(f"{at}.endPort", "endPort beside a named port")
        if not _PORT_NAME.fullmatch(port) or "--" in port:
            raise BadField(f"{at}.port", f"not a port name: {port!r}")
        return NamedPort(protocol, port)
    first = parse_number(f"{at}.port", port)
    last = first if end is None else parse_number(f"{at}.endPort", end)
    if last < first:
        raise BadField(f"{at}.endPort", f"{last} is below port {first}")
    return PortRange(protocol, first, last)


def parse_number(at: str, value: Any) -> int:
    """A port number. Raises BadField."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise BadField(at, f"not a port: {value!r}")
    return value


def as_object(at: str, value: Any, known: set[str]) -> dict[str, Any]:
    """
    A JSON object.

    Raises:
        BadField: it is none, or it has a field that this version does not know: what such a field
            restricts would be lost.
    """
    if not isinstance(value, dict):
        raise BadField(at, f"expected an object, got {type(value).__name__}")
    for key, item in value.items():
        if key not in known and item is not None:
            raise BadField(f"{at}.{key}", "unknown field")
    return value
