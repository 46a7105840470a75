"""Flows as bytes: OFPT_FLOW_MOD out; OFPMP_FLOW_DESC and OFPT_FLOW_REMOVED in (OpenFlow 1.5)."""

import struct
from functools import lru_cache
from operator import is_
from typing import Literal

from msgspec.structs import replace

from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import (
    Action,
    Bucket,
    Ct,
    FieldMatch,
    Flow,
    Group,
    Match,
    Move,
    SetField,
    Unknown,
)
from dunlin.openflow.messages import CannotEncode, FlowRemoved, InstalledFlow, OpenFlowError
from dunlin.openflow.wire_actions import decode_actions, encode_actions
from dunlin.openflow.wire_fields import decode_match, encode_match, match_end, split_wide

VERSION = 6
MAX_LEN = 0xFFFF
OFPT_FLOW_MOD = 14
OFPIT_GOTO_TABLE, OFPIT_APPLY_ACTIONS = 1, 4
OFPTT_ALL = 0xFF
REMEMBERED = 1 << 18
"""Decoded flows that are kept: 10,000 Services of 10 endpoints are 110,000."""
ANY = 0xFFFFFFFF
"""OFPP_ANY, OFPG_ANY; also OFP_NO_BUFFER."""

_ALL_ONES = {name: field.all_ones for name, field in FIELDS.items()}
_LABEL_ONES = _ALL_ONES["ct_label"]
FlowCommand = Literal["add", "modify_strict", "delete_strict"]
_COMMANDS = {"add": 0, "modify_strict": 2, "delete_strict": 4}
_DELETE = 3
# Header (version, type, length, xid), then struct ofp_flow_mod up to its match.
_FLOW_MOD = struct.Struct("!BBHIQQBBHHHIIIHH")
_GOTO = struct.Struct("!HHB3x")
_INSTRUCTION = struct.Struct("!HH4x")
_FLOW_DESC = struct.Struct("!HxxBxHHHHHQ")
_FLOW_HEAD = struct.Struct("!xxBxHHHHxxQ")
"""The same behind its length."""
# OXS: duration, idle time, packets, bytes; in this order by every OVS, without flow count.
_STATS = struct.Struct("!HHIIIIIIIQIQ4x")
_STATS_HEADERS = (0x80020008, 0x80020208, 0x80020808, 0x80020A08)
_FLOW_REMOVED = struct.Struct("!BBHHHQ")
_REMOVED_REASONS = (
    "idle_timeout", "hard_timeout", "delete", "group_delete", "meter_delete", "eviction",
)  # fmt: skip


# --- out ------------------------------------------------------------------------------------------


def encode_flow(flow: Flow, command: FlowCommand, xid: int = 0, flags: int = 0) -> bytes:
    """
    OFPT_FLOW_MOD.

    Args:
        command: "add" replaces the flow of the same key; "modify_strict" keeps its counters and
            does nothing where there is none; "delete_strict" deletes it whatever its cookie.
        flags: OFPFF_*; 1 asks for OFPT_FLOW_REMOVED.
    Raises:
        CannotEncode: a number too wide or a field unknown; the message names the flow.
    """
    try:
        match = encode_match(flow.match)
        code = _COMMANDS[command]
        body = b"" if code == 4 else encode_instructions(flow.actions, flow.goto)
        length = 48 + len(match) + len(body)
        head = _FLOW_MOD.pack(
            VERSION, OFPT_FLOW_MOD, length, xid, flow.cookie, 0, flow.table, code,
            flow.idle_timeout_s, flow.hard_timeout_s, flow.priority, ANY, ANY, ANY, flags, 0,
        )  # fmt: skip
    except (struct.error, CannotEncode) as error:
        raise CannotEncode(f"flow {flow.key} cookie {flow.cookie:#x}: {error}") from error
    return head + match + body


def encode_flow_delete(
    cookie: int, cookie_mask: int, table: int | None = None, xid: int = 0, match: Match = ()
) -> bytes:
    """Delete all flows of one table (None: all tables) whose cookie agrees under the mask."""
    encoded = encode_match(match)
    return _FLOW_MOD.pack(
        VERSION, OFPT_FLOW_MOD, 48 + len(encoded), xid, cookie, cookie_mask,
        OFPTT_ALL if table is None else table, _DELETE, 0, 0, 0, ANY, ANY, ANY, 0, 0,
    ) + encoded  # fmt: skip


def encode_instructions(actions: tuple[Action, ...], goto: int | None) -> bytes:
    """Actions, then goto_table; nothing where there is neither."""
    body = b""
    extra = [a.data for a in actions if isinstance(a, Unknown) and a.what == "instruction"]
    if extra:
        actions = tuple(a for a in actions if not isinstance(a, Unknown) or a.what == "action")
        body = b"".join(extra)
    if actions:
        encoded = encode_actions(actions)
        body += _INSTRUCTION.pack(OFPIT_APPLY_ACTIONS, 8 + len(encoded)) + encoded
    if goto is not None:
        body += _GOTO.pack(OFPIT_GOTO_TABLE, 8, goto)
    return body


# --- canonical ------------------------------------------------------------------------------------


def canonical(flow: Flow) -> Flow:
    """
    The flow as a dump gives it back: what to compare with installed flows.

    OVS keeps no xxregs in matches (they come back as registers), no mask of all ones and no field
    with mask 0; bits of a value outside of its mask are cleared.
    """
    match, actions = flow.match, flow.actions
    if not all(map(_is_canonical, match)):
        match = tuple(sorted(part for item in match for part in split_wide(item)))
    if any(isinstance(action, (SetField, Ct)) for action in actions):
        actions = _canonical_actions(actions)
    if match == flow.match and actions == flow.actions:
        return flow
    return replace(flow, match=match, actions=actions)


def _is_canonical(item: FieldMatch) -> bool:
    """Of one form on the wire; False may be wrong, True is not."""
    mask = item.mask
    if mask is None:
        return item.field[0] != "x"
    # The endpoints of Services: one flow of each.
    return item.field == "ct_label" and 0 < mask < _LABEL_ONES and item.value & mask == item.value


def canonical_group(group: Group) -> Group:
    """The group as a dump gives it back: only select groups keep weights (else here 100)."""
    select = group.type == "select"
    buckets = tuple([_canonical_bucket(bucket, select=select) for bucket in group.buckets])
    return group if all(map(is_, buckets, group.buckets)) else replace(group, buckets=buckets)


def _canonical_bucket(bucket: Bucket, *, select: bool) -> Bucket:
    actions = _canonical_actions(bucket.actions)
    weight = bucket.weight if select else 100
    if actions is bucket.actions and weight == bucket.weight:
        return bucket
    return Bucket(bucket.bucket_id, actions, weight)


def _canonical_actions(actions: tuple[Action, ...]) -> tuple[Action, ...]:
    """The same tuple where nothing changes: most of what is compiled is canonical already."""
    for action in actions:
        if _canonical_action(action) is not action:
            return tuple([_canonical_action(action) for action in actions])
    return actions


def _canonical_action(action: Action) -> Action:
    if isinstance(action, Ct):
        for inner in action.exec:
            if _canonical_action(inner) is not inner:
                return replace(action, exec=tuple(map(_canonical_in_ct, action.exec)))
        return action
    if isinstance(action, SetField):
        mask = action.mask
        if mask is None:
            return action
        full = mask == _ALL_ONES[action.field]
        if not full and action.value & mask == action.value:
            return action
        return SetField(action.field, action.value & mask, None if full else mask)
    return action


def _canonical_in_ct(action: SetField | Move) -> SetField | Move:
    canonical_action = _canonical_action(action)
    assert isinstance(canonical_action, (SetField, Move))
    return canonical_action


# --- in -------------------------------------------------------------------------------------------


def decode_flow_descs(data: bytes, offset: int) -> tuple[InstalledFlow, ...]:
    """
    All of OFPMP_FLOW_DESC's entries from `offset` to the end.

    Raises:
        OpenFlowError: an entry's length, or the length of a part of it, cannot be.
    """
    entries = []
    end = len(data)
    while offset < end:
        if end - offset < _FLOW_DESC.size:
            raise OpenFlowError(f"a flow of {end - offset} bytes")
        length = data[offset] << 8 | data[offset + 1]
        if length < _FLOW_DESC.size or offset + length > end:
            raise OpenFlowError(f"a flow of length {length}, {end - offset} bytes left")
        entries.append(_decode_flow_desc(data, offset, offset + length))
        offset += length
    return tuple(entries)


def _decode_flow_desc(data: bytes, offset: int, end: int) -> InstalledFlow:
    after = match_end(data, offset + _FLOW_DESC.size, end)
    counts, rest = decode_stats(data, after, end)
    flow, flags = _described(data[offset + 2 : after], data[rest:end])
    duration, packets, size, idle_s = counts
    return InstalledFlow(flow, packets, size, duration, flags, idle_s)


@lru_cache(maxsize=REMEMBERED)
def _described(head: bytes, instructions: bytes) -> tuple[Flow, int]:
    """
    The flow, and its flags: all of an entry but what counts, from behind its length.

    Remembered: switches hold the same flows for Services and policies, and are asked again and
    again. To decode one takes 20 times as long as to look it up.
    """
    table, priority, idle, hard, flags, cookie = _FLOW_HEAD.unpack_from(head)
    match, _ = decode_match(head, _FLOW_HEAD.size, len(head))
    actions, goto = decode_instructions(instructions)
    return Flow(table, priority, match, actions, goto, cookie, idle, hard), flags


def decode_stats(data: bytes, offset: int, end: int) -> tuple[tuple[float, int, int, int], int]:
    """
    `struct ofp_stats`, and where what follows it starts.

    Returns:
        Duration in seconds, packets, bytes, whole seconds since the last packet (0: not told).
    """
    if end - offset >= _STATS.size:
        _, length, h0, seconds, nanos, h1, idle, _, h2, packets, h3, size = _STATS.unpack_from(
            data, offset
        )
        if length == 0x34 and (h0, h1, h2, h3) == _STATS_HEADERS:
            return (seconds + nanos * 1e-9, packets, size, idle), offset + _STATS.size
    duration, counts, after = read_oxs(data, offset, end)
    # Of the idle time the upper half is seconds, the lower nanoseconds.
    return (duration, counts.get(4, 0), counts.get(5, 0), counts.get(1, 0) >> 32), after


def read_oxs(data: bytes, offset: int, end: int) -> tuple[float, dict[int, int], int]:
    """Any `struct ofp_stats`: duration in s, counts by number of OXS field, offset after it."""
    if end - offset < 8:
        raise OpenFlowError(f"flow statistics of {end - offset} bytes")
    length = int.from_bytes(data[offset + 2 : offset + 4], "big")
    after = offset + (length + 7) // 8 * 8
    if length < 4 or after > end:
        raise OpenFlowError(f"flow statistics of length {length}, {end - offset} bytes left")
    duration, counts = 0.0, dict[int, int]()
    last = offset + length
    offset += 4
    while offset < last:
        if last - offset < 4 or not data[offset + 3] or offset + 4 + data[offset + 3] > last:
            raise OpenFlowError("a flow statistic is cut off")
        header, value = data[offset : offset + 4], data[offset + 4 : offset + 4 + data[offset + 3]]
        offset += 4 + len(value)
        if header == b"\x80\x02\x00\x08":
            duration = int.from_bytes(value[:4], "big") + int.from_bytes(value[4:], "big") * 1e-9
        elif header[:2] == b"\x80\x02":
            counts[header[2] >> 1] = int.from_bytes(value, "big")
    return duration, counts, after


def decode_instructions(data: bytes) -> tuple[tuple[Action, ...], int | None]:
    """Actions and goto_table; other instructions become `Unknown` actions."""
    actions: tuple[Action, ...] = ()
    goto: int | None = None
    offset = 0
    while offset < len(data):
        if len(data) - offset < 8:
            raise OpenFlowError(f"an instruction of {len(data) - offset} bytes")
        kind = data[offset] << 8 | data[offset + 1]
        length = data[offset + 2] << 8 | data[offset + 3]
        if length < 8 or length % 8 or offset + length > len(data):
            raise OpenFlowError(f"an instruction of length {length}")
        if kind == OFPIT_APPLY_ACTIONS and not actions:
            actions = decode_actions(data[offset + 8 : offset + length])
        elif kind == OFPIT_GOTO_TABLE and goto is None:
            goto = data[offset + 4]
        else:
            actions += (Unknown("instruction", data[offset : offset + length]),)
        offset += length
    return actions, goto


def decode_flow_mod(data: bytes) -> tuple[str, Flow, int, int]:
    """
    What a switch reads from OFPT_FLOW_MOD: (command, flow, cookie mask, flags).

    Raises:
        OpenFlowError: cut off, or a command that does not exist.
    """
    if len(data) < 56:
        raise OpenFlowError(f"OFPT_FLOW_MOD of {len(data)} bytes")
    fields = _FLOW_MOD.unpack_from(data)
    cookie, cookie_mask, table, code, idle, hard, priority = fields[4:11]
    match, offset = decode_match(data, 48, len(data))
    actions, goto = decode_instructions(data[offset:])
    names = ("add", "modify", "modify_strict", "delete", "delete_strict")
    if code >= len(names):
        raise OpenFlowError(f"OFPT_FLOW_MOD of command {code}")
    flow = Flow(table, priority, match, actions, goto, cookie, idle, hard)
    return names[code], flow, cookie_mask, fields[14]


def decode_flow_removed(data: bytes, xid: int) -> FlowRemoved:
    """OFPT_FLOW_REMOVED. Raises OpenFlowError: cut off."""
    end = len(data)
    if end < 8 + _FLOW_REMOVED.size:
        raise OpenFlowError(f"OFPT_FLOW_REMOVED of {end} bytes")
    table, reason, priority, idle, hard, cookie = _FLOW_REMOVED.unpack_from(data, 8)
    match, offset = decode_match(data, 8 + _FLOW_REMOVED.size, end)
    (duration, packets, size, _), _ = decode_stats(data, offset, end)
    known = reason < len(_REMOVED_REASONS)
    name = _REMOVED_REASONS[reason] if known else str(reason)
    flow = Flow(table, priority, match, (), None, cookie, idle, hard)
    return FlowRemoved(xid, name, flow, packets, size, duration)
