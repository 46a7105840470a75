"""The codec against real Open vSwitch: what it writes, OVS holds; what OVS dumps, it reads as equal."""

import pytest

from dunlin.openflow import codec
from dunlin.openflow.flow import Flow, Group
from dunlin.openflow.messages import ErrorMessage, FlowDump, GroupDump, Message
from tests.fixtures.openflow_samples import GROUPS, sample_flows
from tests.fixtures.ovs_dummy import OpenFlowSocket, OvsBridge

pytestmark = pytest.mark.ovs


def flows_of(session: OpenFlowSocket) -> set[Flow]:
    """All flows of the bridge."""
    parts = session.ask(codec.encode_flow_dump_request(77))
    assert all(isinstance(part, FlowDump) for part in parts), parts
    assert [part.more for part in parts if isinstance(part, FlowDump)][-1] is False
    return {e.flow for part in parts if isinstance(part, FlowDump) for e in part.entries}


def groups_of(session: OpenFlowSocket) -> dict[int, Group]:
    """All groups of the bridge."""
    parts = session.ask(codec.encode_group_dump_request(78))
    assert all(isinstance(part, GroupDump) for part in parts), parts
    return {g.group_id: g for part in parts if isinstance(part, GroupDump) for g in part.groups}


def errors(messages: list[Message]) -> list[ErrorMessage]:
    """The errors among them."""
    return [message for message in messages if isinstance(message, ErrorMessage)]


def add_groups(session: OpenFlowSocket) -> None:
    """All sample groups."""
    answers = session.ask(*(codec.encode_group(group, "add") for group in GROUPS.values()))
    assert not errors(answers), errors(answers)


@pytest.mark.parametrize("flow", sample_flows(), ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_flow_comes_back_equal(ovs_bridge: OvsBridge, flow: Flow) -> None:
    """Every match field and every action is accepted by OVS and dumped as the same value."""
    with ovs_bridge.session() as session:
        add_groups(session)
        answers = session.ask(codec.encode_flow(flow, "add"))
        assert not answers, answers
        assert flows_of(session) == {codec.canonical(flow)}
        assert not session.ask(codec.encode_flow(flow, "delete_strict"))
        assert flows_of(session) == set()


def test_groups_come_back_equal(ovs_bridge: OvsBridge) -> None:
    """Groups of every type are dumped as the same values."""
    with ovs_bridge.session() as session:
        add_groups(session)
        assert groups_of(session) == {
            group.group_id: codec.canonical_group(group) for group in GROUPS.values()
        }
