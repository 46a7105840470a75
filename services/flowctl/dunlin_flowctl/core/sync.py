"""A switch's dump against what it should hold: the least change, and what was found."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import KINDS, cookie_of, is_ours
from dunlin.openflow.flow import Bucket, Flow, Group, Learn, ToGroup
from dunlin.pipeline.affinity import lifetime_s
from dunlin.pipeline.layout import Table
from dunlin_flowctl.core.delta import ChangeSet
from dunlin_flowctl.core.program import Compiled, FlowKey


@dataclass(frozen=True, slots=True)
class Rules:
    """
    What a comparison may do.

    `may_delete`: see "When may flowctl delete?" in the contracts. `remove_foreign`: also flows that
    Dunlin did not write. `protected`: cookies whose flows stay as they are.
    `changing`: intents whose change is being written: what differs there is no drift.
    `expired`: learned flows whose time is over (`is_expired`).
    """

    may_delete: bool = False
    remove_foreign: bool = False
    protected: frozenset[int] = frozenset()
    spared: frozenset[int] = frozenset()
    changing: frozenset[IntentId] = frozenset()
    expired: frozenset[FlowKey] = frozenset()


@dataclass(slots=True)
class SyncPlan:
    """
    `drift` counts what differs, by kind. `foreign`: flows that are not Dunlin's, at most 100.

    `flows`, `groups`: what the switch holds of its intents once `changes` are written.
    """

    changes: ChangeSet = field(default_factory=ChangeSet)
    drift: Counter[str] = field(default_factory=Counter)
    foreign: list[Flow] = field(default_factory=list)
    flows: int = 0
    groups: int = 0


FOREIGN_MAX = 100


def plan_sync(
    parts: Iterable[Compiled],
    flows: Mapping[FlowKey, Flow],
    groups: Mapping[int, Group],
    rules: Rules,
) -> SyncPlan:
    """The least change that makes `flows` and `groups` (a dump) what `parts` ask for."""
    plan = SyncPlan()
    explained: dict[int, Compiled] = {}
    wanted_flows: set[FlowKey] = set()
    wanted_groups: set[int] = set()
    for part in parts:
        drift = Counter() if part.intent_id in rules.changing else plan.drift
        _put_part(plan, part, flows, groups, drift)
        wanted_flows.update(part.flows)
        wanted_groups.update(part.groups)
        for flow in part.flows.values():
            explained[flow.cookie] = part
            break
    kept = _drop_flows(plan, flows, wanted_flows, explained, rules)
    _drop_groups(plan, groups, wanted_groups, kept, rules)
    plan.flows, plan.groups = len(wanted_flows), len(wanted_groups)
    return plan


def plan_fresh(parts: Iterable[Compiled]) -> ChangeSet:
    """What makes a switch that holds nothing hold these: as `plan_sync`, without comparing."""
    changes = ChangeSet()
    for part in parts:
        for _, content, message in part.items():
            changes.put(content, held=False, who=part.intent_id, message=message)
    return changes


def cookies_of(intent_ids: Iterable[IntentId]) -> frozenset[int]:
    """The cookies of these intents; ids of kinds that this version does not know have none."""
    return frozenset(cookie_of(item) for item in intent_ids if item.split("/", 2)[1] in KINDS)


def _put_part(
    plan: SyncPlan,
    part: Compiled,
    flows: Mapping[FlowKey, Flow],
    groups: Mapping[int, Group],
    drift: Counter[str],
) -> None:
    for key, content, message in part.items():
        held = groups.get(key) if isinstance(key, int) else flows.get(key)
        if held != content:
            what = "group" if isinstance(key, int) else "flow"
            drift[f"{what}_missing" if held is None else f"{what}_modified"] += 1
            is_held = held is not None
            plan.changes.put(content, held=is_held, who=part.intent_id, message=message)


def _drop_flows(
    plan: SyncPlan,
    flows: Mapping[FlowKey, Flow],
    wanted: set[FlowKey],
    explained: Mapping[int, Compiled],
    rules: Rules,
) -> list[Flow]:
    """Plans the deletes; returns the flows that nothing explains and that stay nevertheless."""
    kept = []
    changing = cookies_of(rules.changing)
    for key, flow in flows.items():
        if key in wanted:
            continue
        if _is_protected(flow, rules) or _was_learned(flow, explained):
            if key in rules.expired and rules.may_delete:
                plan.changes.delete(flow, None)
            else:
                kept.append(flow)
            continue
        ours = is_ours(flow.cookie)
        if flow.cookie not in changing:
            plan.drift["flow_unexpected" if ours else "flow_foreign"] += 1
        if not ours and len(plan.foreign) < FOREIGN_MAX:
            plan.foreign.append(flow)
        if rules.may_delete and (ours or rules.remove_foreign):
            plan.changes.delete(flow, None)
            continue
        kept.append(flow)
        # A foreign flow that we may not touch is not something still to be done.
        plan.changes.deferred += ours or rules.remove_foreign
    return kept


def is_expired(flow: Flow, idle_s: int) -> bool:
    """A learned flow that outlives what OpenFlow's timers can count, and has not been used."""
    if flow.table != int(Table.AFFINITY):
        return False
    lifetime = lifetime_s(flow)
    return lifetime is not None and idle_s >= lifetime


def _is_protected(flow: Flow, rules: Rules) -> bool:
    if flow.cookie in rules.protected:
        return True
    return is_ours(flow.cookie) and flow.cookie >> 48 & 0xFF in rules.spared


def _was_learned(flow: Flow, explained: Mapping[int, Compiled]) -> bool:
    """A `learn` action of a flow with this cookie may have put it there."""
    part = explained.get(flow.cookie)
    if part is None:
        return False
    return any(
        isinstance(action, Learn)
        and (action.table, action.priority, action.cookie)
        == (flow.table, flow.priority, flow.cookie)
        for own in part.flows.values()
        for action in own.actions
    )


def _drop_groups(
    plan: SyncPlan,
    groups: Mapping[int, Group],
    wanted: set[int],
    kept: Iterable[Flow],
    rules: Rules,
) -> None:
    """A group that a flow which stays leads to stays too: deleting it would delete the flow."""
    needed = _reachable(kept, groups)
    for group_id, group in groups.items():
        if group_id in wanted:
            continue
        if group_id in needed and rules.may_delete:
            plan.changes.stray_groups.add(group_id)
            continue
        # A group names no intent: while something changes, a stale one may be that intent's.
        plan.drift["group_unexpected"] += not rules.changing
        if rules.may_delete:
            plan.changes.delete(group, None)
        else:
            plan.changes.defer(group)


def _reachable(kept: Iterable[Flow], groups: Mapping[int, Group]) -> set[int]:
    """Ids of groups that the actions of these flows name, also through other groups."""
    todo = [group_id for flow in kept for group_id in _named(flow)]
    found: set[int] = set()
    while todo:
        group_id = todo.pop()
        if group_id in groups and group_id not in found:
            found.add(group_id)
            todo.extend(g for bucket in groups[group_id].buckets for g in _named(bucket))
    return found


def _named(item: Flow | Bucket) -> Iterable[int]:
    return [action.group_id for action in item.actions if isinstance(action, ToGroup)]
