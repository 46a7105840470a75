"""Groups and bundles as bytes: OFPT_GROUP_MOD, OFPT_BUNDLE_ADD_MESSAGE out; OFPMP_GROUP_DESC in."""

import struct
from functools import lru_cache
from typing import Literal

from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import Action, Bucket, Group, Unknown
from dunlin.openflow.messages import CannotEncode, GroupTooLarge, OpenFlowError
from dunlin.openflow.wire_actions import decode_actions, encode_actions
from dunlin.openflow.wire_fields import decode_oxms, encode_field
from dunlin.openflow.wire_flow import MAX_LEN, VERSION

OFPT_GROUP_MOD = 15
OFPT_BUNDLE_ADD_MESSAGE = 34
OFPG_ALL = 0xFFFFFFFC
OFPG_BUCKET_ALL = 0xFFFFFFFF
ONF_NETRONOME = 0x0000154D
"""Experimenter of the group property that holds `selection_method`."""
BUNDLE_FLAGS = 3
"""OFPBF_ATOMIC | OFPBF_ORDERED."""
REMEMBERED = 1 << 14
"""Decoded groups that are kept: one for each Service."""
BUNDLE_ADD_LEN = 16
"""What a bundle adds to each message."""

GroupCommand = Literal["add", "modify", "delete"]
_COMMANDS = {"add": 0, "modify": 1, "delete": 2}
_COMMAND = slice(8, 10)
"""Where it is in a message."""
_MODIFY = _COMMANDS["modify"].to_bytes(2, "big")
_TYPES = ("all", "select", "indirect", "fast_failover")
_GROUP_MOD = struct.Struct("!BBHIHBx4sHxxI")
_BUCKET = struct.Struct("!HHI")
_WEIGHT = struct.Struct("!HHHxx")
_METHOD = struct.Struct("!HHII4x16sQ")
_GROUP_DESC = struct.Struct("!HBxIH6x")
_BUNDLE_ADD = struct.Struct("!BBHIIxxH")
_EXPERIMENTER_PROP = 0xFFFF
_HASH_ALG_L4 = 0


# --- out ------------------------------------------------------------------------------------------


def encode_group(group: Group, command: GroupCommand, xid: int = 0) -> bytes:
    """
    OFPT_GROUP_MOD.

    "delete" needs only `group_id`, deletes the group's flows too, and does nothing where there is
    no such group.

    Raises:
        GroupTooLarge: more than fits into one message, also one inside of a bundle.
        CannotEncode: a number too wide, an unknown type or field; the message names the group.
    """
    name = f"group {group.group_id:#x}"
    try:
        buckets = properties = b""
        if command != "delete":
            select = group.type == "select"
            buckets = b"".join([_encode_bucket(b, select=select) for b in group.buckets])
            properties = _encode_method(group)
        kind = _TYPES.index(group.type)
        number = group.group_id.to_bytes(4, "big")
    except (struct.error, ValueError, OverflowError, KeyError) as error:
        raise CannotEncode(f"{name}: {error}") from error
    length = _GROUP_MOD.size + len(buckets) + len(properties)
    if length > MAX_LEN - BUNDLE_ADD_LEN:
        raise GroupTooLarge(f"{name}: {len(group.buckets)} buckets are {length} bytes")
    head = _GROUP_MOD.pack(
        VERSION, OFPT_GROUP_MOD, length, xid, _COMMANDS[command], kind, number, len(buckets),
        OFPG_BUCKET_ALL,
    )  # fmt: skip
    return head + buckets + properties


def as_modify(message: bytes) -> bytes:
    """OFPT_GROUP_MOD that adds a group -> the one that modifies it."""
    return message[: _COMMAND.start] + _MODIFY + message[_COMMAND.stop :]


def encode_group_delete_all(xid: int = 0) -> bytes:
    """Delete every group and every flow that names one."""
    return encode_group(Group(OFPG_ALL, "all"), "delete", xid)


def _encode_bucket(bucket: Bucket, *, select: bool) -> bytes:
    actions, properties = bucket.actions, b""
    if Unknown in map(type, actions):
        properties = b"".join(
            [a.data for a in actions if isinstance(a, Unknown) and _is_property(a)]
        )
        actions = tuple([a for a in actions if not _is_property(a)])
    encoded = encode_actions(actions)
    if select:
        properties = _WEIGHT.pack(0, 8, bucket.weight) + properties
    size = len(encoded)
    length = _BUCKET.size + size + len(properties)
    return _BUCKET.pack(length, size, bucket.bucket_id) + encoded + properties


def _is_property(action: Action) -> bool:
    return isinstance(action, Unknown) and action.what != "action"


def _encode_method(group: Group) -> bytes:
    """OVS reads the parameter of dp_hash as (hash algorithm << 32 | basis)."""
    method, basis = group.selection_method, group.hash_basis
    if not method:
        return b""
    fields = b"".join(
        [encode_field(name, FIELDS[name].all_ones, None) for name in group.hash_fields]
    )
    name = method.encode("ascii")
    if len(name) > 15:
        raise CannotEncode(f"selection_method {method!r} is longer than 15 bytes")
    length = _METHOD.size + len(fields)
    head = _METHOD.pack(
        _EXPERIMENTER_PROP, length, ONF_NETRONOME, 1, name, method_parameter(method, basis)
    )
    return head + fields + bytes(-length % 8)


def method_parameter(method: str, basis: int) -> int:
    """
    `selection_method_param`, 64 bits: dp_hash has its algorithm in the upper half.

    That is 0, OVS_HASH_ALG_L4: the hash that a packet has anyway. OVS_HASH_ALG_SYM_L4, which OVS
    takes where no method is said, leaves out the ports of UDP: all datagrams of a client to a
    Service would go to one endpoint.
    """
    return (_HASH_ALG_L4 << 32 if method == "dp_hash" else 0) | basis


def encode_bundle_add(bundle_id: int, message: bytes, xid: int = 0) -> bytes:
    """
    OFPT_BUNDLE_ADD_MESSAGE around one flow or group modification, whose xid becomes `xid`.

    Raises:
        CannotEncode: too long, or no flow or group modification (OVS would close the session).
    """
    length = BUNDLE_ADD_LEN + len(message)
    if length > MAX_LEN or message[1] not in (14, 15):
        raise CannotEncode(f"a message of type {message[1]}, {len(message)} bytes, in a bundle")
    number = xid.to_bytes(4, "big")
    head = _BUNDLE_ADD.pack(VERSION, OFPT_BUNDLE_ADD_MESSAGE, length, xid, bundle_id, BUNDLE_FLAGS)
    return head + message[:4] + number + message[8:]


# --- in -------------------------------------------------------------------------------------------


def decode_group_descs(data: bytes, offset: int) -> tuple[Group, ...]:
    """
    All of OFPMP_GROUP_DESC's entries from `offset` to the end.

    Raises:
        OpenFlowError: a length that cannot be, or a group type that does not exist.
    """
    groups = []
    while offset < len(data):
        if len(data) - offset < _GROUP_DESC.size:
            raise OpenFlowError(f"a group of {len(data) - offset} bytes")
        length, _, group_id, array_length = _GROUP_DESC.unpack_from(data, offset)
        end = offset + length
        if _GROUP_DESC.size + array_length > length or end > len(data):
            raise OpenFlowError(f"group {group_id:#x} of length {length}, buckets {array_length}")
        groups.append(_described(data[offset:end]))
        offset = end
    return tuple(groups)


@lru_cache(maxsize=REMEMBERED)
def _described(data: bytes) -> Group:
    """One whole entry; remembered as flows are (`wire_flow`)."""
    _, kind, group_id, array_length = _GROUP_DESC.unpack_from(data)
    after = _GROUP_DESC.size + array_length
    name = _type_name(kind)
    buckets = _decode_buckets(data[_GROUP_DESC.size : after], name)
    return Group(group_id, name, buckets, *_decode_method(data[after:]))


def decode_group_mod(data: bytes) -> tuple[str, Group]:
    """Read OFPT_GROUP_MOD: (command, group). Raises OpenFlowError: malformed."""
    if len(data) < _GROUP_MOD.size:
        raise OpenFlowError(f"OFPT_GROUP_MOD of {len(data)} bytes")
    *_, code, kind, number, array_length, _bucket = _GROUP_MOD.unpack_from(data)
    group_id = int.from_bytes(number, "big")
    names = ("add", "modify", "delete", "insert_bucket", "remove_bucket")
    after = _GROUP_MOD.size + array_length
    if code >= len(names) or after > len(data):
        raise OpenFlowError(f"OFPT_GROUP_MOD of command {code}, buckets {array_length}")
    name = _type_name(kind)
    buckets = _decode_buckets(data[_GROUP_MOD.size : after], name)
    return names[code], Group(group_id, name, buckets, *_decode_method(data[after:]))


def decode_bundle_add(data: bytes) -> tuple[int, bytes]:
    """What a switch reads from OFPT_BUNDLE_ADD_MESSAGE: (bundle id, message)."""
    if len(data) < BUNDLE_ADD_LEN + 8:
        raise OpenFlowError(f"OFPT_BUNDLE_ADD_MESSAGE of {len(data)} bytes")
    length = int.from_bytes(data[BUNDLE_ADD_LEN + 2 : BUNDLE_ADD_LEN + 4], "big")
    if length < 8 or BUNDLE_ADD_LEN + length > len(data):
        raise OpenFlowError(f"a bundled message of length {length}")
    bundle_id = int.from_bytes(data[8:12], "big")
    return bundle_id, data[BUNDLE_ADD_LEN : BUNDLE_ADD_LEN + length]


def _type_name(kind: int) -> str:
    if kind >= len(_TYPES):
        raise OpenFlowError(f"a group of type {kind}")
    return _TYPES[kind]


def _decode_buckets(data: bytes, kind: str) -> tuple[Bucket, ...]:
    buckets = []
    offset = 0
    while offset < len(data):
        length = int.from_bytes(data[offset : offset + 2], "big")
        if length < 8 or offset + length > len(data):
            raise OpenFlowError(f"a bucket of length {length}, {len(data) - offset} bytes left")
        buckets.append(_decode_bucket(data[offset : offset + length], kind))
        offset += length
    return tuple(buckets)


@lru_cache(maxsize=1 << 14)
def _decode_bucket(data: bytes, kind: str) -> Bucket:
    """`data`: one bucket, its length checked."""
    _, actions_length, bucket_id = _BUCKET.unpack_from(data)
    if 8 + actions_length > len(data):
        raise OpenFlowError(f"bucket {bucket_id} with {actions_length} bytes of actions")
    actions = decode_actions(data[8 : 8 + actions_length])
    weight = 100
    for number, prop in properties(data[8 + actions_length :]):
        if number == 0 and len(prop) == 8:
            weight = int.from_bytes(prop[4:6], "big") if kind == "select" else 100
        else:
            actions += (Unknown("bucket property", prop),)
    return Bucket(bucket_id, actions, weight)


def properties(data: bytes) -> list[tuple[int, bytes]]:
    """
    A list of properties as (type, whole bytes without padding).

    Raises:
        OpenFlowError: a length below 4 or beyond the end.
    """
    found = []
    offset = 0
    while offset < len(data):
        kind = int.from_bytes(data[offset : offset + 2], "big")
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        if length < 4 or offset + length > len(data):
            raise OpenFlowError(f"a property of length {length}, {len(data) - offset} bytes left")
        found.append((kind, data[offset : offset + length]))
        offset += (length + 7) // 8 * 8
    return found


def _decode_method(data: bytes) -> tuple[str, int, tuple[str, ...]]:
    """
    `selection_method`, `hash_basis` and `hash_fields` of a group's properties.

    With what Dunlin never writes (a part of a field, a parameter beyond the basis) the method's
    name is none of ours.
    """
    for kind, prop in properties(data):
        if kind == _EXPERIMENTER_PROP and len(prop) >= _METHOD.size:
            *_, experimenter, number, name, parameter = _METHOD.unpack_from(prop)
            if experimenter == ONF_NETRONOME and number == 1:
                text = name.rstrip(b"\0").decode("ascii", "backslashreplace")
                basis = parameter & 0xFFFFFFFF
                fields = _whole_fields(prop[_METHOD.size :])
                if fields is not None and parameter == method_parameter(text, basis):
                    return text, basis, fields
                return f"{text}+{prop[32:].hex()}", 0, ()
    return "", 0, ()


def _whole_fields(data: bytes) -> tuple[str, ...] | None:
    """Names of the fields to hash; None where only some bits of a field count."""
    found = decode_oxms(data)
    whole = all(f.field in FIELDS and f.value == FIELDS[f.field].all_ones for f in found)
    return tuple(item.field for item in found) if whole else None
