"""What is written of conntrack's timeouts: in force at last, whatever was there; no more."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.pipeline.layout import Zone
from dunlin_agent.timeouts.core import ZonePolicy, ZoneWrite, next_write, owner, zones_wanted

ZONES = (64000, 64001, 64002, 7)
MARKS = ("", "1", "2", "1 announced", "2 announced")
CLOSED = ("tcp_close", "tcp_time_wait")

POLICIES = st.builds(
    ZonePolicy,
    timeouts=st.dictionaries(st.sampled_from(CLOSED), st.integers(74, 77)),
    mark=st.sampled_from(MARKS),
)
FOUND = st.dictionaries(st.sampled_from(ZONES), POLICIES)
WANTED = st.frozensets(st.sampled_from(ZONES[:3]))


@dataclass
class Switch:
    """
    OVSDB and the ovs-vswitchd that follows it; `lazy`: as 3.3 and later.

    A lazy one takes the timeouts over that change while it runs, and no others.
    """

    rows: dict[int, ZonePolicy]
    lazy: bool
    seen: dict[int, dict[str, int]] = field(default_factory=dict)
    in_force: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """It starts."""
        self.follow()

    def follow(self) -> None:
        """Take the rows over."""
        now = {zone: policy.timeouts for zone, policy in self.rows.items()}
        for zone, timeouts in now.items():
            known = self.seen.get(zone, timeouts if self.lazy else None)
            if known != timeouts:
                self.in_force[zone] = timeouts
        for zone in self.in_force.keys() - now.keys():
            del self.in_force[zone]
        self.seen = now

    def write(self, write: ZoneWrite) -> None:
        """One transaction, and vswitchd has followed it."""
        for zone in write.gone:
            del self.rows[zone]
        self.rows |= dict.fromkeys(write.zones, write.policy)
        self.follow()


@pytest.mark.parametrize("lazy", [False, True])
@given(FOUND, WANTED, st.sampled_from((0, 75)))
def test_in_force_after_two_writes(
    lazy: bool, found: dict[int, ZonePolicy], wanted: frozenset[int], seconds: int
) -> None:
    """From any rows, in life 2 of ovs-vswitchd, which may have ended the agent half-way."""
    theirs = {zone: policy for zone, policy in found.items() if not policy.mark}
    # What life 2 is said to have in force was written while it ran.
    left = {zone: p for zone, p in found.items() if p.mark not in ("2", "2 announced")}
    switch = Switch(dict(left), lazy)
    switch.rows |= found
    switch.follow()
    writes = 0
    while (write := next_write(switch.rows, wanted, seconds, "2")) is not None:
        switch.write(write)
        writes += 1
        assert writes <= 2
    mine = wanted - theirs.keys() if seconds else frozenset()
    assert {z: p for z, p in switch.rows.items() if not p.mark} == theirs
    assert {zone for zone, policy in switch.rows.items() if policy.mark} == mine
    for zone in mine:
        assert switch.rows[zone].timeouts == dict.fromkeys(CLOSED, 75)
        if left == found:
            assert switch.in_force[zone] == switch.rows[zone].timeouts


@pytest.mark.parametrize("lazy", [False, True])
def test_every_start_of_vswitchd_takes_it_over(lazy: bool) -> None:
    """With the rows of the life before, which a lazy one does not look at."""
    rows: dict[int, ZonePolicy] = {}
    for life in ("1", "2", "3"):
        switch = Switch(rows, lazy)
        while (write := next_write(switch.rows, frozenset({64000}), 75, life)) is not None:
            switch.write(write)
        assert switch.in_force == {64000: dict.fromkeys(CLOSED, 75)}
        rows = switch.rows


def test_one_write_would_not_do() -> None:
    """The oracle can fail: a lazy vswitchd keeps its own timeouts after a zone's first policy."""
    switch = Switch({}, lazy=True)
    policy = ZonePolicy(timeouts=dict.fromkeys(CLOSED, 75), mark="1")
    switch.write(ZoneWrite(policy=policy, zones=frozenset({64000}), gone=frozenset()))
    assert switch.in_force == {}


@given(FOUND, WANTED)
def test_other_zones_and_policies_are_nobodys_business(
    found: dict[int, ZonePolicy], wanted: frozenset[int]
) -> None:
    """A write names wanted zones without an operator's policy, and takes ours from others alone."""
    write = next_write(found, wanted, 75, "2")
    if write is not None:
        assert write.zones <= wanted
        assert all(owner(found.get(zone)) == "dunlin" for zone in write.zones | write.gone)
        assert not write.zones & write.gone


def test_zones() -> None:
    """The main zone where another port can be found; never those with few ports for everybody."""
    assert zones_wanted(null_nat=True) == {Zone.MAIN, Zone.HAIRPIN}
    assert zones_wanted(null_nat=False) == {Zone.HAIRPIN}
