"""Whose a flow is, by its cookie."""

import pytest

from dunlin.events.intents import AnyIntent
from dunlin.openflow import cookie
from dunlin.openflow.cookie import CookieIndex, cookie_of
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.core.switch import Moment
from tests.unit.flowctl.programs import (
    NODES,
    FakeCompiler,
    endpoint_intent,
    route_intent,
    service_intent,
    switch_intent,
)


def test_cookies_of_a_switch_are_those_of_all_and_its_own() -> None:
    """As an index of every intent would say, for what can be on that switch; also after deletes."""
    desired = Desired(FakeCompiler())
    first, second = NODES
    shared: list[AnyIntent] = [
        service_intent("x", (1, 2)),
        service_intent("y", (1,), port=81),
        route_intent(first, 1),
    ]
    own: dict[str, list[AnyIntent]] = {
        node: [switch_intent(node), endpoint_intent(node, "a", 4)] for node in NODES
    }
    everything: list[AnyIntent] = [*shared, *own[first], *own[second]]
    for revision, intent in enumerate(everything, 1):
        desired.upsert(IntentVersion(intent, revision))
    gone = shared[1], own[first][1]
    for revision, one in enumerate(gone, 100):
        desired.delete(one.id, Moment(revision))
    index = CookieIndex(desired.intents)
    for node, other in ((first, second), (second, first)):
        found = desired.cookies_on(node)
        for number in [cookie_of(there.id) for there in (*shared, *own[node])]:
            assert found.lookup(number) == index.lookup(number)
        assert found.lookup(cookie_of(own[other][1].id)) is None
    assert [version.intent.id for version in desired.intents_of(first)] == [own[first][0].id]


def test_who_shares_a_cookie_takes_away_only_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two intents of one cookie the first has it, also after the other is gone."""
    desired = Desired(FakeCompiler())
    first, second = service_intent("x", (1, 2)), service_intent("y", (1,), port=81)
    monkeypatch.setattr(cookie, "cookie_of", lambda _intent_id: 7)
    for revision, intent in enumerate((first, second), 1):
        desired.upsert(IntentVersion(intent, revision))
    desired.delete(second.id, Moment(3))
    assert desired.cookies_on(NODES[0]).lookup(7) == first.id
    desired.delete(first.id, Moment(4))
    assert desired.cookies_on(NODES[0]).lookup(7) is None
