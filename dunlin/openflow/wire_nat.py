"""
What Nicira's extensions have in common, and nat(), the part of ct() that Services are made of.

Source: nicira-ext.h, ovs-actions(7).
"""

import struct
from ipaddress import IPv4Address, IPv6Address

from dunlin.openflow.flow import Nat

NX_VENDOR = 0x00002320
OFPAT_EXPERIMENTER = 0xFFFF
NXAST_NAT = 36
NAT_SRC, NAT_DST, NAT_RANDOM = 1, 2, 16
"""Flags; NX_NAT_F_PERSISTENT (4) and NX_NAT_F_PROTO_HASH (8) have no word in `Nat`."""
RANGE_IPV4_MIN, RANGE_IPV4_MAX, RANGE_IPV6_MIN, RANGE_IPV6_MAX = 1, 2, 4, 8
RANGE_PORT_MIN, RANGE_PORT_MAX = 16, 32
EXPERIMENTER = struct.Struct("!HHIH")
_NAT = struct.Struct("!2xHH")
_NAT_TO_ENDPOINT = struct.Struct("!HHIH2xHH4s4sHH4x")
_NAT_FLAGS = {"": 0, "src": NAT_SRC, "dst": NAT_DST}


_NAT_RANGES = {
    addresses | ports
    for addresses in (
        0,
        RANGE_IPV4_MIN,
        RANGE_IPV4_MIN | RANGE_IPV4_MAX,
        RANGE_IPV6_MIN,
        RANGE_IPV6_MIN | RANGE_IPV6_MAX,
    )
    for ports in (0, RANGE_PORT_MIN, RANGE_PORT_MIN | RANGE_PORT_MAX)
}
"""What `Nat` can say: no maximum without its minimum, one family."""


_NAT_TO_ENDPOINT_HEAD = (
    OFPAT_EXPERIMENTER,
    _NAT_TO_ENDPOINT.size,
    NX_VENDOR,
    NXAST_NAT,
    NAT_DST,
    RANGE_IPV4_MIN | RANGE_IPV4_MAX | RANGE_PORT_MIN | RANGE_PORT_MAX,
)


class Unsupported(Exception):
    """A form of a known action that `flow.py` has no word for."""


# --- out ------------------------------------------------------------------------------------------


def experimenter(subtype: int, body: bytes) -> bytes:
    """One Nicira action; `body` starts right after the subtype."""
    length = (EXPERIMENTER.size + len(body) + 7) // 8 * 8
    head = EXPERIMENTER.pack(OFPAT_EXPERIMENTER, length, NX_VENDOR, subtype)
    return head + body.ljust(length - EXPERIMENTER.size, b"\0")


def encode_nat(nat: Nat) -> bytes:
    """nat() as it stands inside of ct()."""
    address, port = nat.address, nat.port_min
    if (
        nat.direction == "dst"
        and isinstance(address, IPv4Address)
        and address is nat.address_max
        and port == nat.port_max
        and port
        and not nat.random
    ):
        # The endpoint of a Service: there may be hundreds of thousands of them.
        packed = address.packed
        return _NAT_TO_ENDPOINT.pack(*_NAT_TO_ENDPOINT_HEAD, packed, packed, port, port)
    return _encode_any_nat(nat)


def _encode_any_nat(nat: Nat) -> bytes:
    flags = _NAT_FLAGS[nat.direction] | NAT_RANDOM * nat.random
    present, ranges = 0, b""
    address, address_max = nat.address, nat.address_max
    if address is not None:
        ranges = packed = address.packed
        present = first = RANGE_IPV4_MIN if len(packed) == 4 else RANGE_IPV6_MIN
        if address_max is not None:
            present |= first << 1
            ranges += packed if address_max is address else address_max.packed
    if nat.port_min:
        present |= RANGE_PORT_MIN
        ranges += nat.port_min.to_bytes(2, "big")
        if nat.port_max:
            present |= RANGE_PORT_MAX
            ranges += nat.port_max.to_bytes(2, "big")
    return experimenter(NXAST_NAT, _NAT.pack(flags, present) + ranges)


# --- in -------------------------------------------------------------------------------------------


def decode_nat(data: bytes) -> Nat:
    """`data`: one nat(). Raises Unsupported, struct.error."""
    flags, present = struct.unpack_from("!HH", data, 12)
    direction = {0: "", NAT_SRC: "src", NAT_DST: "dst"}.get(flags & 3)
    if direction is None or flags & ~(NAT_SRC | NAT_DST | NAT_RANDOM) or present not in _NAT_RANGES:
        raise Unsupported
    offset, addresses, ports = 16, [], []
    for bit, length in ((1, 4), (2, 4), (4, 16), (8, 16)):
        if present & bit:
            raw = data[offset : offset + length]
            if len(raw) != length:
                raise Unsupported
            addresses.append(IPv4Address(raw) if length == 4 else IPv6Address(raw))
            offset += length
    for bit in (RANGE_PORT_MIN, RANGE_PORT_MAX):
        if present & bit:
            ports.append(struct.unpack_from("!H", data, offset)[0])
            offset += 2
    if 0 in ports:
        raise Unsupported
    low, high = (*addresses, None, None)[:2]
    port_min, port_max = (*ports, 0, 0)[:2]
    return Nat(direction, low, high, port_min, port_max, bool(flags & NAT_RANDOM))
