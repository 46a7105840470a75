"""
Which CT_Timeout_Policy each conntrack zone must have, and what to write next. Pure.

ovs-vswitchd 3.3 and later (read to 3.7; 3.5.0 tried) takes a zone's policy over only when it
changes while the process runs: not one that it finds when it starts, nor a new zone's first. So a
policy is written twice, first with a second more, and its row says for which life of ovs-vswitchd.
"""

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from dunlin.pipeline.layout import Zone

Owner = Literal["dunlin", "operator"]

_CLOSED: Final = ("tcp_close", "tcp_time_wait")
"""Of a TCP connection that both ends have closed, and that both have begun to close."""


class ZonePolicy(msgspec.Struct, frozen=True, kw_only=True):
    """
    The timeouts of a zone, in seconds by OVS's names.

    `mark`: what the row's external_ids have under "dunlin"; "" for somebody else's policy.
    """

    timeouts: dict[str, int]
    mark: str


class ZoneWrite(msgspec.Struct, frozen=True, kw_only=True):
    """Give `zones` this policy, and take ours from `gone`."""

    policy: ZonePolicy
    zones: frozenset[int]
    gone: frozenset[int]


def zones_wanted(*, null_nat: bool) -> frozenset[int]:
    """
    Where a client's port may lead to one endpoint by two ways, and another port can be found.

    MAIN: only where Open vSwitch finds one there (ADR 0044). Where it does not, a longer memory is
    a longer time in which the second connection cannot be told from the first. Not the zones that
    share 4,096 ports among all clients: remembered longer, these are used up sooner.
    """
    main = (Zone.MAIN,) if null_nat else ()
    return frozenset(map(int, (Zone.HAIRPIN, *main)))


def next_write(
    found: Mapping[int, ZonePolicy], zones: frozenset[int], seconds: int, life: str
) -> ZoneWrite | None:
    """
    What is to be written next, until None: then all is in force.

    Args:
        found: zone -> the policy that it has; none for a zone without.
        zones: those wanted; one with an operator's policy is left alone.
        seconds: how long closed connections are remembered; 0: as Open vSwitch does by itself.
        life: of ovs-vswitchd; what was written for another one may not be in force.
    """
    mine = frozenset(zone for zone in zones if owner(found.get(zone)) == "dunlin")
    mine = mine if seconds else frozenset()
    gone = frozenset(z for z, p in found.items() if owner(p) == "dunlin") - mine
    last = _policy(seconds, life)
    announced = _policy(seconds + 1, f"{life} announced")
    held = [found.get(zone) for zone in mine]
    if all(policy == last for policy in held):
        return ZoneWrite(policy=last, zones=frozenset(), gone=gone) if gone else None
    ready = all(policy == announced for policy in held)
    return ZoneWrite(policy=last if ready else announced, zones=mine, gone=gone)


def owner(policy: ZonePolicy | None) -> Owner:
    """Whose it is; a zone without a policy is ours to give one."""
    return "dunlin" if policy is None or policy.mark else "operator"


def _policy(seconds: int, mark: str) -> ZonePolicy:
    return ZonePolicy(timeouts=dict.fromkeys(_CLOSED, seconds), mark=mark)
