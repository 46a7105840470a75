"""ICMP errors about translated connections on a real switch: they reach whoever sent too much."""

import struct
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import pytest

from dunlin.events.facts import AnyFact, Endpoint, Protocol
from dunlin.model.addresses import GATEWAY_MAC
from dunlin.openflow import codec
from dunlin.openflow.messages import ErrorMessage
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK
from tests.fixtures.ovs_dummy import DEADLINE_S, OpenFlowSocket, OvsBridge, OvsDummy
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    GATEWAY,
    NODE_IP,
    NODE_IP6,
    UPLINK,
    at,
    endpoints,
    pod_ip,
    pod_mac,
    program_of,
    service,
)
from tests.unit.planner.build import switch

pytestmark = pytest.mark.ovs

OUTSIDE = 9
"""A port that stands for br-ext: what comes in there is marked and continues as the uplink's."""
POD = 11
CLUSTER_IP, CLUSTER_IP6 = "10.96.0.10", "fd00:10:96::10"
FAR, FAR6 = "192.0.2.77", "2001:db8::77"
ROUTER, ROUTER6 = "192.0.2.254", "2001:db8::254"
ROUTER_MAC = str(switch("n1").router_mac)
UPLINK_MAC = "02:00:00:00:00:01"


class Udp(NamedTuple):
    """A datagram: addresses and ports."""

    src: str
    sport: int
    dst: str
    dport: int

    @property
    def back(self) -> "Udp":
        """Its answer."""
        return Udp(self.dst, self.dport, self.src, self.sport)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def ip_packet(src: str, dst: str, protocol: int, body: bytes) -> bytes:
    """With an IPv4 or IPv6 header; don't fragment."""
    source, target = ip_address(src), ip_address(dst)
    if source.version == 6:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return head + source.packed + target.packed + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0x4000, 64, protocol, 0)
    head += source.packed + target.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def pseudo(src: str, dst: str, protocol: int, length: int) -> bytes:
    """What a checksum of layer 4 counts of IP."""
    source, target = ip_address(src).packed, ip_address(dst).packed
    if len(source) == 16:
        return source + target + struct.pack("!IHBB", length, 0, 0, protocol)
    return source + target + struct.pack("!BBH", 0, protocol, length)


def udp(datagram: Udp) -> bytes:
    """The whole IP packet, with right checksums."""
    bare = struct.pack("!HHHH", datagram.sport, datagram.dport, 12, 0) + b"data"
    total = checksum(pseudo(datagram.src, datagram.dst, 17, len(bare)) + bare) or 0xFFFF
    body = bare[:6] + struct.pack("!H", total) + bare[8:]
    return ip_packet(datagram.src, datagram.dst, 17, body)


def too_big(router: str, about: bytes) -> bytes:
    """ICMP's "fragmentation needed" or "packet too big" of 1,300 octets, to whom sent `about`."""
    version = about[0] >> 4
    source = about[12:16] if version == 4 else about[8:24]
    target = str(ip_address(source))
    kind, code, protocol = (3, 4, 1) if version == 4 else (2, 0, 58)
    bare = struct.pack("!BBHI", kind, code, 0, 1300) + about
    counted = bare if version == 4 else pseudo(router, target, protocol, len(bare)) + bare
    body = bare[:2] + struct.pack("!H", checksum(counted)) + bare[4:]
    return ip_packet(router, target, protocol, body)


class Site:
    """n1's pipeline on a bridge whose ports are files."""

    def __init__(self, bridge: OvsBridge, *facts: AnyFact, generation: int = 0) -> None:
        """Load it."""
        self.bridge = bridge
        self._seen: dict[int, int] = {}
        for port in (GATEWAY, UPLINK, OUTSIDE, POD):
            name = f"{bridge.name}-{port}"
            bridge.add_port(name, port)
            pcap = f"options:tx_pcap={bridge.ovs.directory}/{name}.pcap"
            bridge.ovs.vsctl("set", "interface", name, pcap)
        program = program_of(*facts, generation=generation)
        messages = [codec.encode_group(group, "add") for group in program.groups]
        messages += [codec.encode_flow(flow, "add") for flow in program.flows]
        session = OpenFlowSocket(bridge.management)
        errors = [a for a in session.ask(*messages) if isinstance(a, ErrorMessage)]
        session.close()
        assert not errors, errors
        marked = f"set_field:{EXTERNAL_PKT_MARK}->pkt_mark,load:{UPLINK}->NXM_OF_IN_PORT[]"
        bridge.ofctl("add-flow", f"priority=65535,in_port={OUTSIDE},actions={marked},resubmit(,0)")
        bridge.ovs.appctl("dpctl/flush-conntrack")

    def send(self, port: int, packet: bytes) -> None:
        """A frame comes in."""
        src, dst = {
            POD: (str(pod_mac(1)), str(GATEWAY_MAC)),
            GATEWAY: (ROUTER_MAC, str(GATEWAY_MAC)),
            UPLINK: ("02:00:00:00:00:02", ROUTER_MAC),
            OUTSIDE: ("02:00:00:00:00:fe", UPLINK_MAC),
        }[port]
        macs = bytes.fromhex((dst + src).replace(":", ""))
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        frame = (macs + kind + packet).ljust(60, b"\0")
        self.bridge.ovs.appctl("netdev-dummy/receive", f"{self.bridge.name}-{port}", frame.hex())

    def out(self, *ports: int) -> bytes:
        """The next IP packet that comes out at one of these ports."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            for port in ports:
                found = self._frames(port)
                if len(found) > self._seen.get(port, 0):
                    self._seen[port] = len(found)
                    return found[-1][14:]
            assert time.monotonic() < deadline, self.bridge.ovs.appctl("dpctl/dump-flows", "-m")
            time.sleep(0.01)

    def _frames(self, port: int) -> list[bytes]:
        path = self.bridge.ovs.directory / f"{self.bridge.name}-{port}.pcap"
        data, found = path.read_bytes()[24:], []
        while len(data) >= 16:
            (length,) = struct.unpack_from("<I", data, 8)
            found.append(data[16 : 16 + length])
            data = data[16 + length :]
        return found


def datagram(packet: bytes) -> Udp:
    """What a packet is, from its header and ports."""
    if packet[0] >> 4 == 4:
        src, dst, body = IPv4Address(packet[12:16]), IPv4Address(packet[16:20]), packet[20:]
        return Udp(str(src), _port(body), str(dst), _port(body[2:]))
    source, target = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    return Udp(str(source), _port(packet[40:]), str(target), _port(packet[42:]))


def _port(data: bytes) -> int:
    return int.from_bytes(data[:2], "big")


def error(packet: bytes) -> tuple[str, Udp]:
    """To whom an ICMP error goes, and about what; its checksums are right."""
    v4 = packet[0] >> 4 == 4
    head = 20 if v4 else 40
    length = int.from_bytes(packet[2:4], "big") if v4 else 40 + int.from_bytes(packet[4:6], "big")
    body = packet[head:length]
    assert body[0] == (3 if v4 else 2)
    assert int.from_bytes(body[4:8], "big") == 1300
    src, dst = (packet[12:16], packet[16:20]) if v4 else (packet[8:24], packet[24:40])
    target = str(ip_address(dst))
    counted = body if v4 else pseudo(str(ip_address(src)), target, 58, len(body)) + body
    assert checksum(counted) == 0
    if v4:
        assert checksum(packet[:20]) == 0
        assert checksum(body[8:28]) == 0
    return target, datagram(body[8:])


@pytest.fixture
def bare_bridge(ovs_dummy: OvsDummy) -> Iterator[OvsBridge]:
    """A bridge without ports."""
    with ovs_dummy.bridge() as bridge:
        yield bridge


def web(*found: Endpoint) -> tuple[AnyFact, ...]:
    """default/web over UDP, in both families."""
    return (
        service(CLUSTER_IP, CLUSTER_IP6, protocol=Protocol.UDP),
        endpoints(*found, protocol=Protocol.UDP),
    )


OVS_BUG = pytest.mark.xfail(
    strict=True,
    reason="Open vSwitch (3.1, 3.5) writes the inner checksum to the wrong place: docs/LIMITS.md",
)


@pytest.fixture(params=[4, pytest.param(6, marks=OVS_BUG)], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    """Of the test's packets."""
    return int(request.param)


def pick(version: int, four: str, six: str) -> str:
    """The address of that version."""
    return four if version == 4 else six


def test_about_an_answer_from_here(bare_bridge: OvsBridge, version: int) -> None:
    """To an outside client whose address is kept: the error reaches the Pod, about its packet."""
    site = Site(bare_bridge, *web(at(1, 1, version=version)))
    client, own = pick(version, CLIENT, CLIENT6), pick(version, NODE_IP, NODE_IP6)
    site.send(OUTSIDE, udp(Udp(client, 40000, own, 30080)))
    request = datagram(site.out(POD))
    assert request == Udp(client, 40000, pod_ip(1, 1, version), 8080)
    site.send(POD, udp(request.back))
    answer = site.out(GATEWAY, UPLINK)
    assert datagram(answer) == Udp(own, 30080, client, 40000)
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), answer))
    assert error(site.out(POD)) == (request.dst, request.back)


def test_about_an_answer_from_elsewhere(bare_bridge: OvsBridge, version: int) -> None:
    """The client's address is translated: the error goes on to the endpoint on its node."""
    site = Site(bare_bridge, *web(at(2, 1, version=version)))
    client, own = pick(version, CLIENT, CLIENT6), pick(version, NODE_IP, NODE_IP6)
    site.send(OUTSIDE, udp(Udp(client, 40000, own, 30080)))
    request = datagram(site.out(UPLINK))
    assert request.dst == pod_ip(2, 1, version)
    assert request.src != client
    site.send(UPLINK, udp(request.back))
    answer = site.out(GATEWAY, UPLINK)
    assert datagram(answer) == Udp(own, 30080, client, 40000)
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), answer))
    assert error(site.out(UPLINK)) == (request.dst, request.back)


@pytest.mark.parametrize("who", ["Pod", "node"])
def test_about_a_request(bare_bridge: OvsBridge, version: int, who: str) -> None:
    """To an endpoint beyond the cluster: the error reaches the client, about the cluster IP."""
    far = Endpoint(ip=ip_address(pick(version, FAR, FAR6)))
    site = Site(bare_bridge, *web(far))
    own = pick(version, NODE_IP, NODE_IP6)
    client = pod_ip(1, 1, version) if who == "Pod" else own
    sent = Udp(client, 40000, pick(version, CLUSTER_IP, CLUSTER_IP6), 80)
    port = POD if who == "Pod" else GATEWAY
    site.send(port, udp(sent))
    request = site.out(GATEWAY, UPLINK)
    assert datagram(request)[2:] == (str(far.ip), 8080)
    assert datagram(request).src == own
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), request))
    assert error(site.out(port)) == (client, sent)
