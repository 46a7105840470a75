"""One step of the planner: facts in, changed intents out."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

import msgspec

from dunlin.events.facts import Fact, NamespaceFact, PodFact
from dunlin.events.findings import Finding
from dunlin.events.intents import PolicyDirection, PolicySubjectIntent
from dunlin_planner.core.events import Deleted, Event, Owned, Renewed, Unit, Upserted
from dunlin_planner.core.host_port_plan import plan_host_ports
from dunlin_planner.core.nodes import is_waiting, view
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import GENERATION
from dunlin_planner.core.policy.plan import UNIT_KINDS, plan_policy_unit
from dunlin_planner.core.policy.turns import denied_as_peer, said, turned, turned_by_labels
from dunlin_planner.core.routes import plan_route, route_findings
from dunlin_planner.core.services import plan_service
from dunlin_planner.core.switches import plan_switch
from dunlin_planner.state import POLICY_SHARD, Plan, PlannerIntent, State, shard_of

GENERATION_MAX = 0xFFFFFF
"""Generations of policy are 1 … this, in a circle."""


@dataclass
class Changes:
    """
    What a step changed, by the subject of the intent.

    `intents`: None where the intent is to go; `trigger_ms` is the oldest trigger among the facts
    that caused it. `findings`: those that were not there before. `turned`: the directions in which
    verdicts about Pods that stay may have changed. `fenced`: subjects that lift the fence of a Pod
    which every switch must know before (ADR 0039).
    """

    intents: dict[str, PlannerIntent | None] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    turned: set[PolicyDirection] = field(default_factory=set)
    fenced: set[str] = field(default_factory=set)


def step(state: State, events: Iterable[Event]) -> Changes:
    """
    Take in events (any number, any order, any repetition) and plan anew what depends on them.

    `state` is changed in place and belongs to the caller alone; the result is a function of its
    facts.
    """
    dirty: dict[Unit, int | None] = {}
    changes = Changes()
    for event in events:
        before = said(state.policy, event)
        if _may_forbid(state, event):
            changes.turned |= turned_by_labels(state.policy, event)
            if state.generation and POLICY_SHARD in state.shards:
                # At most once a step would do; how often does not matter.
                state.generation = state.generation % GENERATION_MAX + 1
                dirty[GENERATION] = None
        units, trigger = _take(state, event)
        changes.turned |= turned(before, said(state.policy, event))
        for unit in units:
            dirty[unit] = _oldest(dirty.get(unit), trigger)
    for unit in sorted(dirty):
        if shard_of(unit) in state.shards:
            _replan(state, unit, dirty[unit], changes)
    return changes


def _may_forbid(state: State, event: Event) -> bool:
    """After it a connection that is established may be forbidden; too often is harmless."""
    match event:
        case Upserted(PodFact() as pod):
            old = state.find("pod", pod.namespace, pod.name)
            return old is not None and (old.labels, old.ports) != (pod.labels, pod.ports)
        case Upserted(NamespaceFact() as namespace):
            old = state.find("namespace", "", namespace.name)
            return old is not None and old.labels != namespace.labels
        case Upserted(fact):
            kind = fact.__struct_config__.tag
            return kind in ("networkpolicy", "clusternetworkpolicy")
        case Deleted(kind):
            return kind in ("networkpolicy", "clusternetworkpolicy")
        case _:
            return False


def _oldest(one: int | None, other: int | None) -> int | None:
    return min((ms for ms in (one, other) if ms is not None), default=None)


def _take(state: State, event: Event) -> tuple[set[Unit], int | None]:
    """The units that an event touches, and its trigger (Unix ms) if it brings a new one."""
    match event:
        case Upserted(fact):
            trigger = _new_trigger(state, fact)
            return state.put(fact), trigger
        case Deleted(kind, namespace, name):
            return state.drop(kind, namespace, name), None
        case Owned(shards, units):
            return _own(state, shards, units), None
        case Renewed():
            return {GENERATION}, None
        case _:
            assert_never(event)


def _new_trigger(state: State, fact: Fact) -> int | None:
    kind = fact.__struct_config__.tag
    if not isinstance(kind, str) or kind not in state.facts:
        return None
    old = state.find(kind, fact.namespace, fact.name)
    known = old.meta.trigger_ms if old is not None else None
    return fact.meta.trigger_ms if fact.meta.trigger_ms != known else None


def units_by_shard(state: State) -> dict[int, frozenset[Unit]]:
    """Everything there is to plan."""
    found: dict[int, set[Unit]] = {}
    for unit in state.units():
        found.setdefault(shard_of(unit), set()).add(unit)
    return {shard: frozenset(units) for shard, units in found.items()}


def _own(state: State, shards: frozenset[int], known: frozenset[Unit] | None) -> set[Unit]:
    """What is no longer ours is forgotten, not withdrawn: it is somebody else's now."""
    gained, lost = shards - state.shards, state.shards - shards
    state.shards = shards
    if lost:
        for unit in [unit for unit in state.planned if shard_of(unit) in lost]:
            del state.planned[unit]
    if known is not None:
        return set(known)
    if not gained:
        return set()
    return {unit for unit in state.units() if shard_of(unit) in gained}


def _replan(state: State, unit: Unit, trigger_ms: int | None, changes: Changes) -> None:
    old = state.planned.get(unit, Plan())
    new = plan(state, unit)
    if new == old:
        return
    if new == Plan():
        del state.planned[unit]
    else:
        state.planned[unit] = new
    before = {intent.subject: intent for intent in old.intents}
    after = {intent.subject: intent for intent in new.intents}
    for subject in before.keys() - after.keys():
        changes.intents[subject] = None
    for subject, intent in after.items():
        if before.get(subject) != intent:
            changes.intents[subject] = msgspec.structs.replace(intent, trigger_ms=trigger_ms)
            if isinstance(intent, PolicySubjectIntent):
                _fence(state, unit, before.get(subject), intent, changes)
    changes.findings += tuple(f for f in new.findings if f not in old.findings)


def _fence(
    state: State,
    unit: Unit,
    before: PlannerIntent | None,
    intent: PolicySubjectIntent,
    changes: Changes,
) -> None:
    """It gives a Pod addresses that it did not have, and who does not know it lets it pass."""
    had = before.ips if isinstance(before, PolicySubjectIntent) else ()
    fresh = not set(intent.ips) <= set(had)
    if fresh and denied_as_peer(state.policy, PodName(unit.namespace, unit.name)):
        changes.fenced.add(intent.subject)


def plan(state: State, unit: Unit) -> Plan:
    """Everything that one unit leads to now; pure."""
    if unit.kind in UNIT_KINDS:
        return Plan(*plan_policy_unit(state.policy, unit, state.generation))
    match unit.kind:
        case "node":
            return _plan_node(state, unit.name)
        case "service":
            return plan_service(state, unit.namespace, unit.name)
        case "hostport":
            return plan_host_ports(state, unit.namespace, unit.name)
    raise ValueError(f"no plan for units of kind {unit.kind}")


def _plan_node(state: State, name: str) -> Plan:
    node, findings = view(state, name)
    if node is None:
        return Plan(findings=findings)
    intents = (plan_switch(state, node), plan_route(state, node))
    return Plan(intents, (*findings, *route_findings(state, node)))


def intents(state: State) -> dict[str, PlannerIntent]:
    """Every intent of the state's shards, by subject."""
    return {i.subject: i for known in state.planned.values() for i in known.intents}


def findings(state: State) -> list[Finding]:
    """Every finding of the state's shards, by object."""
    found = [finding for known in state.planned.values() for finding in known.findings]
    return sorted(found, key=lambda f: (f.kind, f.namespace, f.name, f.field))


def waiting_nodes(state: State) -> list[str]:
    """Ready nodes whose switch or blocks are not known yet; costs O(nodes)."""
    return sorted(name for _, name in state.facts["node"] if is_waiting(state, name))
