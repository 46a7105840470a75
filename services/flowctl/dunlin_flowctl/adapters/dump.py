"""Everything that a switch holds."""

import asyncio
from functools import partial
from typing import NamedTuple

from dunlin.openflow import codec, messages
from dunlin.openflow.cookie import OWNER, OWNER_MASK
from dunlin.openflow.flow import Flow, Group
from dunlin.pipeline.layout import Table
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.core.digest import LEARNING_TABLES, Digests, read_digests, take_digests
from dunlin_flowctl.core.program import FlowKey
from dunlin_flowctl.core.sync import is_expired

_OURS = (OWNER << 56, OWNER_MASK)
_DIGESTS = codec.encode_flow_dump_request(0, *_OURS, Table.DIGEST)
_ALL = codec.encode_aggregate_request(0, *_OURS)
_OTHERS = tuple(
    codec.encode_aggregate_request(0, *_OURS, table) for table in (*LEARNING_TABLES, Table.DIGEST)
)
"""What does not count: each question is the same every time."""


class Dump(NamedTuple):
    """
    Everything that a switch holds, and what it says of that.

    `expired`: keys of learned flows whose time is over.
    """

    flows: dict[FlowKey, Flow]
    groups: dict[int, Group]
    expired: frozenset[FlowKey]
    digests: Digests


async def dump(session: Session, at_most: int) -> Dump:
    """
    Everything that the switch holds.

    Raises:
        SessionClosed: also when it has more than `at_most` flows or groups.
    """
    flows: dict[FlowKey, Flow] = {}
    groups: dict[int, Group] = {}
    expired: set[FlowKey] = set()
    async for part in session.replies(codec.encode_group_dump_request, messages.GroupDump):
        groups.update((group.group_id, group) for group in part.groups)
        _check_size(session, len(groups), at_most)
    async for rows in session.replies(codec.encode_flow_dump_request, messages.FlowDump):
        flows.update((row.flow.key, row.flow) for row in rows.entries)
        expired.update(row.flow.key for row in rows.entries if is_expired(row.flow, row.idle_s))
        _check_size(session, len(flows), at_most)
    digests = take_digests(flows)
    return Dump(flows, groups, frozenset(expired), digests)


async def digests_of(session: Session) -> Digests:
    """What the switch says of itself. Raises SessionClosed."""
    found: dict[int, Flow | None] = {}
    async for rows in session.replies(partial(codec.again, _DIGESTS), messages.FlowDump):
        found.update((row.flow.priority, row.flow) for row in rows.entries if not row.flow.match)
    return read_digests(found)


async def count_fixed(session: Session) -> int:
    """
    How many flows of Dunlin's stand where nothing is learned, those of digests left out.

    Raises SessionClosed.
    """
    counts = [
        session.request(partial(codec.again, question), messages.AggregateStats)
        for question in (_ALL, *_OTHERS)
    ]
    everywhere, *others = await asyncio.gather(*counts)
    return everywhere.flows - sum(part.flows for part in others)


def _check_size(session: Session, size: int, at_most: int) -> None:
    if size > at_most:
        error = SessionClosed("too_large", f"a dump of more than {at_most} entries")
        session.close(error.reason, str(error))
        raise error
