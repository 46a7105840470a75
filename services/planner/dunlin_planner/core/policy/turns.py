"""In which directions a change of policy may turn a verdict; pure. ADR 0030."""

from collections.abc import Hashable, Mapping

from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
)
from dunlin.events.intents import PolicyDirection
from dunlin_planner.core.events import Deleted, Event, Upserted
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import PolicyIndex
from dunlin_planner.core.policy.model import Block, PolicyName
from dunlin_planner.core.policy.variants import Variant

Said = Mapping[PolicyDirection, Hashable]
"""What there is to be compared before and after an event, by direction."""

_POLICIES = frozenset({"networkpolicy", "clusternetworkpolicy"})


def said(index: PolicyIndex, event: Event) -> Said:
    """
    What the policy that an event is about says now, in each direction where it has a say.

    Pods that come or go turn nothing: they were fenced, or are no more.
    """
    match event:
        case Upserted(NetworkPolicyFact() | ClusterNetworkPolicyFact() as fact):
            return _policy(index, PolicyName(fact.namespace, fact.name))
        case Deleted(kind, namespace, name) if kind in _POLICIES:
            return _policy(index, PolicyName(namespace, name))
        case _:
            return {}


def _policy(index: PolicyIndex, name: PolicyName) -> Said:
    known = index.policies.get(name)
    if known is None:
        return {}
    policy = known.policy
    return {
        direction: (
            policy.tier,
            policy.priority,
            policy.subject,
            tuple(rule for rule in policy.rules if rule.direction == direction),
        )
        for direction in policy.directions
    }


def turned(before: Said, after: Said) -> set[PolicyDirection]:
    """Where they differ."""
    return {d for d in before.keys() | after.keys() if before.get(d) != after.get(d)}


def turned_by_labels(index: PolicyIndex, event: Event) -> set[PolicyDirection]:
    """Of an event that gives a Pod or a namespace other labels: wherever any policy has a say."""
    match event:
        case Upserted(PodFact() | NamespaceFact()):
            return {direction for direction, _ in index.subjects}
        case _:
            return set()


def denied_as_peer(index: PolicyIndex, pod: PodName) -> bool:
    """
    Some rule denies what it knows by this Pod's labels or port names, or passes it on to others.

    To a switch that does not know the Pod yet it is an address of nobody, which such a rule does
    not hold. Rules that accept are no matter: who is not known is not accepted by them.
    """
    found = index.classes.known.get(index.classes.of("peer", pod))
    return found is not None and any(
        variant.rule.action != "Accept"
        and (not variant.in_network or _lies_in(index, pod, variant))
        for element in found.elements
        for name in index.peers.get(element, ())
        if index.policies[name].policy.tier != "default"
        for variant in index.policies[name].by_peer.get(element, ())
    )


def _lies_in(index: PolicyIndex, pod: PodName, variant: Variant) -> bool:
    """The Pod has an address in one of these ipBlocks."""
    blocks = [peer for peer in variant.peers or () if isinstance(peer, Block)]
    return any(block.holds(ip) for ip in index.addresses(pod) for block in blocks)
