"""Refusals, read back by os-ken's packet library and by checksums over what is on the wire."""

import struct
from importlib import import_module
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.openflow.reject import Refusal, answer, checksum

_layers = {
    name: import_module(f"os_ken.lib.packet.{name}")
    for name in ("ethernet", "icmp", "icmpv6", "ipv4", "ipv6", "packet", "sctp", "tcp", "udp")
}
ethernet: Any = _layers["ethernet"]
icmp: Any = _layers["icmp"]
icmpv6: Any = _layers["icmpv6"]
ipv4: Any = _layers["ipv4"]
ipv6: Any = _layers["ipv6"]
packet: Any = _layers["packet"]
tcp: Any = _layers["tcp"]
udp: Any = _layers["udp"]

CLIENT_MAC, GATEWAY_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
V4 = ("10.0.0.2", "10.96.0.1")
V6 = ("fd00::2", "fd96::1")
FIN, SYN, RST, ACK = 1, 2, 4, 16
ports = st.integers(1, 65535)
words = st.integers(0, 2**32 - 1)


def frame(ends: tuple[str, str], transport: Any, payload: bytes = b"") -> bytes:
    """A request from the client to a Service address."""
    one = packet.Packet()
    version = ip_address(ends[0]).version
    eth_type = 0x0800 if version == 4 else 0x86DD
    one.add_protocol(ethernet.ethernet(GATEWAY_MAC, CLIENT_MAC, eth_type))
    number = 6 if isinstance(transport, tcp.tcp) else 17
    if version == 4:
        one.add_protocol(ipv4.ipv4(proto=number, src=ends[0], dst=ends[1]))
    else:
        one.add_protocol(ipv6.ipv6(nxt=number, src=ends[0], dst=ends[1]))
    one.add_protocol(transport)
    if payload:
        one.add_protocol(payload)
    one.serialize()
    return bytes(one.data)


def layers(data: bytes) -> dict[str, Any]:
    """Protocol name -> header."""
    found = packet.Packet(data).protocols
    return {item.protocol_name: item for item in found if not isinstance(item, bytes)}


def check_sums(data: bytes) -> None:
    """Every checksum of the frame adds up to zero, computed over the bytes themselves."""
    ip = data[14:]
    if data[12:14] == b"\x08\x00":
        assert checksum(ip[:20]) == 0
        assert struct.unpack("!H", ip[2:4])[0] == len(ip)
        body, protocol, ends = ip[20:], ip[9], ip[12:20]
        pseudo = ends + struct.pack("!BBH", 0, protocol, len(body))
    else:
        body, protocol, ends = ip[40:], ip[6], ip[8:40]
        assert struct.unpack("!H", ip[4:6])[0] == len(body)
        pseudo = ends + struct.pack("!II", len(body), protocol)
    assert checksum((b"" if protocol == 1 else pseudo) + body) == 0


@pytest.mark.parametrize("ends", [V4, V6])
@given(src=ports, dst=ports, seq=words, ack=words, flags=st.integers(0, 255), data=st.binary())
def test_tcp_is_reset(
    ends: tuple[str, str], src: int, dst: int, seq: int, ack: int, flags: int, data: bytes
) -> None:
    """RFC 9293 3.10.7.1: with ACK its number is ours; without, all of the segment is acked."""
    segment = tcp.tcp(src, dst, seq=seq, ack=ack, bits=flags)
    got = answer(frame(ends, segment, data))
    if flags & RST:
        assert got is None
        return
    assert got is not None
    assert got.kind is Refusal.TCP_RESET
    check_sums(got.frame)
    read = layers(got.frame)
    assert (read["ethernet"].src, read["ethernet"].dst) == (GATEWAY_MAC, CLIENT_MAC)
    ip = read["ipv4" if ends is V4 else "ipv6"]
    assert (ip.src, ip.dst) == (ends[1], ends[0])
    reset = read["tcp"]
    assert (reset.src_port, reset.dst_port) == (dst, src)
    if flags & ACK:
        assert (reset.seq, reset.ack, reset.bits) == (ack, 0, RST)
    else:
        length = len(data) + bool(flags & SYN) + bool(flags & FIN)
        expected = (0, (seq + length) % 2**32, RST | ACK)
        assert (reset.seq, reset.ack, reset.bits) == expected


@given(src=ports, dst=ports, size=st.integers(0, 1400), kept=st.integers(42, 1300))
def test_udp_over_ipv4(src: int, dst: int, size: int, kept: int) -> None:
    """ICMP 3/3 about the client's own packet, at most 576 bytes, also when it comes cut off."""
    request = frame(V4, udp.udp(src, dst), bytes(size))
    got = answer(request[:kept])
    assert got is not None
    assert got.kind is Refusal.ICMP
    check_sums(got.frame)
    read = layers(got.frame)
    assert (read["ipv4"].src, read["ipv4"].dst) == (V4[1], V4[0])
    assert (read["icmp"].type, read["icmp"].code) == (3, 3)
    assert len(got.frame) <= 14 + 576
    about = got.frame[14 + 20 + 8 :]
    assert len(about) >= 28
    assert request[14:].startswith(about)


@given(src=ports, dst=ports, size=st.integers(0, 1400), kept=st.integers(62, 1300))
def test_udp_over_ipv6(src: int, dst: int, size: int, kept: int) -> None:
    """ICMPv6 1/4 about the client's own packet, at most 1,280 bytes."""
    request = frame(V6, udp.udp(src, dst), bytes(size))
    got = answer(request[:kept])
    assert got is not None
    check_sums(got.frame)
    read = layers(got.frame)
    assert (read["ipv6"].src, read["ipv6"].dst) == (V6[1], V6[0])
    assert (read["icmpv6"].type_, read["icmpv6"].code) == (1, 4)
    assert len(got.frame) <= 14 + 1280
    assert request[14:].startswith(got.frame[14 + 40 + 8 :])


def ipv4_frame(protocol: int, payload: bytes, *, fragment: int = 0, source: str = V4[0]) -> bytes:
    """By hand, for what the library does not write."""
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0,
        IPv4Address(source).packed, IPv4Address(V4[1]).packed,
    )  # fmt: skip
    macs = bytes.fromhex("020000000002020000000001")
    return macs + b"\x08\x00" + header + payload


def ipv6_frame(following: int, payload: bytes) -> bytes:
    """IPv6 with whatever follows."""
    ends = IPv6Address(V6[0]).packed + IPv6Address(V6[1]).packed
    macs = bytes.fromhex("020000000002020000000001")
    head = struct.pack("!IHBB", 6 << 28, len(payload), following, 64)
    return macs + b"\x86\xdd" + head + ends + payload


SYN_SEGMENT = struct.pack("!HHIIBBHHH", 1, 2, 7, 0, 5 << 4, SYN, 0, 0, 0)


def test_sctp_gets_an_icmp_error() -> None:
    """As from a kernel with REJECT rules: port unreachable."""
    got = answer(ipv4_frame(132, bytes(12)))
    assert got is not None
    assert (got.kind, got.frame[34:36]) == (Refusal.ICMP, b"\3\3")
    check_sums(got.frame)


def test_extension_headers_are_passed() -> None:
    """A SYN behind hop-by-hop options and a first fragment is reset; a later fragment is not."""
    options = bytes([44, 0]) + bytes(6)
    first = bytes([6, 0, 0, 1]) + bytes(4)
    got = answer(ipv6_frame(0, options + first + SYN_SEGMENT))
    assert got is not None
    assert layers(got.frame)["tcp"].ack == 8
    later = bytes([6, 0, 0, 8]) + bytes(4)
    assert answer(ipv6_frame(0, options + later + SYN_SEGMENT)) is None


@pytest.mark.parametrize(
    "request_frame",
    [
        ipv4_frame(1, bytes(8)),
        ipv4_frame(17, bytes(8), fragment=5),
        ipv4_frame(17, bytes(8), source="0.0.0.0"),
        ipv4_frame(17, bytes(8), source="127.0.0.1"),
        ipv4_frame(17, bytes(8), source="224.0.0.1"),
        ipv4_frame(17, bytes(8), source="255.255.255.255"),
        b"\xff" * 6 + ipv4_frame(17, bytes(8))[6:],
        ipv4_frame(17, bytes(7)),
        ipv4_frame(6, SYN_SEGMENT[:19]),
        ipv6_frame(58, bytes(8)),
        ipv6_frame(59, b""),
        b"",
    ],
)
def test_no_answer(request_frame: bytes) -> None:
    """ICMP, later fragments, sources that are no host, broadcasts, and what is too short."""
    assert answer(request_frame) is None


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    """Whatever comes, nothing is raised; what is answered is well-formed."""
    heads = (b"", ipv4_frame(6, b"")[:14], ipv6_frame(6, b"")[:14], ipv6_frame(6, b"")[:54])
    for head in (*heads, ipv4_frame(6, b"")[:24], ipv4_frame(17, b"")):
        got = answer(head + data)
        if got is not None:
            check_sums(got.frame)


@given(st.integers(0, 74), st.sampled_from([V4, V6]))
def test_truncated(kept: int, ends: tuple[str, str]) -> None:
    """A SYN cut anywhere is answered only when its whole TCP header is there."""
    whole = frame(ends, tcp.tcp(1, 2, seq=5, bits=SYN))
    got = answer(whole[:kept])
    header_end = 54 if ends is V4 else 74
    assert (got is not None) == (kept >= header_end)
