"""One unit of policy -> its intents and findings; pure."""

from collections.abc import Iterator
from ipaddress import ip_network

from dunlin.events.facts import Protocol
from dunlin.events.findings import Finding
from dunlin.events.intents import (
    AnyIntent,
    Clause,
    NameClause,
    PolicyClassIntent,
    PolicyDirection,
    PolicyGenerationIntent,
    PolicyIntent,
    PolicyNetworkIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicyRule,
    PolicySubjectIntent,
)
from dunlin.model.addresses import IPAddress
from dunlin.subjects import ALL_SCOPE
from dunlin_planner.core.events import Unit
from dunlin_planner.core.policy.classes import PolicyClass
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import Known, PolicyIndex, is_of
from dunlin_planner.core.policy.model import Group, PolicyName
from dunlin_planner.core.policy.order import in_order
from dunlin_planner.core.policy.variants import PortKey, Variant, priority_of

UNIT_KINDS = frozenset({
    "networkpolicy", "clusternetworkpolicy", "policyclass", "policyport", "policypeer",
    "policynetwork", "policysubject", "policygeneration", "policycommit",
})  # fmt: skip
"""Of policy; the commit (`order.py`) comes from no unit: whoever writes makes it."""


def plan_policy_unit(
    index: PolicyIndex, unit: Unit, generation: int
) -> tuple[tuple[AnyIntent, ...], tuple[Finding, ...]]:
    """Everything that one unit of `UNIT_KINDS` leads to."""
    found: tuple[AnyIntent, ...]
    match unit.kind:
        case "networkpolicy" | "clusternetworkpolicy":
            return _policy(index, PolicyName(unit.namespace, unit.name))
        case "policyclass":
            found = tuple(_class(index, int(unit.name, 16)))
        case "policyport":
            found = tuple(_port(index, unit.name))
        case "policypeer":
            found = tuple(_peer(index, PodName(unit.namespace, unit.name)))
        case "policynetwork":
            found = tuple(_network(index, unit.name))
        case "policysubject":
            found = tuple(_subject(index, PodName(unit.namespace, unit.name)))
        case "policygeneration":
            found = tuple(_generation(index, generation))
        case _:
            raise ValueError(f"no policy units of kind {unit.kind}")
    return found, ()


def _policy(
    index: PolicyIndex, name: PolicyName
) -> tuple[tuple[AnyIntent, ...], tuple[Finding, ...]]:
    known = index.policies.get(name)
    kind = "NetworkPolicy" if name.namespace else "ClusterNetworkPolicy"
    findings = tuple(
        Finding(
            kind=kind,
            namespace=name.namespace,
            name=name.name,
            field=fault.field,
            severity="invalid",
            reason=fault.reason,
        )
        for fault in (known.faults if known else index.refused.get(name, ()))
    )
    if known is None:
        return (), findings
    rules = {
        PolicyRule(
            conj_id=index.conjunctions.slot(variant.key),
            direction=variant.rule.direction,
            index=variant.rule.index,
            action=variant.rule.action,
            name=variant.rule.name,
        )
        for variant in known.variants
    }
    intent = PolicyIntent(
        scope=ALL_SCOPE,
        key=f"{name.namespace}/{name.name}",
        object=f"{kind.lower()}/{name.namespace}/{name.name}".replace("//", "/"),
        tier=known.policy.tier,
        priority=priority_of(known.policy),
        rules=tuple(sorted(rules, key=lambda rule: (rule.direction, rule.index, rule.conj_id))),
        log=known.policy.log and known.policy.tier != "default",
    )
    return (intent,), findings


def _clause(index: PolicyIndex, known: Known, variant: Variant, number: int) -> Clause:
    kind = NameClause if variant.in_network else Clause
    return kind(
        direction=variant.rule.direction,
        tier=known.policy.tier,
        priority=variant.priority,
        conj_id=index.conjunctions.slot(variant.key),
        number=number,
        of=variant.clauses,
    )


def _class(index: PolicyIndex, class_id: int) -> Iterator[PolicyClassIntent]:
    found = index.classes.known.get(class_id)
    if found is None:
        return
    if found.role in ("peer", "network"):
        clauses = set(_peer_clauses(index, found))
        yield PolicyClassIntent(
            scope=ALL_SCOPE,
            key=f"{class_id:016x}",
            class_id=class_id,
            role=found.role,
            **in_order(clauses),
        )
        return
    policies = set(_policies_of(index, found))
    yield PolicyClassIntent(
        scope=ALL_SCOPE,
        key=f"{class_id:016x}",
        class_id=class_id,
        role=found.role,
        **in_order(set(_subject_clauses(index, found, policies))),
        isolated=bool(isolating := _isolating(index, policies)),
        policies=tuple(sorted(f"{name.namespace}/{name.name}" for name in policies)),
        log=any(index.logs(name) for name in isolating),
    )


def _isolating(index: PolicyIndex, policies: set[PolicyName]) -> set[PolicyName]:
    return {name for name in policies if index.policies[name].policy.tier == "default"}


def _policies_of(index: PolicyIndex, found: PolicyClass) -> Iterator[PolicyName]:
    """Who selects these subjects."""
    assert found.role in ("ingress", "egress")
    direction: PolicyDirection = "ingress" if found.role == "ingress" else "egress"
    for element in found.elements:
        if isinstance(element, Group):
            yield from index.subjects.get((direction, element), ())


def _subject_clauses(
    index: PolicyIndex, found: PolicyClass, policies: set[PolicyName]
) -> Iterator[Clause]:
    for name in policies:
        known = index.policies[name]
        for variant in known.variants:
            if variant.rule.direction != found.role:
                continue
            named = variant.binding is not None and found.role == "ingress"
            if not named or variant.binding in found.elements:
                yield _clause(index, known, variant, 1)


def _peer_clauses(index: PolicyIndex, found: PolicyClass) -> Iterator[Clause]:
    for element in found.elements:
        for name in index.peers.get(element, ()):
            known = index.policies[name]
            for variant in known.by_peer.get(element, ()):
                # A Pod that is chosen by its labels must have the port as well.
                asked = isinstance(element, Group) and variant.rule.direction == "egress"
                if not asked or variant.binding is None or variant.binding in found.elements:
                    number = 4 if variant.in_network and element == variant.binding else 2
                    yield _clause(index, known, variant, number)


def _port(index: PolicyIndex, text: str) -> Iterator[PolicyPortIntent]:
    key = port_key(text)
    clauses = set()
    for name in index.ports.get(key, ()):
        known = index.policies[name]
        for variant in known.variants:
            if key in variant.port_keys:
                number = 3 if key.protocol else 2
                clauses.add(_clause(index, known, variant, number))
    if clauses:
        yield PolicyPortIntent(
            scope=ALL_SCOPE,
            key=text,
            protocol=Protocol(key.protocol) if key.protocol else None,
            value=key.value,
            mask=key.mask,
            **in_order(clauses),
        )


def port_key(text: str) -> PortKey:
    """Inverse of `str(PortKey)`."""
    if text == "any":
        return PortKey("", 0, 0)
    protocol, value, mask = text.split("/")
    return PortKey(protocol, int(value), int(mask, 16))


def _peer(index: PolicyIndex, pod: PodName) -> Iterator[PolicyPeerIntent]:
    class_id = index.classes.of("peer", pod)
    if class_id and (ips := index.addresses(pod)):
        yield PolicyPeerIntent(
            scope=ALL_SCOPE,
            key=f"{pod.namespace}/{pod.name}",
            object=f"pod/{pod.namespace}/{pod.name}",
            ips=ips,
            class_id=class_id,
        )


def _network(index: PolicyIndex, text: str) -> Iterator[PolicyNetworkIntent]:
    cidr = ip_network(text)
    if index.networks.blocks(cidr) is not None:
        class_id = index.classes.of("network", cidr)
        yield PolicyNetworkIntent(scope=ALL_SCOPE, key=text, cidr=cidr, class_id=class_id)


def _subject(index: PolicyIndex, pod: PodName) -> Iterator[PolicySubjectIntent]:
    """One for each node that has an interface of this Pod (one, but for moments)."""
    fact = index.pods.get(pod)
    if fact is None or fact.host_network:
        return
    ips: dict[str, set[IPAddress]] = {}
    for attachment in index.attachments.get(pod, {}).values():
        if is_of(attachment, fact):
            ips.setdefault(attachment.node, set()).update(attachment.ips)
    for node, found in sorted(ips.items()):
        yield PolicySubjectIntent(
            scope=node,
            key=f"{pod.namespace}/{pod.name}",
            object=f"pod/{pod.namespace}/{pod.name}",
            ips=tuple(sorted(found, key=lambda ip: (ip.version, int(ip)))),
            ingress_class=index.classes.of("ingress", pod),
            egress_class=index.classes.of("egress", pod),
        )


def _generation(index: PolicyIndex, generation: int) -> Iterator[PolicyGenerationIntent]:
    if generation and index.policies:
        yield PolicyGenerationIntent(scope=ALL_SCOPE, key="all", generation=generation)
