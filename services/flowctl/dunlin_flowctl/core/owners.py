"""Which replica should write to which switch: pure, from heartbeats and claims."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

STEP_S = 0.3
"""
A replica that is not the first choice lets each better one try so long before.

A better one may not be connected to the switch.
"""

AGAIN = 1 / 16
"""Share of the time to live after which a silent replica that did not answer is asked again."""


@dataclass(frozen=True, slots=True)
class Claim:
    """`replica` "": given back. `seq`: of the claim's message, the fencing number."""

    replica: str
    seq: int


@dataclass(slots=True)
class _Member:
    heard_at: float
    ttl_s: float


def weight(replica: str, dpid: int) -> bytes:
    """Rendezvous hashing: of all replicas the one of the largest weight is the first choice."""
    return hashlib.blake2b(f"{replica}/{dpid:016x}".encode(), digest_size=8).digest()


def ranked(replicas: Iterable[str], dpid: int) -> list[str]:
    """The first choice first; one more or less in `replicas` changes the order of no others."""
    return sorted(replicas, key=lambda replica: (weight(replica, dpid), replica), reverse=True)


class Owners:
    """
    What this replica knows of all replicas; times are its own monotonic seconds.

    Another replica is dead only when nothing was heard of it for its time to live while our own
    heartbeats came back all the time: after an outage of the bus, or when this process was stopped,
    everybody gets the whole time again.
    """

    def __init__(self, replica: str, ttl_s: float) -> None:
        self.replica = replica
        self.ttl_s = ttl_s
        self.claims: dict[int, Claim] = {}
        self._members: dict[str, _Member] = {}
        self._heard_at = float("-inf")
        self._hearing_since = float("-inf")

    def forget(self) -> None:
        """The stream is new: nobody has claimed anything."""
        self.claims.clear()
        self._members.clear()
        self._heard_at = float("-inf")

    def heard(self, replica: str, ttl_s: float, now: float) -> None:
        """A heartbeat has come."""
        if replica == self.replica:
            if now - self._heard_at > self.ttl_s / 2:
                self._hearing_since = now
            self._heard_at = now
        self._members[replica] = _Member(now, ttl_s)

    def left(self, replica: str) -> None:
        """A replica has said goodbye, or is known to be gone."""
        if replica != self.replica:
            self._members.pop(replica, None)

    def heard_last(self, replica: str) -> float | None:
        """When a replica was heard last; None: it is not known."""
        member = self._members.get(replica)
        return member.heard_at if member is not None else None

    def suspects(self, now: float) -> dict[str, float]:
        """
        Replicas that have been silent for half of their time to live: name -> when heard last.

        Worth asking the bus about (`left`). None while we might be the ones who hear nothing.
        """
        return {
            name: member.heard_at
            for name, member in self._members.items()
            if name != self.replica
            and self._judging(member, now)
            and member.ttl_s / 2 < now - member.heard_at <= member.ttl_s
        }

    def until_suspect(self, now: float) -> float:
        """
        Seconds until `suspects` may name somebody that it does not name now, if nobody is heard.

        Who is suspect already, and may still answer, is worth asking again after `AGAIN` of our
        time to live. At most half of it: who comes in between cannot be silent for so long before.
        """
        again = self.ttl_s * AGAIN if self.suspects(now) else self.ttl_s / 2
        return min(again, self._until(now, 0.5))

    def until_dead(self, now: float) -> float:
        """Seconds until `live` may leave out somebody that it has now; else as `until_suspect`."""
        return self._until(now, 1.0)

    def _until(self, now: float, share: float) -> float:
        """Until somebody may have been silent for this share of its time to live."""
        since = self._hearing_since
        moments = [
            max(since + member.ttl_s, member.heard_at + member.ttl_s * share) - now
            for name, member in self._members.items()
            if name != self.replica
            and (now - member.heard_at <= member.ttl_s * share or now - since < member.ttl_s)
        ]
        return max(0.0, min([self.ttl_s / 2, *moments]))

    def hearing(self, now: float) -> bool:
        """The bus carries what we say: what we know of claims is what there is."""
        return now - self._heard_at <= self.ttl_s

    def live(self, now: float) -> frozenset[str]:
        """Our replica and all others that are not known to be dead."""
        return frozenset(
            name for name, member in self._members.items() if not self._dead(name, member, now)
        ) | {self.replica}

    def _dead(self, name: str, member: _Member, now: float) -> bool:
        silent = now - member.heard_at > member.ttl_s
        return name != self.replica and silent and self._judging(member, now)

    def _judging(self, member: _Member, now: float) -> bool:
        """We would have heard this one."""
        return self.hearing(now) and now - self._hearing_since >= member.ttl_s

    def note(self, dpid: int, claim: Claim) -> bool:
        """A claim was read or written; returns whether it is news."""
        before = self.claims.get(dpid)
        if before is not None and before.seq >= claim.seq:
            return False
        self.claims[dpid] = claim
        return True

    def ours(self, dpid: int) -> Claim | None:
        """Our claim on a switch, if nobody else's has been read."""
        claim = self.claims.get(dpid)
        return claim if claim is not None and claim.replica == self.replica else None

    def patience(self, dpid: int, live: frozenset[str]) -> float | None:
        """
        Seconds to wait before claiming a switch that is connected; None: leave it to its owner.

        The first choice takes it even from a live owner: that is how a new replica gets its share.
        """
        claim = self.claims.get(dpid)
        holder = claim.replica if claim is not None else ""
        if holder == self.replica:
            return 0.0
        rank = ranked(live, dpid).index(self.replica)
        if holder in live:
            return STEP_S if rank == 0 else None
        return rank * STEP_S
