"""Who should write to which switch."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_flowctl.core.owners import AGAIN, STEP_S, Claim, Owners, ranked

DPIDS = range(1, 3001)


def test_one_replica_more_takes_only_its_share() -> None:
    """Of 3,000 switches about a quarter move to the fourth replica, and none between the others."""
    three, four = ["a", "b", "c"], ["a", "b", "c", "d"]
    moved = [dpid for dpid in DPIDS if ranked(three, dpid)[0] != ranked(four, dpid)[0]]
    assert {ranked(four, dpid)[0] for dpid in moved} == {"d"}
    assert 600 < len(moved) < 900


def test_one_replica_less_leaves_the_others_theirs() -> None:
    """Only the switches of the one that went move, and to both of the others."""
    three, two = ["a", "b", "c"], ["a", "b"]
    moved = [dpid for dpid in DPIDS if ranked(three, dpid)[0] != ranked(two, dpid)[0]]
    assert all(ranked(three, dpid)[0] == "c" for dpid in moved)
    assert {ranked(two, dpid)[0] for dpid in moved} == {"a", "b"}


def beats(owners: Owners, names: str, start: float, end: float) -> None:
    """Everybody of `names` says every 0.25 s that it lives."""
    for step in range(int((end - start) * 4) + 1):
        for name in names:
            owners.heard(name, 1.0, start + step / 4)


def test_silence_is_death_only_while_we_hear_ourselves() -> None:
    """After its time to live a silent replica is dead; after an outage everybody gets it anew."""
    owners = Owners("a", 1.0)
    beats(owners, "ab", 0.0, 5.0)
    beats(owners, "a", 5.25, 5.75)
    assert owners.live(5.9) == {"a", "b"}
    beats(owners, "a", 6.0, 6.25)
    assert owners.live(6.3) == {"a"}
    beats(owners, "ab", 6.5, 7.5)
    assert owners.live(20.0) == {"a", "b"}, "we heard nothing of anybody"
    beats(owners, "a", 20.0, 20.75)
    assert owners.live(20.8) == {"a", "b"}, "the other one may still be connecting"
    beats(owners, "a", 21.0, 21.25)
    assert owners.live(21.3) == {"a"}


def test_who_takes_a_free_switch() -> None:
    """The first choice at once, the next one a step later: the first may not be connected."""
    live = frozenset("abc")
    first, second, third = ranked(live, 7)
    assert Owners(first, 1.0).patience(7, live) == 0.0
    assert Owners(second, 1.0).patience(7, live) == STEP_S
    assert Owners(third, 1.0).patience(7, live) == 2 * STEP_S


def test_only_the_first_choice_takes_a_switch_from_a_live_owner() -> None:
    """Others leave it where it is; a dead owner's is free; one's own is taken again at once."""
    live = frozenset("abc")
    first, second, third = ranked(live, 7)
    for name, patience in ((first, STEP_S), (second, 0.0), (third, None)):
        owners = Owners(name, 1.0)
        owners.note(7, Claim(second, 5))
        assert owners.patience(7, live) == patience
    orphan = Owners(third, 1.0)
    orphan.note(7, Claim(second, 5))
    assert orphan.patience(7, live - {second}) == STEP_S


def test_the_newest_claim_counts() -> None:
    """A claim that comes late changes nothing; one that is given back is nobody's."""
    owners = Owners("a", 1.0)
    assert owners.note(7, Claim("a", 5))
    assert not owners.note(7, Claim("b", 4))
    assert owners.ours(7) == Claim("a", 5)
    assert owners.note(7, Claim("", 6))
    assert owners.ours(7) is None


def test_who_is_silent_for_half_its_time_is_worth_asking_for() -> None:
    """Not before, not while we may be the deaf ones, never ourselves; goodbye ends it."""
    owners = Owners("a", 1.0)
    beats(owners, "ab", 0.0, 5.0)
    assert not owners.suspects(5.4)
    beats(owners, "a", 5.25, 5.5)
    assert owners.suspects(5.6) == {"b": 5.0}
    assert owners.live(5.6) == {"a", "b"}
    owners.left("b")
    assert owners.live(5.6) == {"a"}
    assert not owners.suspects(5.6)
    beats(owners, "ab", 5.75, 6.0)
    assert not owners.suspects(8.0), "we heard nothing of anybody"
    beats(owners, "a", 8.0, 8.5)
    assert not owners.suspects(8.6), "after an outage everybody gets the whole time"


def test_the_next_look_is_when_somebody_can_be_suspect() -> None:
    """Nobody is suspect before that moment; then the most silent one is; the dead are not."""
    owners = Owners("a", 1.0)
    beats(owners, "ab", 0.0, 5.0)
    owners.heard("c", 0.4, 5.0)
    assert owners.until_suspect(5.0) == pytest.approx(0.2)
    assert not owners.suspects(5.19)
    assert owners.suspects(5.21) == {"c": 5.0}
    beats(owners, "a", 5.25, 5.5)
    assert owners.suspects(5.51) == {"b": 5.0}, "c has been silent for all of its time"
    assert owners.until_suspect(5.51) == pytest.approx(AGAIN), "it may answer next time"
    owners.left("b")
    assert owners.until_suspect(5.51) == pytest.approx(0.5), "nobody else is there"
    late = Owners("a", 1.0)
    late.heard("a", 1.0, 5.0)
    late.heard("b", 1.0, 5.0)
    assert late.until_suspect(5.1) == pytest.approx(0.5)
    assert late.until_suspect(5.6) == pytest.approx(0.4), "we listen since 5.0"


def test_the_next_death_is_known_beforehand() -> None:
    """Nobody is left out before that moment; then who was silent longest is."""
    owners = Owners("a", 1.0)
    beats(owners, "ab", 0.0, 5.0)
    owners.heard("c", 0.4, 5.0)
    assert owners.until_dead(5.0) == pytest.approx(0.4)
    assert owners.live(5.39) == {"a", "b", "c"}
    beats(owners, "a", 5.25, 5.75)
    assert owners.live(5.41) == {"a", "b"}
    assert owners.until_dead(5.75) == pytest.approx(0.25), "of b; c is dead already"
    assert owners.until_dead(6.01) == pytest.approx(0.5), "nobody else is there"


@given(
    silences=st.lists(st.tuples(st.floats(0, 3), st.floats(0.2, 2)), max_size=4),
    since=st.floats(0, 4),
)
def test_nothing_changes_before_the_next_moment(
    silences: list[tuple[float, float]], since: float
) -> None:
    """Whatever was heard when: until the moments that are told nobody new is suspect or dead."""
    now = 10.0
    owners = Owners("a", 1.0)
    for step in range(int(since * 4) + 1):
        owners.heard("a", 1.0, now - since + step / 4)
    for number, (silence, ttl_s) in enumerate(silences):
        owners.heard(f"b{number}", ttl_s, now - silence)
    suspects, live = owners.suspects(now), owners.live(now)
    waits = owners.until_suspect(now), owners.until_dead(now)
    for share in (0.01, 0.3, 0.6, 0.9, 0.99):
        owners.heard("a", 1.0, now + share * max(waits))
        assert owners.suspects(now + share * waits[0]).keys() <= suspects.keys()
        assert owners.live(now + share * waits[1]) >= live
