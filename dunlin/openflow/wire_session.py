"""
What a switch says, from bytes: all messages but flows and groups, which have modules of their own.

Each function gets one whole message, its header already checked. Lists are read by their own
lengths, every length is checked, and every step goes forward: the work is bounded by the message's
64 KiB.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from dunlin.openflow.messages import (
    AggregateStats,
    BarrierReply,
    BundleReply,
    EchoReply,
    EchoRequest,
    ErrorMessage,
    FeaturesReply,
    FlowDump,
    GroupCounters,
    GroupDump,
    GroupStats,
    Hello,
    Message,
    MeterDump,
    MeterStats,
    OpenFlowError,
    Other,
    PacketIn,
    Port,
    PortCounters,
    PortDesc,
    PortStats,
    PortStatus,
    RoleReply,
    TableCounters,
    TableStats,
)
from dunlin.openflow.wire_fields import decode_match, decode_oxms
from dunlin.openflow.wire_flow import decode_flow_descs, read_oxs
from dunlin.openflow.wire_group import decode_group_descs, properties
from dunlin.openflow.wire_meter import decode_meter_configs, decode_meter_stats
from dunlin.openflow.wire_nat import NX_VENDOR

NXT_PACKET_IN2 = 30
_MULTIPART_BODY = 16
_MORE = 1
_ROLES = ("nochange", "equal", "master", "slave")
_BUNDLE_KINDS = {1: "open", 3: "close", 5: "commit", 7: "discard"}
_PORT_REASONS = ("add", "delete", "modify")
_PACKET_REASONS = (
    "table_miss", "apply_action", "invalid_ttl", "action_set", "group", "packet_out",
)  # fmt: skip
_FEATURES = struct.Struct("!QIBBxxII")
_ROLE = struct.Struct("!I4xQ")
_BUNDLE = struct.Struct("!IHH")
_PORT = struct.Struct("!IHxx6sxx16sII")
_PORT_STATS = struct.Struct("!HxxIIIQQQQQQQQ")
_TABLE_STATS = struct.Struct("!B3xIQQ")
_GROUP_STATS = struct.Struct("!HxxII4xQQII")
_PACKET_IN = struct.Struct("!IHBBQ")


def decode_hello(data: bytes, xid: int) -> Hello:
    """OFPT_HELLO of any version; without bitmap, all versions up to the header's."""
    for kind, element in properties(data[8:]):
        if kind == 1:
            words = [element[i : i + 4] for i in range(4, len(element) // 4 * 4, 4)]
            bits = sum(int.from_bytes(word, "big") << 32 * i for i, word in enumerate(words))
            return Hello(xid, frozenset(i for i in range(32 * len(words)) if bits >> i & 1))
    return Hello(xid, frozenset(range(1, data[0] + 1)))


def decode_error(data: bytes, xid: int, name_of: Callable[[int, int], str | None]) -> ErrorMessage:
    """OFPT_ERROR, also an experimenter's; `name_of` knows (type, code)."""
    if len(data) < 12:
        raise OpenFlowError(f"OFPT_ERROR of {len(data)} bytes")
    kind, code = struct.unpack_from("!HH", data, 8)
    if kind != 0xFFFF:
        return ErrorMessage(xid, kind, code, name_of(kind, code) or f"{kind}/{code}", data[12:])
    vendor = data[12:16]
    known = vendor == NX_VENDOR.to_bytes(4, "big")
    return ErrorMessage(xid, kind, code, f"{'NX' if known else vendor.hex()}/{code}", data[16:])


def decode_echo_request(data: bytes, xid: int) -> EchoRequest:
    """OFPT_ECHO_REQUEST."""
    return EchoRequest(xid, data[8:])


def decode_echo_reply(data: bytes, xid: int) -> EchoReply:
    """OFPT_ECHO_REPLY."""
    return EchoReply(xid, data[8:])


def decode_barrier_reply(_data: bytes, xid: int) -> BarrierReply:
    """OFPT_BARRIER_REPLY."""
    return BarrierReply(xid)


def decode_features_reply(data: bytes, xid: int) -> FeaturesReply:
    """OFPT_FEATURES_REPLY."""
    dpid, _, n_tables, auxiliary_id, capabilities, _ = _read(_FEATURES, data, 8)
    return FeaturesReply(xid, dpid, n_tables, capabilities, auxiliary_id)


def decode_role_reply(data: bytes, xid: int) -> RoleReply:
    """OFPT_ROLE_REPLY."""
    role, generation_id = _read(_ROLE, data, 8)
    if role >= len(_ROLES):
        raise OpenFlowError(f"OFPT_ROLE_REPLY with role {role}")
    return RoleReply(xid, _ROLES[role], generation_id)


def decode_bundle_reply(data: bytes, xid: int) -> BundleReply:
    """OFPT_BUNDLE_CONTROL."""
    bundle_id, kind, _ = _read(_BUNDLE, data, 8)
    if kind not in _BUNDLE_KINDS:
        raise OpenFlowError(f"OFPT_BUNDLE_CONTROL of type {kind}")
    return BundleReply(xid, bundle_id, _BUNDLE_KINDS[kind])


def decode_port_status(data: bytes, xid: int) -> PortStatus:
    """OFPT_PORT_STATUS."""
    if len(data) < 16 or data[8] >= len(_PORT_REASONS):
        raise OpenFlowError(f"OFPT_PORT_STATUS of {len(data)} bytes, reason {data[8:9].hex()}")
    return PortStatus(xid, _PORT_REASONS[data[8]], _port(data, 16)[0])


def decode_packet_in(data: bytes, xid: int) -> PacketIn:
    """OFPT_PACKET_IN."""
    _, _, reason, table, cookie = _read(_PACKET_IN, data, 8)
    match, offset = decode_match(data, 8 + _PACKET_IN.size, len(data))
    in_port = next((item.value for item in match if item.field == "in_port"), 0)
    body = data[offset + 2 :]
    return PacketIn(xid, _packet_reason(reason), table, cookie, in_port, body, match)


def decode_experimenter(data: bytes, xid: int) -> PacketIn | Other:
    """OFPT_EXPERIMENTER: NXT_PACKET_IN2 or something that Dunlin does not read."""
    if len(data) < 16:
        raise OpenFlowError(f"OFPT_EXPERIMENTER of {len(data)} bytes")
    if struct.unpack_from("!II", data, 8) != (NX_VENDOR, NXT_PACKET_IN2):
        return Other(xid, data[1])
    found = {kind: prop[4:] for kind, prop in properties(data[16:])}
    match = decode_oxms(found.get(6, b""))
    in_port = next((item.value for item in match if item.field == "in_port"), 0)
    return PacketIn(
        xid,
        _packet_reason(int.from_bytes(found.get(5, b"")[:1], "big")),
        int.from_bytes(found.get(3, b"")[:1], "big"),
        int.from_bytes(found.get(4, b"")[-8:], "big"),
        in_port,
        found.get(0, b""),
        match,
        found.get(7, b""),
    )


def _packet_reason(reason: int) -> str:
    return _PACKET_REASONS[reason] if reason < len(_PACKET_REASONS) else str(reason)


# --- multipart replies ----------------------------------------------------------------------------


class _Part(NamedTuple):
    xid: int
    data: bytes
    more: bool


def decode_multipart(data: bytes, xid: int) -> Message:
    """OFPT_MULTIPART_REPLY, one part."""
    if len(data) < _MULTIPART_BODY:
        raise OpenFlowError(f"OFPT_MULTIPART_REPLY of {len(data)} bytes")
    kind, flags = struct.unpack_from("!HH", data, 8)
    read = _MULTIPART.get(kind)
    return read(_Part(xid, data, bool(flags & _MORE))) if read else Other(xid, data[1])


def _flow_dump(part: _Part) -> FlowDump:
    return FlowDump(part.xid, decode_flow_descs(part.data, _MULTIPART_BODY), part.more)


def _group_dump(part: _Part) -> GroupDump:
    return GroupDump(part.xid, decode_group_descs(part.data, _MULTIPART_BODY), part.more)


def _aggregate(part: _Part) -> AggregateStats:
    _, counts, _ = read_oxs(part.data, _MULTIPART_BODY, len(part.data))
    return AggregateStats(part.xid, counts.get(4, 0), counts.get(5, 0), counts.get(3, 0))


def _table_stats(part: _Part) -> TableStats:
    body = part.data[_MULTIPART_BODY:]
    if len(body) % _TABLE_STATS.size:
        raise OpenFlowError(f"OFPMP_TABLE_STATS of {len(body)} bytes")
    entries = tuple(TableCounters(*entry) for entry in _TABLE_STATS.iter_unpack(body))
    return TableStats(part.xid, entries, part.more)


def _port_stats(part: _Part) -> PortStats:
    entries, offset = [], _MULTIPART_BODY
    while offset < len(part.data):
        length, port, seconds, nanos, *counts = _read(_PORT_STATS, part.data, offset)
        duration = seconds + nanos * 1e-9
        entries.append(PortCounters(port, duration, *counts))
        offset = _next(part.data, offset, length, _PORT_STATS.size)
    return PortStats(part.xid, tuple(entries), part.more)


def _port_desc(part: _Part) -> PortDesc:
    ports, offset = [], _MULTIPART_BODY
    while offset < len(part.data):
        port, offset = _port(part.data, offset)
        ports.append(port)
    return PortDesc(part.xid, tuple(ports), part.more)


def _group_stats(part: _Part) -> GroupStats:
    entries, offset = [], _MULTIPART_BODY
    while offset < len(part.data):
        length, group_id, refs, packets, size, seconds, nanos = _read(
            _GROUP_STATS, part.data, offset
        )
        after = _next(part.data, offset, length, _GROUP_STATS.size)
        body = part.data[offset + _GROUP_STATS.size : after]
        if len(body) % 16:
            raise OpenFlowError(f"counters of group {group_id:#x}: {len(body)} bytes of buckets")
        buckets = tuple(struct.iter_unpack("!QQ", body))
        duration = seconds + nanos * 1e-9
        entries.append(GroupCounters(group_id, packets, size, duration, refs, buckets))
        offset = after
    return GroupStats(part.xid, tuple(entries), part.more)


def _meter_dump(part: _Part) -> MeterDump:
    return MeterDump(part.xid, *decode_meter_configs(part.data, _MULTIPART_BODY), part.more)


def _meter_stats(part: _Part) -> MeterStats:
    return MeterStats(part.xid, decode_meter_stats(part.data, _MULTIPART_BODY), part.more)


_MULTIPART: dict[int, Callable[[_Part], Message]] = {
    1: _flow_dump,
    2: _aggregate,
    3: _table_stats,
    4: _port_stats,
    6: _group_stats,
    7: _group_dump,
    9: _meter_stats,
    10: _meter_dump,
    13: _port_desc,
}


def _port(data: bytes, offset: int) -> tuple[Port, int]:
    """`struct ofp_port` and where the next one starts."""
    number, length, mac, name, config, state = _read(_PORT, data, offset)
    text = name.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    port = Port(number, text, int.from_bytes(mac, "big"), config, state)
    return port, _next(data, offset, length, _PORT.size)


def _next(data: bytes, offset: int, length: int, least: int) -> int:
    if length < least or offset + length > len(data):
        raise OpenFlowError(f"an entry of length {length}, {len(data) - offset} bytes left")
    return offset + length


def _read(form: struct.Struct, data: bytes, offset: int) -> tuple[Any, ...]:
    if offset + form.size > len(data):
        raise OpenFlowError(f"message of type {data[1]}: {len(data)} bytes are too few")
    return form.unpack_from(data, offset)
