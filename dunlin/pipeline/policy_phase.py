"""
Between two versions of policy: a switch that lets through only what both of them allow.

Where a change opens one direction and closes the other, two switches that commit one after the
other would together pass what both versions forbid. So every switch first holds both versions
(ADR 0030): packets walk the policy tables once as it was, then once as it will be.
"""

from dunlin.events.intents import (
    AnyIntent,
    PolicyCommitIntent,
    PolicyGenerationIntent,
    PolicyPeerIntent,
    PolicySubjectIntent,
)
from dunlin.openflow.flow import Action, Flow, Program, Resubmit, in_order, match, set_field
from dunlin.openflow.flow import with_fields as both_of
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import FAMILIES
from dunlin.pipeline.layout import (
    AGAIN,
    EGRESS_RULE_REG,
    FLAGS,
    INGRESS_RULE_REG,
    Priority,
    Table,
)

_AS_IT_WAS = match(**{FLAGS: (0, AGAIN.mask)})
_AS_IT_WILL_BE = match(**{FLAGS: AGAIN.pair})


def compile_commit(intent: PolicyCommitIntent) -> Program:
    """While a change is prepared: what the first walk allows takes the second."""
    make = FlowMaker(intent.id)
    if intent.prepared > intent.committed:
        again: tuple[Action, ...] = (
            set_field(FLAGS, AGAIN.pair),
            # Who allowed it is said by the second walk alone.
            set_field(EGRESS_RULE_REG, 0),
            set_field(INGRESS_RULE_REG, 0),
            Resubmit(Table.EGRESS_SUBJECT),
        )
        for family in FAMILIES:
            first = both_of(family.any, _AS_IT_WAS)
            make.add(Table.COMMIT, Priority.GUARD + 10, first, again)
    return Program(tuple(make.flows))


def is_new_only(old: AnyIntent | None, new: AnyIntent | None) -> bool:
    """
    Of which there is nothing to intersect.

    A Pod that comes was fenced, whatever policies said: it need not wait. A generation judges
    connections again, by what stands.
    """
    if new is None:
        return False
    fresh = old is None and isinstance(new, (PolicySubjectIntent, PolicyPeerIntent))
    return fresh or isinstance(new, PolicyGenerationIntent)


def both(old: Program, new: Program) -> Program:
    """
    Both versions of one intent: where they differ, each for its own walk.

    Flows outside of the tables that decide (counters) only add to each other.
    """
    before = {flow.key: flow for flow in old.flows}
    after = {flow.key: flow for flow in new.flows}
    found: list[Flow] = []
    for key in before.keys() | after.keys():
        was, will = before.get(key), after.get(key)
        if was == will or not Table.EGRESS_SUBJECT <= key[0] < Table.POLICY_DENY:
            found += [will or was] if will or was else []  # type: ignore[list-item]
            continue
        found += [_on(flow, walk) for flow, walk in ((was, 0), (will, 1)) if flow is not None]
    return Program(tuple(sorted(found, key=lambda flow: flow.key)))


def _on(flow: Flow, walk: int) -> Flow:
    """The flow for one of the walks only."""
    when = in_order((*flow.match, *(_AS_IT_WILL_BE if walk else _AS_IT_WAS)))
    return Flow(
        flow.table, flow.priority, when, flow.actions, flow.goto, flow.cookie,
        flow.idle_timeout_s, flow.hard_timeout_s,
    )  # fmt: skip
