"""The codec on hostile and on arbitrary input: one kind of error, bounded work, no lost bits."""

import struct
from ipaddress import IPv4Address, IPv6Address

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.openflow import codec, wire_switch
from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import (
    Bucket,
    Conjunction,
    Controller,
    Ct,
    FieldMatch,
    Flow,
    Group,
    Move,
    Nat,
    Output,
    Resubmit,
    SetField,
    ToGroup,
    Unknown,
)
from dunlin.openflow.messages import (
    CannotEncode,
    FlowDump,
    GroupDump,
    GroupTooLarge,
    InstalledFlow,
    Message,
    OpenFlowError,
    Other,
)
from dunlin.openflow.wire_flow import decode_flow_mod
from dunlin.openflow.wire_group import decode_bundle_add, decode_group_mod
from tests.fixtures.openflow_samples import GROUPS, sample_flows

NUMBERS = st.integers(0, 2**32 - 1)
MASKED = [name for name in FIELDS if name.startswith(("reg", "ct_mark", "nw_src", "ipv6_dst"))]


@st.composite
def field_matches(draw: st.DrawFn, name: str) -> FieldMatch:
    """Any value of a field, with any mask where one is usual."""
    bits = FIELDS[name].bits
    value = draw(st.integers(0, 2**bits - 1))
    mask = draw(st.none() | st.integers(0, 2**bits - 1)) if name in MASKED else None
    return FieldMatch(name, value if mask is None else value & mask, mask)


# A match never has both a register and the xxreg that it is a part of.
names = st.sampled_from([name for name in sorted(FIELDS) if not name.startswith("xxreg")])
wide_names = st.sampled_from([name for name in sorted(FIELDS) if not name.startswith("reg")])
matches = (st.sets(names, max_size=8) | st.sets(wide_names, max_size=8)).flatmap(
    lambda names: st.tuples(*(field_matches(name) for name in sorted(names)))
)
set_fields = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.builds(SetField, st.just(name), st.integers(0, 2 ** FIELDS[name].bits - 1))
)
ports = st.integers(1, 65535)
nats = st.one_of(
    st.just(Nat()),
    st.builds(Nat, st.sampled_from(["src", "dst"]), st.ip_addresses(v=4), port_min=ports),
    st.builds(Nat, st.sampled_from(["src", "dst"]), st.ip_addresses(v=6), st.ip_addresses(v=6)),
)
cts = st.builds(
    Ct,
    st.integers(0, 65535),
    st.booleans(),
    st.booleans(),
    st.none() | st.integers(0, 254),
    st.none() | nats,
    st.lists(set_fields | st.just(Move("reg0", "ct_mark")), max_size=3).map(tuple),
)
actions = st.lists(
    st.one_of(
        st.builds(Output, NUMBERS.filter(lambda port: port != 0xFFFFFFFD)),
        st.builds(ToGroup, NUMBERS),
        set_fields,
        cts,
        st.builds(Resubmit, st.integers(0, 254)),
        st.builds(Conjunction, NUMBERS, st.integers(1, 64), st.integers(2, 64)),
        st.builds(Controller, st.integers(0, 65535), st.binary(max_size=40)),
        st.builds(
            Controller,
            st.integers(0, 65535),
            st.binary(min_size=1, max_size=40),
            st.integers(1, 2**32 - 1),
        ),
    ),
    max_size=6,
).map(tuple)
flows = st.builds(
    Flow,
    st.integers(0, 254),
    st.integers(0, 65535),
    matches,
    actions,
    st.none() | st.integers(0, 254),
    st.integers(0, 2**64 - 1),
    st.integers(0, 65535),
    st.integers(0, 65535),
)


@given(flows)
def test_a_flow_survives_its_bytes(flow: Flow) -> None:
    """Every flow that can be written is read back as its canonical self; that is a fixed point."""
    data = codec.encode_flow(flow, "add")
    assert data[2:4] == len(data).to_bytes(2, "big")
    assert len(data) % 8 == 0
    again = decode_flow_mod(data)[1]
    assert again == codec.canonical(flow)
    assert codec.canonical(again) == again


@given(st.lists(st.builds(Bucket, NUMBERS, actions, st.integers(0, 65535)), max_size=5))
def test_a_group_survives_its_bytes(buckets: list[Bucket]) -> None:
    """Every group that can be written is read back as its canonical self."""
    for kind in ("all", "select", "indirect"):
        group = Group(7, kind, tuple(buckets), "hash" if kind == "select" else "")
        command, again = decode_group_mod(codec.encode_group(group, "modify"))
        assert (command, again) == ("modify", codec.canonical_group(group))


def decode(data: bytes) -> Message | None:
    """None for what is refused as it should be."""
    try:
        return codec.decode(data)
    except OpenFlowError:
        return None


@given(st.integers(0, 40), st.binary(max_size=300))
@settings(max_examples=400)
def test_garbage_is_refused_by_one_error(kind: int, body: bytes) -> None:
    """Any bytes behind any header decode or raise OpenFlowError."""
    decode(struct.pack("!BBHI", 6, kind, 8 + len(body), 1) + body)


@given(st.integers(0, 18), st.binary(max_size=300))
@settings(max_examples=400)
def test_garbage_multipart_is_refused_by_one_error(kind: int, body: bytes) -> None:
    """The same for the parts of dumps and statistics."""
    decode(struct.pack("!BBHIHH4x", 6, 19, 16 + len(body), 1, kind, 0) + body)


def flow_desc(flow: Flow) -> bytes:
    """One flow as a dump has it."""
    message = codec.encode_flow(flow, "add")
    length = int.from_bytes(message[50:52], "big")
    end = 48 + (length + 7) // 8 * 8
    stats = bytes.fromhex("00000034 80020008") + bytes(8) + bytes.fromhex("80020208") + bytes(8)
    stats += bytes.fromhex("80020808") + bytes(8) + bytes.fromhex("80020a08") + bytes(12)
    body = message[48:end] + stats + message[end:]
    head = struct.pack("!HxxBxHHHHHQ", 24 + len(body), flow.table, flow.priority, 0, 0, 0, 0, 0)
    return head + body


DUMP = b"".join(map(flow_desc, sample_flows()))
VALID = [
    *(codec.encode_flow(flow, "add") for flow in sample_flows()),
    *(codec.encode_group(group, "add") for group in GROUPS.values()),
]


@given(st.data())
@settings(max_examples=400)
def test_damaged_dumps_are_refused_by_one_error(data: st.DataObject) -> None:
    """A valid dump with bytes overwritten anywhere, or cut off, decodes or raises OpenFlowError."""
    body = bytearray(DUMP[: data.draw(st.integers(0, len(DUMP)))])
    for _ in range(data.draw(st.integers(0, 4)) if body else 0):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    decode(struct.pack("!BBHIHH4x", 6, 19, 16 + len(body), 1, 1, 0) + body)


@given(st.data())
@settings(max_examples=400)
def test_damaged_modifications_are_refused_by_one_error(data: st.DataObject) -> None:
    """What the fake switch reads is as careful."""
    message = bytearray(data.draw(st.sampled_from(VALID)))
    for _ in range(data.draw(st.integers(1, 3))):
        message[data.draw(st.integers(8, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(8, len(message)))])
    for read in (decode_flow_mod, decode_group_mod, decode_bundle_add):
        try:
            read(cut)
        except OpenFlowError:
            continue


def test_length_zero_does_not_loop() -> None:
    """Entries, instructions and properties of length 0 are refused; ryu's readers loop for ever."""
    for kind in (1, 4, 6, 7, 13):
        data = struct.pack("!BBHIHH4x", 6, 19, 16 + 96, 1, kind, 0) + bytes(96)
        with pytest.raises(OpenFlowError):
            codec.decode(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes"),
        (b"\x06\x00\x00\x07\0\0\0\0", "7 bytes"),
        (b"\x04\x05\x00\x08\0\0\0\0", "wire version 4"),
        (b"\x06\x15\x00\x10\0\0\0\0", "8 bytes of a message that has 16"),
        (b"GET / HTTP/1.1\r\n", "wire version 71"),
    ],
)
def test_bad_headers_are_named(data: bytes, words: str) -> None:
    """What is no OpenFlow 1.5 says why."""
    with pytest.raises(OpenFlowError, match=words):
        codec.decode(data)


def test_unread_messages_are_other() -> None:
    """A well-formed message of a type that Dunlin does not read is no error."""
    assert codec.decode(b"\x06\x18\x00\x08\0\0\0\x09") == Other(9, 24)


@pytest.mark.parametrize(
    "flow",
    [
        Flow(0, 70000, ()),
        Flow(0, 1, (FieldMatch("nw_proto", 256),)),
        Flow(0, 1, (FieldMatch("no_such", 1),)),
        Flow(0, 1, (), (SetField("reg0", 2**32),)),
        Flow(0, 1, (), (Move("reg0", "eth_dst"),)),
        Flow(0, 1, (), (Output(-1),)),
        Flow(0, 1, (), tuple(SetField("reg0", i) for i in range(5000))),
    ],
)
def test_what_cannot_be_written_is_named(flow: Flow) -> None:
    """A value without bytes raises CannotEncode with the flow's key and cookie."""
    with pytest.raises(CannotEncode, match="cookie 0x0"):
        codec.encode_flow(flow, "add")


@pytest.mark.parametrize(
    "group",
    [
        Group(2**32),
        Group(1, "fanout"),
        Group(1, buckets=(Bucket(1, (), 70000),)),
        Group(1, buckets=(Bucket(1, (SetField("no_such", 1),)),)),
        Group(1, selection_method="longer than fifteen"),
    ],
)
def test_what_cannot_be_written_of_a_group_is_named(group: Group) -> None:
    """A group without bytes raises CannotEncode with its id."""
    with pytest.raises(CannotEncode, match=f"group {group.group_id:#x}: "):
        codec.encode_group(group, "add")


def test_large_group_is_refused() -> None:
    """A group beyond 64 KiB is GroupTooLarge; the largest that fits goes into a bundle."""
    action = (Ct(1, commit=True, table=3, nat=Nat("dst", IPv4Address("10.0.0.1"), port_min=80)),)
    buckets = tuple(Bucket(i, action) for i in range(1100))
    with pytest.raises(GroupTooLarge, match="1100 buckets"):
        codec.encode_group(Group(1, buckets=buckets), "add")
    most = codec.encode_group(Group(1, buckets=buckets[:1020]), "add")
    assert codec.encode_bundle_add(1, most, 5)


def test_unknown_action_keeps_its_bytes() -> None:
    """What has no word is one Unknown that is written back as it came."""
    note = struct.pack("!HHIH6s", 0xFFFF, 16, 0x2320, 8, b"hello!")
    flow = Flow(0, 1, (), (Unknown("action", note), Output(1)))
    data = codec.encode_flow(flow, "add")
    assert decode_flow_mod(data)[1] == flow
    assert note in data


def test_nat_with_both_families_is_unknown() -> None:
    """A nat() that `Nat` cannot say keeps the whole ct() unknown instead of half known."""
    good = codec.encode_flow(
        Flow(0, 1, (), (Ct(1, commit=True, nat=Nat("dst", IPv6Address("::1"))),)), "add"
    )
    bad = good.replace(bytes.fromhex("0024000000020004"), bytes.fromhex("0024000000020044"))
    assert bad != good
    (action,) = decode_flow_mod(bad)[1].actions
    assert isinstance(action, Unknown)


def test_what_was_decoded_once_is_not_decoded_again() -> None:
    """A hundred switches hold the same flows: one value for all, with counters of each."""
    flow = Flow(3, 7, (), (Output(1),), cookie=9, idle_timeout_s=5)
    group = Group(4, buckets=(Bucket(1, (Output(2),)),))
    entries = [InstalledFlow(flow, packets, packets * 100, 1.0, flags=1) for packets in (1, 2)]
    parts = [wire_switch.multipart(1, 1, [wire_switch.flow_desc(one)]) for one in entries]
    first, second = (codec.decode(part[0]) for part in parts)
    assert isinstance(first, FlowDump)
    assert isinstance(second, FlowDump)
    assert [*first.entries, *second.entries] == entries
    assert first.entries[0].flow is second.entries[0].flow
    (data,) = wire_switch.multipart(1, 7, [wire_switch.group_desc(group)])
    dumps = [codec.decode(data) for _ in range(2)]
    assert all(isinstance(one, GroupDump) for one in dumps)
    assert dumps[0].groups[0] is dumps[1].groups[0]  # type: ignore[union-attr]
    other = wire_switch.flow_desc(InstalledFlow(msgspec.structs.replace(flow, cookie=10)))
    changed = codec.decode(wire_switch.multipart(1, 1, [other])[0])
    assert isinstance(changed, FlowDump)
    assert changed.entries[0].flow.cookie == 10
