"""What a switch says of itself: digests that are equal for equal states, and only for those."""

import random
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from msgspec.structs import replace

from dunlin.events.intents import AnyIntent
from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow, Group, Output, Program, SetField, match
from dunlin.pipeline.layout import Table
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.digest import (
    UNKNOWN,
    Digests,
    Totals,
    digest_flows,
    read_digests,
    take_digests,
    unsaid,
)
from dunlin_flowctl.core.layer import Replaced
from dunlin_flowctl.core.program import FlowKey, Workshop
from dunlin_flowctl.core.recent import Recent
from dunlin_flowctl.core.switch import Moment, Switch, Then
from dunlin_flowctl.writer import digests_after
from tests.unit.flowctl.programs import (
    NODES,
    Change,
    FakeCompiler,
    endpoint_intent,
    histories,
    route_intent,
    service_intent,
    switch_intent,
)
from tests.unit.flowctl.test_delta import Holding, flush, from_scratch, manage_all, play, wanted

FLOW = Flow(1, 10, match(in_port=1), (Output(2),), goto=None, cookie=7)


def made(who: str, *flows: Flow) -> Totals:
    """Of one part."""
    return Workshop().make(IntentId(who), Program(flows)).totals


@pytest.mark.parametrize(
    "other",
    [
        replace(FLOW, table=2),
        replace(FLOW, priority=11),
        replace(FLOW, match=match(in_port=2)),
        replace(FLOW, actions=(Output(3),)),
        replace(FLOW, goto=3),
        replace(FLOW, cookie=8),
        replace(FLOW, idle_timeout_s=1),
    ],
)
def test_any_part_of_a_flow_counts(other: Flow) -> None:
    """Flows that differ anywhere have another digest; equal ones have the same."""
    assert made("n1/endpoint/a", FLOW) == made("n1/endpoint/a", replace(FLOW))
    assert made("n1/endpoint/a", FLOW).digest != made("n1/endpoint/a", other).digest


def test_parts_add_up_in_any_order_and_can_be_taken_away() -> None:
    """Sums do not depend on the order; what was added and removed leaves nothing."""
    parts = [
        made("n1/endpoint/a", replace(FLOW, table=n), replace(FLOW, table=99)) for n in range(8)
    ]
    forth = Totals()
    for part in parts:
        forth = forth.plus(part)
    back = Totals()
    for part in reversed(parts):
        back = back.plus(part)
    assert forth == back
    assert forth.flows == 16
    for part in random.Random(1).sample(parts, len(parts)):  # noqa: S311 - a test
        back = back.minus(part)
    assert back == Totals()
    assert back.digest != UNKNOWN.shared, "nothing at all is a known state"


def test_learned_flows_are_not_counted_but_groups_are_part_of_it() -> None:
    """`fixed` leaves out the table where switches learn; a group changes the digest."""
    flows = (FLOW, replace(FLOW, table=Table.AFFINITY))
    totals = Workshop().make(IntentId("a"), Program(flows, (Group(256),))).totals
    assert (totals.flows, totals.groups, totals.fixed) == (2, 1, 1)
    assert totals.digest != made("a", *flows).digest


def test_what_is_written_is_read() -> None:
    """Digests come back from a dump, and their flows are not in it any more."""
    said = Digests(2**128 - 1, 5, 2**128 - 2)
    flows: dict[FlowKey, Flow] = {flow.key: flow for flow in digest_flows(UNKNOWN, said)}
    flows[FLOW.key] = FLOW
    assert take_digests(flows) == said
    assert flows == {FLOW.key: FLOW}
    assert digest_flows(said, said) == []
    assert [flow.priority for flow in digest_flows(said, Digests(said.shared, 6))] == [1]
    assert [flow.priority for flow in digest_flows(said, said._replace(source=7))] == [1]
    unknown = {flow.key: flow for flow in unsaid(digest_flows(UNKNOWN, said))}
    assert (len(unknown), take_digests(unknown)) == (2, UNKNOWN)


@pytest.mark.parametrize(
    "actions",
    [
        (),
        (Output(1),),
        (SetField("xxreg0", 1), SetField("xxreg0", 2)),
        (SetField("reg0", 1),),
        (SetField("xxreg0", 1, 0xFF),),
        (SetField("xxreg1", 1), SetField("xxreg0", 2)),
        (SetField("xxreg0", 1), SetField("xxreg1", 2), SetField("xxreg0", 3)),
    ],
)
def test_what_nobody_wrote_says_nothing(actions: tuple[SetField | Output, ...]) -> None:
    """A flow of another form in its place: not known."""
    assert read_digests({2: Flow(Table.DIGEST, 2, (), actions), 1: None}) == UNKNOWN


@given(histories())
@settings(max_examples=200, deadline=None)
def test_totals_depend_on_the_state_and_not_on_the_history(history: list[Change]) -> None:
    """The newest versions alone, in another order, add up to the same."""
    desired, fresh = Desired(FakeCompiler()), Desired(FakeCompiler())
    for revision, change in enumerate(history, 1):
        play(desired, [change], revision)
        manage_all(desired)
    latest = {change.intent.id: change for change in history}
    play(fresh, sorted(latest.values(), key=lambda change: change.intent.id, reverse=True))
    manage_all(fresh)
    assert fresh.shared.totals == desired.shared.totals
    assert fresh.switches.keys() == desired.switches.keys()
    for node, switch in fresh.switches.items():
        assert switch.own.totals == desired.switches[node].own.totals
        totals = switch.own.totals.plus(fresh.shared.totals)
        held = wanted(fresh, node)
        assert totals.flows + totals.groups == len(held)


def taking_over(
    before: list[Change], after: list[Change], *, then: Then | None = None
) -> tuple[Desired, Switch, Holding, bool]:
    """
    n1's switch as an owner left it that had read `before`; a replica that reads on takes it over.

    `then`: what it is taken to have said. The last value: the replica knew that state.
    """
    owner, heir = Desired(FakeCompiler()), Desired(FakeCompiler())
    play(owner, before)
    play(heir, before)
    dead = owner.manage("n1")
    assert dead is not None
    holding, said = wanted(owner, "n1"), digests_after(owner, dead)
    play(heir, after, heir.read + 1)
    switch = heir.manage("n1")
    assert switch is not None
    known = then or heir.known(switch, said)
    if known is not None:
        switch.told(said, known)
        flush(heir, "n1", holding)
    return heir, switch, holding, known is not None


@given(histories(), histories())
@settings(max_examples=300, deadline=None)
def test_a_switch_that_is_taken_at_its_word_ends_as_recomputed(
    before: list[Change], after: list[Change]
) -> None:
    """Changes that a dead owner has not written are written by the next one, without a dump."""
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    history = first + [c for c in before if not c.intent.id.endswith("/switch/pipeline")]
    later = [c for c in after if c.intent.id.startswith("all/service/")]
    heir, switch, holding, known = taking_over(history, later)
    # What is claimed by a Service and by something of the switch itself may have moved between.
    assume(known)
    assert holding == from_scratch(history + later, "n1")
    assert (switch.flows + switch.groups, switch.lacking) == (len(holding), [])
    assert switch.synced
    assert heir.known(switch, digests_after(heir, switch)) is not None


@given(histories())
@settings(max_examples=100, deadline=None)
def test_the_newest_state_is_always_known(history: list[Change]) -> None:
    """Whoever has read as much as the dead owner had needs no dump."""
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    kept = [c for c in history if not c.intent.id.endswith("/switch/pipeline")]
    *_, known = taking_over(first + kept, [])
    assert known


def test_a_change_of_its_own_needs_a_dump() -> None:
    """What has changed of the switch's own since its owner died is not known here."""
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    *_, known = taking_over(first, [Change(service_intent("web", (1,)), gone=False)])
    assert known
    *_, known = taking_over(first, [Change(endpoint_intent("n1", "a", 1), gone=False)])
    assert not known
    *_, known = taking_over(first, [Change(endpoint_intent("n2", "a", 1), gone=False)])
    assert known


@given(histories(), histories(), histories())
@settings(max_examples=300, deadline=None)
def test_a_switch_that_is_taken_over_without_compiling_ends_as_recomputed(
    before: list[Change], after: list[Change], later: list[Change]
) -> None:
    """Whatever changes before its own part is: written right, or known to need a dump."""
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    history = first + [c for c in before if not c.intent.id.endswith("/switch/pipeline")]
    shared = [c for c in after if c.intent.id.startswith("all/service/")]
    more = [c for c in later if not (c.gone and c.intent.id.endswith("/switch/pipeline"))]
    owner, heir = Desired(FakeCompiler()), Desired(FakeCompiler())
    play(owner, history)
    dead = owner.manage("n1")
    assert dead is not None
    holding, said = wanted(owner, "n1"), digests_after(owner, dead)
    play(heir, history + shared)
    switch = heir.begin("n1")
    assert switch is not None
    known = heir.known(switch, said)
    assume(known is not None)
    assert known is not None
    switch.told(said, known)
    assert not switch.made
    play(heir, more, heir.read + 1)
    flush(heir, "n1", holding)
    assume(not switch.suspect)
    assert holding == from_scratch(history + shared + more, "n1")
    assert (switch.flows + switch.groups, switch.lacking) == (len(holding), [])


def unmade(*history: AnyIntent) -> tuple[Desired, Switch, Digests]:
    """n1's switch, taken over without compiling; and what it said."""
    owner, heir = Desired(FakeCompiler()), Desired(FakeCompiler())
    changes = [Change(intent, gone=False) for intent in (switch_intent("n1"), *history)]
    play(owner, changes)
    play(heir, changes)
    dead, switch = owner.manage("n1"), heir.begin("n1")
    assert dead is not None
    assert switch is not None
    said = digests_after(owner, dead)
    known = heir.known(switch, said)
    assert known is not None
    switch.told(said, known)
    return heir, switch, said


def test_a_change_of_its_own_finds_what_was_there_before() -> None:
    """No dump: what stands is made from the intents before the change, and then compared."""
    pods = [
        endpoint_intent("n1", name, port, ip=f"10.0.0.{port}")
        for name, port in (("a", 4), ("b", 5))
    ]
    for change in (
        Change(endpoint_intent("n1", "a", 6), gone=False),
        Change(pods[1], gone=True),
        Change(endpoint_intent("n1", "c", 7, ip="10.0.0.7"), gone=False),
        Change(switch_intent("n1", gateway_port=2), gone=False),
    ):
        heir, switch, _ = unmade(*pods, route_intent("n2", 1), service_intent("web", (1,)))
        before = Desired(FakeCompiler())
        play(before, [Change(version.intent, gone=False) for version in heir.intents.values()])
        before.manage("n1")
        holding = wanted(before, "n1")
        play(heir, [change], heir.read + 1)
        assert (switch.made, switch.suspect) == (True, False)
        flush(heir, "n1", holding)
        assert holding == wanted(heir, "n1")


def test_what_others_need_does_not_make_it() -> None:
    """A Service's change waits with the others' until something is written; other nodes': never."""
    heir, switch, _ = unmade(endpoint_intent("n1", "a", 4))
    play(heir, [Change(endpoint_intent("n2", "a", 4), gone=False)], heir.read + 1)
    play(heir, [Change(service_intent("web", (1,)), gone=False)], heir.read + 1)
    assert (switch.made, list(switch.pending)) == (False, [service_intent("web", (1,)).id])


@pytest.mark.parametrize("what", ["own", "shared"])
def test_a_lie_is_found_when_its_own_part_is_made(what: str) -> None:
    """Another digest than comes of what it says to be made from: only a dump tells."""
    heir, switch, said = unmade(endpoint_intent("n1", "a", 4))
    switch.digests = said._replace(**{what: 77})
    assert heir.manage("n1") is not None
    for _ in heir.compiling(switch):
        pass
    assert not switch.made, "another switch is managed by now"
    heir, switch, said = unmade(endpoint_intent("n1", "a", 4))
    switch.digests = said._replace(**{what: 77})
    assert heir.owner("n1", (0, 0, ())) == switch_intent("n1").id
    assert switch.suspect is (what == "own")


def test_the_oracle_can_fail() -> None:
    """A switch that is taken to hold what it does not hold ends wrong."""
    first = [Change(switch_intent(node), gone=False) for node in NODES]
    later = [Change(service_intent("web", (1,)), gone=False)]
    _, _, holding, _ = taking_over(first, later, then=Then(Totals(), []))
    assert holding != from_scratch(first + later, "n1")


def test_what_cannot_be_read_makes_nothing_certain() -> None:
    """An unreadable intent of this switch, or of all: only a dump tells; another node's: no."""
    heir, switch, *_ = taking_over([Change(switch_intent(node), gone=False) for node in NODES], [])
    said = digests_after(heir, switch)
    for revision, (intent_id, known) in enumerate(
        [("n2/endpoint/x", True), ("n1/endpoint/x", False)], 100
    ):
        heir.cannot_read(IntentId(intent_id), revision, "no JSON")
        assert (heir.known(switch, said) is not None) is known


def test_only_so_much_is_remembered() -> None:
    """The oldest changes go, by their number or by what they hold; the newest stay known."""
    workshop = Workshop()
    parts = [
        workshop.make(IntentId("all/service/a"), Program((replace(FLOW, cookie=n),)))
        for n in range(6)
    ]
    for recent in (Recent(changes_max=3), Recent(content_max=3)):
        for old, new in pairwise(parts):
            change = {IntentId("all/service/a"): Replaced(old, new)}
            recent.note(old.totals, change, Moment(1))
        now = parts[-1].totals
        assert len(recent) == 3
        found = [recent.then(part.totals.digest, now) for part in parts]
        assert [None if then is None else len(then.since) for then in found] == [
            None, None, 3, 2, 1, 0,
        ]  # fmt: skip
