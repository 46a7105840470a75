"""
A packet as the values of its fields, for tracing.

A field that is not given is 0, as in Open vSwitch. Registers are kept as `reg0` … `reg15`; the
xxregs are views on them.
"""

from collections.abc import Mapping

from dunlin.openflow.fields import FIELDS, IP_ICMP, IP_ICMPV6, IP_SCTP, IP_TCP, IP_UDP
from dunlin.openflow.flow import FieldMatch, MatchValue, field_match

Packet = Mapping[str, int]
"""Field name -> value; only fields of `FIELDS`, none of the xxregs."""

_PORT_PREFIXES = {IP_TCP: "tcp", IP_UDP: "udp", IP_SCTP: "sctp"}
_ICMP_PREFIXES = {IP_ICMP: "icmp", IP_ICMPV6: "icmpv6"}


class CannotTrace(Exception):
    """The tracer does not know what a switch would do here, and does not guess."""


def packet(**fields: MatchValue) -> dict[str, int]:
    """
    A packet from the same values that `flow.match` takes.

    Raises:
        CannotTrace: a field that does not exist, or a masked value.
    """
    values: dict[str, int] = {}
    for name, value in fields.items():
        if name not in FIELDS:
            raise CannotTrace(f"field {name}: not one of ours")
        item = field_match(name, value)
        if item.mask is not None:
            raise CannotTrace(f"field {name}: a packet has all bits, {value!r} is masked")
        write(values, name, item.value)
    return values


def read(values: Packet, name: str) -> int:
    """The value of a field. Raises CannotTrace: no such field."""
    if name.startswith("xxreg"):
        first = 4 * int(name[5:])
        return sum(values.get(f"reg{first + i}", 0) << 32 * (3 - i) for i in range(4))
    if name not in FIELDS:
        raise CannotTrace(f"field {name}: not one of ours")
    return values.get(name, 0)


def write(values: dict[str, int], name: str, value: int, mask: int | None = None) -> None:
    """Set a field, or the bits of its mask. Raises CannotTrace: no such field."""
    if mask is not None:
        value = read(values, name) & ~mask | value & mask
    if name.startswith("xxreg"):
        first = 4 * int(name[5:])
        for i in range(4):
            values[f"reg{first + i}"] = value >> 32 * (3 - i) & 0xFFFFFFFF
        return
    if name not in FIELDS:
        raise CannotTrace(f"field {name}: not one of ours")
    values[name] = value


def matches(values: Packet, item: FieldMatch) -> bool:
    """The packet's field is as the match wants it. Raises CannotTrace: no such field."""
    value = read(values, item.field)
    return value == item.value if item.mask is None else value & item.mask == item.value


def address_fields(values: Packet) -> tuple[str, str]:
    """Names of source and destination address. Raises CannotTrace: neither IPv4 nor IPv6."""
    match values.get("eth_type"):
        case 0x0800:
            return "nw_src", "nw_dst"
        case 0x86DD:
            return "ipv6_src", "ipv6_dst"
    raise CannotTrace(f"no addresses in eth_type {values.get('eth_type', 0):#x}")


def port_fields(values: Packet) -> tuple[str, str] | None:
    """Names of source and destination port; None for protocols without ports."""
    prefix = _PORT_PREFIXES.get(values.get("nw_proto", 0))
    return (f"{prefix}_src", f"{prefix}_dst") if prefix else None


def is_icmp_error(values: Packet) -> bool:
    """An ICMP or ICMPv6 message that is about another packet."""
    prefix = _ICMP_PREFIXES.get(values.get("nw_proto", 0))
    kind = values.get(f"{prefix}_type", 0) if prefix else 0
    return kind in (3, 4, 5, 11, 12) if prefix == "icmp" else prefix is not None and kind < 128
