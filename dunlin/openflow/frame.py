"""The addresses and ports of an Ethernet frame, which may be cut off at its end; pure, total."""

import struct
from ipaddress import ip_address
from typing import Final, NamedTuple

from dunlin.model.addresses import IPAddress
from dunlin.openflow.fields import (
    ETH_IPV4,
    ETH_IPV6,
    IP_ICMP,
    IP_ICMPV6,
    IP_SCTP,
    IP_TCP,
    IP_UDP,
)

PROTOCOLS: Final = {
    IP_TCP: "TCP", IP_UDP: "UDP", IP_SCTP: "SCTP", IP_ICMP: "ICMP", IP_ICMPV6: "ICMP",
}  # fmt: skip
_WITH_PORTS: Final = (IP_TCP, IP_UDP, IP_SCTP)
_ETHERNET, _V4, _V6 = 14, 20, 40
_EXTENSIONS: Final = frozenset({0, 43, 44, 60, 135})
_FRAGMENT: Final = 44
_EXTENSIONS_MAX: Final = 8


class Headers(NamedTuple):
    """Who sends to whom; ports are 0 where there are none (or in a later fragment)."""

    source: IPAddress
    destination: IPAddress
    protocol: str
    source_port: int
    destination_port: int


def headers(frame: bytes) -> Headers | None:
    """None: no IP packet, or too little of it."""
    eth_type, data = int.from_bytes(frame[12:14], "big"), frame[_ETHERNET:]
    if eth_type == ETH_IPV4 and len(data) >= _V4 and data[0] >> 4 == 4:
        first = not int.from_bytes(data[6:8], "big") & 0x1FFF
        return _headers(data[12:16], data[16:20], data[9], data[(data[0] & 0xF) * 4 :], first=first)
    if eth_type == ETH_IPV6 and len(data) >= _V6 and data[0] >> 4 == 6:
        protocol, offset, first = _skip_extensions(data)
        return _headers(data[8:24], data[24:40], protocol, data[offset:], first=first)
    return None


def _skip_extensions(data: bytes) -> tuple[int, int, bool]:
    """(protocol, where it begins, whether it begins in this packet)."""
    protocol, offset, first = data[6], _V6, True
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in _EXTENSIONS or len(data) < offset + 8:
            break
        if protocol == _FRAGMENT:
            first = not int.from_bytes(data[offset + 2 : offset + 4], "big") & 0xFFF8
        size = 8 if protocol == _FRAGMENT else (data[offset + 1] + 1) * 8
        protocol, offset = data[offset], offset + size
    return protocol, offset, first


def _headers(
    source: bytes, destination: bytes, protocol: int, payload: bytes, *, first: bool
) -> Headers:
    ports = (0, 0)
    if first and protocol in _WITH_PORTS and len(payload) >= 4:
        ports = struct.unpack_from("!HH", payload)
    name = PROTOCOLS.get(protocol, str(protocol))
    return Headers(ip_address(source), ip_address(destination), name, *ports)
