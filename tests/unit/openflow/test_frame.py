"""Addresses and ports of frames that a switch sends, whole or cut off, well made or not."""

import struct
from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from dunlin.openflow.frame import Headers, headers
from tests.unit.openflow.test_reject import SYN_SEGMENT, V4, V6, frame, ipv4_frame, ipv6_frame, udp

UDP_PORTS = struct.pack("!HHHH", 40000, 53, 8, 0)


def expected(ends: tuple[str, str], protocol: str, *ports: int) -> Headers:
    """As it should be read."""
    return Headers(ip_address(ends[0]), ip_address(ends[1]), protocol, *(ports or (0, 0)))


def test_both_families() -> None:
    """What os-ken's library writes is read."""
    for ends in (V4, V6):
        found = headers(frame(ends, udp.udp(40000, 53), b"data"))
        assert found == expected(ends, "UDP", 40000, 53)


def test_protocols() -> None:
    """Names of those that people know, numbers of others; ICMP has no ports."""
    assert headers(ipv4_frame(6, SYN_SEGMENT)) == expected(V4, "TCP", 1, 2)
    assert headers(ipv4_frame(1, bytes(8))) == expected(V4, "ICMP")
    assert headers(ipv6_frame(58, bytes(8))) == expected(V6, "ICMP")
    assert headers(ipv4_frame(47, bytes(8))) == expected(V4, "47")


def test_fragments_and_extensions() -> None:
    """Later fragments have no ports; extension headers are passed over."""
    assert headers(ipv4_frame(17, UDP_PORTS, fragment=100)) == expected(V4, "UDP")
    hop = bytes([17, 0]) + bytes(6)
    assert headers(ipv6_frame(0, hop + UDP_PORTS)) == expected(V6, "UDP", 40000, 53)
    later = bytes([17, 0, 1, 0]) + bytes(4)
    assert headers(ipv6_frame(44, later + UDP_PORTS)) == expected(V6, "UDP")


@given(st.binary(max_size=120), st.sampled_from([b"", b"\x08\x00\x45", b"\x86\xdd\x60"]))
def test_whatever_comes(data: bytes, begin: bytes) -> None:
    """Nothing that a Pod may send raises."""
    headers(bytes(12) + begin + data)
    headers(data)


def test_cut_off() -> None:
    """As far as it is there."""
    whole = ipv4_frame(17, UDP_PORTS)
    assert headers(whole[:36]) == expected(V4, "UDP")
    assert headers(whole[:33]) is None
    assert headers(bytes(12) + b"\x08\x06" + bytes(28)) is None
