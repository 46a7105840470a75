"""The core of flowctl against its oracle: incremental equals recompute, whatever the history."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.model.ids import IntentId
from dunlin.openflow import codec
from dunlin.openflow.flow import Bucket, Flow, Group, Output, Program, ToGroup, match
from dunlin_flowctl.core.delta import ChangeSet, diff
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.layer import Layer, Replaced, recompute
from dunlin_flowctl.core.program import Content, Key, Workshop
from dunlin_flowctl.core.switch import Moment
from dunlin_flowctl.encode import encode_step
from tests.unit.flowctl.programs import (
    NODES,
    Change,
    FakeCompiler,
    histories,
    service_intent,
    switch_intent,
    version,
)

Holding = dict[Key, Content]


def write(holding: Holding, changes: ChangeSet) -> None:
    """A switch that refuses what OVS refuses; bundled messages in the order of their phases."""
    for step in (step for phase in changes.phases for step in phase):
        content = step.content
        key: Key = content.group_id if isinstance(content, Group) else content.key
        if step.command == "delete":
            assert key in holding, f"delete of what is not there: {key}"
            users = [c for c in holding.values() if isinstance(c, Flow) and _uses(c, key)]
            assert not users, f"group {key} deleted under {users}"
            del holding[key]
            continue
        if isinstance(content, Group):
            assert (step.command == "modify") == (key in holding), step
        else:
            for action in content.actions:
                assert not isinstance(action, ToGroup) or action.group_id in holding, step
        assert holding.get(key) != content, f"written although it stands: {content}"
        holding[key] = content


def _uses(flow: Flow, key: Key) -> bool:
    return any(isinstance(a, ToGroup) and a.group_id == key for a in flow.actions)


def play(desired: Desired, history: list[Change], start: int = 1) -> None:
    """Publish a history."""
    for revision, change in enumerate(history, start):
        if change.gone:
            desired.delete(change.intent.id, Moment(revision))
        else:
            desired.upsert(version(change.intent, revision))


def wanted(desired: Desired, node: str) -> Holding:
    """What the switch of a node should hold, from its parts."""
    return {key: content for part in desired.parts(node) for key, content, _ in part.items()}


def from_scratch(history: list[Change], node: str) -> Holding:
    """The oracle: newest versions, compiled, shared ones first, smaller ids first."""
    latest = {change.intent.id: change for change in history}
    live = [change.intent for change in latest.values() if not change.gone]
    compiler = FakeCompiler()
    switches = {intent.scope: intent for intent in live if intent.id.endswith("/switch/pipeline")}
    if node not in switches:
        return {}
    programs: tuple[dict[IntentId, Program], ...] = ({}, {})
    for intent in live:
        if intent.scope not in {"all", node}:
            continue
        try:
            program = compiler.compile(intent, switches[node])
        except ValueError:
            program = Program()
        programs[0 if compiler.is_shared(intent) else 1][intent.id] = program
    result = {**recompute(programs[1]), **recompute(programs[0])}
    return {key: content for key, (_, content) in result.items()}


def manage_all(desired: Desired) -> None:
    """Manage every switch that can be."""
    for node in NODES:
        if node not in desired.switches:
            desired.manage(node)


@given(histories())
@settings(max_examples=300, deadline=None)
def test_layers_equal_recompute(history: list[Change]) -> None:
    """After any history a switch should hold what a recompute gives."""
    desired = Desired(FakeCompiler())
    for revision, change in enumerate(history, 1):
        play(desired, [change], revision)
        manage_all(desired)
    for node in desired.switches:
        assert wanted(desired, node) == from_scratch(history, node)


@given(histories(), st.data())
@settings(max_examples=300, deadline=None)
def test_incremental_writes_reach_the_recomputed_state(
    history: list[Change], data: st.DataObject
) -> None:
    """Whatever the batches, writing differences gives the recompute, made before broken."""
    desired = Desired(FakeCompiler())
    holdings: dict[str, Holding] = {}
    for node in NODES:
        play(desired, [Change(switch_intent(node), gone=False)], desired.read + 1)
        desired.manage(node)
        holdings[node] = wanted(desired, node)
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    kept = [c for c in history if not (c.gone and c.intent.id.endswith("/switch/pipeline"))]
    for change in kept:
        play(desired, [change], desired.read + 1)
        for node in data.draw(st.sets(st.sampled_from(NODES))):
            flush(desired, node, holdings[node])
    for node in NODES:
        flush(desired, node, holdings[node])
        assert holdings[node] == from_scratch(first + kept, node)
        assert desired.switches[node].lacking == []


def flush(desired: Desired, node: str, holding: Holding) -> None:
    """Write everything that is pending."""
    switch = desired.switches[node]
    work = switch.take(lambda intent_id: desired.get(node, intent_id), now=0.0)
    changes = diff(
        work.parts.values(), may_delete=True, owned=lambda key: desired.owner(node, key, work.parts)
    )
    write(holding, changes)
    switch.done(work)


@given(histories(), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_a_repeated_message_changes_nothing(history: list[Change], back: int) -> None:
    """Messages read again (a smaller or equal sequence) leave everything as it is."""
    desired = Desired(FakeCompiler())
    play(desired, history)
    manage_all(desired)
    before = {node: wanted(desired, node) for node in desired.switches}
    play(desired, history[-back:] if back else [], max(1, len(history) - back + 1))
    assert {node: wanted(desired, node) for node in desired.switches} == before
    assert not any(switch.pending for switch in desired.switches.values())


@given(histories(max_size=12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_does_not_matter(history: list[Change], random: object) -> None:
    """The newest versions of different intents give the same whatever order they come in."""
    latest = list({change.intent.id: change for change in history}.values())
    shuffled = sorted(latest, key=lambda _: random.random())  # type: ignore[attr-defined]
    results = []
    for order in (latest, shuffled):
        desired = Desired(FakeCompiler())
        play(desired, order)
        manage_all(desired)
        results.append({node: wanted(desired, node) for node in desired.switches})
    assert results[0] == results[1]


def test_the_smaller_id_wins_and_the_other_is_reported() -> None:
    """Two services on one port: the first by id gets it, the second is told."""
    for order in (("a", "b"), ("b", "a")):
        desired = Desired(FakeCompiler())
        desired.upsert(version(switch_intent("n1"), 1))
        desired.manage("n1")
        for revision, name in enumerate(order, 2):
            desired.upsert(version(service_intent(name, (1,)), revision))
        ((intent_id, _, reason),) = desired.errors("n1")
        assert intent_id == "all/service/default/b:/TCP"
        assert "belongs to all/service/default/a:/TCP" in reason
        assert reason.startswith("flow table=1")


def test_the_loser_gets_the_key_when_the_winner_goes() -> None:
    """When the first intent goes, the second one's flow replaces it instead of a delete."""
    desired = Desired(FakeCompiler())
    desired.upsert(version(switch_intent("n1"), 1))
    switch = desired.manage("n1")
    assert switch is not None
    desired.upsert(version(service_intent("a", (1,)), 2))
    desired.upsert(version(service_intent("b", (1,)), 3))
    holding: Holding = {}
    desired.switches["n1"].pending.clear()
    holding = wanted(desired, "n1")
    desired.delete(service_intent("a", ()).id, Moment(4))
    flush(desired, "n1", holding)
    assert holding == wanted(desired, "n1")
    assert desired.errors("n1") == []


def test_an_intent_that_does_not_compile_is_reported_and_stops_nobody() -> None:
    """A compile error names the intent and the reason; other intents stand."""
    desired = Desired(FakeCompiler())
    desired.upsert(version(switch_intent("n1"), 1))
    desired.manage("n1")
    desired.upsert(version(service_intent("bad", (666,)), 2))
    desired.upsert(version(service_intent("good", (1,)), 3))
    assert desired.errors("n1") == [
        (
            "all/service/default/bad:/TCP",
            2,
            "does not compile: ValueError: endpoints[0].port: 666",
        )
    ]
    assert len(wanted(desired, "n1")) == 4


def test_two_nodes_with_one_dpid() -> None:
    """The first node by name has the switch, the other is reported until one of them changes."""
    desired = Desired(FakeCompiler())
    twin = msgspec.structs.replace(switch_intent("n2"), dpid=0x11)
    desired.upsert(version(twin, 1))
    assert desired.node_of(0x11) == "n2"
    desired.upsert(version(switch_intent("n1"), 2))
    assert desired.node_of(0x11) == "n1"
    assert desired.failures == {twin.id: "dpid 0000000000000011 belongs to node n1"}
    desired.delete(switch_intent("n1").id, Moment(3))
    assert desired.node_of(0x11) == "n2"
    assert desired.failures == {}


def test_a_shared_program_is_one_object_for_all_switches() -> None:
    """Every switch refers to the same compiled object."""
    desired = Desired(FakeCompiler())
    for revision, node in enumerate(NODES, 1):
        desired.upsert(version(switch_intent(node), revision))
        desired.manage(node)
    service = service_intent("a", (1, 2))
    desired.upsert(version(service, 3))
    first, second = (desired.switches[node].pending[service.id] for node in NODES)
    assert first.installed is second.installed is None
    assert desired.get("n1", service.id) is desired.get("n2", service.id)


def test_modify_never_deletes_what_a_flow_still_needs() -> None:
    """A group is put before its flow and deleted after it."""
    old = Workshop().make(IntentId("all/service/x"), Program())
    group = Group(256, buckets=(Bucket(0, (Output(1),)),))
    flow = Flow(1, 1, match(in_port=1), (ToGroup(256),))
    new = Workshop().make(IntentId("all/service/x"), Program((flow,), (group,)))
    there = diff([Replaced(old, new)], may_delete=True)
    back = diff([Replaced(new, old)], may_delete=True)
    assert [len(phase) for phase in there.phases] == [1, 1, 0, 0, 0]
    assert [len(phase) for phase in back.phases] == [0, 0, 1, 1, 0]


def test_without_permission_nothing_is_deleted_and_it_says_how_much() -> None:
    """Deletes that are not allowed yet are counted, not made."""
    flow = Flow(1, 1, match(in_port=1))
    part = Workshop().make(IntentId("n1/endpoint/a"), Program((flow,)))
    changes = diff([Replaced(part, None)], may_delete=False)
    assert len(changes) == 0
    assert changes.deferred == 1


def test_a_group_that_stayed_behind_is_modified_not_added() -> None:
    """A group whose delete was put off stands on the switch: adding it would be refused."""
    part = Workshop().make(IntentId("all/service/a"), Program((), (Group(256),)))
    changes = diff([Replaced(None, part)], may_delete=False, stray_groups={256})
    assert [step.command for step in changes.groups_put] == ["modify"]


def test_kept_messages_are_those_that_would_be_made() -> None:
    """What every switch needs is encoded when it is compiled; a changed group is a modification."""
    buckets = [Bucket(number, (Output(number),)) for number in (1, 2)]
    layer, who = Layer(Workshop(), keep=True), IntentId("all/service/a")
    parts = []
    for group in (Group(256, buckets=tuple(buckets[:1])), Group(256, buckets=tuple(buckets))):
        layer.put(who, Program((Flow(1, len(group.buckets), (), (ToGroup(256),)),), (group,)))
        parts.append(layer.effective[who])
    changes = diff([Replaced(*parts)], may_delete=True)
    steps = [step for phase in changes.phases for step in phase]
    assert [(step.command, bool(step.message)) for step in steps] == [
        ("modify", True), ("add", True), ("delete", False)
    ]  # fmt: skip
    for step in steps:
        assert encode_step(step) == encode_step(msgspec.structs.replace(step, message=b""))
    modified = codec.encode_group(Group(256, buckets=tuple(buckets)), "modify")
    assert encode_step(steps[0]) == modified


def test_the_oracle_can_fail() -> None:
    """The switch of these tests refuses a wrong order, and layers differ from unequal programs."""
    group = Group(256)
    flow = Flow(1, 1, match(in_port=1), (ToGroup(256),))
    wrong = ChangeSet()
    wrong.put(flow, held=False, who=IntentId("x"))
    try:
        write({}, wrong)
    except AssertionError:
        pass
    else:
        raise RuntimeError("a flow without its group was accepted")
    layer = Layer(Workshop())
    layer.put(IntentId("a"), Program((), (group,)))
    assert recompute({IntentId("a"): Program((flow,), (group,))}).keys() != set(
        layer.effective[IntentId("a")].keys()
    )
