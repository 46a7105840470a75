"""Every compiled program is accepted by real Open vSwitch and dumped as the very same values."""

import pytest

from dunlin.events.intents import SwitchIntent
from dunlin.openflow import codec
from dunlin.openflow.flow import Program
from dunlin.openflow.messages import ErrorMessage, FlowDump, GroupDump
from dunlin.pipeline import compile_intent, switch_context
from tests.fixtures import cluster
from tests.fixtures.ovs_dummy import OpenFlowSocket, OvsBridge

pytestmark = pytest.mark.ovs


def everything(*, tunnel: bool) -> Program:
    """The whole cluster compiled for its first node, with one Service of 300 endpoints."""
    intents = (*cluster.intents(tunnel=tunnel), cluster.service(300, name="big", number=4))
    first = intents[0]
    assert isinstance(first, SwitchIntent)
    context = switch_context(first)
    program = Program()
    for intent in intents:
        program += compile_intent(intent, context)
    return program


def load(session: OpenFlowSocket, program: Program) -> None:
    """All of it in one bundle, groups first."""
    messages = [codec.encode_group(group, "add") for group in program.groups]
    messages += [codec.encode_flow(flow, "add") for flow in program.flows]
    adds = [codec.encode_bundle_add(1, message, i) for i, message in enumerate(messages)]
    answers = session.ask(codec.encode_bundle_open(1, 1), *adds, codec.encode_bundle_commit(1, 2))
    errors = [answer for answer in answers if isinstance(answer, ErrorMessage)]
    assert not errors, errors


@pytest.mark.parametrize("tunnel", [False, True], ids=["routed", "tunnel"])
def test_the_pipeline_comes_back_equal(ovs_bridge: OvsBridge, tunnel: bool) -> None:
    """What flowctl wants and what the switch dumps are equal, so a restart changes nothing."""
    program = everything(tunnel=tunnel)
    with ovs_bridge.session() as session:
        load(session, program)
        dumps = session.ask(codec.encode_flow_dump_request(7))
        held = {e.flow for part in dumps if isinstance(part, FlowDump) for e in part.entries}
        assert held == {codec.canonical(flow) for flow in program.flows}
        answers = session.ask(codec.encode_group_dump_request(8))
        groups = {g for part in answers if isinstance(part, GroupDump) for g in part.groups}
    assert groups == set(program.groups)


def test_no_two_flows_have_one_key() -> None:
    """Table, priority and match name a flow: two of one key would overwrite each other."""
    for tunnel in (False, True):
        keys = [flow.key for flow in everything(tunnel=tunnel).flows]
        assert len(keys) == len(set(keys))
