"""Flows as people read them."""

from ipaddress import IPv4Address

from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import CookieIndex, cookie_of
from dunlin.openflow.flow import (
    Bucket,
    Ct,
    Flow,
    Group,
    Nat,
    Output,
    Program,
    Resubmit,
    SetField,
    ToGroup,
    Unknown,
    match,
)
from dunlin.openflow.render import Names, flow_text, program_text

SERVICE = IntentId("node-1/service/shop/backend")


def test_names_of_tables_and_intents() -> None:
    """Table names and the intent of a cookie replace numbers; what is unknown keeps its bits."""
    index = CookieIndex([SERVICE])
    names = Names({0: "Classifier", 5: "ServiceLB", 9: "Output"}, index)
    fields = match(
        eth_type=0x800, nw_proto=6, nw_dst=IPv4Address("10.96.0.1"), tcp_dst=80, ct_state="+trk+new"
    )
    actions = (
        SetField("reg1", 1, 0xFF),
        Ct(7, commit=True, table=9, nat=Nat("dst", IPv4Address("10.0.0.1"), port_min=80)),
    )
    assert flow_text(Flow(5, 100, fields, actions, cookie=cookie_of(SERVICE)), names) == (
        f"cookie={SERVICE}, table=ServiceLB,priority=100,tcp,nw_dst=10.96.0.1,tcp_dst=80,"
        "ct_state=+new+trk actions=set_field:0x1/0xff->reg1,"
        "ct(commit,table=Output,zone=7,nat(dst=10.0.0.1:80))"
    )
    index.discard(SERVICE)
    assert flow_text(Flow(0, 1, (), (), 5, cookie_of(SERVICE)), names) == (
        f"cookie=service:{cookie_of(SERVICE):#x}, table=Classifier,priority=1 "
        "actions=goto_table:ServiceLB"
    )
    assert (
        flow_text(Flow(7, 1, (), cookie=5), names) == "cookie=0x5, table=7,priority=1 actions=drop"
    )


def test_a_program_is_sorted() -> None:
    """Groups by id, flows by table and falling priority, whatever order they came in."""
    flows = (
        Flow(2, 1, (), (Output(1),)),
        Flow(0, 1, (), (ToGroup(1),)),
        Flow(0, 9, match(in_port=0xFFFFFFFE), (Resubmit(2), Unknown("action", b"\xff"))),
    )
    groups = (
        Group(2, "indirect", (Bucket(0, (Output(0xFFFFFFF8),)),)),
        Group(1, buckets=(Bucket(3, (Output(4),), 7),), selection_method="hash"),
    )
    text = program_text(Program(flows, groups))
    assert text.splitlines() == [
        "group_id=1,type=select,selection_method=hash,bucket=bucket_id:3,weight:7,actions=output:4",
        "group_id=2,type=indirect,bucket=bucket_id:0,actions=IN_PORT",
        "cookie=0x0, table=0,priority=9,in_port=LOCAL actions=resubmit(,2),unknown_action(ff)",
        "cookie=0x0, table=0,priority=1 actions=group:1",
        "cookie=0x0, table=2,priority=1 actions=output:1",
    ]
    assert program_text(Program(flows[::-1], groups[::-1])) == text
