"""The tracer alone: what it finds, and that it refuses instead of guessing."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from msgspec.structs import replace

from dunlin.openflow.conntrack import Conntrack
from dunlin.openflow.flow import (
    Action,
    Bucket,
    Conjunction,
    Controller,
    Ct,
    CtClear,
    DecTtl,
    Flow,
    Group,
    Learn,
    LearnSpec,
    MeterAction,
    Move,
    Nat,
    Output,
    OutputReg,
    Resubmit,
    SetField,
    ToGroup,
    Unknown,
    match,
    set_field,
)
from dunlin.openflow.packet import packet
from dunlin.openflow.render import Names
from dunlin.openflow.trace import CannotTrace, Tracer

A, B, VIP = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), IPv4Address("10.96.0.1")
IP = {"eth_type": 0x800}
UDP = packet(in_port=1, **IP, nw_proto=17, nw_src=A, nw_dst=VIP, nw_ttl=64, udp_src=999, udp_dst=80)
BACK = packet(
    in_port=2, **IP, nw_proto=17, nw_src=B, nw_dst=A, nw_ttl=64, udp_src=8080, udp_dst=999
)


def ports(
    actions: tuple[Action, ...], *more: Flow, groups: tuple[Group, ...] = ()
) -> tuple[int, ...]:
    """Where a packet leaves that meets these actions first."""
    return Tracer([Flow(0, 1, (), actions), *more], groups).trace(UDP).ports


def test_priority_goto_and_resubmit() -> None:
    """The highest priority wins; goto_table goes on with what was set, resubmit comes back."""
    flows = [
        Flow(0, 1, (), (Output(9),)),
        Flow(0, 5, match(**IP), (SetField("reg0", 7), Resubmit(5), Output(3)), goto=2),
        Flow(5, 1, match(reg0=7), (SetField("reg1", 0x12, 0xFF), Output(2))),
        Flow(2, 1, match(reg1=(0x10, 0xF0)), (Output(4),)),
    ]
    trace = Tracer(flows).trace(UDP)
    assert trace.ports == (2, 3, 4)
    assert trace.flows == (flows[1], flows[2], flows[3])
    assert "ServiceLB: cookie" in trace.text(Names({5: "ServiceLB"}))
    assert trace.text().endswith("-> 2, 3, 4\n")
    assert Tracer(flows).trace(packet(in_port=1, eth_type=0x806)).ports == (9,)


def test_no_flow_is_a_drop() -> None:
    """A table without a matching flow drops, and says in which table."""
    trace = Tracer([Flow(0, 1, match(in_port=1), goto=3)]).trace(UDP)
    assert trace.dropped
    assert trace.steps[-1].table == 3
    assert "drop" in trace.steps[-1].why


def test_ports() -> None:
    """Never back to the ingress port, but for IN_PORT; a port may come from a register."""
    assert ports((Output(1), Output(2))) == (2,)
    assert ports((Output(0xFFFFFFF8),)) == (1,)
    assert ports((SetField("reg5", 6), OutputReg("reg5"))) == (6,)
    assert ports((SetField("reg5", 0xFFF8), OutputReg("reg5"))) == (1,)


def test_fields_move_and_overlap() -> None:
    """A move copies whole fields; an xxreg is its four registers."""
    actions = (
        SetField("xxreg0", 0x1_00000002_00000003_00000004),
        Move("reg3", "reg8"),
        Move("nw_src", "reg9"),
        set_field("nw_dst", B),
        DecTtl(),
        Output(2),
    )
    (left,) = Tracer([Flow(0, 1, match(**IP), actions)]).trace(UDP).left
    assert [left.packet[f"reg{i}"] for i in (0, 1, 2, 3, 8)] == [1, 2, 3, 4, 4]
    assert (left.packet["reg9"], left.packet["nw_dst"], left.packet["nw_ttl"]) == (
        int(A),
        int(B),
        63,
    )
    assert "reg0" not in UDP


def test_ttl_runs_out() -> None:
    """A packet with TTL 1 goes no further, in no table."""
    flows = [Flow(0, 1, match(**IP), (DecTtl(), Output(2)), goto=1), Flow(1, 1, (), (Output(3),))]
    assert Tracer(flows).trace({**UDP, "nw_ttl": 1}).dropped
    assert Tracer(flows).trace(UDP).ports == (2, 3)


BUCKETS = (
    Bucket(1, (SetField("reg0", 5), Output(2))),
    Bucket(2, (SetField("reg1", 5), Output(3)), 0),
    Bucket(3, (Output(4),)),
)
LATER = Flow(1, 1, match(reg0=5), (Output(9),))


def test_select_groups() -> None:
    """All ways or a chosen one; no bucket without weight; what a bucket sets is gone after."""
    tracer = Tracer([Flow(0, 1, (), (ToGroup(1), Resubmit(1))), LATER], [Group(1, buckets=BUCKETS)])
    assert [trace.ports for trace in tracer.trace_all(UDP)] == [(2,), (4,)]
    assert [trace.buckets for trace in tracer.trace_all(UDP)] == [((1, 1),), ((1, 3),)]
    assert tracer.trace(UDP).ports == (2,)
    assert tracer.trace(UDP, choose=lambda _g, buckets, _p: buckets[-1]).ports == (4,)


def test_nested_select_groups() -> None:
    """Two levels: every way through both."""
    inner = [
        Group(10 + i, buckets=tuple(Bucket(j, (Output(10 * i + j),)) for j in (2, 3)))
        for i in (1, 2)
    ]
    outer = Group(1, buckets=tuple(Bucket(i, (ToGroup(10 + i),)) for i in (1, 2)))
    tracer = Tracer([Flow(0, 1, (), (ToGroup(1),))], [outer, *inner])
    assert sorted(trace.ports for trace in tracer.trace_all(UDP)) == [(12,), (13,), (22,), (23,)]


def test_other_groups() -> None:
    """Type all takes every bucket, each with a packet of its own; a group may be empty."""
    assert ports((ToGroup(1),), groups=(Group(1, "all", BUCKETS),)) == (2, 3, 4)
    assert ports((ToGroup(1),), groups=(Group(1, "indirect", BUCKETS[:1]),)) == (2,)
    assert ports((ToGroup(1), Output(7)), groups=(Group(1),)) == (7,)


NAT = Nat("dst", B, port_min=8080)
SERVICE = [
    Flow(0, 1, match(**IP), (Ct(7, table=1, nat=Nat()),)),
    # By its mark: one-way UDP is new and yet translated.
    Flow(1, 9, match(ct_state="+trk", ct_mark=5), goto=2),
    Flow(
        1, 5, match(**IP, ct_state="+trk+new", nw_dst=VIP),
        (Ct(7, commit=True, table=2, nat=NAT, exec=(SetField("ct_mark", 5),)),),
    ),
    Flow(2, 5, match(nw_dst=B, **IP), (Output(2),)),
    Flow(2, 5, match(nw_dst=A, **IP), (Output(1), Output(7))),
]  # fmt: skip


def test_a_connection_through_nat() -> None:
    """Translated there and back, with its mark; the conntrack given stays as it was."""
    tracer, empty = Tracer(SERVICE), Conntrack()
    first = tracer.trace(UDP, empty)
    (left,) = first.left
    assert (left.port, left.packet["nw_dst"], left.packet["udp_dst"]) == (2, int(B), 8080)
    assert (left.packet["ct_mark"], left.packet["ct_nw_dst"]) == (5, int(VIP))
    assert empty.connections == ()
    again = tracer.trace(UDP, first.conntrack)
    assert again.ports == (2,)
    assert "+new" in again.steps[1].why, "one-way UDP stays new"
    back = tracer.trace(BACK, again.conntrack)
    (left, _) = back.left
    assert (left.port, left.packet["nw_src"], left.packet["udp_src"]) == (1, int(VIP), 80)
    established = tracer.trace(UDP, back.conntrack)
    assert established.ports == (2,)
    assert "+est" in established.steps[1].why
    assert SERVICE[1] in established.flows
    stranger = tracer.trace({**BACK, "udp_src": 1}, back.conntrack)
    assert stranger.dropped


def test_flushed_and_forced_connections() -> None:
    """After a flush a connection is new again; ct(force) of an answer makes it the originator."""
    tracer = Tracer(SERVICE)
    conntrack = tracer.trace(BACK, tracer.trace(UDP).conntrack).conntrack
    conntrack.flush(lambda connection: connection.reply.src == int(B))
    assert conntrack.connections == ()
    force = Tracer([Flow(0, 1, match(**IP), (Ct(7, commit=True, force=True, table=1),))])
    conntrack = tracer.trace(UDP).conntrack
    forced = force.trace(BACK, conntrack).conntrack
    assert [connection.orig.src for connection in forced.connections] == [int(B)]


def test_source_nat_finds_a_free_port() -> None:
    """A source port stays if it can; the second connection that wants the same one gets another."""
    flow = Flow(
        0, 1, match(**IP), (Ct(1, commit=True, table=1, nat=Nat("src", IPv4Address("10.9.9.9"))),)
    )
    tracer = Tracer([flow, Flow(1, 1, (), (Output(5),))])
    first = tracer.trace(UDP)
    second = tracer.trace({**UDP, "nw_src": int(B)}, first.conntrack)
    assert first.left[0].packet["udp_src"] == 999
    assert second.left[0].packet["udp_src"] == 1024
    narrow = Nat("src", IPv4Address("10.9.9.9"), port_min=5, port_max=5)
    tracer = Tracer([Flow(0, 1, match(**IP), (Ct(1, commit=True, nat=narrow),))])
    with pytest.raises(CannotTrace, match="every port is taken"):
        tracer.trace({**UDP, "nw_src": int(B)}, tracer.trace(UDP).conntrack)


def test_source_nat_without_an_address_keeps_it() -> None:
    """Only its port changes, where another connection has the same reply."""
    own = Ct(7, commit=True, table=1, nat=Nat("src"))
    direct = Tracer([Flow(0, 1, match(**IP), (own,)), Flow(1, 1, (), (Output(5),))])
    straight = {**UDP, "nw_dst": int(B), "udp_dst": 8080}
    (left,) = direct.trace(straight).left
    assert left.packet == {**left.packet, "nw_src": UDP["nw_src"], "udp_src": 999}
    taken = Tracer(SERVICE).trace(UDP).conntrack
    (left,) = direct.trace(straight, taken).left
    assert left.packet == {**left.packet, "nw_src": UDP["nw_src"], "udp_src": 1024}


def test_zones_are_apart_and_ct_clear_forgets() -> None:
    """A connection of one zone is none in another; after ct_clear a packet is untracked."""
    commit = Tracer([Flow(0, 1, match(**IP), (Ct(1, commit=True),))])
    conntrack = commit.trace(BACK, commit.trace(UDP).conntrack).conntrack
    for zone, port in ((1, 3), (2, 2)):
        flows = [
            Flow(0, 1, match(**IP), (Ct(zone, table=1),)),
            Flow(1, 1, match(ct_state="+trk+new"), (Output(2),)),
            Flow(1, 1, match(ct_state="+trk+rpl"), (CtClear(), Resubmit(2))),
            Flow(2, 1, match(ct_state="-trk"), (Output(3),)),
        ]
        answer = packet(in_port=9, **IP, nw_proto=17, nw_src=VIP, nw_dst=A, udp_src=80, udp_dst=999)
        assert Tracer(flows).trace(answer, conntrack).ports == (port,)


def test_ipv6_and_icmp() -> None:
    """Connections of IPv6, and echo requests with their replies."""
    flows = [
        Flow(0, 1, match(eth_type=0x86DD), (Ct(1, table=1),)),
        Flow(1, 1, match(ct_state="+trk+est"), (Output(2),)),
        Flow(1, 1, match(ct_state="+trk+new", eth_type=0x86DD), (Ct(1, commit=True), Output(3))),
    ]
    here, there = IPv6Address("fd00::1"), IPv6Address("fd00::2")
    v6 = {"eth_type": 0x86DD, "nw_proto": 58}
    ask = packet(in_port=1, **v6, ipv6_src=here, ipv6_dst=there, icmpv6_type=128)
    reply = packet(in_port=1, **v6, ipv6_src=there, ipv6_dst=here, icmpv6_type=129)
    first = Tracer(flows).trace(ask)
    assert first.ports == (3,)
    assert Tracer(flows).trace(reply, first.conntrack).ports == (2,)
    with pytest.raises(CannotTrace, match="ICMP error"):
        Tracer(flows).trace({**ask, "icmpv6_type": 1}, first.conntrack)


POLICY = [
    Flow(0, 5, match(**IP, nw_src=IPv4Network("10.0.0.0/24")), (Conjunction(7, 1, 2),)),
    Flow(0, 5, match(**IP, nw_proto=17, udp_dst=80), (Conjunction(7, 2, 2),)),
    Flow(0, 5, match(conj_id=7), (Output(2),)),
    Flow(0, 3, match(**IP), (Output(3),)),
]


def test_conjunctions() -> None:
    """All clauses: the conj_id's flow; one missing: the next priority; hard flows above win."""
    assert Tracer(POLICY).trace(UDP).ports == (2,)
    assert Tracer(POLICY).trace({**UDP, "udp_dst": 81}).ports == (3,)
    assert Tracer(POLICY).trace({**UDP, "nw_src": 1}).ports == (3,)
    above = Flow(0, 6, match(**IP), (Output(4),))
    assert Tracer([*POLICY, above]).trace(UDP).ports == (4,)
    with pytest.raises(CannotTrace, match="of one priority match"):
        Tracer([*POLICY, Flow(0, 5, match(**IP), (Output(4),))]).trace(UDP)


def test_learned_flows() -> None:
    """learn() makes a flow for the packets after this one, and replaces the one of its key."""
    specs = (
        LearnSpec("match", "eth_type", 16, value=0x800),
        LearnSpec("match", "nw_src", 32, "nw_src"),
        LearnSpec("load", "reg1", 16, "udp_dst"),
    )
    flows = [
        Flow(
            0, 1, match(**IP, nw_proto=17), (Resubmit(5), Learn(5, 9, 0x77, specs, 10), Output(2))
        ),
        Flow(5, 1, (), ()),
    ]
    first = Tracer(flows).trace(UDP)
    assert first.learned == (
        Flow(
            5, 9, match(**IP, nw_src=A), (SetField("reg1", 80, 0xFFFF),), cookie=0x77,
            idle_timeout_s=10
        ),
    )  # fmt: skip
    second = Tracer(flows).trace(UDP, learned=first.learned)
    assert first.learned[0] in second.flows
    assert len(second.learned) == 1


def test_to_the_controller() -> None:
    """A packet for the controller leaves with its userdata."""
    (left,) = Tracer([Flow(0, 1, (), (Controller(userdata=b"x"),))]).trace(UDP).left
    assert (left.port, left.userdata) == (0xFFFFFFFD, b"x")


def test_a_meter_lets_one_packet_through() -> None:
    """What it drops depends on other packets, of which a tracer knows nothing; it is shown."""
    trace = Tracer([Flow(0, 1, (), (MeterAction(7), Output(2)))]).trace(UDP)
    assert trace.ports == (2,)
    assert "meter:7" in [step.why for step in trace.steps]


@pytest.mark.parametrize(
    ("actions", "words"),
    [
        ((Unknown("action", b"12345678"),), "Unknown"),
        ((SetField("ct_mark", 1),), "ct_mark is set"),
        ((SetField("no_such", 1),), "not one of ours"),
        ((Move("reg0", "oxm_8000_1_1"),), "not one of ours"),
        ((Output(0xFFFFFFFB),), "reserved port"),
        ((ToGroup(404),), "missing"),
        ((ToGroup(1),), "more than one end"),
        ((ToGroup(2),), "fast_failover"),
        ((Ct(1, table=5), Output(1)), "more after ct"),
        ((Ct(1, commit=True, exec=(SetField("reg0", 1),)),), r"in ct\(\)"),
        ((Ct(1, commit=True, nat=Nat("dst")),), "without address"),
        ((Resubmit(0),), "deeper than"),
        ((Conjunction(1, 1, 2), Output(1)), "beside"),
    ],
)
def test_what_it_does_not_know_it_refuses(actions: tuple[Action, ...], words: str) -> None:
    """Every action, form or port without a known outcome raises instead of being skipped."""
    groups = (
        Group(1, buckets=(Bucket(1, (Output(1), Output(2))),)),
        Group(2, "fast_failover", BUCKETS),
    )
    with pytest.raises(CannotTrace, match=words):
        Tracer([Flow(0, 1, (), actions)], groups).trace(UDP)


def test_undefined_programs_are_refused() -> None:
    """Two flows of one priority match and differ, one key or group twice, an unknown field."""
    two = [Flow(0, 1, match(in_port=1)), Flow(0, 1, match(**IP), (set_field("reg0", 1),))]
    with pytest.raises(CannotTrace, match="one priority"):
        Tracer(two).trace(UDP)
    with pytest.raises(CannotTrace, match="one priority"):
        Tracer([replace(two[0], actions=(set_field("reg0", 2),)), two[1]]).trace(UDP)
    assert Tracer([replace(two[0], actions=two[1].actions), two[1]]).trace(UDP).dropped
    assert Tracer(two).trace({**UDP, "in_port": 2}).dropped
    with pytest.raises(CannotTrace, match="the key"):
        Tracer([two[0], two[0]])
    with pytest.raises(CannotTrace, match="the id"):
        Tracer([], [Group(1), Group(1)])
    with pytest.raises(CannotTrace, match="vlan"):
        packet(vlan=1)
    with pytest.raises(CannotTrace, match="not one of ours"):
        Tracer([Flow(0, 1, (match(reg0=1)[0].__class__("oxm_8000_6_2", 1),))]).trace(UDP)
    with pytest.raises(CannotTrace, match="no addresses"):
        Tracer([Flow(0, 1, (), (Ct(1, table=1),))]).trace(packet(in_port=1, eth_type=0x806))
