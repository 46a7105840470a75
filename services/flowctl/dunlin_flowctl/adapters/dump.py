"""Everything that a switch holds."""

from dunlin.openflow import codec, messages
from dunlin.openflow.flow import Flow, Group
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.core.program import FlowKey


async def dump(session: Session, at_most: int) -> tuple[dict[FlowKey, Flow], dict[int, Group]]:
    """
    Everything that the switch holds.

    Raises:
        SessionClosed: also when it has more than `at_most` flows or groups.
    """
    flows: dict[FlowKey, Flow] = {}
    groups: dict[int, Group] = {}
    async for part in session.replies(codec.encode_group_dump_request, messages.GroupDump):
        groups.update((group.group_id, group) for group in part.groups)
        _check_size(session, len(groups), at_most)
    async for rows in session.replies(codec.encode_flow_dump_request, messages.FlowDump):
        flows.update((row.flow.key, row.flow) for row in rows.entries)
        _check_size(session, len(flows), at_most)
    return flows, groups


def _check_size(session: Session, size: int, at_most: int) -> None:
    if size > at_most:
        error = SessionClosed("too_large", f"a dump of more than {at_most} entries")
        session.close(error.reason, str(error))
        raise error
