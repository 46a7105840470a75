"""
A change of policy as messages: everything that it touches, then the commit, then tombstones.

Switches get all of a change in one bundle (ADR 0020), so its parts need no order among themselves.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import TypedDict

import msgspec

from dunlin.events.intents import AnyIntent, Clause, NameClause, PolicyCommitIntent
from dunlin.subjects import ALL_SCOPE

Wanted = dict[str, AnyIntent | None]

GONE_BYTES_MAX = 500_000
"""Of ids in one commit: a message of NATS holds a megabyte. The rest goes by its tombstones."""


class Clauses(TypedDict):
    """Two fields of an intent."""

    clauses: tuple[Clause, ...]
    names: tuple[NameClause, ...]


def in_order(clauses: set[Clause]) -> Clauses:
    """As they stand in intents: sorted, those of four apart."""
    key = attrgetter("direction", "tier", "priority", "conj_id", "number")
    found = sorted(clauses, key=key)
    names = [one for one in found if isinstance(one, NameClause)]
    if not names:
        return Clauses(clauses=tuple(found), names=())
    others = [one for one in found if not isinstance(one, NameClause)]
    return Clauses(clauses=tuple(others), names=tuple(names))


def numbered(wanted: Mapping[str, AnyIntent | None], change: int) -> Wanted:
    """What a change puts into the stream before its commit: what is not to go, with its number."""
    return {
        subject: msgspec.structs.replace(intent, change=change)
        for subject, intent in wanted.items()
        if intent is not None
    }


def commit(change: int, gone: Iterable[str], *, prepared: int = 0) -> PolicyCommitIntent:
    """
    The end of a change; `gone`: ids of the intents that it withdraws, any order.

    `prepared`: of a change that is not to be in force yet (ADR 0030).
    """
    named: list[str] = []
    size = 0
    for intent_id in sorted(gone):
        size += len(intent_id.encode()) + 3
        if size > GONE_BYTES_MAX:
            break
        named.append(intent_id)
    return PolicyCommitIntent(
        scope=ALL_SCOPE, key="all", committed=change, prepared=prepared, gone=tuple(named)
    )
