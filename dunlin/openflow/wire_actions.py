"""
Actions as bytes: OpenFlow 1.5 and, where it has none, the Nicira extensions of ovs-actions(7).

What decodes to no action of `flow.py`, in part or in whole, becomes one `Unknown` with all its
bytes.
"""

import struct
from functools import lru_cache

from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import (
    OFPP_CONTROLLER,
    Action,
    Conjunction,
    Controller,
    Ct,
    CtClear,
    DecTtl,
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
)
from dunlin.openflow.messages import CannotEncode, OpenFlowError
from dunlin.openflow.wire_fields import encode_field, encode_header, field_name
from dunlin.openflow.wire_nat import (
    EXPERIMENTER,
    NX_VENDOR,
    NXAST_NAT,
    Unsupported,
    decode_nat,
    encode_nat,
    experimenter,
)

OFPAT_OUTPUT = 0
OFPAT_GROUP = 22
OFPAT_DEC_NW_TTL = 24
OFPAT_SET_FIELD = 25
OFPAT_COPY_FIELD = 28
OFPAT_METER = 29
NXAST_RESUBMIT_TABLE = 14
NXAST_OUTPUT_REG = 15
NXAST_LEARN = 16
NXAST_CONJUNCTION = 34
NXAST_CT = 35
NXAST_CONTROLLER2 = 37
NXAST_CT_CLEAR = 43
OFPP_IN_PORT_16 = 0xFFF8
CT_COMMIT, CT_FORCE = 1, 2
NO_TABLE = 0xFF
LEARN_DELETE_LEARNED = 2
SPEC_IMMEDIATE, SPEC_LOAD, SPEC_KIND_MASK, SPEC_BITS = 0x2000, 0x0800, 0x1800, 0x07FF
CONTROLLER2_MAX_LEN, CONTROLLER2_USERDATA, CONTROLLER2_METER_ID = 0, 3, 5


_CT = struct.Struct("!HIHB3xH")
# --- out ------------------------------------------------------------------------------------------


def encode_actions(actions: tuple[Action, ...]) -> bytes:
    """
    A list of actions, each padded to eight bytes.

    Raises:
        CannotEncode: a number is wider than its field, or a field is not one of ours.
    """
    try:
        # Conntrack actions of Services are all different: hashing one costs as much as encoding it.
        parts = [_encode_ct(a) if isinstance(a, Ct) else _encode_action(a) for a in actions]
        return parts[0] if len(parts) == 1 else b"".join(parts)
    except (struct.error, OverflowError) as error:
        raise CannotEncode(f"actions {actions}: {error}") from error


@lru_cache(maxsize=1 << 15)
def _encode_action(action: Action) -> bytes:
    match action:
        case Output(port=port):
            return struct.pack("!HHIH6x", OFPAT_OUTPUT, 16, port, 0)
        case OutputReg(field=field):
            bits = FIELDS[field].bits if field in FIELDS else 0
            body = struct.pack("!H4sH6x", bits - 1, encode_header(field), 0)
            return experimenter(NXAST_OUTPUT_REG, body)
        case ToGroup(group_id=group_id):
            return struct.pack("!HHI", OFPAT_GROUP, 8, group_id)
        case SetField(field=field, value=value, mask=mask):
            return _padded(OFPAT_SET_FIELD, encode_field(field, value, mask))
        case Move(src=src, dst=dst, bits=bits):
            return _encode_move(src, dst, bits)
        case DecTtl():
            return struct.pack("!HH4x", OFPAT_DEC_NW_TTL, 8)
        case Ct():
            return _encode_ct(action)
        case CtClear():
            return experimenter(NXAST_CT_CLEAR, b"")
        case Resubmit(table=table):
            return experimenter(NXAST_RESUBMIT_TABLE, struct.pack("!HB", OFPP_IN_PORT_16, table))
        case Conjunction(conj_id=conj_id, clause=clause, clauses=clauses):
            return experimenter(
                NXAST_CONJUNCTION, struct.pack("!BBI", clause - 1, clauses, conj_id)
            )
        case Learn():
            return _encode_learn(action)
        case Controller():
            return _encode_controller(action)
        case MeterAction(meter_id=meter_id):
            return struct.pack("!HHI", OFPAT_METER, 8, meter_id)
        case Unknown(data=data):
            return data


def _padded(kind: int, body: bytes) -> bytes:
    length = (4 + len(body) + 7) // 8 * 8
    return struct.pack("!HH", kind, length) + body.ljust(length - 4, b"\0")


def _encode_move(src: str, dst: str, bits: int) -> bytes:
    headers = encode_header(src) + encode_header(dst)
    widths = FIELDS[src].bits, FIELDS[dst].bits
    if bits > min(widths):
        raise CannotEncode(f"move:{src}[]->{dst}[]: {bits} bits of {widths[0]} and {widths[1]}")
    if not bits and widths[0] != widths[1]:
        raise CannotEncode(f"move:{src}[]->{dst}[]: {widths[0]} and {widths[1]} bits")
    bits = bits or widths[0]
    return _padded(OFPAT_COPY_FIELD, struct.pack("!HHHxx", bits, 0, 0) + headers)


def _encode_ct(ct: Ct) -> bytes:
    nested = b"" if ct.nat is None else encode_nat(ct.nat)
    nested += b"".join([_encode_note(action) for action in ct.exec])
    before, after = _around_ct(ct.zone, ct.commit, ct.force, ct.table, len(nested))
    return before + nested + after


@lru_cache(maxsize=1 << 12)
def _around_ct(
    zone: int,
    commit: bool,  # noqa: FBT001 - as in Ct
    force: bool,  # noqa: FBT001
    table: int | None,
    length: int,
) -> tuple[bytes, bytes]:
    """A ct() before and after what is nested in it: the same for all endpoints of all Services."""
    flags = CT_COMMIT * commit | CT_FORCE * force
    fixed = _CT.pack(flags, 0, zone, NO_TABLE if table is None else table, 0)
    whole = experimenter(NXAST_CT, fixed + bytes(length))
    cut = EXPERIMENTER.size + len(fixed)
    return whole[:cut], whole[cut + length :]


def _encode_note(action: SetField | Move) -> bytes:
    """Inside of ct(): labels are all different, and would only push others out of the cache."""
    if isinstance(action, SetField) and action.field == "ct_label":
        before, after = _around_label(action.mask)
        return before + action.value.to_bytes(16, "big") + after
    return _encode_action(action)


@lru_cache(maxsize=1 << 8)
def _around_label(mask: int | None) -> tuple[bytes, bytes]:
    """`set_field` of ct_label before and after its value."""
    whole = _padded(OFPAT_SET_FIELD, encode_field("ct_label", 0, mask))
    return whole[:8], whole[8 + 16 :]


def _encode_controller(controller: Controller) -> bytes:
    if not controller.userdata:
        return struct.pack("!HHIH6x", OFPAT_OUTPUT, 16, OFPP_CONTROLLER, controller.max_len)
    body = b"" if controller.max_len == 0xFFFF else struct.pack("!HHHxx", 0, 8, controller.max_len)
    length = 4 + len(controller.userdata)
    body += struct.pack("!HH", CONTROLLER2_USERDATA, length) + controller.userdata
    body += bytes(-length % 8)
    if controller.meter_id:
        body += struct.pack("!HHI", CONTROLLER2_METER_ID, 8, controller.meter_id)
    return experimenter(NXAST_CONTROLLER2, bytes(6) + body)


def _encode_learn(learn: Learn) -> bytes:
    head = struct.pack(
        "!HHHQHBxHH",
        learn.idle_timeout_s,
        learn.hard_timeout_s,
        learn.priority,
        learn.cookie,
        LEARN_DELETE_LEARNED * learn.delete_learned,
        learn.table,
        0,
        0,
    )
    return experimenter(NXAST_LEARN, head + b"".join(map(_encode_spec, learn.specs)))


def _encode_spec(spec: LearnSpec) -> bytes:
    header = {"match": 0, "load": SPEC_LOAD}[spec.kind] | spec.bits
    destination = struct.pack("!4sH", encode_header(spec.dst_field), 0)
    if spec.src_field:
        source = struct.pack("!4sH", encode_header(spec.src_field), 0)
        return struct.pack("!H", header) + source + destination
    length = (spec.bits + 15) // 16 * 2
    value = spec.value.to_bytes(length, "big")
    return struct.pack("!H", header | SPEC_IMMEDIATE) + value + destination


# --- in -------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def decode_actions(data: bytes) -> tuple[Action, ...]:
    """
    A whole list of actions.

    Raises:
        OpenFlowError: an action's length is below 8, no multiple of 8, or beyond the end.
    """
    actions: list[Action] = []
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < 8 or length % 8 or offset + length > len(data):
            raise OpenFlowError(f"an action of length {length}, {len(data) - offset} bytes left")
        actions.append(_decode_action(data[offset : offset + length]))
        offset += length
    return tuple(actions)


@lru_cache(maxsize=1 << 15)
def _decode_action(data: bytes) -> Action:
    """`data`: one action, its length checked."""
    try:
        action = _decode_known(data)
    except (Unsupported, struct.error):
        return Unknown("action", data)
    return action if _says_all(action, data) else Unknown("action", data)


def _says_all(action: Action, data: bytes) -> bool:
    """
    No bit of the bytes is lost in the action: better unknown than wrong.

    Output's max_len says nothing to a port, SetField and Ct are read whole or not at all; learn()
    names its fields in older classes.
    """
    if isinstance(action, (Output, OutputReg, SetField, Ct)):
        return True
    try:
        again = _encode_action(action)
    except (CannotEncode, struct.error, OverflowError):
        return False
    return again == data or (
        isinstance(action, Learn) and len(again) == len(data) and _decode_learn(again) == action
    )


def _decode_known(data: bytes) -> Action:
    kind = int.from_bytes(data[:2], "big")
    if kind == OFPAT_SET_FIELD:
        return _decode_set_field(data)
    match kind:
        case 0 if len(data) == 16:
            port, max_len = struct.unpack_from("!IH", data, 4)
            return Controller(max_len) if port == OFPP_CONTROLLER else Output(port)
        case 22 if len(data) == 8:
            return ToGroup(struct.unpack_from("!I", data, 4)[0])
        case 24:
            return DecTtl()
        case 28:
            return _decode_move(data)
        case 29 if len(data) == 8:
            return MeterAction(struct.unpack_from("!I", data, 4)[0])
        case 0xFFFF if len(data) >= 16 and int.from_bytes(data[4:8], "big") == NX_VENDOR:
            return _decode_nicira(data)
    raise Unsupported


def _decode_nicira(data: bytes) -> Action:
    match int.from_bytes(data[8:10], "big"):
        case 14:
            port, table = struct.unpack_from("!HB", data, 10)
            if port == OFPP_IN_PORT_16:
                return Resubmit(table)
        case 15:
            bits, header = struct.unpack_from("!HI", data, 10)
            name = _whole_field(header, (bits & 0x3F) + 1, bits >> 6)
            return OutputReg(name)
        case 16:
            return _decode_learn(data)
        case 34:
            clause, clauses, conj_id = struct.unpack_from("!BBI", data, 10)
            return Conjunction(conj_id, clause + 1, clauses)
        case 35:
            return _decode_ct(data)
        case 37:
            return _decode_controller(data)
        case 43:
            return CtClear()
    raise Unsupported


def _whole_field(header: int, bits: int, offset: int = 0) -> str:
    """The field that a header names, if all its bits are meant."""
    name = _low_bits(header, bits, offset)
    if FIELDS[name].bits != bits:
        raise Unsupported
    return name


def _low_bits(header: int, bits: int, offset: int) -> str:
    """The field that a header names, if its lowest bits are meant."""
    name = field_name(header)
    if name is None or offset or FIELDS[name].bits < bits:
        raise Unsupported
    return name


def _decode_set_field(data: bytes) -> SetField:
    header = int.from_bytes(data[4:8], "big")
    length = header & 0xFF
    if len(data) != (8 + length + 7) // 8 * 8:
        raise Unsupported
    if not header & 0x100:
        name = field_name(header)
        if name is None:
            raise Unsupported
        return SetField(name, int.from_bytes(data[8 : 8 + length], "big"))
    length //= 2
    name = field_name((header & 0xFFFFFE00) | length)
    if name is None or header & 1:
        raise Unsupported
    value = int.from_bytes(data[8 : 8 + length], "big")
    mask = int.from_bytes(data[8 + length : 8 + 2 * length], "big")
    return SetField(name, value, None if mask == FIELDS[name].all_ones else mask)


def _decode_move(data: bytes) -> Move:
    bits, src_offset, dst_offset, src, dst = struct.unpack_from("!HHHxxII", data, 4)
    names = _low_bits(src, bits, src_offset), _low_bits(dst, bits, dst_offset)
    whole = all(FIELDS[name].bits == bits for name in names)
    return Move(*names, 0 if whole else bits)


def _decode_ct(data: bytes) -> Ct:
    flags, zone_field, zone, table, alg = struct.unpack_from("!HIHB3xH", data, 10)
    if zone_field or alg or flags & ~(CT_COMMIT | CT_FORCE):
        raise Unsupported
    nat: Nat | None = None
    execute: list[SetField | Move] = []
    for action in _nested(data[24:]):
        if isinstance(action, Nat) and nat is None and not execute:
            nat = action
        elif isinstance(action, (SetField, Move)):
            execute.append(action)
        else:
            raise Unsupported
    commit, force = bool(flags & CT_COMMIT), bool(flags & CT_FORCE)
    return Ct(zone, commit, force, None if table == NO_TABLE else table, nat, tuple(execute))


def _nested(data: bytes) -> list[Action | Nat]:
    """The actions inside of ct()."""
    found: list[Action | Nat] = []
    while data:
        length = int.from_bytes(data[2:4], "big")
        if length < 8 or length > len(data):
            raise Unsupported
        one, data = data[:length], data[length:]
        is_nat = one[:2] == b"\xff\xff" and one[4:10] == struct.pack("!IH", NX_VENDOR, NXAST_NAT)
        found.append(decode_nat(one) if is_nat else _decode_known(one))
    return found


def _decode_controller(data: bytes) -> Controller:
    offset, max_len, userdata, meter_id = 16, 0xFFFF, b"", 0
    while offset + 4 <= len(data):
        kind, length = struct.unpack_from("!HH", data, offset)
        if length < 4 or offset + length > len(data):
            raise Unsupported
        if kind == CONTROLLER2_MAX_LEN:
            max_len = struct.unpack_from("!H", data, offset + 4)[0]
        elif kind == CONTROLLER2_USERDATA:
            userdata = data[offset + 4 : offset + length]
        elif kind == CONTROLLER2_METER_ID and length == 8:
            meter_id = struct.unpack_from("!I", data, offset + 4)[0]
        else:
            raise Unsupported
        offset += (length + 7) // 8 * 8
    return Controller(max_len, userdata, meter_id)


def _decode_learn(data: bytes) -> Learn:
    idle, hard, priority, cookie, flags, table, fin_idle, fin_hard = struct.unpack_from(
        "!HHHQHBxHH", data, 10
    )
    if flags & ~LEARN_DELETE_LEARNED or fin_idle or fin_hard:
        raise Unsupported
    specs: list[LearnSpec] = []
    offset = 32
    while offset + 2 <= len(data) and data[offset : offset + 2] != b"\0\0":
        spec, offset = _decode_spec(data, offset)
        specs.append(spec)
    return Learn(table, priority, cookie, tuple(specs), idle, hard, bool(flags))


def _decode_spec(data: bytes, offset: int) -> tuple[LearnSpec, int]:
    """One part of learn() and where the next one starts."""
    header = struct.unpack_from("!H", data, offset)[0]
    offset += 2
    bits = header & SPEC_BITS
    kind = {0: "match", SPEC_LOAD: "load"}.get(header & SPEC_KIND_MASK)
    if kind is None or header & ~(SPEC_IMMEDIATE | SPEC_KIND_MASK | SPEC_BITS):
        raise Unsupported
    source, value = "", 0
    if header & SPEC_IMMEDIATE:
        length = (bits + 15) // 16 * 2
        value = int.from_bytes(data[offset : offset + length], "big")
        offset += length
    else:
        src, src_offset = struct.unpack_from("!IH", data, offset)
        source = _low_bits(src, bits, src_offset)
        offset += 6
    dst, dst_offset = struct.unpack_from("!IH", data, offset)
    return LearnSpec(kind, _low_bits(dst, bits, dst_offset), bits, source, value), offset + 6
