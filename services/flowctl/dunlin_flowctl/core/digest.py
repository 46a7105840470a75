"""
What a switch says of itself: digests of all that stands on it, in two flows. ADR 0046.

No packet meets these flows. Each bundle writes the new digests with the changes that they are
about, so the next owner of the switch learns from two flows what it holds, and need not read the
rest. What Dunlin's digests do not tell for certain is unknown.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from dunlin.openflow.cookie import DIGEST_COOKIE
from dunlin.openflow.flow import Flow, Group, Match, SetField
from dunlin.openflow.messages import CannotEncode
from dunlin.openflow.wire_flow import encode_flow
from dunlin.openflow.wire_group import encode_group
from dunlin.pipeline.layout import Table

_BITS = 128
_MASK = (1 << _BITS) - 1
_FIELDS = ("xxreg0", "xxreg1")
_SHARED, _OWN = 2, 1
"""Priorities of the two flows."""
OFPFF_SEND_FLOW_REM = 1
"""Asked of every flow: a flow that somebody else removes is noticed at once."""
_NONE = 1
"""Of nothing at all: 0 says that the digest is not known."""


LEARNING_TABLES = frozenset({Table.AFFINITY})
"""Where a switch holds flows that nobody has written: what it has learned."""


class Digests(NamedTuple):
    """
    Of what every switch holds, and of this switch's own; 0: not known.

    `source`: what its own was made from, and how much that is (`source.py`).
    """

    shared: int = 0
    own: int = 0
    source: int = 0


UNKNOWN = Digests()


class Totals(NamedTuple):
    """
    What parts add up to, in any order. `fixed`: flows of tables in which no switch learns.

    `digest`: the sum of BLAKE2b over the messages that add each part, modulo 2^128.
    """

    digest: int = _NONE
    flows: int = 0
    groups: int = 0
    fixed: int = 0

    def plus(self, other: "Totals") -> "Totals":
        """Both."""
        return Totals(
            (self.digest + other.digest) & _MASK,
            self.flows + other.flows,
            self.groups + other.groups,
            self.fixed + other.fixed,
        )

    def minus(self, other: "Totals") -> "Totals":
        """Without the other, which was part of it."""
        return Totals(
            (self.digest - other.digest) & _MASK,
            self.flows - other.flows,
            self.groups - other.groups,
            self.fixed - other.fixed,
        )


def messages_of(contents: Iterable[Flow | Group]) -> list[bytes]:
    """What puts each; empty for what OpenFlow has no bytes for."""
    messages = []
    for content in contents:
        try:
            messages.append(add_message(content))
        except CannotEncode:
            messages.append(b"")
    return messages


def totals_of(
    groups: Collection[Group], flows: Collection[Flow], messages: Iterable[bytes]
) -> Totals:
    """Of one part, `messages` in the same order: equal for equal messages in one order."""
    whole = hashlib.blake2b(digest_size=_BITS // 8)
    for content, message in zip(chain(groups, flows), messages, strict=True):
        # No switch will ever hold what has none, and none that refuses anything is sure of itself.
        whole.update(message or repr(content).encode())
    fixed = sum([flow.table not in LEARNING_TABLES for flow in flows])
    digest = int.from_bytes(whole.digest(), "big")
    return Totals(digest, len(flows), len(groups), fixed)


def add_message(content: Flow | Group) -> bytes:
    """The message, of xid 0, that puts it where nothing is. Raises CannotEncode."""
    if isinstance(content, Group):
        return encode_group(content, "add")
    return encode_flow(content, "add", flags=OFPFF_SEND_FLOW_REM)


def digest_flows(before: Digests, after: Digests) -> list[Flow]:
    """The flows that say `after` where `before` is said now."""
    return [
        Flow(
            Table.DIGEST,
            priority,
            (),
            tuple(map(SetField, _FIELDS, new)),
            cookie=DIGEST_COOKIE,
        )
        for (priority, old), (_, new) in zip(_said(before), _said(after), strict=True)
        if old != new
    ]


def _said(digests: Digests) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """What each flow says, by priority."""
    return ((_SHARED, (digests.shared,)), (_OWN, (digests.own, digests.source)))


def unsaid(flows: Iterable[Flow]) -> list[Flow]:
    """The same flows, saying nothing."""
    return [
        replace(flow, actions=tuple(map(SetField, _FIELDS, (0,) * len(flow.actions))))
        for flow in flows
    ]


def take_digests(flows: dict[tuple[int, int, Match], Flow]) -> Digests:
    """Take the flows of digests out of a dump, and read them."""
    return read_digests({p: flows.pop((Table.DIGEST, p, ()), None) for p in (_SHARED, _OWN)})


def read_digests(found: Mapping[int, Flow | None]) -> Digests:
    """From the flows of table Digest, by priority; what does not look as written says nothing."""
    (shared,), (own, source) = (
        _read(found.get(priority), len(said)) for priority, said in _said(UNKNOWN)
    )
    return Digests(shared, own, source)


def _read(flow: Flow | None, count: int) -> tuple[int, ...]:
    actions = flow.actions if flow is not None else ()
    values = tuple(
        action.value
        for action, field in zip(actions, _FIELDS, strict=False)
        if isinstance(action, SetField) and action.field == field and action.mask is None
    )
    return values if len(values) == len(actions) == count else (0,) * count
