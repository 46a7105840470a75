"""
Match fields as bytes: OXM and NXM headers, matches, field ids.

OVS writes registers of a match as the 64-bit xregs of OpenFlow 1.5 (class 0x8001), reads them in
any form, and forgets which form it read: decoding always gives `reg0` … `reg15`. What has no name
here keeps its header as its name (`oxm_8000_12_4`), so that a flow that is not ours can still be
deleted. Source: ovs-fields(7); nicira-ext.h's ERICOXM fields for the two of neighbour discovery.
"""

import struct
from functools import lru_cache

from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import FieldMatch, Match
from dunlin.openflow.messages import CannotEncode, OpenFlowError

OXM_CLASS = 0x8000
NXM_0_CLASS = 0x0000
NXM_1_CLASS = 0x0001
XREG_CLASS = 0x8001
ERIC_CLASS = 0x1000
EXPERIMENTER_CLASS = 0xFFFF
OFPMT_OXM = 1
_MATCH_HEAD = struct.Struct("!HH")

_OXM = {
    "in_port": 0, "eth_dst": 3, "eth_src": 4, "eth_type": 5, "nw_proto": 10, "nw_src": 11,
    "nw_dst": 12, "tcp_src": 13, "tcp_dst": 14, "udp_src": 15, "udp_dst": 16, "sctp_src": 17,
    "sctp_dst": 18, "icmp_type": 19, "icmp_code": 20, "arp_op": 21, "arp_spa": 22, "arp_tpa": 23,
    "arp_sha": 24, "arp_tha": 25, "ipv6_src": 26, "ipv6_dst": 27, "icmpv6_type": 29,
    "icmpv6_code": 30, "nd_target": 31, "nd_sll": 32, "nd_tll": 33, "tun_id": 38, "tcp_flags": 42,
}  # fmt: skip
_NXM_1 = {
    **{f"reg{i}": i for i in range(16)},
    "nw_ttl": 29, "tun_src": 31, "tun_dst": 32, "pkt_mark": 33, "dp_hash": 35, "conj_id": 37,
    "ct_state": 105, "ct_zone": 106, "ct_mark": 107, "ct_label": 108,
    "tun_ipv6_src": 109, "tun_ipv6_dst": 110,
    **{f"xxreg{i}": 111 + i for i in range(4)},
    "ct_nw_proto": 119, "ct_nw_src": 120, "ct_nw_dst": 121, "ct_ipv6_src": 122, "ct_ipv6_dst": 123,
    "ct_tp_src": 124, "ct_tp_dst": 125,
}  # fmt: skip
_ERIC = {"nd_reserved": 1, "nd_options_type": 2}
# Older names of the same fields; OVS still writes them in learn().
_NXM_0_ALIASES = {
    "eth_dst": 1, "eth_src": 2, "eth_type": 3, "nw_proto": 6, "nw_src": 7, "nw_dst": 8,
    "tcp_src": 9, "tcp_dst": 10, "udp_src": 11, "udp_dst": 12, "icmp_type": 13, "icmp_code": 14,
    "arp_op": 15, "arp_spa": 16, "arp_tpa": 17,
}  # fmt: skip
_NXM_1_ALIASES = {
    "tun_id": 16, "arp_sha": 17, "arp_tha": 18, "ipv6_src": 19, "ipv6_dst": 20, "icmpv6_type": 21,
    "icmpv6_code": 22, "nd_target": 23, "nd_sll": 24, "nd_tll": 25,
}  # fmt: skip


def _header(oxm_class: int, number: int, length: int, *, masked: bool = False) -> int:
    """The 32-bit OXM header; `length` counts value and mask."""
    return oxm_class << 16 | number << 9 | masked << 8 | length


def _width(name: str) -> int:
    return (FIELDS[name].bits + 7) // 8


_WIRE: dict[str, tuple[int, bytes, bytes, int]] = {}
"""Field -> (place in a match, header, header with mask, bytes of a value)."""
_NAMES: dict[int, str] = {}
"""Header without mask -> field."""

# A field follows its prerequisites: OVS refuses a match that is in another order.
for _class, _numbers in ((OXM_CLASS, _OXM), (NXM_1_CLASS, _NXM_1), (ERIC_CLASS, _ERIC)):
    for _name, _number in sorted(_numbers.items(), key=lambda item: item[1]):
        _length = _width(_name)
        _WIRE[_name] = (
            len(_WIRE),
            _header(_class, _number, _length).to_bytes(4, "big"),
            _header(_class, _number, 2 * _length, masked=True).to_bytes(4, "big"),
            _length,
        )
for _class, _numbers in (
    (OXM_CLASS, _OXM),
    (NXM_1_CLASS, _NXM_1),
    (ERIC_CLASS, _ERIC),
    (NXM_0_CLASS, _NXM_0_ALIASES),
    (NXM_1_CLASS, _NXM_1_ALIASES),
):
    _NAMES.update(
        {_header(_class, number, _width(name)): name for name, number in _numbers.items()}
    )

FIELD_ORDER = tuple(_WIRE)
"""Fields in the order in which a match is written."""
_EXACT = {
    header.to_bytes(4, "big"): name
    for header, name in _NAMES.items()
    if not name.startswith("xxreg")
}


# --- out ------------------------------------------------------------------------------------------


def encode_header(name: str) -> bytes:
    """The four bytes that name a whole field in move and learn. Raises CannotEncode if none do."""
    try:
        return _WIRE[name][1]
    except KeyError:
        raise CannotEncode(f"field {name}: not one of ours") from None


def encode_field(name: str, value: int, mask: int | None) -> bytes:
    """One OXM with header. Raises CannotEncode: no such field, or wider than the field."""
    wire = _WIRE.get(name)
    if wire is None:
        return _encode_unnamed(name, value, mask)
    try:
        if mask is None:
            return wire[1] + value.to_bytes(wire[3], "big")
        return wire[2] + value.to_bytes(wire[3], "big") + mask.to_bytes(wire[3], "big")
    except OverflowError as error:
        raise CannotEncode(f"field {name}: {value:#x} does not fit into it") from error


_encode_cached = lru_cache(maxsize=1 << 16)(encode_field)


def _place(item: FieldMatch) -> int:
    wire = _WIRE.get(item.field)
    return wire[0] if wire else len(_WIRE)


def encode_match(match: Match) -> bytes:
    """`struct ofp_match` with its padding to eight bytes."""
    if len(match) == 1:
        # Labels of endpoints are all different, and would only push others out of the cache.
        (item,) = match
        body = encode_field(item.field, item.value, item.mask)
    else:
        ordered = sorted(match, key=_place)
        body = b"".join([_encode_cached(item.field, item.value, item.mask) for item in ordered])
    length = 4 + len(body)
    return b"\x00\x01" + length.to_bytes(2, "big") + body + bytes(-length % 8)


def _encode_unnamed(name: str, value: int, mask: int | None) -> bytes:
    """Back to bytes for what `_unnamed` called so."""
    parts = name.split("_")
    try:
        if parts[0] != "oxm":
            raise CannotEncode(f"field {name}: no such field")
        oxm_class, number, length = int(parts[1], 16), int(parts[2]), int(parts[3])
        experimenter = int(parts[4], 16).to_bytes(4, "big") if len(parts) > 4 else b""
        total = len(experimenter) + length * (1 if mask is None else 2)
        header = _header(oxm_class, number, total, masked=mask is not None).to_bytes(4, "big")
        body = value.to_bytes(length, "big")
        return header + experimenter + body + (mask.to_bytes(length, "big") if mask else b"")
    except (IndexError, ValueError, OverflowError) as error:
        raise CannotEncode(f"field {name}: {error}") from error


# --- in -------------------------------------------------------------------------------------------


def field_name(header: int) -> str | None:
    """The field of an OXM or NXM header without mask, if it has a name here."""
    return _NAMES.get(header)


def decode_match(data: bytes, offset: int, end: int) -> tuple[Match, int]:
    """
    The match at `offset` and where what follows its padding starts.

    Raises:
        OpenFlowError: it is not an OXM match, or ends beyond `end`.
    """
    after = match_end(data, offset, end)
    length = data[offset + 2] << 8 | data[offset + 3]
    return decode_oxms(data[offset + 4 : offset + length]), after


def match_end(data: bytes, offset: int, end: int) -> int:
    """Where what follows the match at `offset` and its padding starts. Raises as `decode_match`."""
    if end - offset < 8:
        raise OpenFlowError(f"a match of {end - offset} bytes")
    kind, length = _MATCH_HEAD.unpack_from(data, offset)
    after: int = offset + (length + 7) // 8 * 8
    if kind != OFPMT_OXM or length < 4 or after > end:
        raise OpenFlowError(f"match of type {kind} and length {length}, {end - offset} bytes left")
    return after


def decode_oxms(data: bytes) -> Match:
    """A sequence of OXMs without padding. Raises OpenFlowError: cut off, or a field twice."""
    found: dict[str, FieldMatch] = {}
    offset, end, count = 0, len(data), 0
    while offset < end:
        after = offset + 4 + data[offset + 3] if offset + 4 <= end else end + 1
        if after > end:
            raise OpenFlowError(f"a match field at byte {offset} of {end} is cut off")
        for item in _decode_oxm(data[offset:after]):
            found[item.field] = item
            count += 1
        offset = after
    if len(found) != count:
        raise OpenFlowError("a match has one field twice")
    return tuple([found[name] for name in sorted(found)])


@lru_cache(maxsize=1 << 16)
def _decode_oxm(data: bytes) -> tuple[FieldMatch, ...]:
    """One OXM; registers may be two (`data` is whole: its header says its length)."""
    name = _EXACT.get(data[:4])
    if name is not None:
        return (FieldMatch(name, int.from_bytes(data[4:], "big")),)
    header = int.from_bytes(data[:4], "big")
    masked = bool(header & 0x100)
    length = (header & 0xFF) // 2 if masked else header & 0xFF
    if masked and header & 1:
        raise OpenFlowError(f"match field {header:#010x}: mask and value differ in length")
    name = _NAMES.get((header & 0xFFFFFE00) | length)
    value = int.from_bytes(data[4 : 4 + length], "big")
    mask = int.from_bytes(data[4 + length :], "big") if masked else (1 << 8 * length) - 1
    if name is None or name.startswith("xxreg"):
        wide = _registers(header >> 16, header >> 9 & 0x7F, length)
        return _split(wide, value, mask) if wide else (_unnamed(data, length, masked=masked),)
    return (_field_match(name, value, mask),) if mask else ()


def _registers(oxm_class: int, number: int, length: int) -> tuple[str, ...]:
    """The registers that make up an xreg or xxreg, high to low; () for other fields."""
    if oxm_class == XREG_CLASS and number < 8 and length == 8:
        return tuple(f"reg{2 * number + i}" for i in range(2))
    if oxm_class == NXM_1_CLASS and 111 <= number < 115 and length == 16:
        return tuple(f"reg{4 * (number - 111) + i}" for i in range(4))
    return ()


def _split(names: tuple[str, ...], value: int, mask: int) -> tuple[FieldMatch, ...]:
    """A match on a wide register as matches on its 32-bit parts that have a mask."""
    parts = []
    for i, name in enumerate(reversed(names)):
        part_mask = mask >> 32 * i & 0xFFFFFFFF
        if part_mask:
            parts.append(_field_match(name, value >> 32 * i & 0xFFFFFFFF, part_mask))
    return tuple(parts)


def split_wide(item: FieldMatch) -> tuple[FieldMatch, ...]:
    """As OVS gives a match back: xxregs as registers, no mask of all ones, nothing for mask 0."""
    bits = FIELDS[item.field].bits if item.field in FIELDS else 0
    mask = (1 << bits) - 1 if item.mask is None else item.mask
    if item.field.startswith("xxreg"):
        first = 4 * int(item.field[5:])
        return _split(tuple(f"reg{first + i}" for i in range(4)), item.value, mask)
    if not bits:
        return (item,)
    return (_field_match(item.field, item.value, mask),) if mask else ()


def _field_match(name: str, value: int, mask: int) -> FieldMatch:
    full = mask == FIELDS[name].all_ones
    return FieldMatch(name, value & mask, None if full else mask)


def _unnamed(data: bytes, length: int, *, masked: bool) -> FieldMatch:
    """A field without name, called by its header; see `_encode_unnamed`."""
    oxm_class, number = int.from_bytes(data[:2], "big"), data[2] >> 1
    body, experimenter = data[4:], ""
    if oxm_class == EXPERIMENTER_CLASS:
        if len(data) < 8:
            raise OpenFlowError("an experimenter's match field without experimenter")
        body, experimenter = data[8:], f"_{data[4:8].hex()}"
        length = len(body) // 2 if masked else len(body)
    name = f"oxm_{oxm_class:04x}_{number}_{length}{experimenter}"
    value = int.from_bytes(body[:length], "big")
    return FieldMatch(name, value, int.from_bytes(body[length:], "big") if masked else None)
