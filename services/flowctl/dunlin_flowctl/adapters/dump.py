"""Everything that a switch holds."""

from typing import NamedTuple

from dunlin.openflow import codec, messages
from dunlin.openflow.flow import Flow, Group
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.core.program import FlowKey
from dunlin_flowctl.core.sync import is_expired


class Dump(NamedTuple):
    """Everything that a switch holds. `expired`: keys of learned flows whose time is over."""

    flows: dict[FlowKey, Flow]
    groups: dict[int, Group]
    expired: frozenset[FlowKey]


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
    return Dump(flows, groups, frozenset(expired))


def _check_size(session: Session, size: int, at_most: int) -> None:
    if size > at_most:
        error = SessionClosed("too_large", f"a dump of more than {at_most} entries")
        session.close(error.reason, str(error))
        raise error
