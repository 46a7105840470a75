"""A switch's side of OpenFlow 1.5 as bytes, for the fake one."""

import struct
from collections.abc import Sequence

from dunlin.openflow.flow import Group
from dunlin.openflow.messages import (
    BundleReply,
    FeaturesReply,
    FlowRemoved,
    InstalledFlow,
    OpenFlowError,
    PacketIn,
    Port,
    PortCounters,
    PortStatus,
    RoleReply,
)
from dunlin.openflow.wire_fields import encode_match
from dunlin.openflow.wire_flow import MAX_LEN, VERSION, encode_instructions
from dunlin.openflow.wire_group import encode_group

OFPT_ERROR, OFPT_FEATURES_REPLY, OFPT_PACKET_IN, OFPT_FLOW_REMOVED = 1, 6, 10, 11
OFPT_PORT_STATUS, OFPT_MULTIPART_REPLY, OFPT_BARRIER_REPLY, OFPT_ROLE_REPLY = 12, 19, 21, 25
OFPT_BUNDLE_CONTROL = 33
_ROLES = ("nochange", "equal", "master", "slave")
_BUNDLE_KINDS = {"open": 1, "close": 3, "commit": 5, "discard": 7}


def message(kind: int, xid: int, body: bytes = b"") -> bytes:
    """Any message."""
    return struct.pack("!BBHI", VERSION, kind, 8 + len(body), xid) + body


def error(xid: int, kind: int, code: int, request: bytes) -> bytes:
    """OFPT_ERROR with the first 64 bytes of the request."""
    return message(OFPT_ERROR, xid, struct.pack("!HH", kind, code) + request[:64])


def features_reply(reply: FeaturesReply) -> bytes:
    """OFPT_FEATURES_REPLY."""
    body = struct.pack(
        "!QIBBxxII", reply.dpid, 0, reply.n_tables, reply.auxiliary_id, reply.capabilities, 0
    )
    return message(OFPT_FEATURES_REPLY, reply.xid, body)


def barrier_reply(xid: int) -> bytes:
    """OFPT_BARRIER_REPLY."""
    return message(OFPT_BARRIER_REPLY, xid)


def role_reply(reply: RoleReply) -> bytes:
    """OFPT_ROLE_REPLY."""
    body = struct.pack("!I4xQ", _ROLES.index(reply.role), reply.generation_id)
    return message(OFPT_ROLE_REPLY, reply.xid, body)


def bundle_reply(reply: BundleReply) -> bytes:
    """OFPT_BUNDLE_CONTROL."""
    body = struct.pack("!IHH", reply.bundle_id, _BUNDLE_KINDS[reply.kind], 0)
    return message(OFPT_BUNDLE_CONTROL, reply.xid, body)


def multipart(xid: int, kind: int, entries: Sequence[bytes]) -> list[bytes]:
    """OFPT_MULTIPART_REPLY in as many parts as the entries need; at least one."""
    parts: list[list[bytes]] = [[]]
    size = 16
    for entry in entries:
        if size + len(entry) > MAX_LEN:
            parts.append([])
            size = 16
        parts[-1].append(entry)
        size += len(entry)
    return [
        message(
            OFPT_MULTIPART_REPLY,
            xid,
            struct.pack("!HH4x", kind, int(part is not parts[-1])) + b"".join(part),
        )
        for part in parts
    ]


def stats(duration_s: float, packets: int, size: int) -> bytes:
    """`struct ofp_stats`, padded."""
    seconds = int(duration_s)
    nanos = int((duration_s - seconds) * 1e9)
    return struct.pack(
        "!HHIIIIIIIQIQ4x", 0, 0x34, 0x80020008, seconds, nanos, 0x80020208, 0, 0, 0x80020808,
        packets, 0x80020A08, size,
    )  # fmt: skip


def flow_desc(entry: InstalledFlow) -> bytes:
    """One entry of OFPMP_FLOW_DESC."""
    flow = entry.flow
    body = encode_match(flow.match) + stats(entry.duration_s, entry.packets, entry.bytes)
    body += encode_instructions(flow.actions, flow.goto)
    head = struct.pack(
        "!HxxBxHHHHHQ", 24 + len(body), flow.table, flow.priority, flow.idle_timeout_s,
        flow.hard_timeout_s, entry.flags, 0, flow.cookie,
    )  # fmt: skip
    return head + body


def group_desc(group: Group) -> bytes:
    """One entry of OFPMP_GROUP_DESC: a group modification with another head."""
    body = encode_group(group, "add")
    buckets = int.from_bytes(body[16:18], "big")
    kind = body[10]
    rest = body[24:]
    return struct.pack("!HBxIH6x", 16 + len(rest), kind, group.group_id, buckets) + rest


def port_desc(port: Port) -> bytes:
    """`struct ofp_port` without properties."""
    mac = port.mac.to_bytes(6, "big")
    return struct.pack(
        "!IHxx6sxx16sII", port.port, 40, mac, port.name.encode()[:15], port.config, port.state
    )


def port_stats(entry: PortCounters) -> bytes:
    """One entry of OFPMP_PORT_STATS."""
    return struct.pack(
        "!HxxIIIQQQQQQQQ", 80, entry.port, int(entry.duration_s), 0, entry.rx_packets,
        entry.tx_packets, entry.rx_bytes, entry.tx_bytes, entry.rx_dropped, entry.tx_dropped,
        entry.rx_errors, entry.tx_errors,
    )  # fmt: skip


def port_status(status: PortStatus) -> bytes:
    """OFPT_PORT_STATUS."""
    reason = ("add", "delete", "modify").index(status.reason)
    body = struct.pack("!B7x", reason) + port_desc(status.port)
    return message(OFPT_PORT_STATUS, status.xid, body)


def packet_in(packet: PacketIn) -> bytes:
    """OFPT_PACKET_IN of an output action; it has no room for userdata."""
    head = struct.pack("!IHBBQ", 0xFFFFFFFF, len(packet.data), 1, packet.table, packet.cookie)
    body = head + encode_match(packet.match) + bytes(2) + packet.data
    return message(OFPT_PACKET_IN, packet.xid, body)


def flow_removed(removed: FlowRemoved) -> bytes:
    """OFPT_FLOW_REMOVED."""
    reasons = ("idle_timeout", "hard_timeout", "delete", "group_delete", "meter_delete")
    flow = removed.flow
    head = struct.pack(
        "!BBHHHQ", flow.table, reasons.index(removed.reason), flow.priority, flow.idle_timeout_s,
        flow.hard_timeout_s, flow.cookie,
    )  # fmt: skip
    counters = stats(removed.duration_s, removed.packets, removed.bytes)
    return message(OFPT_FLOW_REMOVED, removed.xid, head + encode_match(flow.match) + counters)


def aggregate(count: int) -> bytes:
    """One entry of OFPMP_AGGREGATE_STATS: flows that no packet has met."""
    fields = struct.pack("!IIIQIQ", 0x80020604, count, 0x80020808, 0, 0x80020A08, 0)
    return struct.pack("!HH", 0, 4 + len(fields)) + fields + bytes(-(4 + len(fields)) % 8)


def decode_flow_request(data: bytes) -> tuple[int | None, int, int]:
    """OFPMP_FLOW_DESC and OFPMP_AGGREGATE_STATS requests: (table, cookie, cookie mask)."""
    if len(data) < 56:
        raise OpenFlowError(f"a flow request of {len(data)} bytes")
    table, _, _, cookie, mask = struct.unpack_from("!B3xII4xQQ", data, 16)
    return (None if table == 0xFF else table), cookie, mask


__all__ = [
    "barrier_reply", "bundle_reply", "decode_flow_request", "error",
    "features_reply", "flow_desc", "flow_removed", "group_desc", "message", "multipart",
    "packet_in", "port_desc", "port_stats", "port_status", "role_reply", "stats",
]  # fmt: skip
