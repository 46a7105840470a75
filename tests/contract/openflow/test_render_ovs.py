"""The text of flows and groups, read by the real ovs-ofctl: it means the same flow."""

import pytest

from dunlin.openflow import codec
from dunlin.openflow.flow import Flow
from dunlin.openflow.messages import FlowDump, GroupDump
from dunlin.openflow.render import flow_text, group_text
from tests.fixtures.openflow_samples import GROUPS, sample_flows
from tests.fixtures.ovs_dummy import OvsBridge

pytestmark = pytest.mark.ovs


def test_ofctl_reads_what_is_rendered(ovs_bridge: OvsBridge) -> None:
    """Every sample flow and group, as text through ovs-ofctl, is held as the equal value."""
    flows = sample_flows()
    for group in GROUPS.values():
        ovs_bridge.ofctl("add-group", group_text(group))
    ovs_bridge.ofctl("add-flows", "-", stdin="".join(f"{flow_text(f)}\n" for f in flows))
    with ovs_bridge.session() as session:
        dumped = session.ask(codec.encode_flow_dump_request(1))
        installed = {e.flow for part in dumped if isinstance(part, FlowDump) for e in part.entries}
        assert installed == {codec.canonical(flow) for flow in flows}
        (groups,) = session.ask(codec.encode_group_dump_request(2))
        assert isinstance(groups, GroupDump)
        assert set(groups.groups) == {codec.canonical_group(g) for g in GROUPS.values()}


@pytest.mark.parametrize("flow", sample_flows(), ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_what_we_write_is_what_ofctl_shows(ovs_bridge: OvsBridge, flow: Flow) -> None:
    """A flow written by bytes and dumped by ovs-ofctl, when read back from that text, is itself."""
    with ovs_bridge.session() as session:
        session.ask(*(codec.encode_group(group, "add") for group in GROUPS.values()))
        session.ask(codec.encode_flow(flow, "add"))
        text = ovs_bridge.ofctl("dump-flows", "--no-stats").strip().splitlines()[-1]
        session.ask(codec.encode_flow(flow, "delete_strict"))
        timeouts = flow.idle_timeout_s or flow.hard_timeout_s
        ovs_bridge.ofctl("add-flow", text)
        (dump,) = session.ask(codec.encode_flow_dump_request(1))
        assert isinstance(dump, FlowDump)
        assert [entry.flow for entry in dump.entries] == [codec.canonical(flow)], (text, timeouts)
