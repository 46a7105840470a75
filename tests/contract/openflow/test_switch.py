"""
One suite on every switch there is: FakeSwitch, in memory, and real Open vSwitch, both over bytes.

What FakeSwitch holds, refuses and says is what OVS holds, refuses and says: the same tests pass on
both.
"""

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from dunlin.openflow import codec
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.flow import (
    Bucket,
    Ct,
    Flow,
    Group,
    Meter,
    MeterAction,
    Move,
    Output,
    SetField,
    ToGroup,
    match,
    set_field,
)
from dunlin.openflow.messages import (
    AggregateStats,
    BundleReply,
    ErrorMessage,
    FlowDump,
    Message,
    MeterDump,
    MeterStats,
)
from tests.contract.openflow.asking import Session, add_groups, errors, flows_of, groups_of
from tests.fixtures.openflow_samples import GROUPS, MAC, sample_flows
from tests.fixtures.ovs_dummy import OvsDummy


class InMemory:
    """A session with FakeSwitch."""

    def __init__(self) -> None:
        self._session = FakeSession(FakeSwitch())
        self._session.receive(codec.encode_hello(1))

    def ask(self, *requests: bytes) -> list[Message]:
        """Answers are decoded as a controller decodes them; no barrier is needed."""
        return [codec.decode(answer) for answer in self._session.receive(b"".join(requests))]


@pytest.fixture(params=["fake", pytest.param("ovs", marks=pytest.mark.ovs)])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """An empty switch."""
    if request.param == "fake":
        yield InMemory()
        return
    ovs: OvsDummy = request.getfixturevalue("ovs_dummy")
    with ovs.bridge(ports=4) as bridge, bridge.session() as real:
        yield real


@pytest.mark.parametrize("flow", sample_flows(), ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_flow_comes_back_equal(session: Session, flow: Flow) -> None:
    """Every match field and every action is accepted by OVS and dumped as the same value."""
    add_groups(session)
    answers = session.ask(codec.encode_flow(flow, "add"))
    assert not answers, answers
    assert flows_of(session) == {codec.canonical(flow)}
    assert not session.ask(codec.encode_flow(flow, "delete_strict"))
    assert flows_of(session) == set()


def test_groups_come_back_equal(session: Session) -> None:
    """Groups of every type are dumped as the same values."""
    add_groups(session)
    assert groups_of(session) == {
        group.group_id: codec.canonical_group(group) for group in GROUPS.values()
    }


def test_all_flows_in_one_bundle(session: Session) -> None:
    """A bundle of all sample groups and flows is applied as a whole."""
    flows = sample_flows()
    messages = [codec.encode_group(group, "add") for group in GROUPS.values()]
    messages += [codec.encode_flow(flow, "add") for flow in flows]
    bundled = [codec.encode_bundle_add(9, message, 100 + i) for i, message in enumerate(messages)]
    answers = session.ask(
        codec.encode_bundle_open(9, 5), *bundled, codec.encode_bundle_commit(9, 6)
    )
    assert answers == [BundleReply(5, 9, "open"), BundleReply(6, 9, "commit")]
    assert flows_of(session) == {codec.canonical(flow) for flow in flows}
    # The same in many parts: a dump of more than 64 KiB says `more`.
    more = [
        replace(flow, table=10 * step + flow.table)
        for flow in flows
        if flow.table in (1, 2)
        for step in range(1, 11)
    ]
    session.ask(*(codec.encode_flow(flow, "add") for flow in more))
    assert flows_of(session) == {codec.canonical(flow) for flow in flows + more}


def test_refused_bundle_changes_nothing(session: Session) -> None:
    """A flow that names a missing group fails the bundle, by name and xid; nothing is applied."""
    good = Flow(0, 1, (), (Output(1),))
    bad = Flow(0, 2, (), (ToGroup(404),))
    answers = session.ask(
        codec.encode_bundle_open(1, 5),
        codec.encode_bundle_add(1, codec.encode_flow(good, "add"), 11),
        codec.encode_bundle_add(1, codec.encode_flow(bad, "add"), 12),
        codec.encode_bundle_commit(1, 6),
    )
    assert [(e.xid, e.name) for e in errors(answers)] == [
        (12, "OFPBAC_BAD_OUT_GROUP"),
        (6, "OFPBFC_MSG_FAILED"),
    ]
    assert flows_of(session) == set()


def test_deleting_a_group_deletes_its_flows(session: Session) -> None:
    """A group takes its flows along; deleting one that is not there is no error."""
    group = Group(1, buckets=(Bucket(1, (Output(1),)),))
    session.ask(
        codec.encode_group(group, "add"),
        codec.encode_flow(Flow(0, 1, (), (ToGroup(1),)), "add"),
        codec.encode_flow(Flow(0, 2, (), (Output(1),)), "add"),
    )
    assert not session.ask(codec.encode_group(group, "delete"))
    assert flows_of(session) == {Flow(0, 2, (), (Output(1),))}
    assert not session.ask(codec.encode_group(group, "delete"))
    assert not session.ask(codec.encode_group_delete_all())


def test_delete_and_dump_by_cookie(session: Session) -> None:
    """Cookie and mask choose flows in dumps, aggregates and deletions; a table narrows them."""
    ours = [Flow(t, 1, (), (Output(1),), cookie=0xD1 << 56 | t) for t in range(3)]
    foreign = Flow(0, 2, (), (Output(1),), cookie=5)
    mask = 0xFF << 56
    session.ask(*(codec.encode_flow(flow, "add") for flow in [*ours, foreign]))
    (dump,) = session.ask(codec.encode_flow_dump_request(1, 0xD1 << 56, mask, table=1))
    assert isinstance(dump, FlowDump)
    assert [entry.flow for entry in dump.entries] == [ours[1]]
    (total,) = session.ask(codec.encode_aggregate_request(2, 0xD1 << 56, mask))
    assert isinstance(total, AggregateStats)
    assert total.flows == 3
    session.ask(codec.encode_flow_delete(0xD1 << 56, mask, table=2))
    assert flows_of(session) == {ours[0], ours[1], foreign}
    session.ask(codec.encode_flow_delete(0xD1 << 56, mask))
    assert flows_of(session) == {foreign}


def test_stale_master_is_refused(session: Session) -> None:
    """An older generation id is an error with its name."""
    answers = session.ask(
        codec.encode_role_request("master", 7, 4), codec.encode_role_request("master", 6, 5)
    )
    assert [error.name for error in errors(answers)] == ["OFPRRFC_STALE"]


IP = {"eth_type": 0x800}
BUCKET = (Bucket(1, (Output(1),)),)
GROUP = Group(1, buckets=BUCKET)
TO_GROUP = Flow(0, 1, (), (ToGroup(1),))
REFUSALS = {
    "missing_group": ([codec.encode_flow(TO_GROUP, "add")], "OFPBAC_BAD_OUT_GROUP"),
    "modify_to_missing_group": (
        [
            codec.encode_flow(Flow(0, 1, (), (Output(1),)), "add"),
            codec.encode_flow(TO_GROUP, "modify_strict"),
        ],
        "OFPBAC_BAD_OUT_GROUP",
    ),
    "group_twice": ([codec.encode_group(GROUP, "add")] * 2, "OFPGMFC_GROUP_EXISTS"),
    "modify_missing_group": ([codec.encode_group(GROUP, "modify")], "OFPGMFC_UNKNOWN_GROUP"),
    "reserved_group": (
        [codec.encode_group(Group(0xFFFFFFFB, buckets=BUCKET), "add")],
        "OFPGMFC_INVALID_GROUP",
    ),
    "bucket_id_twice": (
        [codec.encode_group(Group(1, buckets=BUCKET * 2), "add")],
        "OFPGMFC_BAD_BUCKET",
    ),
    "indirect_of_two": (
        [codec.encode_group(Group(1, "indirect", (*BUCKET, Bucket(2, ()))), "add")],
        "OFPGMFC_INVALID_GROUP",
    ),
    "no_eth_type": (
        [codec.encode_flow(Flow(0, 1, match(nw_proto=6)), "add")],
        "OFPBMC_BAD_PREREQ",
    ),
    "no_protocol": (
        [codec.encode_flow(Flow(0, 1, match(**IP, tcp_dst=80)), "add")],
        "OFPBMC_BAD_PREREQ",
    ),
    "no_connection": (
        [codec.encode_flow(Flow(0, 1, match(**IP, ct_state="+trk", ct_nw_proto=6)), "add")],
        "OFPBMC_BAD_PREREQ",
    ),
    "wrong_family": (
        [codec.encode_flow(Flow(0, 1, match(eth_type=0x86DD, nw_src=1)), "add")],
        "OFPBMC_BAD_PREREQ",
    ),
    "set_without_prerequisite": (
        [codec.encode_flow(Flow(0, 1, (), (set_field("nw_src", 1),)), "add")],
        "OFPBAC_MATCH_INCONSISTENT",
    ),
    "move_without_prerequisite": (
        [codec.encode_flow(Flow(0, 1, (), (Move("nw_src", "reg0"),)), "add")],
        "OFPBAC_MATCH_INCONSISTENT",
    ),
    "advertise_in_one_table": (
        [
            codec.encode_flow(
                Flow(
                    0,
                    1,
                    match(eth_type=0x86DD, nw_proto=58, icmpv6_type=135),
                    (set_field("icmpv6_type", 136), set_field("nd_tll", MAC)),
                ),
                "add",
            )
        ],
        "OFPBAC_MATCH_INCONSISTENT",
    ),
    "mark_outside_of_ct": (
        [codec.encode_flow(Flow(0, 1, match(**IP), (SetField("ct_mark", 1),)), "add")],
        "OFPBAC_BAD_SET_ARGUMENT",
    ),
    "move_mark_outside_of_ct": (
        [codec.encode_flow(Flow(0, 1, match(**IP), (Move("reg0", "ct_mark"),)), "add")],
        "OFPBAC_BAD_SET_ARGUMENT",
    ),
    "ct_without_ip": (
        [codec.encode_flow(Flow(0, 1, (), (Ct(1, commit=True),)), "add")],
        "OFPBAC_MATCH_INCONSISTENT",
    ),
    "goto_itself": ([codec.encode_flow(Flow(5, 1, (), goto=5), "add")], "OFPBIC_BAD_TABLE_ID"),
    "table_255": ([codec.encode_flow(Flow(255, 1, ()), "add")], "OFPFMFC_BAD_TABLE_ID"),
    "no_such_bundle": ([codec.encode_bundle_commit(7, 3)], "OFPBFC_BAD_ID"),
    "discard_no_such_bundle": ([codec.encode_bundle_discard(7, 3)], "OFPBFC_BAD_ID"),
    "bundle_twice": (
        [codec.encode_bundle_open(7, 3), codec.encode_bundle_open(7, 4)],
        "OFPBFC_BAD_ID",
    ),
    "bundled_xid": (
        [
            codec.encode_bundle_open(7, 3),
            codec.encode_bundle_add(7, codec.encode_flow(Flow(0, 1, ()), "add"), 4)[:-52]
            + b"\0\0\0\x09"
            + codec.encode_bundle_add(7, codec.encode_flow(Flow(0, 1, ()), "add"), 4)[-48:],
        ],
        "OFPBFC_MSG_BAD_XID",
    ),
    "unknown_type": ([b"\x06\x63\x00\x08\0\0\0\x05"], "OFPBRC_BAD_TYPE"),
    "unknown_multipart": (
        [b"\x06\x12\x00\x10\0\0\0\x05\x00\x77" + bytes(6)],
        "OFPBRC_BAD_MULTIPART",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(session: Session, name: str) -> None:
    """The last request is refused by this one error; what came before is not."""
    requests, error = REFUSALS[name]
    found = errors(session.ask(*requests))
    assert [one.name for one in found] == [error]
    assert found[0].xid == int.from_bytes(requests[-1][4:8], "big")
    assert requests[-1].startswith(found[0].data[:64])


def test_add_replaces_and_modify_does_not_add(session: Session) -> None:
    """Add replaces the flow of its key, cookie and all; modify_strict of none adds none."""
    first = Flow(0, 1, match(in_port=1), (Output(1),), cookie=1, idle_timeout_s=9)
    second = replace(first, actions=(Output(2),), cookie=2, idle_timeout_s=0)
    other = replace(first, priority=2)
    assert not session.ask(codec.encode_flow(first, "add"), codec.encode_flow(second, "add"))
    assert flows_of(session) == {second}
    assert not session.ask(codec.encode_flow(other, "modify_strict"))
    assert flows_of(session) == {second}
    assert not session.ask(codec.encode_flow(first, "modify_strict"))
    # OpenFlow 1.1 and later: modify changes actions, neither time-outs nor cookie.
    assert flows_of(session) == {replace(second, actions=(Output(1),))}
    assert not session.ask(codec.encode_flow(other, "delete_strict"))
    assert not session.ask(codec.encode_flow(first, "delete_strict"))
    assert flows_of(session) == set()


def test_modify_a_group(session: Session) -> None:
    """A modified group has its new buckets only; its flows stay."""
    changed = Group(1, "all", (Bucket(5, (Output(2),)),))
    assert not session.ask(
        codec.encode_group(GROUP, "add"),
        codec.encode_flow(TO_GROUP, "add"),
        codec.encode_group(changed, "modify"),
    )
    assert groups_of(session) == {1: changed}
    assert flows_of(session) == {TO_GROUP}


def test_group_before_flow_and_flow_before_group_in_a_bundle(session: Session) -> None:
    """Order matters in a bundle: a group and then its flow is right, the reverse is refused."""
    for order, refused in (((0, 1), False), ((1, 0), True)):
        messages = [codec.encode_group(replace(GROUP, group_id=5 + order[0]), "add")]
        messages.append(
            codec.encode_flow(replace(TO_GROUP, actions=(ToGroup(5 + order[0]),)), "add")
        )
        bundled = [codec.encode_bundle_add(1, messages[i], 10 + i) for i in order]
        answers = session.ask(
            codec.encode_bundle_open(1, 1), *bundled, codec.encode_bundle_commit(1, 2)
        )
        assert bool(errors(answers)) is refused
    assert set(groups_of(session)) == {5}


def test_group_deleted_in_a_refused_bundle_is_there_again(session: Session) -> None:
    """All or nothing holds for deletions, if flows go before their group: both come back."""
    session.ask(codec.encode_group(GROUP, "add"), codec.encode_flow(TO_GROUP, "add"))
    answers = session.ask(
        codec.encode_bundle_open(1, 1),
        codec.encode_bundle_add(1, codec.encode_flow(TO_GROUP, "delete_strict"), 2),
        codec.encode_bundle_add(1, codec.encode_group(GROUP, "delete"), 3),
        codec.encode_bundle_add(1, codec.encode_flow(TO_GROUP, "add"), 4),
        codec.encode_bundle_commit(1, 5),
    )
    assert [one.name for one in errors(answers)] == ["OFPBAC_BAD_OUT_GROUP", "OFPBFC_MSG_FAILED"]
    assert groups_of(session) == {1: GROUP}
    assert flows_of(session) == {TO_GROUP}


def test_discarded_bundle_changes_nothing(session: Session) -> None:
    """A bundle is gone after discard; one that was refused is gone too."""
    answers = session.ask(
        codec.encode_bundle_open(1, 1),
        codec.encode_bundle_add(1, codec.encode_flow(Flow(0, 1, ()), "add"), 2),
        codec.encode_bundle_discard(1, 3),
        codec.encode_bundle_commit(1, 4),
    )
    assert [type(answer) for answer in answers] == [BundleReply, BundleReply, ErrorMessage]
    assert flows_of(session) == set()


def test_delete_by_match(session: Session) -> None:
    """A deletion takes every flow that matches no more than it says."""
    flows = [
        Flow(0, 1, match(**IP, nw_dst=IPv4Address("10.0.0.1")), (Output(1),)),
        Flow(0, 1, match(**IP, nw_dst=IPv4Network("10.0.0.0/24")), (Output(1),)),
        Flow(0, 1, match(**IP, nw_dst=IPv4Network("10.0.0.0/8")), (Output(1),)),
        Flow(1, 1, match(**IP), (Output(1),)),
        Flow(1, 1, match(reg1=1), (Output(1),)),
    ]
    session.ask(*(codec.encode_flow(flow, "add") for flow in flows))
    wide = match(**IP, nw_dst=IPv4Network("10.0.0.0/16"))
    assert not session.ask(codec.encode_flow_delete(0, 0, match=wide))
    assert flows_of(session) == set(flows[2:])


def test_meters(session: Session) -> None:
    """A meter is made once and changed then; each mistake has its name."""
    meter = Meter(3, 10, 20)
    unknown = session.ask(codec.encode_meter_mod("modify", meter, 1))
    assert [e.name for e in unknown if isinstance(e, ErrorMessage)] == ["OFPMMFC_UNKNOWN_METER"]
    assert not session.ask(codec.encode_meter_mod("add", meter, 2))
    again = session.ask(codec.encode_meter_mod("add", meter, 3))
    assert [e.name for e in again if isinstance(e, ErrorMessage)] == ["OFPMMFC_METER_EXISTS"]
    assert not session.ask(codec.encode_meter_mod("modify", Meter(3, 11, 21), 4))


def meters_of(session: Session) -> set[Meter]:
    """Those of a dump."""
    dumps = session.ask(codec.encode_meter_dump_request(9))
    assert all(isinstance(dump, MeterDump) and not dump.others for dump in dumps)
    return {meter for dump in dumps if isinstance(dump, MeterDump) for meter in dump.meters}


def test_meters_are_dumped_as_they_were_made(session: Session) -> None:
    """Both units, by ids up to those of Pods; each counts the flows that name it."""
    wanted = {Meter(1, 20, 20), Meter(0x10004, 20_000, 2_000, "kbps"), Meter(0x2FFFF, 1, 1, "kbps")}
    for meter in wanted:
        assert not session.ask(codec.encode_meter_mod("add", meter, 1))
    assert meters_of(session) == wanted
    flow = Flow(0, 5, match(in_port=1), (MeterAction(0x10004), Output(2)))
    assert not session.ask(codec.encode_flow(flow, "add"))
    assert flows_of(session) == {flow}
    (stats,) = session.ask(codec.encode_meter_stats_request(2))
    assert isinstance(stats, MeterStats)
    counted = {one.meter_id: (one.flows, one.dropped_packets) for one in stats.entries}
    assert counted == {1: (0, 0), 0x10004: (1, 0), 0x2FFFF: (0, 0)}


def test_a_meter_takes_its_flows_with_it(session: Session) -> None:
    """So it is deleted last; a flow that names a missing one is refused, by name."""
    flow = Flow(0, 5, match(in_port=1), (MeterAction(7), Output(2)))
    (refused,) = errors(session.ask(codec.encode_flow(flow, "add")))
    assert refused.name == "OFPMMFC_INVALID_METER"
    session.ask(codec.encode_meter_mod("add", Meter(7, 1000, 100, "kbps"), 1))
    assert not session.ask(codec.encode_flow(flow, "add"))
    assert not session.ask(codec.encode_meter_delete(7))
    assert flows_of(session) == set()
    assert meters_of(session) == set()
    assert not session.ask(codec.encode_meter_delete(7)), "what is not there is no mistake"
