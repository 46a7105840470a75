"""NXT_CT_FLUSH: connections of a switch, ended by its controller; ryu has no word for it."""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from dunlin.model.addresses import IPAddress

NXT_CT_FLUSH = 32
_SRC, _DST, _SRC_PORT, _DST_PORT = range(4)
_ORIG, _REPLY, _ZONE = range(3)


@dataclass(frozen=True, slots=True)
class CtTuple:
    """One direction of connections; None or 0 matches any. Ports need `CtFlush.nw_proto`."""

    src: IPAddress | None = None
    dst: IPAddress | None = None
    src_port: int = 0
    dst_port: int = 0


@dataclass(frozen=True, slots=True)
class CtFlush:
    """
    Which connections: all those that every part given matches; nothing given: all of the switch.

    `reply` with `src` of an endpoint: all connections that were translated to it.
    """

    zone: int | None = None
    nw_proto: int = 0
    orig: CtTuple = CtTuple()
    reply: CtTuple = CtTuple()


def ct_flush_body(flush: CtFlush) -> bytes:
    """What follows experimenter and type."""
    body = struct.pack("!B7x", flush.nw_proto)
    for kind, part in ((_ORIG, flush.orig), (_REPLY, flush.reply)):
        nested = _tuple(part)
        if nested:
            body += struct.pack("!HH4x", kind, 8 + len(nested)) + nested
    if flush.zone is not None:
        body += struct.pack("!HHH2x", _ZONE, 8, flush.zone)
    return body


def _tuple(part: CtTuple) -> bytes:
    body = b""
    for kind, address in ((_SRC, part.src), (_DST, part.dst)):
        if address is not None:
            body += struct.pack("!HH16s4x", kind, 20, _as_ipv6(address).packed)
    for kind, port in ((_SRC_PORT, part.src_port), (_DST_PORT, part.dst_port)):
        if port:
            body += struct.pack("!HHH2x", kind, 8, port)
    return body


def _as_ipv6(address: IPAddress) -> IPv6Address:
    """IPv4 as ::ffff:a.b.c.d."""
    if isinstance(address, IPv4Address):
        return IPv6Address(0xFFFF << 32 | int(address))
    return address
