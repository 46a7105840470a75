"""
The answer to a packet that nobody takes: a TCP RST (RFC 9293) or ICMP "port unreachable".

Pure, bytes to bytes. What must not be answered (RFC 1122 3.2.2, RFC 4443 2.4 (e), and a RST) and
what is too short to be understood gives None: nothing that a Pod may send raises.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from dunlin.openflow.fields import ETH_IPV4, ETH_IPV6, IP_SCTP, IP_TCP, IP_UDP

ICMP, ICMPV6 = 1, 58
TTL: Final = 64
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
_ICMPV4_MAX: Final = 576
"""An ICMP error is at most so long, its IP header included (RFC 1812 4.3.2.3)."""
_ICMPV6_MAX: Final = 1280
_EXTENSIONS: Final = frozenset({0, 43, 60, 135})
_FRAGMENT: Final = 44
_EXTENSIONS_MAX: Final = 8
_ETHERNET = struct.Struct("!6s6sH")
_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_TCP = struct.Struct("!HHIIBBHHH")


class Refusal(StrEnum):
    """What kind of answer it is."""

    TCP_RESET = "tcp_reset"
    ICMP = "icmp"


@dataclass(frozen=True, slots=True)
class Answer:
    """An Ethernet frame, addressed to the sender of what it answers."""

    kind: Refusal
    frame: bytes


class _Packet(NamedTuple):
    """`ip`: from the IP header on, without padding. `length`: of the payload, before truncation."""

    version: int
    source: bytes
    destination: bytes
    protocol: int
    offset: int
    length: int
    ip: bytes


def answer(frame: bytes) -> Answer | None:
    """
    The refusal of a TCP, UDP or SCTP packet in an Ethernet frame, which may be cut off at its end.

    None: no such packet, one that must not be answered, or too little of it.
    """
    if len(frame) < _ETHERNET.size:
        return None
    destination, source, eth_type = _ETHERNET.unpack_from(frame)
    if destination[0] & 1:
        return None
    packet = _read(eth_type, frame[_ETHERNET.size :])
    if packet is None or not (_is_host(packet.source) and _is_host(packet.destination)):
        return None
    kind, payload = Refusal.ICMP, _icmp(packet)
    if packet.protocol == IP_TCP:
        kind, payload = Refusal.TCP_RESET, _tcp_reset(packet)
    if payload is None:
        return None
    return Answer(kind, _ETHERNET.pack(source, destination, eth_type) + payload)


# --- in -------------------------------------------------------------------------------------------


def _read(eth_type: int, data: bytes) -> _Packet | None:
    packet = None
    if eth_type == ETH_IPV4:
        packet = _read_ipv4(data)
    elif eth_type == ETH_IPV6:
        packet = _read_ipv6(data)
    if packet is None or packet.protocol not in (IP_TCP, IP_UDP, IP_SCTP):
        return None
    return packet


def _read_ipv4(data: bytes) -> _Packet | None:
    if len(data) < _IPV4.size:
        return None
    first, _, total, _, fragment, _, protocol, _, source, destination = _IPV4.unpack_from(data)
    header = (first & 0xF) * 4
    if first >> 4 != 4 or header < _IPV4.size or total < header or fragment & 0x1FFF:
        return None
    return _Packet(4, source, destination, protocol, header, total - header, data[:total])


def _read_ipv6(data: bytes) -> _Packet | None:
    if len(data) < _IPV6.size:
        return None
    first, length, protocol, _, source, destination = _IPV6.unpack_from(data)
    total = _IPV6.size + length
    offset = _IPV6.size
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in _EXTENSIONS and protocol != _FRAGMENT:
            break
        if len(data) < offset + 8:
            return None
        if protocol == _FRAGMENT and int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8:
            return None
        size = 8 if protocol == _FRAGMENT else (data[offset + 1] + 1) * 8
        protocol, offset = data[offset], offset + size
    if first >> 28 != 6 or offset > total:
        return None
    return _Packet(6, source, destination, protocol, offset, total - offset, data[:total])


def _is_host(address: bytes) -> bool:
    """One host's address: neither unspecified, loopback, multicast nor broadcast."""
    if not any(address):
        return False
    if len(address) == 4:
        return address[0] not in (0, 127) and address[0] < 0xE0
    return address[0] != 0xFF and address != bytes(15) + b"\1"


# --- out ------------------------------------------------------------------------------------------


def _tcp_reset(packet: _Packet) -> bytes | None:
    """RFC 9293 3.10.7.1: a segment for a connection that does not exist."""
    segment = packet.ip[packet.offset :]
    if len(segment) < _TCP.size:
        return None
    source, destination, seq, ack, offset, flags, *_ = _TCP.unpack_from(segment)
    header = (offset >> 4) * 4
    if flags & _RST or header < _TCP.size or packet.length < header:
        return None
    if flags & _ACK:
        ours = (ack, 0, _RST)
    else:
        length = packet.length - header + bool(flags & _SYN) + bool(flags & _FIN)
        ours = (0, (seq + length) & 0xFFFF_FFFF, _RST | _ACK)
    reset = _TCP.pack(destination, source, ours[0], ours[1], 5 << 4, ours[2], 0, 0, 0)
    total = checksum(_pseudo_header(packet, IP_TCP, len(reset)) + reset)
    reset = reset[:16] + total.to_bytes(2, "big") + reset[18:]
    return _ip_header(packet, IP_TCP, len(reset), 0) + reset


def _icmp(packet: _Packet) -> bytes | None:
    """Port unreachable, with as much of the packet as such a message may have."""
    if len(packet.ip) < packet.offset + 8:
        return None
    if packet.version == 4:
        about = packet.ip[: _ICMPV4_MAX - _IPV4.size - 8]
        body = struct.pack("!BBHI", 3, 3, 0, 0) + about
        total, protocol, dscp = checksum(body), ICMP, 0xC0
    else:
        about = packet.ip[: _ICMPV6_MAX - _IPV6.size - 8]
        body = struct.pack("!BBHI", 1, 4, 0, 0) + about
        total = checksum(_pseudo_header(packet, ICMPV6, len(body)) + body)
        protocol, dscp = ICMPV6, 0
    body = body[:2] + total.to_bytes(2, "big") + body[4:]
    return _ip_header(packet, protocol, len(body), dscp) + body


def _ip_header(packet: _Packet, protocol: int, length: int, dscp: int) -> bytes:
    """From the address that was asked to the one that asked."""
    source, destination = packet.destination, packet.source
    if packet.version == 6:
        return _IPV6.pack(6 << 28, length, protocol, TTL, source, destination)
    total, dont_fragment = _IPV4.size + length, 0x4000
    fields = (0x45, dscp, total, 0, dont_fragment, TTL, protocol)
    bare = _IPV4.pack(*fields, 0, source, destination)
    return _IPV4.pack(*fields, checksum(bare), source, destination)


def _pseudo_header(packet: _Packet, protocol: int, length: int) -> bytes:
    """Of the answer; RFC 9293 3.1, RFC 8200 8.1."""
    ends = packet.destination + packet.source
    if packet.version == 4:
        return ends + struct.pack("!BBH", 0, protocol, length)
    return ends + struct.pack("!II", length, protocol)


def checksum(data: bytes) -> int:
    """The Internet checksum of RFC 1071."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
