"""Everything that a switch holds, or what it says of that."""

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
_DIGESTS = (codec.encode_flow_dump_request(0, *_OURS, Table.DIGEST), messages.FlowDump)
_COUNTS = tuple(
    (codec.encode_aggregate_request(0, *_OURS, table), messages.AggregateStats)
    for table in (None, *LEARNING_TABLES)
)
_METERS = (codec.encode_meter_dump_request(0), messages.MeterDump)
"""Each question is the same every time."""


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


class Word(NamedTuple):
    """
    What a switch says of itself, and of its meters.

    `fixed`: how many flows of Dunlin's there are where nothing is learned, those of digests left
    out. Some may have been lost, or added, since its last owner wrote to it.
    """

    digests: Digests
    fixed: int
    meters: list[messages.MeterDump]


async def word_of(session: Session) -> Word:
    """Ask for it, all at once. Raises SessionClosed, Refusal."""
    said, *counts, meters = await session.ask(_DIGESTS, *_COUNTS, _METERS)
    flows = [row.flow for rows in said for row in rows.entries]
    everywhere, *learned = (part.flows for (part,) in counts)
    fixed = everywhere - sum(learned) - len(flows)
    return Word(read_digests({f.priority: f for f in flows if not f.match}), fixed, meters)


def _check_size(session: Session, size: int, at_most: int) -> None:
    if size > at_most:
        error = SessionClosed("too_large", f"a dump of more than {at_most} entries")
        session.close(error.reason, str(error))
        raise error
