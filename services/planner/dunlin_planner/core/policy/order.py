"""
Make before break, among intents of policy.

No packet may meet half of a change: what the new rules need is complete before a subject or a
peer moves
to it, and nothing that the old ones need goes before. So a change is written in stages, each
complete in the stream before the next begins; a switch always holds a beginning of the stream.
"""

from enum import IntEnum
from operator import attrgetter

import msgspec

from dunlin.events.intents import (
    AnyIntent,
    Clause,
    PolicyClassIntent,
    PolicyGenerationIntent,
    PolicyIntent,
    PolicyNetworkIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicySubjectIntent,
)


class Stage(IntEnum):
    """
    In this order; then everything as it is to be (which takes away what is no longer needed).

    CLAUSES: verdicts, classes and ports, with their old clauses beside the new ones. PEERS: the
    classes of
    addresses as peers. SUBJECTS: who is subject to what.
    """

    CLAUSES = 1
    PEERS = 2
    SUBJECTS = 3


def stage_of(intent: AnyIntent) -> Stage | None:
    """The stage of an intent; None: whenever (not about policy), or last (the generation)."""
    match intent:
        case PolicyIntent() | PolicyClassIntent() | PolicyPortIntent():
            return Stage.CLAUSES
        case PolicyPeerIntent() | PolicyNetworkIntent():
            return Stage.PEERS
        case PolicySubjectIntent():
            return Stage.SUBJECTS
        case _:
            return None


def in_order(clauses: set[Clause]) -> tuple[Clause, ...]:
    """As they stand in intents: sorted."""
    key = attrgetter("direction", "tier", "priority", "conj_id", "number")
    return tuple(sorted(clauses, key=key))


Wanted = dict[str, AnyIntent | None]


def split_ends(wanted: Wanted) -> tuple[Wanted, tuple[Wanted, Wanted]]:
    """
    What may be written together, and what comes after it, one after the other.

    Verdicts lose rules when no clause leads to them any more (Open vSwitch takes any complete
    conjunction, also one without a verdict). The generation comes last: it makes connections meet
    the
    new rules.
    """
    verdicts: Wanted = {
        s: intent for s, intent in wanted.items() if isinstance(intent, PolicyIntent)
    }
    last: Wanted = {s: i for s, i in wanted.items() if isinstance(i, PolicyGenerationIntent)}
    rest = {s: i for s, i in wanted.items() if s not in verdicts and s not in last}
    return rest, (verdicts, last)


def widened(old: AnyIntent | None, new: AnyIntent | None) -> AnyIntent | None:
    """What stands in the intent's stage: the new one with all of the old; None: nothing yet."""
    match old, new:
        case PolicyIntent(), PolicyIntent() if (old.tier, old.priority) == (new.tier, new.priority):
            rules = {rule.conj_id: rule for rule in (*old.rules, *new.rules)}
            both = tuple(sorted(rules.values(), key=lambda r: (r.direction, r.index, r.conj_id)))
            return msgspec.structs.replace(new, rules=both)
        case PolicyClassIntent(), PolicyClassIntent():
            clauses = in_order({*old.clauses, *new.clauses})
            # Isolated at the end only: who may talk to it must be known first.
            isolated = old.isolated and new.isolated
            return msgspec.structs.replace(new, clauses=clauses, isolated=isolated)
        case PolicySubjectIntent(), PolicySubjectIntent():
            # Isolated first, free last: what was closed on one side may now be closed on the other.
            return msgspec.structs.replace(
                new,
                ingress_class=new.ingress_class or old.ingress_class,
                egress_class=new.egress_class or old.egress_class,
            )
        case PolicyPortIntent(), PolicyPortIntent():
            return msgspec.structs.replace(new, clauses=in_order({*old.clauses, *new.clauses}))
        case _:
            return new
