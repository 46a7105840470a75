"""The codec against real Open vSwitch, where only OVS can answer."""

import time
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from dunlin.openflow import codec
from dunlin.openflow.flow import (
    OFPP_LOCAL,
    Controller,
    Flow,
    Learn,
    Output,
    Resubmit,
    Unknown,
    match,
    set_field,
)
from dunlin.openflow.messages import (
    EchoReply,
    FeaturesReply,
    FlowDump,
    FlowRemoved,
    GroupStats,
    PacketIn,
    PortDesc,
    PortStats,
    PortStatus,
    RoleReply,
    TableStats,
)
from dunlin.pipeline import compile_intent
from dunlin.pipeline.affinity import lifetime_s
from tests.contract.openflow.asking import errors, flows_of
from tests.fixtures import cluster
from tests.fixtures.ovs_dummy import OvsBridge, OvsDummy

pytestmark = pytest.mark.ovs


def test_foreign_flows_can_be_read_and_deleted(ovs_bridge: OvsBridge) -> None:
    """A flow whose fields and actions have no name here is Unknown, equal to nothing, deletable."""
    ovs_bridge.ofctl(
        "add-flow",
        "table=7,priority=3,dl_vlan=5,tcp,tcp_flags=+syn actions=strip_vlan,note:01.02,"
        "write_metadata:5,goto_table:9",
    )
    with ovs_bridge.session() as session:
        (flow,) = flows_of(session)
        assert [type(action) for action in flow.actions] == [Unknown] * 3
        assert flow.goto == 9
        assert [item.field for item in flow.match if item.field.startswith("oxm_")]
        assert not session.ask(codec.encode_flow(flow, "delete_strict"))
        assert flows_of(session) == set()


def test_idle_time_of_a_flow(ovs_bridge: OvsBridge) -> None:
    """A dump says for how many whole seconds a flow has not been used."""
    with ovs_bridge.session() as session:
        flow = Flow(7, 3, match(in_port=1), (set_field("reg14", 86400),))
        assert not session.ask(codec.encode_flow(flow, "add"))

        def idle_s() -> int:
            answers = session.ask(codec.encode_flow_dump_request(1, table=7))
            (entry,) = (e for dump in answers if isinstance(dump, FlowDump) for e in dump.entries)
            assert lifetime_s(entry.flow) == 86400
            return entry.idle_s

        assert idle_s() == 0
        deadline = time.monotonic() + 10.0
        while idle_s() < 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("timeout_s", [600, 86400])
def test_a_learned_flow_says_how_long_it_lasts(ovs_bridge: OvsBridge, timeout_s: int) -> None:
    """Learned by Open vSwitch itself from a compiled Service with affinity."""
    service = replace(cluster.service(3, name="web", number=1), affinity_timeout_s=timeout_s)
    learners = [
        flow
        for flow in compile_intent(service, None).flows
        if any(isinstance(action, Learn) for action in flow.actions)
    ]
    learner = next(flow for flow in learners if match(eth_type=0x800)[0] in flow.match)
    (learn, *_) = learner.actions
    with ovs_bridge.session() as session:
        assert not session.ask(
            codec.encode_flow(Flow(0, 1, match(eth_type=0x800), (learn,)), "add")
        )
        ovs_bridge.ovs.appctl(
            "ofproto/trace", ovs_bridge.name, "in_port=1,tcp,nw_src=10.0.0.9", "-generate"
        )
        (learned,) = flows_of(session) - {Flow(0, 1, match(eth_type=0x800), (learn,))}
    assert learned.cookie == learner.cookie
    if timeout_s == 600:
        assert (learned.idle_timeout_s, lifetime_s(learned)) == (600, None)
    else:
        assert (learned.idle_timeout_s, lifetime_s(learned)) == (0, 86400)


def test_session_messages(ovs_bridge: OvsBridge) -> None:
    """Everything a session asks but flows and groups is answered, and the answers are read."""
    with ovs_bridge.session() as session:
        answers = session.ask(
            codec.encode_features_request(2),
            codec.encode_echo_request(3, b"hello"),
            codec.encode_role_request("master", 7, 4),
            codec.encode_set_config(0xFFFF, 5),
            codec.encode_set_async(packet_in=True, flow_removed=True, xid=6),
            codec.encode_packet_in_format(7),
            codec.encode_port_desc_request(8),
            codec.encode_port_stats_request(9),
            codec.encode_table_stats_request(10),
            codec.encode_group_stats_request(11),
            codec.encode_ct_flush(codec.CtFlush(zone=7), 12),
        )
        assert not errors(answers), errors(answers)
        features, echo, role, ports, counters, tables, groups = answers
        assert isinstance(features, FeaturesReply)
        assert features.n_tables == 254
        assert echo == EchoReply(3, b"hello")
        assert role == RoleReply(4, "master", 7)
        assert isinstance(ports, PortDesc)
        assert {p.port for p in ports.ports} == {1, 2, 3, 4, OFPP_LOCAL}
        assert f"{ovs_bridge.name}p1" in {p.name for p in ports.ports}
        assert isinstance(counters, PortStats)
        assert {p.port for p in counters.entries} == {1, 2, 3, 4, OFPP_LOCAL}
        assert isinstance(tables, TableStats)
        assert len(tables.entries) == 254
        assert groups == GroupStats(11, (), more=False)


def test_packets_to_and_from_the_controller(ovs_bridge: OvsBridge) -> None:
    """A packet-out comes back through a controller action with userdata, cookie and in_port."""
    packet = bytes.fromhex("0e006475 6e01 0e0000000002 88b5") + bytes(50)
    flow = Flow(0, 5, match(in_port=1), (Controller(userdata=b"why"),), cookie=99)
    with ovs_bridge.session() as session:
        session.ask(
            codec.encode_set_config(0xFFFF, 2),
            codec.encode_set_async(packet_in=True, flow_removed=True, xid=3),
            codec.encode_packet_in_format(4),
            codec.encode_flow(flow, "add"),
        )
        session.send(codec.encode_packet_out(packet, (Resubmit(0),), in_port=1, xid=5))
        message = session.receive()
        assert isinstance(message, PacketIn)
        assert (message.table, message.cookie, message.in_port) == (0, 99, 1)
        assert (message.data, message.userdata) == (packet, b"why")
        assert message.reason == "apply_action"
        plain = replace(flow, actions=(Controller(),))
        session.ask(codec.encode_flow(plain, "add"))
        session.send(codec.encode_packet_out(packet, (Resubmit(0),), in_port=1, xid=5))
        message = session.receive()
        assert isinstance(message, PacketIn)
        assert (message.data, message.userdata, message.in_port) == (packet, b"", 1)


def test_plain_packet_in(ovs_bridge: OvsBridge) -> None:
    """Without NXT_PACKET_IN2 a packet comes as OFPT_PACKET_IN."""
    packet = bytes(12) + b"\x88\xb5" + bytes(50)
    with ovs_bridge.session() as session:
        session.ask(
            codec.encode_set_config(0xFFFF, 2),
            codec.encode_set_async(packet_in=True, flow_removed=False, xid=3),
            codec.encode_flow(Flow(0, 5, (), (Controller(),), cookie=7), "add"),
        )
        session.send(codec.encode_packet_out(packet, (Resubmit(0),), in_port=2, xid=5))
        message = session.receive()
        assert isinstance(message, PacketIn)
        assert (message.data, message.cookie, message.in_port) == (packet, 7, 2)


def test_port_status_and_flow_removed(ovs_bridge: OvsBridge) -> None:
    """What the switch says unasked: a removed flow that asked for it, a new port."""
    flow = Flow(3, 5, match(reg0=(1, 3)), (Output(1),), cookie=99, idle_timeout_s=60)
    with ovs_bridge.session() as session:
        session.ask(
            # A management session hears nothing unasked until it sets a miss_send_len.
            codec.encode_set_config(0xFFFF, 2),
            codec.encode_set_async(packet_in=True, flow_removed=True, xid=3),
            codec.encode_flow(flow, "add", flags=1),
        )
        # Comes when OVS's last reader has let go of the flow, after a barrier's reply too.
        session.send(codec.encode_flow(flow, "delete_strict"))
        removed = session.receive()
        assert isinstance(removed, FlowRemoved)
        assert (removed.reason, removed.flow) == ("delete", replace(flow, actions=()))
        ovs_bridge.add_port("extra", 42)
        message = session.receive()
        assert isinstance(message, PortStatus)
        assert (message.reason, message.port.name, message.port.port) == ("add", "extra", 42)


@pytest.mark.parametrize(
    ("arguments", "flush"),
    [
        (["zone=7"], codec.CtFlush(zone=7)),
        (
            ["zone=5", "ct_nw_src=10.0.0.1,ct_nw_proto=17,ct_tp_src=1", "ct_nw_dst=10.0.0.2"],
            codec.CtFlush(
                5, 17, codec.CtTuple(IPv4Address("10.0.0.1"), src_port=1),
                codec.CtTuple(dst=IPv4Address("10.0.0.2")),
            ),
        ),
    ],
)  # fmt: skip
def test_ct_flush_says_what_ofctl_says(
    ovs_dummy: OvsDummy, arguments: list[str], flush: codec.CtFlush
) -> None:
    """`ovs-ofctl ofp-print` reads our NXT_CT_FLUSH as the command that ovs-ofctl would send."""
    printed = ovs_dummy.run("ovs-ofctl", "ofp-print", codec.encode_ct_flush(flush, 2).hex())
    assert "NXT_CT_FLUSH" in printed
    for argument in arguments:
        for word in argument.split(","):
            assert word in printed, printed
