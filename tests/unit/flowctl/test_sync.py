"""Dumps against what should stand: what is written, and above all what is deleted and when."""

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.flow import (
    Bucket,
    Flow,
    Group,
    Learn,
    Output,
    Program,
    ToGroup,
    match,
    set_field,
)
from dunlin.pipeline.layout import Table
from dunlin_flowctl.core.program import Compiled, Workshop
from dunlin_flowctl.core.sync import Rules, SyncPlan, is_expired, plan_sync

SERVICE = IntentId("all/service/default/web:/TCP")
POD = IntentId("n1/endpoint/default/a/eth0")
OURS, PODS = cookie_of(SERVICE), cookie_of(POD)
FOREIGN = 0x1234
ALL = Rules(may_delete=True, remove_foreign=True)
NONE = Rules(may_delete=False, remove_foreign=True)


def flow(port: int, cookie: int = OURS, *, to: int = 1, group: int | None = None) -> Flow:
    """A flow on one in_port."""
    action = Output(to) if group is None else ToGroup(group)
    return Flow(1, 10, match(in_port=port), (action,), None, cookie)


def group(number: int, *ports: int) -> Group:
    """A select group."""
    return Group(number, buckets=tuple(Bucket(i, (Output(p),)) for i, p in enumerate(ports)))


def part(*flows: Flow, groups: tuple[Group, ...] = (), who: IntentId = SERVICE) -> Compiled:
    """What one intent wants."""
    return Workshop().make(who, Program(flows, groups))


def plan(
    wanted: list[Compiled], flows: list[Flow], groups: list[Group] | None = None, rules: Rules = ALL
) -> SyncPlan:
    """Compare a dump of these."""
    held = {g.group_id: g for g in groups or []}
    return plan_sync(wanted, {f.key: f for f in flows}, held, rules)


def steps(found: SyncPlan) -> list[tuple[str, object]]:
    """All steps in order."""
    return [(step.command, step.content) for phase in found.changes.phases for step in phase]


def test_equal_means_nothing() -> None:
    """A switch that holds what it should gets nothing."""
    found = plan([part(flow(1, group=5), groups=(group(5, 1),))], [flow(1, group=5)], [group(5, 1)])
    assert steps(found) == []
    assert not found.drift
    assert (found.flows, found.groups) == (1, 1)


def test_what_differs_is_replaced_in_order() -> None:
    """Missing and different groups and flows are written, groups first; each kind is counted."""
    wanted = part(flow(1, group=5), flow(2), groups=(group(5, 1), group(6, 2)))
    found = plan([wanted], [flow(2, to=9)], [group(6, 3)])
    assert steps(found) == [
        ("add", group(5, 1)),
        ("modify", group(6, 2)),
        ("add", flow(1, group=5)),
        ("add", flow(2)),
    ]
    assert found.drift == {
        "group_missing": 1,
        "group_modified": 1,
        "flow_missing": 1,
        "flow_modified": 1,
    }


def test_another_cookie_is_a_difference() -> None:
    """A flow that names another intent is written anew."""
    found = plan([part(flow(1))], [flow(1, FOREIGN)])
    assert steps(found) == [("add", flow(1))]


def test_unexplained_things_go_flows_before_groups() -> None:
    """With permission, what nothing explains goes: the flow before the group that it names."""
    found = plan([], [flow(1, group=5), flow(2, PODS)], [group(5, 1)])
    assert steps(found) == [
        ("delete", flow(1, group=5)),
        ("delete", flow(2, PODS)),
        ("delete", group(5, 1)),
    ]
    assert found.changes.deferred == 0
    assert found.drift == {"flow_unexpected": 2, "group_unexpected": 1}


def test_without_permission_nothing_goes_but_it_is_remembered() -> None:
    """Without permission nothing is deleted; adds go through; the rest is counted."""
    found = plan([part(flow(1))], [flow(2), flow(3, FOREIGN)], [group(5, 1)], NONE)
    assert steps(found) == [("add", flow(1))]
    assert found.changes.deferred == 3
    assert found.changes.stray_groups == {5}


def test_foreign_flows_stay_where_that_is_set() -> None:
    """With remove_foreign off, foreign flows stay, reported, and nothing is left to do."""
    found = plan([], [flow(3, FOREIGN)], rules=Rules(may_delete=True, remove_foreign=False))
    assert steps(found) == []
    assert found.changes.deferred == 0
    assert found.foreign == [flow(3, FOREIGN)]
    assert found.drift == {"flow_foreign": 1}


def test_a_group_under_a_flow_that_stays_stays() -> None:
    """Deleting a group deletes its flows: so it stays, and groups that it leads to as well."""
    inner = Group(6, buckets=(Bucket(0, (Output(1),)),))
    outer = Group(5, buckets=(Bucket(0, (ToGroup(6),)),))
    rules = Rules(may_delete=True, remove_foreign=False)
    found = plan([], [flow(3, FOREIGN, group=5)], [outer, inner, group(7, 1)], rules)
    assert steps(found) == [("delete", group(7, 1))]
    assert found.changes.stray_groups == {5, 6}


def test_protected_cookies_stay() -> None:
    """Flows of an intent that cannot be read, or that was refused, stay with their groups."""
    rules = Rules(may_delete=True, remove_foreign=True, protected=frozenset({OURS}))
    found = plan([], [flow(1, group=5), flow(2, PODS)], [group(5, 1)], rules)
    assert steps(found) == [("delete", flow(2, PODS))]


def test_learned_flows_stay_while_their_intent_does() -> None:
    """A flow that a learn action of its cookie makes is explained; others are not."""
    learn = Learn(table=3, priority=7, cookie=OURS, specs=(), idle_timeout_s=60)
    teacher = Flow(1, 10, match(in_port=1), (learn,), None, OURS)
    learned = Flow(3, 7, match(eth_type=0x800, nw_src=5), (), None, OURS, idle_timeout_s=60)
    other = Flow(3, 8, match(in_port=9), (), None, OURS)
    found = plan([part(teacher)], [teacher, learned, other])
    assert steps(found) == [("delete", other)]
    assert steps(plan([], [learned])) == [("delete", learned)]


def test_a_learned_flow_ends_when_its_own_time_is_over() -> None:
    """Longer than OpenFlow's timers count: by its idle time, and only where flowctl may delete."""
    learn = Learn(int(Table.AFFINITY), 7, OURS, ())
    teacher = Flow(1, 10, match(in_port=1), (learn,), None, OURS)
    lasts = (set_field("reg14", 86400),)
    learned = Flow(int(Table.AFFINITY), 7, match(eth_type=0x800, nw_src=5), lasts, None, OURS)
    assert not is_expired(learned, 86399)
    assert is_expired(learned, 86400)
    assert not is_expired(msgspec.structs.replace(learned, actions=()), 86400), (
        "the switch's own timer"
    )
    assert not is_expired(msgspec.structs.replace(learned, table=1), 86400), "not a learned flow"
    assert steps(plan([part(teacher)], [teacher, learned])) == []
    rules = replace(ALL, expired=frozenset({learned.key}))
    found = plan([part(teacher)], [teacher, learned], rules=rules)
    assert steps(found) == [("delete", learned)]
    assert not +found.drift
    assert (
        steps(plan([part(teacher)], [teacher, learned], rules=replace(rules, may_delete=False)))
        == []
    )


def test_what_is_being_changed_is_no_drift() -> None:
    """Differences of intents whose change is being written are written, not counted."""
    rules = Rules(may_delete=True, remove_foreign=True, changing=frozenset({SERVICE}))
    found = plan([part(flow(1))], [flow(1, to=9), flow(2)], [group(5, 1)], rules)
    assert len(found.changes) == 3
    assert not +found.drift


@pytest.mark.parametrize("rules", [ALL, NONE])
def test_a_second_look_finds_nothing_to_do(rules: Rules) -> None:
    """After writing the plan another comparison has nothing to write."""
    wanted = [part(flow(1, group=5), groups=(group(5, 1),)), part(flow(2, PODS), who=POD)]
    flows, groups = [flow(1, to=3), flow(7), flow(8, FOREIGN)], [group(9, 1)]
    after_flows = {f.key: f for f in flows}
    after_groups = {g.group_id: g for g in groups}
    for command, content in steps(plan(wanted, flows, groups, rules)):
        if isinstance(content, Group):
            after_groups[content.group_id] = content
            if command == "delete":
                del after_groups[content.group_id]
        elif isinstance(content, Flow):
            after_flows[content.key] = content
            if command == "delete":
                del after_flows[content.key]
    again = plan(wanted, list(after_flows.values()), list(after_groups.values()), rules)
    assert steps(again) == []


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.sampled_from([OURS, PODS, FOREIGN]))
    ),
    st.sets(st.integers(1, 6)),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_deletes_only_what_may_go(
    held: list[tuple[int, int, int]], wanted: set[int], may_delete: bool, remove_foreign: bool
) -> None:
    """A wanted key is never deleted, nothing goes without permission, foreign as set."""
    rules = Rules(may_delete=may_delete, remove_foreign=remove_foreign)
    flows = [flow(port, cookie, to=to) for port, to, cookie in held]
    found = plan([part(*(flow(port) for port in sorted(wanted)))], flows, rules=rules)
    deleted = [content for command, content in steps(found) if command == "delete"]
    keys = {flow(port).key for port in wanted}
    for content in deleted:
        assert isinstance(content, Flow)
        assert may_delete
        assert content.key not in keys
        assert remove_foreign or content.cookie != FOREIGN
    if may_delete and remove_foreign:
        assert {c.key for c in deleted if isinstance(c, Flow)} == {f.key for f in flows} - keys
